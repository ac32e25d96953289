//! Elements of the `STATUS` map: single words that the programs and the collector
//! share.

/// 1 once a connection has found no slot.
pub const FULL: u32 = 0;
/// 1 once all sockets have been visited, so that a socket without an entry was
/// not there at the start.
pub const COMPLETE: u32 = 1;
/// 1 while SYN cookies come back.
pub const COOKIES: u32 = 2;
/// 1 while the socket iterator is to report the connections.
pub const REPORT: u32 = 3;
/// The number of a row that was taken and not needed, or 0.
pub const SPARE_ROW: u32 = 4;
/// Elements of the map.
pub const LEN: usize = 5;
