//! Puts the kernel's own functions into the programs that call them.

use std::borrow::Cow;

use probe_common::kfunc::DYNPTR_FROM_SKB;

use super::btf::Btf;

/// `call` (`include/uapi/linux/bpf.h`: `BPF_JMP | BPF_CALL`).
const CALL: u8 = 0x85;
/// `r0 = number` (`BPF_ALU64 | BPF_MOV | BPF_K`).
const MOVE: u8 = 0xb7;
/// Source register of a call of a kernel function.
const PSEUDO_KFUNC_CALL: u8 = 2;

/// The kernel functions that the programs are to call: the number in BTF of
/// [`DYNPTR_FROM_SKB`], if the kernel has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kfuncs {
    dynptr_from_skb: Option<u32>,
}

impl Kfuncs {
    /// Those that this kernel has.
    pub fn resolve(btf: &Btf) -> Self {
        Self {
            dynptr_from_skb: btf.func(DYNPTR_FROM_SKB.name),
        }
    }

    /// Whether the payload of segments can be read.
    pub fn reads_payload(self) -> bool {
        self.dynptr_from_skb.is_some()
    }

    /// The object with each call that stands for a kernel function replaced: by
    /// a call of that function, else by `r0 = 0`.
    pub fn link(self, object: &[u8]) -> Cow<'_, [u8]> {
        let from = instruction(CALL, 0, DYNPTR_FROM_SKB.marker);
        let to = match self.dynptr_from_skb {
            Some(number) => instruction(CALL, PSEUDO_KFUNC_CALL, number.cast_signed()),
            None => instruction(MOVE, 0, 0),
        };
        let mut linked = Cow::Borrowed(object);
        // Code is aligned in the file.
        for at in (0..object.len().saturating_sub(7)).step_by(8) {
            if object[at..at + 8] == from {
                linked.to_mut()[at..at + 8].copy_from_slice(&to);
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
    fn a_call_becomes_the_function_or_nothing() {
        let helper = instruction(CALL, 0, 14);
        let marked = instruction(CALL, 0, DYNPTR_FROM_SKB.marker);
        let object = [helper, marked, helper].concat();
        for (number, expected) in [
            (Some(0x0102_0304), [0x85, 0x20, 0, 0, 4, 3, 2, 1]),
            (None, [0xb7, 0, 0, 0, 0, 0, 0, 0]),
        ] {
            let kfuncs = Kfuncs {
                dynptr_from_skb: number,
            };
            assert_eq!(*kfuncs.link(&object), [helper, expected, helper].concat());
        }
    }

    #[test]
    fn bytes_that_are_no_code_stay() {
        let object = [1, 2, 3, 0x85, 0, 0, 0, 1, 9];
        assert_eq!(*Kfuncs::default().link(&object), object);
    }
}
