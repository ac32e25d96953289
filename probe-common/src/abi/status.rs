//! Elements of the `STATUS` map: single words that the programs and the collector
//! share.

/// 1 once a connection has found no slot.
pub const FULL: u32 = 0;
/// When all sockets had been visited, in nanoseconds of CLOCK_MONOTONIC, so that a
/// socket without an entry was not there at the start; 0 before that.
pub const COMPLETE: u32 = 1;
/// 1 while SYN cookies come back.
pub const COOKIES: u32 = 2;
/// 1 while the socket iterator is to report the connections.
pub const REPORT: u32 = 3;
/// The number of the present iteration over the sockets, of 32 bits, never 0.
pub const ITERATION: u32 = 4;
/// 1 while the socket iterator is to observe the least RTT of open connections.
pub const OBSERVE_MIN_RTT: u32 = 5;
/// 1 once a listener has been seen to wait for data (`TCP_DEFER_ACCEPT`).
pub const DEFERS: u32 = 6;
/// Elements of the map.
pub const LEN: usize = 7;
