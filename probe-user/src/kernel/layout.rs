//! Looks up the kernel fields that the programs read.

use probe_common::layout::{ABSENT, ENTRIES, Entry, KernelLayout, Source};

use super::btf::Btf;

/// A field that the tool cannot do without is not there.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// It is missing.
    #[error("this kernel has no field {0}, which edgeprobe needs; see `edgeprobe doctor`")]
    Missing(&'static str),
    /// It has another size than the programs load.
    #[error("field {name} is {found} bytes on this kernel, edgeprobe reads {expected}")]
    Size {
        /// The field.
        name: &'static str,
        /// Size on this kernel in bytes.
        found: u32,
        /// Size that the programs load in bytes.
        expected: u32,
    },
}

/// The layout of a kernel.
///
/// # Errors
///
/// A required field is missing or has another size.
pub fn resolve(btf: &Btf) -> Result<KernelLayout, LayoutError> {
    let mut values = [ABSENT; ENTRIES.len()];
    for (value, entry) in values.iter_mut().zip(ENTRIES) {
        *value = resolve_entry(btf, entry)?;
    }
    Ok(KernelLayout::from_values(values))
}

fn resolve_entry(btf: &Btf, entry: &Entry) -> Result<u32, LayoutError> {
    let (name, found) = match entry.source {
        Source::Argument(tracepoint, argument) => {
            let args = btf.tracepoint_args(tracepoint).unwrap_or_default();
            (
                argument,
                args.iter()
                    .position(|name| name == argument)
                    .map(|n| n as u32),
            )
        }
        Source::Type(name) => (name, btf.structure(name)),
        Source::Bits(path) => {
            let field = btf
                .field(path)
                .filter(|field| field.bit_offset / 8 <= 0xffff);
            let value = field.and_then(|field| {
                let bits = field.bits?;
                let shift = field.bit_offset % 8;
                (shift + bits <= 8).then_some((field.bit_offset / 8) | (shift << 16) | bits << 24)
            });
            (path, value)
        }
        Source::Field(path) => (path, byte_offset(btf, path, entry.size)?),
        Source::ControlBlock(path) => {
            let start = byte_offset(btf, "sk_buff.cb", 0)?;
            let offset = byte_offset(btf, path, entry.size)?;
            (
                path,
                start.zip(offset).map(|(start, offset)| start + offset),
            )
        }
    };
    match found {
        Some(value) => Ok(value),
        None if entry.required => Err(LayoutError::Missing(name)),
        None => Ok(ABSENT),
    }
}

/// Where a member lies that is no bit field; `size` is what it must have, or 0.
fn byte_offset(btf: &Btf, path: &'static str, size: u32) -> Result<Option<u32>, LayoutError> {
    let field = btf.field(path).filter(|field| field.bits.is_none());
    match field {
        Some(field) if size != 0 && field.size != size => Err(LayoutError::Size {
            name: path,
            found: field.size,
            expected: size,
        }),
        field => Ok(field.map(|field| field.bit_offset / 8)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_has_moved_is_found_in_one_place() {
        let Ok(btf) = Btf::from_sys_fs() else {
            println!("SKIPPED: a_field_that_has_moved_is_found_in_one_place: no BTF here");
            return;
        };
        let layout = resolve(&btf).expect("a supported kernel");
        let timers = [layout.icsk_timer_expires, layout.sk_timer_expires];
        let found = timers.iter().filter(|offset| **offset != ABSENT).count();
        assert_eq!(found, 1, "{timers:?}");
    }
}
