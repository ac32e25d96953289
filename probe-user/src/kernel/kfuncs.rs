//! The kernel's own functions that the programs call.

use probe_common::kfunc::{DYNPTR_FROM_SKB, Instead, KFUNCS, Kfunc, UNINTERRUPTED};

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
        let all = Self {
            numbers: KFUNCS.map(|kfunc| btf.func(kfunc.name)),
        };
        match UNINTERRUPTED.iter().find(|one| all.with(**one).is_none()) {
            Some(missing) => all.without(*missing),
            None => all,
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

    /// The others, without those that are called together with it.
    pub fn without(self, left_out: Kfunc) -> Self {
        let goes = |kfunc: Kfunc| {
            kfunc == left_out || UNINTERRUPTED.contains(&kfunc) && UNINTERRUPTED.contains(&left_out)
        };
        Self {
            numbers: KFUNCS.map(|kfunc| self.with(kfunc).filter(|_| !goes(kfunc))),
        }
    }

    fn with(self, wanted: Kfunc) -> Option<u32> {
        let mut all = KFUNCS.into_iter().zip(self.numbers);
        all.find_map(|(kfunc, number)| number.filter(|_| kfunc == wanted))
    }

    /// What takes the place of an instruction that stands for a call of a kernel function:
    /// a call of that function, else what stands in for it. `None` for any other one.
    pub fn call(self, code: &[u8]) -> Option<[u8; 8]> {
        let is_meant = |kfunc: &Kfunc| code == instruction(CALL, 0, kfunc.marker);
        let kfunc = KFUNCS.into_iter().find(is_meant)?;
        Some(match (self.with(kfunc), kfunc.instead) {
            (Some(number), _) => instruction(CALL, PSEUDO_KFUNC_CALL, number.cast_signed()),
            (None, Instead::Zero) => instruction(MOVE, 0, 0),
            (None, Instead::Helper(number)) => instruction(CALL, 0, number),
        })
    }
}

/// A `struct bpf_insn` without a destination.
fn instruction(code: u8, source: u8, immediate: i32) -> [u8; 8] {
    let [a, b, c, d] = immediate.to_le_bytes();
    [code, source << 4, 0, 0, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use probe_common::kfunc::{IRQ_SAVE, RDONLY_CAST};

    use super::*;

    #[test]
    fn a_call_becomes_the_function_or_what_stands_in_for_it() {
        let all = Kfuncs {
            numbers: [Some(0x0102_0304), Some(5), None, None, None, None],
        };
        let (zero, helper) = ([0xb7, 0, 0, 0, 0, 0, 0, 0], [0x85, 0, 0, 0, 137, 0, 0, 0]);
        let payload = [0x85, 0x20, 0, 0, 4, 3, 2, 1];
        let cast = [0x85, 0x20, 0, 0, 5, 0, 0, 0];
        for (kfuncs, expected) in [
            (all, [payload, cast]),
            (all.without(DYNPTR_FROM_SKB), [zero, cast]),
            (Kfuncs::default(), [zero, helper]),
        ] {
            let calls = KFUNCS.map(|kfunc| kfuncs.call(&instruction(CALL, 0, kfunc.marker)));
            let [payload, cast, others @ ..] = calls;
            assert_eq!([payload, cast], expected.map(Some), "{kfuncs:?}");
            assert!(others.iter().all(|call| *call == Some(zero)), "{others:?}");
            assert_eq!(kfuncs.call(&instruction(CALL, 0, 14)), None, "a helper");
        }
    }

    #[test]
    fn functions_are_left_out_one_by_one() {
        let all = Kfuncs {
            numbers: [Some(1), Some(2), Some(3), Some(4), Some(5), Some(6)],
        };
        let first = all.first().expect("all are there");
        let rest = all.without(first);
        assert_eq!((all.reads_payload(), rest.reads_payload()), (true, false));
        let [second, third] = [RDONLY_CAST, IRQ_SAVE];
        assert_eq!(rest.first(), Some(second));
        assert_eq!(rest.without(second).without(third), Kfuncs::default());
        assert_eq!(Kfuncs::default().first(), None);
    }
}
