//! Half-open connections: what the kernel tells of them by the segments that it frees
//! on their listener without a reason (6.11 and later).

use probe_common::{
    abi::status,
    hooks::Loss,
    labels::{ConnectFailure, Side},
    loss,
};

use super::{now_ns, open::handshake_key};
use crate::{
    kernel::{
        skb::{ACK, RST, Skb},
        sock::{Sock, TcpSock},
    },
    lost,
    maps::{DEFERRED, HandshakeKey, RESET_SEQS, STATUS},
    series::{RowRef, owner, row_of},
};

const FULL: Loss = loss!(kfree_skb, MapFull);

/// By how much the number of a second reset is less than that of the first: by the
/// data that was sent and did not arrive.
const MOST_UNSEEN: u32 = 1 << 20;

/// The handshake that a segment on its way to a listener belongs to.
#[inline(always)]
fn key_of(skb: Skb, listener: Sock, remote_port: u16) -> HandshakeKey {
    HandshakeKey {
        remote: skb.source().unwrap_or_default(),
        netns: listener.netns(),
        local_port: listener.local_port(),
        remote_port,
    }
}

/// A segment was freed on a listener. Returns whether that is no loss: the handshake's
/// last ACK, where the listener waits for data (`TCP_DEFER_ACCEPT`), has done its part.
#[inline(always)]
pub fn segment_freed(skb: Skb, listener: Sock) -> bool {
    let flags = skb.tcp_flags();
    if flags & RST != 0 {
        reset(skb, listener, flags);
        return false;
    }
    let is_ignored = flags == ACK
        && skb.payload() == 0
        && listener.tcp().is_some_and(|tp| tp.defer_accept() != 0);
    if is_ignored && let Some((port, _)) = skb.port_and_seq() {
        let key = key_of(skb, listener, port);
        // SAFETY: the entry is only tested for.
        if unsafe { DEFERRED.get(&key) }.is_none() {
            // One that is not kept makes a handshake last until its data came.
            let _ = DEFERRED.insert(&key, &now_ns(), 0);
            if let Some(defers) = STATUS.get_ptr_mut(status::DEFERS) {
                // SAFETY: an element of `STATUS`; every writer writes the same word.
                unsafe { defers.write_volatile(1) };
            }
        }
    }
    is_ignored
}

/// How long a handshake had been over when its listener was told, since it waited for
/// data.
#[inline(always)]
pub fn deferred_ns(tp: TcpSock, now_ns: u64) -> u64 {
    let key = handshake_key(tp);
    // SAFETY: the value is copied at once.
    let Some(acked_ns) = (unsafe { DEFERRED.get(&key) }).copied() else {
        return 0;
    };
    let _ = DEFERRED.remove(&key);
    now_ns.saturating_sub(acked_ns)
}

/// A reset that answers a SYN-ACK ends a half-open connection. The kernel tells
/// nothing but this.
#[inline(always)]
fn reset(skb: Skb, listener: Sock, flags: u8) {
    if is_repeated(skb, listener, flags) {
        return;
    }
    let row = row_of(
        Side::Server,
        listener.local_port(),
        skb.destination().unwrap_or_default(),
        skb.source().unwrap_or_default(),
        owner(listener),
        listener.netns(),
        FULL,
    );
    if let Some(row) = RowRef::get(row) {
        row.connect_failures(ConnectFailure::Reset, 1);
    }
}

/// Whether a reset only repeats, with the right number, one that was counted.
///
/// Where data was lost, the number of an abort is not the one expected. The kernel asks
/// for another reset (a challenge ACK, RFC 5961 section 3.2), and that one ends the
/// half-open connection. Both are freed alike.
#[inline(always)]
fn is_repeated(skb: Skb, listener: Sock, flags: u8) -> bool {
    let Some((port, seq)) = skb.port_and_seq() else {
        return false;
    };
    let key = key_of(skb, listener, port);
    // SAFETY: the value is copied at once.
    if let Some(first) = unsafe { RESET_SEQS.get(&key) }.copied() {
        let less = first.wrapping_sub(seq);
        if less != 0 && less <= MOST_UNSEEN {
            let _ = RESET_SEQS.remove(&key);
            return true;
        }
    }
    // What answers a SYN-ACK without a connection has no ACK, and the right number.
    if flags & ACK != 0 && RESET_SEQS.insert(&key, &seq, 0).is_err() {
        lost::count(FULL, port.into());
    }
    false
}
