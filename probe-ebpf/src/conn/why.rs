//! Why a handshake failed or a connection ended: told by the error and the state that
//! its socket has at that moment.

use probe_common::labels::{Closed, ConnectFailure};

use super::is_abort;
use crate::kernel::sock::{TcpSock, state};

/// Error numbers (`include/uapi/asm-generic/errno-base.h`, `errno.h`).
mod errno {
    pub const EPERM: i32 = 1;
    pub const EACCES: i32 = 13;
    pub const EPIPE: i32 = 32;
    pub const ENONET: i32 = 64;
    pub const EPROTO: i32 = 71;
    pub const ENOPROTOOPT: i32 = 92;
    pub const EOPNOTSUPP: i32 = 95;
    pub const ENETDOWN: i32 = 100;
    pub const ENETUNREACH: i32 = 101;
    pub const ECONNABORTED: i32 = 103;
    pub const ECONNRESET: i32 = 104;
    pub const ETIMEDOUT: i32 = 110;
    pub const ECONNREFUSED: i32 = 111;
    pub const EHOSTDOWN: i32 = 112;
    pub const EHOSTUNREACH: i32 = 113;
}
use errno::{
    EACCES, ECONNABORTED, ECONNREFUSED, ECONNRESET, EHOSTDOWN, EHOSTUNREACH, ENETDOWN, ENETUNREACH,
    ENONET, ENOPROTOOPT, EOPNOTSUPP, EPERM, EPIPE, EPROTO, ETIMEDOUT,
};

/// What an error of a handshake is called. IPv4 and IPv6 have different numbers for
/// one and the same ICMP error (`net/ipv4/icmp.c:icmp_err_convert`,
/// `net/ipv6/icmp.c:tab_unreach`): all but that of a refused port are `unreachable`.
#[inline(always)]
fn failure(error: i32) -> ConnectFailure {
    match error {
        ECONNREFUSED => ConnectFailure::Refused,
        ETIMEDOUT => ConnectFailure::Timeout,
        EPERM | EACCES | ENONET | EPROTO | ENOPROTOOPT | EOPNOTSUPP | ENETDOWN | ENETUNREACH
        | EHOSTDOWN | EHOSTUNREACH => ConnectFailure::Unreachable,
        ECONNRESET => ConnectFailure::Reset,
        _ => ConnectFailure::Other,
    }
}

/// Why a handshake failed, `without_error` if nothing tells. An ICMP error that met
/// the socket while `connect()` held it does not end the handshake, but the program is
/// told of it, and closes.
#[inline(always)]
pub fn failed(tp: TcpSock, without_error: ConnectFailure) -> ConnectFailure {
    match (tp.err(), without_error) {
        (0, ConnectFailure::Local) => ConnectFailure::Local,
        (0, _) => match failure(tp.told_error()) {
            told @ (ConnectFailure::Refused | ConnectFailure::Unreachable) => told,
            _ => without_error,
        },
        (error, _) => failure(error),
    }
}

/// How a connection ended. `old` is the state before CLOSE; `is_refused` says that the
/// kernel reset it by itself.
#[inline(always)]
pub fn ended(tp: TcpSock, old: u8, is_refused: bool) -> Closed {
    match tp.err() {
        0 | ECONNRESET if is_refused => Closed::ResetSent,
        0 => without_error(tp, old),
        ECONNRESET | EPIPE => Closed::ResetReceived,
        // `ss -K`, or a program that may (`tcp.c:tcp_abort`).
        ECONNABORTED if is_reset_when_aborted(old) => Closed::ResetSent,
        ECONNABORTED => Closed::Other,
        ETIMEDOUT => Closed::Timeout,
        // A connection that times out has the last ICMP error
        // (`tcp_timer.c:tcp_write_err`).
        _ if tp.is_unanswered() => Closed::Timeout,
        // Else the program has asked for such errors (`IP_RECVERR`), and they end
        // nothing.
        _ => without_error(tp, old),
    }
}

#[inline(always)]
fn without_error(tp: TcpSock, old: u8) -> Closed {
    match old {
        // Closed with data unread.
        state::FIN_WAIT1 | state::FIN_WAIT2 if tp.is_deaf() && !tp.has_read_all() => {
            Closed::ResetSent
        }
        // It goes on in another socket.
        _ if is_abort(old) && tp.is_repaired() => Closed::Other,
        _ if is_abort(old) => Closed::ResetSent,
        state::FIN_WAIT2 | state::LAST_ACK | state::CLOSING => Closed::Fin,
        _ => Closed::Other,
    }
}

/// Whether a connection that is aborted in this state is reset
/// (`tcp.c:tcp_need_reset`).
#[inline(always)]
fn is_reset_when_aborted(old: u8) -> bool {
    matches!(
        old,
        state::ESTABLISHED
            | state::CLOSE_WAIT
            | state::FIN_WAIT1
            | state::FIN_WAIT2
            | state::SYN_RECV
    )
}
