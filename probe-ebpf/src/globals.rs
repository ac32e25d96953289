//! Read-only globals that user space sets before the programs are loaded.

use probe_common::{
    abi::{config::ProbeConfig, drop::REASON_WORDS},
    layout::{ABSENT, ENTRIES, KernelLayout},
};

/// Where this kernel keeps its fields.
#[unsafe(no_mangle)]
pub static LAYOUT: KernelLayout = KernelLayout::from_values([ABSENT; ENTRIES.len()]);

/// How the kernel writes a place in its code: name of the function, offset and size.
#[unsafe(no_mangle)]
pub static PLACE_FORMAT: [u8; 4] = *b"%pB\0";

/// The settings.
#[unsafe(no_mangle)]
pub static CONFIG: ProbeConfig = ProbeConfig {
    rows: 1,
    shards: 1,
    conn_slots: 1,
    key_netns: 0,
    key_owner: 0,
    peers: 0,
    groups: 0,
    netns_len: 0,
    reason_not_specified: 0,
    nobodys_drops: [0; REASON_WORDS],
    sends: 0,
    preempts: 0,
    flows: 1,
    flow_slots: 1,
    flow_keys: [0; 10],
    payload: 0,
    logs: 0,
};

/// Reads a member of a global. The read is volatile because the value is not
/// known when the program is compiled; to the verifier it is a constant.
#[inline(always)]
pub fn read<T: Copy>(member: &'static T) -> T {
    // SAFETY: a reference to a plain value is aligned and valid for a read.
    unsafe { core::ptr::read_volatile(member) }
}

/// `global!(LAYOUT.member)`, `global!(CONFIG.member)`.
macro_rules! global {
    ($name:ident.$($member:tt)+) => {
        $crate::globals::read(&$crate::globals::$name.$($member)+)
    };
}
pub(crate) use global;
