//! How far the TLS handshake of a connection is: the values of
//! [`Conn::tls`](crate::abi::conn::Conn::tls).

/// Nothing has been seen that tells.
pub const UNKNOWN: u32 = 0;
/// A ClientHello was seen (server), or a ServerHello has answered it (client).
pub const HELLO: u32 = 1;
/// The peer may send application data next: a client has seen the record that
/// ends the server's part, or a server the client's ChangeCipherSpec.
pub const ANSWERED: u32 = 2;
/// It is not TLS, the handshake is over, or the records can be followed no more.
pub const DONE: u32 = 3;
/// A client was asked for another ClientHello (RFC 8446 section 4.1.4).
pub const RETRY: u32 = 4;
/// A client has sent a ClientHello, and has no answer.
pub const GREETED: u32 = 5;
