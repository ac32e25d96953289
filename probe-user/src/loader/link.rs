//! Puts into the kernel programs what only the running kernel can tell: where its fields
//! lie, and its own functions.

use std::ops::Range;

use object::{Object as _, ObjectSection as _, SectionFlags, elf::SHF_EXECINSTR};
use probe_common::layout::{ABSENT, ENTRIES, KernelLayout, Marker, Source};

use crate::kernel::kfuncs::Kfuncs;

/// Bytes of a `struct bpf_insn`.
const INSTRUCTION: usize = 8;
/// Of a load from memory all bits of the code but those of its size
/// (`include/uapi/linux/bpf.h`: `BPF_LDX | BPF_MEM`).
const LOAD: u8 = 0x61;
const SIZE: u8 = 0x18;
/// The offset that makes the verifier refuse a load that is reached: no structure of
/// the kernel is as large.
const NOWHERE: i16 = i16::MAX;

/// The object for this kernel: each [`Marker`] is replaced by the offset of its field,
/// and each call that stands for a kernel function by what [`Kfuncs::call`] says.
///
/// # Errors
///
/// The object is no ELF file, or a field lies further into its structure than a load
/// reaches.
pub fn link(object: &[u8], layout: &KernelLayout, kfuncs: Kfuncs) -> anyhow::Result<Vec<u8>> {
    let values = layout.values();
    let mut linked = object.to_vec();
    for code in programs(object)? {
        let code = linked.get_mut(code).unwrap_or_default();
        for instruction in code.chunks_exact_mut(INSTRUCTION) {
            if instruction[0] & !SIZE == LOAD
                && let Some(marker) =
                    Marker::of(i16::from_le_bytes([instruction[2], instruction[3]]))
            {
                let offset = offset(marker, values[marker.entry])?;
                instruction[2..4].copy_from_slice(&offset.to_le_bytes());
            } else if let Some(call) = kfuncs.call(instruction) {
                instruction.copy_from_slice(&call);
            }
        }
    }
    Ok(linked)
}

/// Where the instructions lie in the file.
fn programs(object: &[u8]) -> anyhow::Result<Vec<Range<usize>>> {
    let file = object::File::parse(object)?;
    let ranges = file.sections().filter_map(|section| {
        let SectionFlags::Elf { sh_flags } = section.flags() else {
            return None;
        };
        let (start, length) = section.file_range()?;
        let is_code = sh_flags & u64::from(SHF_EXECINSTR) != 0;
        is_code.then_some(start as usize..(start + length) as usize)
    });
    Ok(ranges.collect())
}

/// The offset in a load; `value` is that of the entry in the layout.
fn offset(marker: Marker, value: u32) -> anyhow::Result<i16> {
    let source = ENTRIES[marker.entry].source;
    let start = match (value, source) {
        (ABSENT, _) => return Ok(NOWHERE),
        (value, Source::Bits(_)) => value & 0xffff,
        (value, _) => value,
    };
    let offset = i16::try_from(start + marker.add);
    offset.map_err(|_| anyhow::anyhow!("{source:?} lies {start} bytes into its structure"))
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::loader::load::OBJECT;

    fn loads(object: &[u8]) -> impl Iterator<Item = i16> {
        let programs = programs(object).expect("an object");
        let instructions = (programs.into_iter())
            .flat_map(|code| object[code].chunks_exact(INSTRUCTION).collect::<Vec<_>>());
        instructions
            .filter(|instruction| instruction[0] & !SIZE == LOAD)
            .map(|instruction| i16::from_le_bytes([instruction[2], instruction[3]]))
    }

    #[test]
    fn each_marker_becomes_the_offset_of_its_field() {
        let mut values = [ABSENT; ENTRIES.len()];
        for (n, (value, entry)) in values.iter_mut().zip(ENTRIES).enumerate() {
            *value = match entry.source {
                Source::Bits(_) => 0x0105_0000 | n as u32,
                _ => 1000 + n as u32,
            };
        }
        let layout = KernelLayout::from_values(values);
        let linked = link(OBJECT, &layout, Kfuncs::default()).expect("it links");
        let mut marked = 0;
        for (before, after) in loads(OBJECT).zip(loads(&linked)) {
            match Marker::of(before) {
                Some(Marker { entry, add }) => {
                    let expected = match ENTRIES[entry].source {
                        Source::Bits(_) => entry,
                        _ => 1000 + entry,
                    };
                    assert_eq!(after as u32, expected as u32 + add);
                    marked += 1;
                }
                None => assert_eq!(after, before),
            }
        }
        assert!(marked > 100, "{marked} loads of fields");
    }

    #[test]
    fn a_field_that_is_not_there_is_nowhere() {
        let marker = Marker { entry: 0, add: 8 };
        assert_eq!(offset(marker, ABSENT).expect("an offset"), NOWHERE);
        assert_eq!(offset(marker, 16).expect("an offset"), 24);
        assert!(offset(marker, 40_000).is_err());
    }

    #[test]
    fn a_marker_is_read_as_it_is_written() {
        let member = offset_of!(KernelLayout, skc_v6_daddr);
        let below = i16::try_from(Marker::below(member, 8)).expect("16 bits");
        let marker = Marker {
            entry: member / size_of::<u32>(),
            add: 8,
        };
        assert_eq!(Marker::of(-below), Some(marker));
        assert_eq!(Marker::of(0), None);
        assert_eq!(Marker::of(-512), None, "on the stack");
    }
}
