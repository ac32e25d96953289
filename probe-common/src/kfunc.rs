//! Kernel functions that the programs call where the running kernel has them
//! (`Documentation/bpf/kfuncs.rst`).
//!
//! The compiler knows nothing of them: a program calls a helper with one of
//! these numbers, which no helper has. Before user space loads the programs it
//! puts the function that BTF names in that place or, where there is none, what
//! stands in for it.

/// A kernel function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kfunc {
    /// Helper number that stands for it.
    pub marker: i32,
    /// Its name.
    pub name: &'static str,
    /// What is called where the kernel does not have it.
    pub instead: Instead,
}

/// What stands in for a kernel function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instead {
    /// Nothing: the call returns zero.
    Zero,
    /// The helper of that number (`include/uapi/linux/bpf.h:enum bpf_func_id`).
    Helper(i32),
}

/// `int bpf_dynptr_from_skb(struct sk_buff *skb, u64 flags, struct bpf_dynptr *ptr)`:
/// reads the payload of a segment (for tracing programs 6.12 and later).
pub const DYNPTR_FROM_SKB: Kfunc = Kfunc {
    marker: 0x6570_0001,
    name: "bpf_dynptr_from_skb",
    instead: Instead::Zero,
};

/// `void *bpf_rdonly_cast(const void *obj, u32 btf_id)`: a pointer that is read as one
/// to another type, without a look at what it points to (6.2 and later). The verifier
/// turns the call into a move. Where there is none, the helper `bpf_skc_to_tcp_sock`
/// takes the same first argument.
pub const RDONLY_CAST: Kfunc = Kfunc {
    marker: 0x6570_0002,
    name: "bpf_rdonly_cast",
    instead: Instead::Helper(137),
};

/// `void bpf_preempt_disable(void)`: the process stays on its CPU (6.10 and later).
pub const PREEMPT_DISABLE: Kfunc = Kfunc {
    marker: 0x6570_0003,
    name: "bpf_preempt_disable",
    instead: Instead::Zero,
};

/// `void bpf_preempt_enable(void)`: ends that.
pub const PREEMPT_ENABLE: Kfunc = Kfunc {
    marker: 0x6570_0004,
    name: "bpf_preempt_enable",
    instead: Instead::Zero,
};

/// `void bpf_local_irq_save(unsigned long *flags)`: no interrupt comes (6.14 and later).
pub const IRQ_SAVE: Kfunc = Kfunc {
    marker: 0x6570_0005,
    name: "bpf_local_irq_save",
    instead: Instead::Zero,
};

/// `void bpf_local_irq_restore(unsigned long *flags)`: ends that.
pub const IRQ_RESTORE: Kfunc = Kfunc {
    marker: 0x6570_0006,
    name: "bpf_local_irq_restore",
    instead: Instead::Zero,
};

/// Those that keep a program from being preempted: all of them are called, or none.
pub const UNINTERRUPTED: [Kfunc; 4] = [PREEMPT_DISABLE, PREEMPT_ENABLE, IRQ_SAVE, IRQ_RESTORE];

/// All of them.
pub const KFUNCS: [Kfunc; 6] = [
    DYNPTR_FROM_SKB,
    RDONLY_CAST,
    PREEMPT_DISABLE,
    PREEMPT_ENABLE,
    IRQ_SAVE,
    IRQ_RESTORE,
];
