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

const fn kfunc(n: i32, name: &'static str) -> Kfunc {
    Kfunc {
        marker: 0x6570_0000 + n,
        name,
    }
}

/// `void bpf_local_irq_save(unsigned long *flags)` (6.14 and later).
pub const IRQ_SAVE: Kfunc = kfunc(1, "bpf_local_irq_save");
/// `void bpf_local_irq_restore(unsigned long *flags)` (6.14 and later).
pub const IRQ_RESTORE: Kfunc = kfunc(2, "bpf_local_irq_restore");
/// `int bpf_dynptr_from_skb(struct sk_buff *skb, u64 flags, struct bpf_dynptr *ptr)`
/// (for tracing programs 6.12 and later).
pub const DYNPTR_FROM_SKB: Kfunc = kfunc(3, "bpf_dynptr_from_skb");

/// What keeps a program from being interrupted.
pub const IRQ: [Kfunc; 2] = [IRQ_SAVE, IRQ_RESTORE];
/// What reads the payload of a segment.
pub const PAYLOAD: [Kfunc; 1] = [DYNPTR_FROM_SKB];
