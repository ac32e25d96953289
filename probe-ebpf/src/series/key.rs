//! Rows by their key: side, service, peer, owner and network namespace.

use aya_ebpf::bindings::BPF_NOEXIST;
use probe_common::{
    abi::{
        owner::{self, CGROUP},
        series::{OVERFLOW_ROW, SeriesKey, SpareRows},
    },
    hooks::Loss,
    labels::Side,
};

use super::peer::{group, peer};
use crate::{
    atomic,
    globals::global,
    kernel::{
        addr::Address,
        sock::{Sock, TcpSock},
    },
    lost,
    maps::{NAMED_PORTS, NEXT_ROW, OWNER_OF, ROW_OF, SPARE_ROWS},
};

/// The owner of a full socket, as a row's key has it.
#[inline(always)]
pub fn owner(sk: Sock) -> u64 {
    owner_of(|| sk.cgroup())
}

/// The owner of a control group, as a row's key has it.
#[inline(always)]
pub fn owner_of(cgroup: impl FnOnce() -> u64) -> u64 {
    if global!(CONFIG.key_owner) == owner::NONE {
        return 0;
    }
    let cgroup = cgroup();
    // SAFETY: the value is copied at once.
    match unsafe { OWNER_OF.get(&cgroup) } {
        Some(&owner) => owner,
        None if global!(CONFIG.key_owner) == owner::BY_NAME && cgroup != 0 => cgroup | CGROUP,
        None => 0,
    }
}

/// The row of a full socket of TCP, by its side and its addresses and ports; `full`
/// counts one that finds none.
#[inline(always)]
pub fn row_of_tcp(tp: TcpSock, side: Side, full: Loss) -> u32 {
    let sk = tp.sock();
    row_on_port(sk, tp.local_port(), side, sk.netns(), full)
}

/// The row of a connection, by its side and its socket's addresses and ports.
#[inline(always)]
pub fn row_of_sock(sk: Sock, side: Side, netns: u32, full: Loss) -> u32 {
    row_on_port(sk, sk.local_port(), side, netns, full)
}

#[inline(always)]
fn row_on_port(sk: Sock, local_port: u16, side: Side, netns: u32, full: Loss) -> u32 {
    let remote = sk.remote();
    let (port, address) = match side {
        Side::Server => (local_port, sk.local()),
        Side::Client => (sk.remote_port(), remote),
        Side::Unknown | Side::None => (0, [0; 2]),
    };
    row_of(side, port, address, remote, owner(sk), netns, full)
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
    full: Loss,
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
        group: group(address),
        _pad: [0; 3],
    };
    // SAFETY: values of this map are never removed and never change.
    if let Some(&row) = unsafe { ROW_OF.get(&key) } {
        return row;
    }
    let given = new_row(&key);
    if given & LOST != 0 {
        lost::count(full, port.into());
    }
    given as u32
}

/// In the answer of [`new_row`]: the key got none, or a number could not be left.
const LOST: u64 = 1 << 32;

/// Gives a key a row. Of two that do so at once for one key, the second finds
/// the entry taken and uses it; its number is left for the next key.
///
/// A function that others can call: the verifier looks at it once, and not again for
/// each caller and each state that this is in.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn new_row(key: *const SeriesKey) -> u64 {
    // SAFETY: null, or what `row_of` has, as the verifier checks.
    let Some(key) = (unsafe { key.as_ref() }) else {
        return u64::from(OVERFLOW_ROW) | LOST;
    };
    // Before 6.2 the helpers take no key that lies elsewhere.
    let key = *key;
    let Some(row) = free_row(&key) else {
        return u64::from(OVERFLOW_ROW) | LOST;
    };
    if ROW_OF.insert(&key, &row, u64::from(BPF_NOEXIST)).is_ok() {
        return row.into();
    }
    let lost = match leave_spare_row(row) {
        true => 0,
        false => LOST,
    };
    // SAFETY: values of this map are never removed and never change.
    match unsafe { ROW_OF.get(&key) } {
        Some(&row) => u64::from(row) | lost,
        None => u64::from(OVERFLOW_ROW) | LOST,
    }
}

/// Whether a key gets a row in any case: those of services that listen here, or
/// that have a name. Half of the rows are kept for these, or a program that talks
/// to one port after the other would leave none.
#[inline(always)]
fn is_named(key: &SeriesKey) -> bool {
    key.side == Side::Server as u8
        || key.port == 0
        // SAFETY: the entry is only tested for.
        || unsafe { NAMED_PORTS.get(&u32::from(key.port)) }.is_some()
}

/// The number of a row that nobody has and that `key` may have.
#[inline(always)]
fn free_row(key: &SeriesKey) -> Option<u32> {
    let next = NEXT_ROW.get_ptr_mut(0)?;
    // SAFETY: the element of `NEXT_ROW`, read as the whole word that it is.
    let taken = unsafe { next.read_volatile() };
    if taken > u64::from(global!(CONFIG.rows) / 2) && !is_named(key) {
        return None;
    }
    let spare = take_spare_row();
    if spare != 0 {
        return Some(spare);
    }
    // SAFETY: the element of `NEXT_ROW`.
    let row = unsafe { atomic::fetch_add(next, 1) };
    (row < u64::from(global!(CONFIG.rows))).then_some(row as u32)
}

/// Places of [`SpareRows`].
const SPARES: usize = size_of::<SpareRows>() / 8;

/// Leaves a number that is not needed for the next key; whether there was room.
#[inline(always)]
fn leave_spare_row(row: u32) -> bool {
    let Some(spares) = SPARE_ROWS.get_ptr_mut(0) else {
        return false;
    };
    for n in 0..SPARES {
        // SAFETY: `n` is below the number of words; of two that want a place one gets it.
        let place = unsafe { spares.cast::<u64>().add(n) };
        // SAFETY: as above.
        if unsafe { atomic::compare_exchange(place, 0, row.into()) } == 0 {
            return true;
        }
    }
    false
}

/// Takes a number that was left, 0 where there is none.
#[inline(always)]
fn take_spare_row() -> u32 {
    let Some(spares) = SPARE_ROWS.get_ptr_mut(0) else {
        return 0;
    };
    for n in 0..SPARES {
        // SAFETY: `n` is below the number of words, each of which is read whole.
        let place = unsafe { spares.cast::<u64>().add(n) };
        // SAFETY: as above.
        let row = unsafe { place.read_volatile() };
        // SAFETY: as above; of two that want the number one gets it.
        if row != 0 && unsafe { atomic::compare_exchange(place, row, 0) } == row {
            return row as u32;
        }
    }
    0
}
