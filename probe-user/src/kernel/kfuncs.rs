//! Puts the kernel's own functions into the programs that call them.

use std::borrow::Cow;

use probe_common::kfunc::{self, Kfunc};

use super::btf::Btf;

/// `call` (`include/uapi/linux/bpf.h`: `BPF_JMP | BPF_CALL`).
const CALL: u8 = 0x85;
/// `r0 = number` (`BPF_ALU64 | BPF_MOV | BPF_K`).
const MOVE: u8 = 0xb7;
/// Source register of a call of a kernel function.
const PSEUDO_KFUNC_CALL: u8 = 2;

/// First major release that preempts programs on tracepoints
/// (`include/linux/tracepoint.h:__DECLARE_TRACE_CALL`).
const PREEMPTS: u32 = 7;

/// The kernel functions that the programs are to call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kfuncs {
    /// Marker and BTF number of each.
    found: Vec<(Kfunc, u32)>,
}

impl Kfuncs {
    /// Those that this kernel has and that pay there. `release` is the
    /// kernel's own word.
    pub fn resolve(btf: &Btf, release: &str) -> Self {
        let mut groups: Vec<&[Kfunc]> = vec![&kfunc::PAYLOAD];
        // 40 ns an event: worth it where a program can be preempted, which may
        // skip the events of a whole time slice. Before, only an interrupt
        // within it does, and once in many thousand connections.
        if major(release) >= Some(PREEMPTS) {
            groups.push(&kfunc::IRQ);
        }
        // Either of a pair alone is of no use.
        let found = groups.into_iter().filter_map(|group| {
            let numbers = group
                .iter()
                .map(|one| Some((*one, btf.func(one.name)?)))
                .collect::<Option<Vec<_>>>()?;
            Some(numbers)
        });
        Self {
            found: found.flatten().collect(),
        }
    }

    /// Whether the payload of segments can be read.
    pub fn reads_payload(&self) -> bool {
        self.has(kfunc::DYNPTR_FROM_SKB)
    }

    fn has(&self, wanted: Kfunc) -> bool {
        self.found.iter().any(|(one, _)| *one == wanted)
    }

    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// The object with each call that stands for a kernel function replaced: by
    /// a call of that function, else by `r0 = 0`.
    pub fn link<'a>(&self, object: &'a [u8]) -> Cow<'a, [u8]> {
        let mut linked = Cow::Borrowed(object);
        let all = kfunc::IRQ.iter().chain(&kfunc::PAYLOAD);
        let instructions: Vec<([u8; 8], [u8; 8])> = all
            .map(|one| {
                let number = self.found.iter().find(|(found, _)| found == one);
                let to = match number {
                    Some(&(_, number)) => {
                        instruction(CALL, PSEUDO_KFUNC_CALL, number.cast_signed())
                    }
                    None => instruction(MOVE, 0, 0),
                };
                (instruction(CALL, 0, one.marker), to)
            })
            .collect();
        // Code is aligned in the file.
        for at in (0..object.len().saturating_sub(7)).step_by(8) {
            let here = &object[at..at + 8];
            if let Some((_, to)) = instructions.iter().find(|(from, _)| here == from) {
                linked.to_mut()[at..at + 8].copy_from_slice(to);
            }
        }
        linked
    }
}

/// `7.2.13-amd64` is 7.
fn major(release: &str) -> Option<u32> {
    release.split('.').next()?.parse().ok()
}

/// A `struct bpf_insn` without a destination.
fn instruction(code: u8, source: u8, immediate: i32) -> [u8; 8] {
    let [a, b, c, d] = immediate.to_le_bytes();
    [code, source << 4, 0, 0, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_becomes_the_function_or_nothing() {
        let kfuncs = Kfuncs {
            found: vec![(kfunc::IRQ_SAVE, 0x0102_0304)],
        };
        let helper = instruction(CALL, 0, 14);
        let object = [
            helper,
            instruction(CALL, 0, kfunc::IRQ_SAVE.marker),
            instruction(CALL, 0, kfunc::DYNPTR_FROM_SKB.marker),
            helper,
        ]
        .concat();
        let linked = kfuncs.link(&object);
        assert_eq!(linked[..8], helper);
        assert_eq!(linked[8..16], [0x85, 0x20, 0, 0, 4, 3, 2, 1]);
        assert_eq!(linked[16..24], [0xb7, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(linked[24..], helper);
    }

    #[test]
    fn the_major_release_is_the_first_number() {
        assert_eq!(major("7.2.13+deb14-cloud-amd64"), Some(7));
        assert_eq!(major("6.18.44-fc"), Some(6));
        assert_eq!(major("unknown"), None);
    }

    #[test]
    fn bytes_that_are_no_code_stay() {
        let object = [1, 2, 3, 0x85, 0, 0, 0, 1, 9];
        assert_eq!(Kfuncs::default().link(&object), object.as_slice());
    }
}
