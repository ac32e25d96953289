//! Whose a dropped TCP segment is: the row of the receiving socket (6.11 and later),
//! else of the sending one, else of the listener that it was on its way to.

use probe_common::{
    abi::{drop::NOBODY, series::OVERFLOW_ROW},
    labels::Side,
};

use super::FULL;
use crate::{
    conn,
    kernel::{
        any_sock::AnySock,
        skb::Skb,
        sock::{IPPROTO_MPTCP, IPPROTO_TCP, Sock, state},
    },
    series::{owner_of, row_of},
};

/// What is known of the socket of a segment.
enum Found {
    /// Both ends, and this side.
    Connection(Side),
    /// It listens.
    Listener,
    /// It has no socket of TCP.
    Nothing,
}

/// The row, or [`NOBODY`]; an open connection also counts the drop.
///
/// A function of its own, with a stack of its own.
#[inline(never)]
pub fn row(skb: Skb, rx_sk: Option<Sock>, reason: u32) -> u32 {
    let Some(sk) = AnySock::of(rx_sk, skb) else {
        return of_destination(skb, skb.netns());
    };
    let mut entry = conn::get_numbered(sk.id());
    if let Some(conn) = &mut entry {
        conn::dropped(conn, reason);
    }
    let found = match &entry {
        // The overflow row is also that of one that was never open.
        Some(conn) if !conn::is_connecting(conn) && conn.row != OVERFLOW_ROW => return conn.row,
        Some(conn) => Found::Connection(conn::side(conn)),
        None => find(sk),
    };
    match found {
        Found::Connection(side) => of_connection(sk, side),
        Found::Listener => of_listener(skb, sk),
        Found::Nothing => {
            let netns = match skb.netns() {
                0 => sk.netns(),
                netns => netns,
            };
            of_destination(skb, netns)
        }
    }
}

/// What a socket without an entry is.
#[inline(always)]
fn find(sk: AnySock) -> Found {
    let is_tcp = || matches!(sk.protocol(), IPPROTO_TCP | IPPROTO_MPTCP);
    match sk.state() {
        state::NEW_SYN_RECV => Found::Connection(Side::Server),
        // One on a listener's port is the listener's. Elsewhere nothing is left that tells.
        state::TIME_WAIT if is_listeners(sk) => Found::Connection(Side::Server),
        state::TIME_WAIT => Found::Connection(Side::Unknown),
        _ if !is_tcp() => Found::Nothing,
        state::LISTEN => Found::Listener,
        // As in `conn::side_of`.
        _ if sk.backlog() != 0 || is_listeners(sk) => Found::Connection(Side::Server),
        _ => Found::Connection(Side::Client),
    }
}

/// Whether somebody listens on the local port of a socket.
#[inline(always)]
fn is_listeners(sk: AnySock) -> bool {
    conn::is_listener_port(sk.netns(), sk.local_port())
}

/// The row of a socket that knows both of its ends.
#[inline(always)]
fn of_connection(sk: AnySock, side: Side) -> u32 {
    let remote = sk.remote();
    let (port, address) = match side {
        Side::Server => (sk.local_port(), sk.local()),
        Side::Client => (sk.remote_port(), remote),
        Side::Unknown | Side::None => (0, [0; 2]),
    };
    let owner = owner_of(|| sk.cgroup());
    row_of(side, port, address, remote, owner, sk.netns(), FULL)
}

/// The row of a segment on its way to a listener, which may have any address.
#[inline(always)]
fn of_listener(skb: Skb, sk: AnySock) -> u32 {
    let (local, remote) = match skb.flow(false) {
        Some(flow) => (flow.destination, flow.source),
        None => ([0; 2], [0; 2]),
    };
    let owner = owner_of(|| sk.cgroup());
    let port = sk.local_port();
    row_of(Side::Server, port, local, remote, owner, sk.netns(), FULL)
}

/// The row of a segment without a socket: somebody may listen where it was going to.
#[inline(always)]
fn of_destination(skb: Skb, netns: u32) -> u32 {
    let Some(flow) = skb.flow(true) else {
        return NOBODY;
    };
    let port = flow.destination_port;
    if !conn::is_listener_port(netns, port) {
        return NOBODY;
    }
    let (local, remote) = (flow.destination, flow.source);
    row_of(Side::Server, port, local, remote, 0, netns, FULL)
}
