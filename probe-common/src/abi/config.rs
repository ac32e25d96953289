//! Settings that user space hands to the programs as a read-only global: the
//! verifier removes the branches that are off.

use super::{drop::REASON_WORDS, pod};

/// Most network namespaces that can be named to watch.
pub const MAX_NETNS: usize = 16;

/// Sends are seen when they begin.
pub const SENDS_BEFORE: u32 = 0;
/// Sends are seen when they have returned.
pub const SENDS_AFTER: u32 = 1;
/// Sends are not seen.
pub const SENDS_UNSEEN: u32 = 2;

/// The settings.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ProbeConfig {
    /// Rows of the `ROWS` map, each of [`Self::shards`] shards.
    pub rows: u32,
    /// Shards of a row, a power of two; a CPU writes to its number modulo this.
    pub shards: u32,
    /// Slots of the `CONNS` map.
    pub conn_slots: u32,
    /// 1 where network namespaces are part of the key.
    pub key_netns: u32,
    /// How the owners of sockets are part of the key, see [`super::owner`].
    pub key_owner: u32,
    /// 1 where peer groups are configured.
    pub peers: u32,
    /// 1 where services are narrowed by address.
    pub groups: u32,
    /// How many network namespaces are named; 0 watches all, else those whose numbers
    /// are in the `WATCHED` map.
    pub netns_len: u32,
    /// This kernel's `SKB_DROP_REASON_NOT_SPECIFIED`.
    pub reason_not_specified: u32,
    /// The core's drop reasons by which drops are counted as nobody's at once, a bit for
    /// each: those that tell of no loss and, where the kernel does not tell the receiving
    /// socket, the lack of a reason, which each connection has at its end there.
    pub nobodys_drops: [u32; REASON_WORDS],
    /// How sends are seen: [`SENDS_BEFORE`] and so on.
    pub sends: u32,
    /// 1 where the kernel preempts programs, and replicas take the events at which
    /// it skips the first.
    pub preempts: u32,
    /// Flows of the device that are tracked separately.
    pub flows: u32,
    /// Slots of the `FLOWS` map, a power of two.
    pub flow_slots: u32,
    /// Keys of the hash of flows, random numbers.
    pub flow_keys: [u32; 10],
    /// 1 where the payload of segments can be read.
    pub payload: u32,
    /// 1 where losses are logged one by one. The level of the logger, a global of its
    /// own, then lets them pass; this keeps the call of the logger out of the programs.
    pub logs: u32,
}

pod! {
    ProbeConfig {
        rows, shards, conn_slots, key_netns, key_owner, peers, groups, netns_len,
        reason_not_specified, nobodys_drops, sends, preempts, flows, flow_slots, flow_keys, payload, logs,
    }
}
