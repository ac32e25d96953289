//! `sock_set_state`: the life of a connection; `tcp_destroy`: its end, where the
//! life was cut short.
//!
//! Transitions that tell nothing (FIN_WAIT1 to FIN_WAIT2, …) leave before
//! anything is read.

use core::ffi::c_void;

use probe_common::{
    abi::listener::{ListenerKey, NEW, listener_key},
    hooks::Loss,
    labels::{ConnectFailure, Side},
    loss,
};

use crate::{
    atomic, conn,
    globals::global,
    kernel::{
        arg,
        sock::{IPPROTO_TCP, Sock, TcpSock, state},
        watched,
    },
    lost,
    maps::{self, LISTENER_DROPS, LISTENERS},
    preempt,
};

const FULL: Loss = loss!(sock_set_state, MapFull);

/// Whether a transition tells anything.
#[inline(always)]
fn tells(old: u8, new: u8) -> bool {
    match new {
        state::SYN_SENT => true,
        state::LISTEN => true,
        // A child; both ends sending a SYN at once stays the client's.
        state::SYN_RECV => old == state::LISTEN,
        state::ESTABLISHED => old != state::LISTEN,
        // Of a listener its drops.
        state::CLOSE => old != state::CLOSE,
        // From here on it does not count as open.
        state::LAST_ACK => old == state::CLOSE_WAIT,
        _ => old == state::ESTABLISHED,
    }
}

/// The number of a transition that tells something.
#[inline(always)]
pub fn transition(ctx: *const c_void) -> Option<u64> {
    let (old, new) = (arg(ctx, 1) as u8, arg(ctx, 2) as u8);
    let socket = preempt::of_socket(ctx).filter(|_| tells(old, new))?;
    Some(socket ^ (u64::from(old) << 4 | u64::from(new)) << 48)
}

#[inline(always)]
pub fn sock_set_state(ctx: *const c_void) {
    let (old, new) = (arg(ctx, 1) as u8, arg(ctx, 2) as u8);
    if !tells(old, new) {
        return;
    }
    let Some(sk) = Sock::new(arg(ctx, 0) as *const c_void) else {
        return;
    };
    // The socket of MPTCP itself passes here too; its subflows are TCP.
    if sk.protocol() != IPPROTO_TCP {
        return;
    }
    // A connection may outlive the name of its namespace.
    if global!(CONFIG.netns_len) != 0 && !watched(sk.netns()) && conn::get(sk).is_none() {
        return;
    }
    match new {
        state::SYN_SENT => conn::start_handshake(sk, Side::Client),
        state::SYN_RECV => conn::start_handshake(sk, Side::Server),
        state::LISTEN => started_listening(sk),
        _ => {
            if let Some(tp) = sk.surely_tcp() {
                moved(tp, old, new);
            }
        }
    }
}

#[inline(always)]
fn moved(tp: TcpSock, old: u8, new: u8) {
    if old == state::LISTEN {
        return stopped_listening(tp);
    }
    let fallback = match old {
        state::SYN_SENT => Side::Client,
        _ => Side::Server,
    };
    if new == state::ESTABLISHED {
        // What it has had no segment for, another socket may have opened.
        if tp.segs_in() == 0 && tp.is_repaired() {
            conn::adopt(tp, new, FULL);
        } else {
            conn::established(tp, fallback);
        }
        return;
    }
    let conn = conn::get(tp.sock());
    if conn.as_ref().is_some_and(|conn| conn::is_closed(conn)) {
        return;
    }
    match (old, new) {
        (state::SYN_SENT | state::SYN_RECV, _) => {
            // No SYN left, or a child could not be kept.
            let is_local = old == state::SYN_RECV || tp.snd_nxt() == tp.snd_una();
            let without_error = match tp.total_retrans() {
                _ if is_local => ConnectFailure::Local,
                0 => ConnectFailure::Cancelled,
                _ => ConnectFailure::NoAnswer,
            };
            conn::connect_failed(conn, tp, without_error, fallback);
        }
        (_, state::CLOSE) => conn::closed(conn::open_entry_of(tp, conn), tp, old),
        _ => {
            if let Some(conn) = conn::open_entry_of(tp, conn) {
                conn::left_established(conn, tp, new);
            }
        }
    }
}

/// A program begins to listen: what comes on that port is a server's from now on. Without
/// a port, which the kernel is about to choose, the iterator has to meet it.
#[inline(always)]
fn started_listening(sk: Sock) {
    let port = sk.local_port();
    let key = listener_key(sk.netns(), port);
    if port != 0 && LISTENERS.insert(&key, &NEW, 0).is_err() {
        lost::count(FULL, key);
    }
}

/// A listener closes: what it dropped since it was last visited is kept.
#[inline(always)]
fn stopped_listening(tp: TcpSock) {
    let drops = u64::from(tp.drops());
    if drops == 0 {
        return;
    }
    let sk = tp.sock();
    let key = ListenerKey {
        address: sk.local(),
        netns: sk.netns(),
        port: tp.local_port().into(),
    };
    match maps::counter(&LISTENER_DROPS, &key) {
        // SAFETY: a value of `LISTENER_DROPS`; the kernel keeps the memory of one that
        // is being removed until the program has ended.
        Some(sum) => unsafe { atomic::add(sum, drops) },
        None => lost::count(FULL, key.port.into()),
    }
}

/// The kernel is done with a socket.
#[inline(always)]
pub fn tcp_destroy(ctx: *const c_void) {
    if let Some(sk) = Sock::new(arg(ctx, 0) as *const c_void) {
        conn::destroyed(sk);
    }
}
