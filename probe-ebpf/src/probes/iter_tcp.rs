//! `iter/tcp`: every socket of a network namespace, visited under its lock.
//!
//! A visit takes in connections that were open before the start and adds what
//! each connection did since the last visit to its row. A connection is thus in
//! its row up to the last visit, and from there on when it closes; nothing has
//! to be added up outside, so nothing can be counted twice or missed.

use core::ffi::c_void;

use probe_common::{
    abi::conn::STATUS_REPORT,
    abi::iter::{SockRecord, listener_key},
    abi::series::Side,
    hooks::{Cause, Hook},
};

use crate::{
    atomic, conn,
    kernel::{
        sock::{IPPROTO_TCP, Sock, TcpSock, state},
        watched,
    },
    lost,
    maps::{LISTENERS, VISITED},
    series::RowRef,
};

const HOOK: Hook = Hook::IterTcp;

/// `struct bpf_iter__tcp`.
#[repr(C)]
struct Context {
    /// `struct bpf_iter_meta *`; its first member is the `struct seq_file *`.
    meta: *const *mut c_void,
    sk_common: *const c_void,
    uid: u32,
}

/// Visits all sockets and reports the listeners and, where it is asked to, the
/// connections.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
fn tcp_visit(ctx: *const Context) -> i32 {
    // SAFETY: the verifier knows the context and the types behind it.
    let (seq, sk) = unsafe {
        let meta = core::ptr::read_volatile(&raw const (*ctx).meta);
        let sk = core::ptr::read_volatile(&raw const (*ctx).sk_common);
        (core::ptr::read_volatile(meta), Sock::new(sk))
    };
    let Some(sk) = sk else {
        return 0;
    };
    let state = sk.state();
    let is_listener = state == state::LISTEN;
    let is_connection = matches!(
        state,
        state::ESTABLISHED
            | state::FIN_WAIT1
            | state::FIN_WAIT2
            | state::CLOSE_WAIT
            | state::LAST_ACK
            | state::CLOSING
    );
    if !is_listener && !is_connection {
        return 0;
    }
    let Some(tp) = sk.tcp() else {
        return 0;
    };
    // A socket that passed the helper is full, so it has a protocol.
    let sk = tp.sock();
    let netns = sk.netns();
    if sk.protocol() != IPPROTO_TCP || !watched(netns) {
        return 0;
    }
    if is_listener {
        listener(seq, tp, netns);
    } else {
        connection(seq, tp, netns, state);
    }
    0
}

#[inline(always)]
fn listener(seq: *mut c_void, tp: TcpSock, netns: u32) {
    let sk = tp.sock();
    if LISTENERS
        .insert(&listener_key(netns, sk.local_port()), &1, 0)
        .is_err()
    {
        lost::count(HOOK, Cause::MapFull);
    }
    let record = SockRecord {
        srtt_us: tp.accept_queue(),
        min_rtt_us: tp.backlog(),
        snd_cwnd: tp.syn_queue(),
        retransmits: tp.drops(),
        side: Side::Server as u8,
        ..addresses(sk, netns, state::LISTEN)
    };
    super::write(seq, &record);
}

#[inline(always)]
fn connection(seq: *mut c_void, tp: TcpSock, netns: u32, state: u8) {
    if let Some(visited) = VISITED.get_ptr_mut(0) {
        // SAFETY: an element of the map.
        unsafe { atomic::add(visited, 1) };
    }
    let Some(conn) = conn::settled(tp) else {
        conn::adopt(tp, state, HOOK);
        return;
    };
    if state == state::ESTABLISHED {
        conn::observe_rtt(conn, tp);
    }
    if let Some(row) = RowRef::get(conn.row) {
        if state != state::ESTABLISHED {
            conn::observe_newest_rtt(conn, tp, row);
        }
        if !matches!(state, state::ESTABLISHED | state::CLOSE_WAIT) {
            conn::no_longer_open(conn, row);
        }
        conn::flush(conn, tp, state, row);
    }
    if conn::status(STATUS_REPORT) {
        let record = SockRecord {
            sent_bytes: conn.sent_bytes.saturating_sub(conn::syn(conn::side(conn))),
            received_bytes: conn.received_bytes,
            since_ns: conn.since_ns,
            row: conn.row,
            pid: conn.pid,
            side: conn.side as u8,
            ca_state: tp.ca_state(),
            srtt_us: tp.srtt() >> 3,
            min_rtt_us: tp.min_rtt_us(),
            snd_cwnd: tp.snd_cwnd(),
            retransmits: tp.total_retrans(),
            ..addresses(tp.sock(), netns, state)
        };
        super::write(seq, &record);
    }
}

#[inline(always)]
fn addresses(sk: Sock, netns: u32, state: u8) -> SockRecord {
    // SAFETY: 16 bytes are 16 bytes.
    let [local, remote] =
        unsafe { core::mem::transmute::<[[u64; 2]; 2], [[u8; 16]; 2]>([sk.local(), sk.remote()]) };
    SockRecord {
        id: sk.id(),
        cgroup: sk.cgroup(),
        local,
        remote,
        netns,
        local_port: sk.local_port(),
        remote_port: sk.remote_port(),
        state,
        ..SockRecord::default()
    }
}
