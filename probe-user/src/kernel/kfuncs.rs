//! Puts the kernel's own functions into the programs that call them.

use std::borrow::Cow;

use probe_common::kfunc::{DYNPTR_FROM_SKB, Instead, KFUNCS, Kfunc};

use super::btf::Btf;

/// `call` (`include/uapi/linux/bpf.h`: `BPF_JMP | BPF_CALL`).
const CALL: u8 = 0x85;
/// `r0 = number` (`BPF_ALU64 | BPF_MOV | BPF_K`).
const MOVE: u8 = 0xb7;
/// Source register of a call of a kernel function.
const PSEUDO_KFUNC_CALL: u8 = 2;

/// The kernel functions that the programs are to call: the number in BTF of each
/// of [`KFUNCS`] that the kernel has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kfuncs {
    numbers: [Option<u32>; KFUNCS.len()],
}

impl Kfuncs {
    /// Those that this kernel has.
    pub fn resolve(btf: &Btf) -> Self {
        Self {
            numbers: KFUNCS.map(|kfunc| btf.func(kfunc.name)),
        }
    }

    /// Whether the payload of segments can be read.
    pub fn reads_payload(self) -> bool {
        self.with(DYNPTR_FROM_SKB).is_some()
    }

    /// The first of them that are there, if any.
    pub fn first(self) -> Option<Kfunc> {
        KFUNCS.into_iter().find(|kfunc| self.with(*kfunc).is_some())
    }

    /// The others.
    pub fn without(self, left_out: Kfunc) -> Self {
        Self {
            numbers: KFUNCS.map(|kfunc| self.with(kfunc).filter(|_| kfunc != left_out)),
        }
    }

    fn with(self, wanted: Kfunc) -> Option<u32> {
        let mut all = KFUNCS.into_iter().zip(self.numbers);
        all.find_map(|(kfunc, number)| number.filter(|_| kfunc == wanted))
    }

    /// The object with each call that stands for a kernel function replaced: by
    /// a call of that function, else by what stands in for it.
    pub fn link(self, object: &[u8]) -> Cow<'_, [u8]> {
        let calls = KFUNCS.map(|kfunc| {
            let to = match (self.with(kfunc), kfunc.instead) {
                (Some(number), _) => instruction(CALL, PSEUDO_KFUNC_CALL, number.cast_signed()),
                (None, Instead::Zero) => instruction(MOVE, 0, 0),
                (None, Instead::Helper(number)) => instruction(CALL, 0, number),
            };
            (instruction(CALL, 0, kfunc.marker), to)
        });
        let mut linked = Cow::Borrowed(object);
        // Code is aligned in the file.
        for at in (0..object.len().saturating_sub(7)).step_by(8) {
            if let Some((_, to)) = calls.iter().find(|(from, _)| object[at..at + 8] == *from) {
                linked.to_mut()[at..at + 8].copy_from_slice(to);
            }
        }
        linked
    }
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
    fn a_call_becomes_the_function_or_what_stands_in_for_it() {
        let helper = instruction(CALL, 0, 14);
        let [payload, cast] = KFUNCS.map(|kfunc| instruction(CALL, 0, kfunc.marker));
        let object = [helper, payload, cast, helper].concat();
        let all = Kfuncs {
            numbers: [Some(0x0102_0304), Some(5)],
        };
        for (kfuncs, payload, cast) in [
            (
                all,
                [0x85, 0x20, 0, 0, 4, 3, 2, 1],
                [0x85, 0x20, 0, 0, 5, 0, 0, 0],
            ),
            (
                all.without(DYNPTR_FROM_SKB),
                [0xb7, 0, 0, 0, 0, 0, 0, 0],
                [0x85, 0x20, 0, 0, 5, 0, 0, 0],
            ),
            (
                Kfuncs::default(),
                [0xb7, 0, 0, 0, 0, 0, 0, 0],
                [0x85, 0, 0, 0, 137, 0, 0, 0],
            ),
        ] {
            let expected = [helper, payload, cast, helper].concat();
            assert_eq!(*kfuncs.link(&object), expected, "{kfuncs:?}");
        }
    }

    #[test]
    fn functions_are_left_out_one_by_one() {
        let all = Kfuncs {
            numbers: [Some(1), Some(2)],
        };
        let first = all.first().expect("both are there");
        let rest = all.without(first);
        assert_eq!((all.reads_payload(), rest.reads_payload()), (true, false));
        let last = rest.first().expect("one is left");
        assert_eq!(rest.without(last), Kfuncs::default());
        assert_eq!(Kfuncs::default().first(), None);
    }

    #[test]
    fn bytes_that_are_no_code_stay() {
        let object = [1, 2, 3, 0x85, 0, 0, 0, 1, 9];
        assert_eq!(*Kfuncs::default().link(&object), object);
    }
}
