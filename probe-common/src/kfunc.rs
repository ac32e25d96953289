//! Kernel functions that the programs call where the running kernel has them
//! (`Documentation/bpf/kfuncs.rst`).
//!
//! The compiler knows nothing of them: a program calls a helper with one of
//! these numbers, which no helper has. Before user space loads the programs it
//! puts the function that BTF names in that place or, where there is none, an
//! instruction that returns zero.

/// A kernel function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kfunc {
    /// Helper number that stands for it.
    pub marker: i32,
    /// Its name.
    pub name: &'static str,
}

/// `int bpf_dynptr_from_skb(struct sk_buff *skb, u64 flags, struct bpf_dynptr *ptr)`:
/// reads the payload of a segment (for tracing programs 6.12 and later).
pub const DYNPTR_FROM_SKB: Kfunc = Kfunc {
    marker: 0x6570_0001,
    name: "bpf_dynptr_from_skb",
};
