//! How far the TLS handshake of a connection is: the values of
//! [`Conn::tls`](crate::conn::Conn::tls).

/// Nothing has been seen that tells.
pub const UNKNOWN: u32 = 0;
/// A ClientHello was seen (server) or is presumed (client).
pub const HELLO: u32 = 1;
/// A client has seen the record after which its own application data may come.
pub const ANSWERED: u32 = 2;
/// It is not TLS, the handshake is over, or the records can be followed no more.
pub const DONE: u32 = 3;
