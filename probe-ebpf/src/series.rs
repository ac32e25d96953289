//! Rows: which one an event belongs to, and how it is written.

use aya_ebpf::{
    bindings::BPF_NOEXIST, btf_maps::LpmTrie, helpers::generated::bpf_get_smp_processor_id,
    maps::lpm_trie::Key,
};
use probe_common::{
    abi::conn::STATUS_SPARE_ROW,
    abi::owner::{self, CGROUP},
    abi::series::{
        Closed, Counters, Failed, Histogram, Kind, OVERFLOW_ROW, PEER_LOOPBACK, PEER_OTHER,
        PEER_PRIVATE, PEER_PUBLIC, REASON_UNAVAILABLE, ResetKey, Retransmit, Row, SeriesKey, Side,
        TlsFailed,
    },
    hist,
    hooks::{Cause, Hook},
};

use crate::{
    atomic,
    globals::global,
    kernel::sock::{Address, Sock, TcpSock},
    lost,
    maps::{self, GROUPS, NAMED_PORTS, NEXT_ROW, OWNER_OF, PEERS, RESETS, ROW_OF, ROWS, STATUS},
};

/// The shard that this CPU writes to.
#[inline(always)]
pub fn shard() -> u32 {
    // SAFETY: the helper takes no arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    cpu & (global!(CONFIG.shards) - 1)
}

/// One shard of one row.
#[derive(Clone, Copy)]
pub struct RowRef(*mut Row);

macro_rules! adders {
    ($($name:ident;)*) => {
        $(
            #[inline(always)]
            pub fn $name(self, amount: u64) {
                // SAFETY: a member of a map value.
                unsafe { atomic::add(&raw mut (*self.counters()).$name, amount) };
            }
        )*
    };
}

impl RowRef {
    /// The shard of this CPU of a row.
    #[inline(always)]
    pub fn get(row: u32) -> Option<Self> {
        ROWS.get_ptr_mut(row * global!(CONFIG.shards) + shard())
            .map(Self)
    }

    #[inline(always)]
    fn counters(self) -> *mut Counters {
        // SAFETY: a member of a map value.
        unsafe { &raw mut (*self.0).counters }
    }

    adders! {
        opened;
        open;
        aborted;
        sent_bytes;
        received_bytes;
        sent_segments;
        received_segments;
        spurious_retransmits;
        out_of_order;
        zero_window;
        syn_cookies;
    }

    /// One TLS handshake not completed.
    #[inline(always)]
    pub fn tls_failed(self, why: TlsFailed) {
        // SAFETY: a member of a map value.
        unsafe { atomic::add(&raw mut (*self.counters()).tls_failed[why as usize], 1) };
    }

    /// One connection closed.
    #[inline(always)]
    pub fn closed(self, how: Closed) {
        // SAFETY: a member of a map value.
        unsafe { atomic::add(&raw mut (*self.counters()).closed[how as usize], 1) };
    }

    /// One connection not established.
    #[inline(always)]
    pub fn failed(self, why: Failed) {
        // SAFETY: a member of a map value.
        unsafe { atomic::add(&raw mut (*self.counters()).failed[why as usize], 1) };
    }

    /// Segments sent again.
    #[inline(always)]
    pub fn retransmits(self, why: Retransmit, segments: u32) {
        // SAFETY: a member of a map value.
        unsafe {
            atomic::add(
                &raw mut (*self.counters()).retransmits[why as usize],
                u64::from(segments),
            );
        }
    }

    /// One observation.
    #[inline(always)]
    pub fn observe(self, kind: Kind, ns: u64) {
        let slot = core::hint::black_box(hist::slot(ns));
        if slot >= hist::SLOTS as u32 {
            return;
        }
        // SAFETY: members of a map value; the slot is in bounds.
        unsafe {
            let histogram: *mut Histogram = &raw mut (*self.0).histograms[kind as usize];
            atomic::add(
                (&raw mut (*histogram).slots)
                    .cast::<u64>()
                    .add(slot as usize),
                1,
            );
            atomic::add(&raw mut (*histogram).sum_us, ns / 1000);
        }
    }
}

/// The owner of a full socket, as a row's key has it.
#[inline(always)]
pub fn owner(sk: Sock) -> u64 {
    if global!(CONFIG.key_owner) == owner::NONE {
        return 0;
    }
    let cgroup = sk.cgroup();
    // SAFETY: the value is copied at once.
    match unsafe { OWNER_OF.get(&cgroup) } {
        Some(&owner) => owner,
        None if global!(CONFIG.key_owner) == owner::BY_NAME && cgroup != 0 => cgroup | CGROUP,
        None => 0,
    }
}

/// The row of a full socket of TCP, by its side and its addresses and ports.
#[inline(always)]
pub fn row_of_tcp(tp: TcpSock, side: Side, hook: Hook) -> u32 {
    let sk = tp.sock();
    row_on_port(sk, tp.local_port(), side, sk.netns(), hook)
}

/// The row of a connection, by its side and its socket's addresses and ports.
#[inline(always)]
pub fn row_of_sock(sk: Sock, side: Side, netns: u32, hook: Hook) -> u32 {
    row_on_port(sk, sk.local_port(), side, netns, hook)
}

#[inline(always)]
fn row_on_port(sk: Sock, local_port: u16, side: Side, netns: u32, hook: Hook) -> u32 {
    let remote = sk.remote();
    let (port, address) = match side {
        Side::Server => (local_port, sk.local()),
        Side::Client => (sk.remote_port(), remote),
        Side::Unknown | Side::None => (0, [0; 2]),
    };
    row_of(side, port, address, remote, owner(sk), netns, hook)
}

/// The row of a side, a service's port and address, a peer and an owner.
#[inline(always)]
pub fn row_of(
    side: Side,
    port: u16,
    address: Address,
    remote: Address,
    owner: u64,
    netns: u32,
    hook: Hook,
) -> u32 {
    let key = SeriesKey {
        owner,
        netns: if global!(CONFIG.key_netns) != 0 {
            netns
        } else {
            0
        },
        port,
        peer: peer(remote),
        side: side as u8,
        group: if global!(CONFIG.groups) != 0 {
            lookup(&GROUPS, address) as u8
        } else {
            0
        },
        _pad: [0; 3],
    };
    // SAFETY: values of this map are never removed and never change.
    if let Some(&row) = unsafe { ROW_OF.get(&key) } {
        return row;
    }
    new_row(&key, hook)
}

/// Gives a key a row. Of two that do so at once for one key, the second finds
/// the entry taken and uses it; its number is left for the next key.
#[inline(never)]
fn new_row(key: &SeriesKey, hook: Hook) -> u32 {
    if let Some(row) = free_row(key) {
        if ROW_OF.insert(key, &row, u64::from(BPF_NOEXIST)).is_ok() {
            return row;
        }
        if let Some(spare) = STATUS.get_ptr_mut(STATUS_SPARE_ROW) {
            // SAFETY: an element of the map.
            unsafe { atomic::store(spare, u64::from(row)) };
        }
        // SAFETY: values of this map are never removed and never change.
        if let Some(&row) = unsafe { ROW_OF.get(key) } {
            return row;
        }
    }
    lost::count(hook, Cause::MapFull);
    OVERFLOW_ROW
}

/// Whether a key gets a row in any case: those of services that listen here, or
/// that have a name. Half of the rows are kept for these, or a program that talks
/// to one port after the other would leave none.
#[inline(always)]
fn is_named(key: &SeriesKey) -> bool {
    key.side == Side::Server as u8
        || key.port == 0
        // SAFETY: the entry is only read.
        || unsafe { NAMED_PORTS.get(&u32::from(key.port)) }.is_some()
}

/// The number of a row that nobody has and that `key` may have.
#[inline(always)]
fn free_row(key: &SeriesKey) -> Option<u32> {
    let next = NEXT_ROW.get_ptr_mut(0)?;
    // SAFETY: an element of the map.
    let taken = unsafe { next.read_volatile() };
    if taken > u64::from(global!(CONFIG.rows) / 2) && !is_named(key) {
        return None;
    }
    let spare = STATUS.get_ptr_mut(STATUS_SPARE_ROW)?;
    // SAFETY: an element of the map.
    let row = unsafe { spare.read_volatile() };
    // SAFETY: likewise.
    if row != 0 && unsafe { atomic::compare_exchange(spare, row, 0) } == row {
        return Some(row as u32);
    }
    // SAFETY: likewise.
    let row = unsafe { atomic::fetch_add(next, 1) };
    (row < u64::from(global!(CONFIG.rows))).then_some(row as u32)
}

#[inline(always)]
fn lookup<const N: usize>(trie: &LpmTrie<[u8; 16], u32, N>, address: Address) -> u32 {
    // SAFETY: 16 bytes are 16 bytes.
    let data = unsafe { core::mem::transmute::<Address, [u8; 16]>(address) };
    trie.get(&Key::new(128, data)).copied().unwrap_or(0)
}

/// The peer number of an address.
#[inline(always)]
fn peer(address: Address) -> u16 {
    if global!(CONFIG.peers) != 0 {
        let peer = lookup(&PEERS, address) as u16;
        if peer != PEER_OTHER {
            return peer;
        }
    }
    let [high, low] = address.map(u64::from_be);
    match (high, low >> 32, low) {
        (0, 0xffff, _) => match low as u32 {
            v4 if v4 >> 24 == 127 => PEER_LOOPBACK,
            v4 if v4 >> 24 == 10
                || v4 >> 20 == 0xac1
                || v4 >> 16 == 0xc0a8
                || v4 >> 22 == 0x6440_0000 >> 22
                || v4 >> 16 == 0xa9fe =>
            {
                PEER_PRIVATE
            }
            0 => PEER_OTHER,
            _ => PEER_PUBLIC,
        },
        (0, _, 1) => PEER_LOOPBACK,
        (0, _, 0) => PEER_OTHER,
        _ if high >> 57 == 0xfc >> 1 || high >> 54 == 0xfe80 >> 6 => PEER_PRIVATE,
        _ => PEER_PUBLIC,
    }
}

/// Direction of a reset: position in the label values.
#[derive(Clone, Copy)]
pub enum Direction {
    Sent = 0,
    Received = 1,
}

/// One reset.
#[inline(always)]
pub fn reset(row: u32, direction: Direction, reason: Option<u32>, hook: Hook) {
    let key = ResetKey {
        row,
        direction: direction as u32,
        reason: reason.unwrap_or(REASON_UNAVAILABLE),
    };
    let counter = maps::counter(&RESETS, &key).or_else(|| {
        lost::count(hook, Cause::MapFull);
        // The collector has made this one at the start.
        RESETS.get_ptr_mut(&ResetKey::overflow(direction as u32))
    });
    if let Some(counter) = counter {
        // SAFETY: a map value; entries of this map are never removed.
        unsafe { atomic::add(counter, 1) };
    }
}
