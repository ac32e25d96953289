//! `inet_sock_set_state`: the life of a connection.
//!
//! Transitions that tell nothing (into SYN_SENT, a child's creation, FIN_WAIT1
//! to FIN_WAIT2, …) leave before anything is read.

use core::ffi::c_void;

use aya_ebpf::{EbpfContext, macros::btf_tracepoint, programs::BtfTracePointContext};
use probe_common::{
    conn::{CONNECTING, Conn, OPEN},
    lost::{Cause, Hook},
    series::{Closed, Failed, Kind, Retransmit, Side},
};

use crate::{
    conn,
    kernel::{
        arg,
        sock::{IPPROTO_TCP, Sock, TcpSock, state},
        watched,
    },
    lost,
    maps::{ABORTED, HandshakeKey, SYNACKS},
    series::{RowRef, row_of_sock},
};

const HOOK: Hook = Hook::SockSetState;

const ECONNRESET: i32 = 104;
const EPIPE: i32 = 32;
const ETIMEDOUT: i32 = 110;
const ECONNREFUSED: i32 = 111;
const EHOSTDOWN: i32 = 112;
const EHOSTUNREACH: i32 = 113;
const ENETUNREACH: i32 = 101;
const ENETDOWN: i32 = 100;

#[btf_tracepoint(function = "inet_sock_set_state")]
fn sock_set_state(ctx: BtfTracePointContext) -> i32 {
    let ctx: *const c_void = ctx.as_ptr();
    let (old, new) = (arg(ctx, 1) as u8, arg(ctx, 2) as u8);
    let tells = match new {
        state::ESTABLISHED | state::CLOSE => old != state::LISTEN,
        state::SYN_RECV => old == state::SYN_SENT,
        // CLOSE_WAIT to LAST_ACK waits for the close or the next visit.
        _ => old == state::ESTABLISHED,
    };
    if !tells {
        return 0;
    }
    let Some(sk) = Sock::new(arg(ctx, 0) as *const c_void) else {
        return 0;
    };
    // The socket of MPTCP itself passes here too; its subflows are TCP.
    if sk.protocol() != IPPROTO_TCP {
        return 0;
    }
    let netns = sk.netns();
    if !watched(netns) {
        return 0;
    }
    let Some(tp) = sk.tcp() else {
        return 0;
    };
    match (old, new) {
        (state::SYN_SENT, state::SYN_RECV) => simultaneous_open(tp),
        (_, state::ESTABLISHED) => established(tp, old, netns),
        (state::SYN_SENT | state::SYN_RECV, _) => failed(tp, old, netns),
        (_, state::CLOSE) => closed(tp, old, netns),
        _ => leaves_established(tp, new),
    }
    0
}

/// Both ends sent a SYN: from SYN_RECV on it would look like a server's.
#[inline(always)]
fn simultaneous_open(tp: TcpSock) {
    if conn::get(tp).is_none() {
        let connecting = Conn {
            flags: CONNECTING,
            ..Conn::default()
        };
        conn::insert(tp, &connecting, HOOK);
    }
}

#[inline(always)]
fn established(tp: TcpSock, old: u8, netns: u32) {
    let sk = tp.sock();
    // Only a SYN that was sent again or met another left an entry.
    let no_entry = match old {
        state::SYN_SENT => tp.total_retrans() == 0,
        _ => !sk.has_user(),
    };
    let connecting = if no_entry { None } else { conn::get(tp) };
    let side = if old == state::SYN_SENT || connecting.is_some() {
        Side::Client
    } else {
        Side::Server
    };
    let row = row_of_sock(sk, side, netns, HOOK);
    let now_ns = conn::now_ns();
    let handshake_ns = match connecting {
        // The stamp of the first SYN, taken when it was sent again.
        Some(&mut Conn { since_ns, .. }) if since_ns != 0 => Some(now_ns.saturating_sub(since_ns)),
        _ if matches!(side, Side::Server) && tp.total_retrans() != 0 => {
            first_synack_ns(sk, netns).map(|first| now_ns.saturating_sub(first))
        }
        // The kernel's own measurement.
        _ => Some(u64::from(tp.srtt() >> 3) * 1000),
    };
    // `bytes_acked` of an active opener counts its SYN.
    let syn = u64::from(matches!(side, Side::Client));
    let fresh = Conn {
        since_ns: now_ns,
        first_sent_bytes: syn,
        first_received_bytes: 0,
        sent_bytes: syn,
        received_bytes: 0,
        row,
        flags: OPEN,
        srtt_us: tp.srtt(),
        mdev_us: tp.mdev(),
        // A SYN was counted when it was sent again, a SYN-ACK likewise.
        retransmits: tp.total_retrans(),
        segs_in: 0,
        segs_out: 0,
        dsack_dups: 0,
        out_of_order: 0,
        side: side as u32,
    };
    let remembered = match connecting {
        Some(entry) => {
            *entry = fresh;
            true
        }
        None => conn::insert(tp, &fresh, HOOK),
    };
    let Some(row) = RowRef::get(row) else {
        return;
    };
    row.opened(1);
    if remembered {
        row.open(1);
    }
    match handshake_ns {
        Some(ns) => row.observe(Kind::Handshake, ns),
        None => lost::count(Hook::TcpRetransmitSynack, Cause::Limit),
    }
}

/// When the first SYN-ACK was sent, of a handshake whose SYN-ACK was sent again.
#[inline(always)]
fn first_synack_ns(sk: Sock, netns: u32) -> Option<u64> {
    let key = HandshakeKey {
        remote: sk.remote(),
        netns,
        local_port: sk.local_port(),
        remote_port: sk.remote_port(),
    };
    // SAFETY: the value is copied at once.
    let first_us = unsafe { SYNACKS.get(&key) }.copied()?;
    let _ = SYNACKS.remove(&key);
    Some(first_us * 1000)
}

#[inline(always)]
fn failed(tp: TcpSock, old: u8, netns: u32) {
    let connecting = conn::get(tp);
    let side = if old == state::SYN_SENT || connecting.is_some() {
        Side::Client
    } else {
        Side::Server
    };
    let why = match tp.err() {
        // No SYN left, or a child could not be kept.
        0 if old == state::SYN_RECV || tp.snd_nxt() == tp.snd_una() => Failed::Local,
        0 => Failed::Cancelled,
        ECONNREFUSED => Failed::Refused,
        ETIMEDOUT => Failed::Timeout,
        ENETUNREACH | EHOSTUNREACH | ENETDOWN | EHOSTDOWN => Failed::Unreachable,
        ECONNRESET => Failed::Reset,
        _ => Failed::Other,
    };
    let row = row_of_sock(tp.sock(), side, netns, HOOK);
    let Some(row) = RowRef::get(row) else {
        return;
    };
    row.failed(why);
    // What a SYN's retransmission did not show: one that failed to be sent.
    let known = connecting.map_or(0, |conn| conn.retransmits);
    if matches!(side, Side::Client) {
        let unseen = tp.total_retrans().wrapping_sub(known);
        if unseen != 0 {
            row.retransmits(Retransmit::Syn, unseen);
        }
    }
    conn::remove(tp);
}

/// ESTABLISHED to FIN_WAIT1 or CLOSE_WAIT: the last time that a single segment
/// was handled since the look before.
#[inline(always)]
fn leaves_established(tp: TcpSock, new: u8) {
    let Some(conn) = conn::get(tp) else {
        return;
    };
    conn::observe_rtt(conn, tp);
    if new != state::CLOSE_WAIT {
        conn::no_longer_open(conn);
    }
}

#[inline(always)]
fn closed(tp: TcpSock, old: u8, netns: u32) {
    let from_open = matches!(old, state::ESTABLISHED | state::CLOSE_WAIT);
    let how = match (tp.err(), old) {
        (ECONNRESET | EPIPE, _) => Closed::ResetReceived,
        (ETIMEDOUT | EHOSTUNREACH | ENETUNREACH, _) => Closed::Timeout,
        (0, _) if from_open => Closed::ResetSent,
        (0, state::FIN_WAIT2 | state::LAST_ACK | state::CLOSING) => Closed::Fin,
        _ => Closed::Other,
    };
    let Some(conn) = conn::get(tp) else {
        return closed_unknown(tp, old, netns, how);
    };
    conn::observe_last_rtt(conn, tp);
    conn::no_longer_open(conn);
    conn::flush(conn, tp, old);
    conn::flush_retransmits(conn, tp, Retransmit::Other);
    if let Some(row) = RowRef::get(conn.row) {
        row.closed(how);
        if conn.since_ns != 0 {
            row.observe(Kind::Duration, conn::now_ns().saturating_sub(conn.since_ns));
        }
    }
    if from_open && matches!(how, Closed::ResetSent) {
        // Its reset is sent after this and finds the entry gone.
        let row = conn.row;
        let _ = ABORTED.insert(&tp.id(), &row, 0);
    }
    conn::remove(tp);
}

/// Closes a connection without an entry. Where `CONNS` has been full it was
/// opened after the start: all that it did counts now, without its side.
#[inline(never)]
fn closed_unknown(tp: TcpSock, old: u8, netns: u32, how: Closed) {
    let number = row_of_sock(tp.sock(), Side::Unknown, netns, HOOK);
    if let Some(row) = RowRef::get(number) {
        row.closed(how);
    }
    if conn::overflowed() {
        let mut conn = Conn {
            row: number,
            ..Conn::default()
        };
        conn::flush(&mut conn, tp, old);
        conn::flush_retransmits(&mut conn, tp, Retransmit::Other);
    }
}
