//! `iter/tcp`: every socket of a network namespace, visited under its lock.
//!
//! A visit takes in connections that were open before the start and adds what
//! each connection did since the last visit to its row. A connection is thus in
//! its row up to the last visit, and from there on when it closes; nothing has
//! to be added up outside, so nothing can be counted twice or missed.

use core::ffi::c_void;

use probe_common::{
    abi::{
        conn::Conn,
        iter::{
            ConnectionRecord, Endpoint, ListenerRecord, RecordKind, SOCKET_STATES, state_index,
        },
        listener::{MET, listener_key},
        status,
    },
    hooks::Loss,
    loss,
};

use crate::{
    atomic, conn,
    kernel::{
        addr::bytes,
        sock::{IPPROTO_TCP, Sock, TcpSock, state},
        watched,
    },
    lost,
    maps::{LISTENERS, SOCKETS, STATUS, VISITED},
    series::RowRef,
};

const FULL: Loss = loss!(iter_tcp, MapFull);

/// `struct bpf_iter__tcp`.
#[repr(C)]
pub struct Context {
    /// `struct bpf_iter_meta *`; its first member is the `struct seq_file *`.
    meta: *const *mut c_void,
    sk_common: *const c_void,
    uid: u32,
}

/// Visits a socket, and reports it if it is a listener or, where that is asked for,
/// a connection.
#[inline(always)]
pub fn iter_tcp(ctx: *const Context) {
    // SAFETY: the verifier knows the context and the types behind it.
    let (seq, sk) = unsafe {
        let meta = core::ptr::read_volatile(&raw const (*ctx).meta);
        let sk = core::ptr::read_volatile(&raw const (*ctx).sk_common);
        (core::ptr::read_volatile(meta), Sock::new(sk))
    };
    let Some(sk) = sk else {
        return;
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
        return;
    }
    let Some(tp) = sk.tcp_of_common() else {
        return;
    };
    // A socket that passed the helper is full, so it has a protocol.
    let sk = tp.sock();
    let netns = sk.netns();
    if sk.protocol() != IPPROTO_TCP || !watched(netns) {
        return;
    }
    if is_listener {
        listener(seq, tp, netns);
    } else {
        connection(seq, tp, state);
    }
}

#[inline(always)]
fn listener(seq: *mut c_void, tp: TcpSock, netns: u32) {
    let sk = tp.sock();
    let key = listener_key(netns, sk.local_port());
    if LISTENERS.insert(&key, &MET, 0).is_err() {
        lost::count(FULL, key);
    }
    let record = ListenerRecord {
        kind: RecordKind::Listener as u32,
        drops: tp.drops(),
        socket: endpoint(sk, netns),
        accept_queue: tp.accept_queue(),
        backlog: tp.backlog(),
        syn_queue: tp.syn_queue(),
        _pad: 0,
    };
    super::write(seq, &record);
}

#[inline(always)]
fn connection(seq: *mut c_void, tp: TcpSock, state: u8) {
    if let Some(visited) = VISITED.get_ptr_mut(0) {
        // SAFETY: the element of `VISITED`, which is written with adds only.
        unsafe { atomic::add(visited, 1) };
    }
    let Some(conn) = conn::open_entry(tp) else {
        if let Some(conn) = conn::adopt(tp, state, FULL) {
            count_state(conn.row, state);
        }
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
        if conn::status_is_set(status::OBSERVE_MIN_RTT) {
            conn::observe_min_rtt(tp, row);
        }
    }
    count_state(conn.row, state);
    if conn::status_is_set(status::REPORT) {
        report(seq, tp, conn, state);
    }
}

/// Hands a connection to user space. A function of its own, with a stack of its own: a
/// record is large.
#[inline(never)]
fn report(seq: *mut c_void, tp: TcpSock, conn: &Conn, state: u8) {
    let sk = tp.sock();
    let syn = conn::syn(conn::side(conn));
    let record = ConnectionRecord {
        kind: RecordKind::Connection as u32,
        row: conn.row,
        socket: endpoint(sk, sk.netns()),
        remote: bytes(sk.remote()),
        sent_bytes: conn.flushed.sent_bytes.saturating_sub(syn),
        received_bytes: conn.flushed.received_bytes,
        since_ns: conn.since_ns,
        remote_port: sk.remote_port(),
        state,
        ca_state: tp.ca_state(),
        srtt_us: tp.srtt() >> 3,
        min_rtt_us: tp.min_rtt_us(),
        snd_cwnd: tp.snd_cwnd(),
        retransmits: tp.total_retrans(),
        pid: conn.pid,
        drops: conn.drops,
        drop_reason: conn.drop_reason,
        _pad: 0,
    };
    super::write(seq, &record);
}

/// Counts a socket by its row and state: a number of this iteration. One thread
/// iterates, so nobody else writes the word.
#[inline(always)]
fn count_state(row: u32, state: u8) {
    let iteration = STATUS.get(status::ITERATION).copied().unwrap_or(0);
    let index = row * SOCKET_STATES.len() as u32 + state_index(state);
    if let Some(word) = SOCKETS.get_ptr_mut(index) {
        // SAFETY: an element of `SOCKETS`, read and written as the whole word that it is.
        unsafe {
            let before = word.read_volatile();
            let count = if before >> 32 == iteration {
                before & 0xffff_ffff
            } else {
                0
            };
            word.write_volatile((iteration << 32) | (count + 1));
        }
    }
}

#[inline(always)]
fn endpoint(sk: Sock, netns: u32) -> Endpoint {
    Endpoint {
        id: sk.id(),
        cgroup: sk.cgroup(),
        local: bytes(sk.local()),
        netns,
        local_port: sk.local_port(),
        _pad: 0,
    }
}
