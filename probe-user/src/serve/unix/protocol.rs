//! Frames on the socket.
//!
//! A client connects, sends one request frame, gets the answer and is disconnected.
//! The answer is a response frame with the snapshot, or an unchanged frame where the client
//! has told that it has the latest one already. Where connections were asked for,
//! they follow in frames of some hundreds at most, and then a frame says that these were
//! all. In place of any of these frames an error frame may end the answer.
//!
//! A frame is a header of 16 bytes and a body:
//!
//! | bytes | meaning |
//! |---|---|
//! | 0..4 | `EPRB` |
//! | 4..6 | version of the protocol, big-endian |
//! | 6..8 | version of the snapshot's schema, big-endian |
//! | 8 | kind: 1 request, 2 response, 3 error, 4 connections, 5 end, 6 unchanged |
//! | 9..12 | zero |
//! | 12..16 | length of the body, big-endian |
//!
//! The header keeps its layout in every version, so that two programs of
//! different versions can tell each other so. The body of a request is JSON, and so is
//! that of a response (the snapshot without connections) and of connections (a list of
//! them); that of an error is text, and an end and an unchanged one have none.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::model;

/// Version of the protocol.
pub const VERSION: u16 = 4;
/// Largest body of a request.
pub const MAX_REQUEST: u32 = 4 << 10;
/// Largest body of a response.
pub const MAX_RESPONSE: u32 = 128 << 20;

/// Largest body of a frame with connections.
pub const MAX_CONNECTIONS: u32 = 4 << 20;
/// A body is written in pieces of this size: after each the client has moved on.
const PIECE: usize = 64 << 10;

const MAGIC: [u8; 4] = *b"EPRB";
const HEADER: usize = 16;

/// What a client asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// How many [`model::Snapshot::connections`] there may be.
    pub connections: usize,
    /// The snapshot that the client has: it is not sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known: Option<model::Identity>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Nobody listens on the socket.
    #[error(
        "no daemon on {}: start it with `edgeprobe daemon`, or give its --socket",
        path.display()
    )]
    NotRunning {
        /// Path of the socket.
        path: PathBuf,
    },
    /// The socket is not for this user.
    #[error(
        "no permission to use {}: run as root or as a member of the socket's group",
        path.display()
    )]
    Denied {
        /// Path of the socket.
        path: PathBuf,
    },
    /// The other end has another version.
    #[error(
        "the other end is of another version: it speaks protocol {protocol} with schema {schema}, \
         this program {VERSION} with {}; run the same version on both ends",
        model::SCHEMA
    )]
    Version {
        /// Version of its protocol.
        protocol: u16,
        /// Version of its schema.
        schema: u16,
    },
    /// The other end is something else.
    #[error("the other end does not speak the protocol of edgeprobe")]
    NotEdgeprobe,
    /// A frame of this length is not accepted.
    #[error("a message of {length} bytes is larger than the {limit} that are allowed")]
    TooLarge {
        /// Length that the header claims.
        length: usize,
        /// Largest length that is accepted.
        limit: u32,
    },
    /// The connection ended within a frame, or before it.
    #[error("the other end closed the connection before the message was complete")]
    Truncated,
    /// The other end said why it does not answer.
    #[error("the daemon answered: {0}")]
    Refused(String),
    /// There was no complete answer in time.
    #[error("no answer within {0:?}")]
    Timeout(std::time::Duration),
    /// The body is not what it should be.
    #[error("a message that cannot be understood: {0}")]
    Body(#[from] serde_json::Error),
    /// Anything else.
    #[error("the connection failed: {0}")]
    Io(io::Error),
}

impl From<io::Error> for SocketError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset => Self::Truncated,
            _ => Self::Io(error),
        }
    }
}

/// Kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// From the client.
    Request = 1,
    /// The answer.
    Response = 2,
    /// Why there is none, or no more of it.
    Error = 3,
    /// Some of the connections that were asked for.
    Connections = 4,
    /// There are no more of them.
    End = 5,
    /// The answer: the latest snapshot is the one that the client has.
    Unchanged = 6,
}

/// The header of a frame of this version.
fn header(kind: FrameKind, length: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&MAGIC);
    header[4..6].copy_from_slice(&VERSION.to_be_bytes());
    header[6..8].copy_from_slice(&schema().to_be_bytes());
    header[8] = kind as u8;
    header[12..].copy_from_slice(&length.to_be_bytes());
    header
}

const fn schema() -> u16 {
    const { assert!(model::SCHEMA <= u16::MAX as u32) };
    model::SCHEMA as u16
}

/// Writes a frame; `limit` bounds the body.
pub async fn write<W: AsyncWrite + Unpin>(
    output: &mut W,
    kind: FrameKind,
    body: &[u8],
    limit: u32,
) -> Result<(), SocketError> {
    write_in_pieces(output, kind, body, limit, || {}).await
}

/// The same; calls `moved` whenever the other end has taken a piece of it.
pub async fn write_in_pieces<W: AsyncWrite + Unpin>(
    output: &mut W,
    kind: FrameKind,
    body: &[u8],
    limit: u32,
    moved: impl Fn(),
) -> Result<(), SocketError> {
    let length = u32::try_from(body.len())
        .ok()
        .filter(|&length| length <= limit)
        .ok_or(SocketError::TooLarge {
            length: body.len(),
            limit,
        })?;
    output.write_all(&header(kind, length)).await?;
    for piece in body.chunks(PIECE) {
        output.write_all(piece).await?;
        moved();
    }
    output.flush().await?;
    Ok(())
}

/// Reads a frame of one of the kinds `expected`; `limit` bounds its body.
///
/// The memory for it grows with what arrives, not with what the header claims.
pub async fn read<R: AsyncRead + Unpin>(
    input: &mut R,
    expected: &[FrameKind],
    limit: u32,
) -> Result<(FrameKind, Vec<u8>), SocketError> {
    let mut header = [0; HEADER];
    input.read_exact(&mut header).await?;
    let [
        m0,
        m1,
        m2,
        m3,
        v0,
        v1,
        s0,
        s1,
        kind,
        _,
        _,
        _,
        l0,
        l1,
        l2,
        l3,
    ] = header;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(SocketError::NotEdgeprobe);
    }
    let protocol = u16::from_be_bytes([v0, v1]);
    let its_schema = u16::from_be_bytes([s0, s1]);
    if (protocol, its_schema) != (VERSION, schema()) {
        return Err(SocketError::Version {
            protocol,
            schema: its_schema,
        });
    }
    let mut known = expected.iter().copied().chain([FrameKind::Error]);
    let kind = known
        .find(|&one| one as u8 == kind)
        .ok_or(SocketError::NotEdgeprobe)?;
    let length = u32::from_be_bytes([l0, l1, l2, l3]);
    if length > limit {
        return Err(SocketError::TooLarge {
            length: length as usize,
            limit,
        });
    }
    let mut body = Vec::new();
    input.take(length.into()).read_to_end(&mut body).await?;
    if body.len() < length as usize {
        return Err(SocketError::Truncated);
    }
    if kind == FrameKind::Error {
        return Err(SocketError::Refused(
            String::from_utf8_lossy(&body).into_owned(),
        ));
    }
    Ok((kind, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }

    fn frame(kind: FrameKind, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        block(write(&mut bytes, kind, body, MAX_RESPONSE)).unwrap();
        bytes
    }

    fn read_back(mut bytes: &[u8]) -> Result<Vec<u8>, SocketError> {
        block(read(&mut bytes, &[FrameKind::Response], 10)).map(|(_, body)| body)
    }

    #[test]
    fn a_frame_survives() {
        assert_eq!(
            read_back(&frame(FrameKind::Response, b"0123456789")).unwrap(),
            b"0123456789"
        );
        assert_eq!(read_back(&frame(FrameKind::Response, b"")).unwrap(), b"");
    }

    #[test]
    fn of_several_kinds_the_one_that_came_is_told() {
        let kinds = [FrameKind::Connections, FrameKind::End];
        for kind in kinds {
            let bytes = frame(kind, b"");
            let (read, body) = block(read(&mut &bytes[..], &kinds, 10)).unwrap();
            assert_eq!((read, body.len()), (kind, 0));
        }
        let bytes = frame(FrameKind::Response, b"");
        let other = block(read(&mut &bytes[..], &kinds, 10));
        assert!(matches!(other, Err(SocketError::NotEdgeprobe)));
    }

    #[test]
    fn a_body_is_written_in_pieces() {
        let moved = std::cell::Cell::new(0);
        let body = vec![b'x'; 2 * PIECE + 1];
        let mut bytes = Vec::new();
        let written = write_in_pieces(&mut bytes, FrameKind::Response, &body, MAX_RESPONSE, || {
            moved.set(moved.get() + 1);
        });
        block(written).unwrap();
        assert_eq!(moved.get(), 3);
        let (_, read) = block(read(&mut &bytes[..], &[FrameKind::Response], MAX_RESPONSE)).unwrap();
        assert!(read == body);
    }

    #[test]
    fn every_truncation_is_noticed() {
        let bytes = frame(FrameKind::Response, b"body");
        for length in 0..bytes.len() {
            let result = read_back(&bytes[..length]);
            assert!(
                matches!(result, Err(SocketError::Truncated)),
                "{length} bytes"
            );
        }
    }

    #[test]
    fn another_version_is_named_even_with_a_body_of_another_shape() {
        for (at, protocol, schema) in [(5, 7, schema()), (7, VERSION, 7)] {
            let mut bytes = frame(FrameKind::Response, b"longer than the limit");
            bytes[at] = 7;
            let Err(error) = read_back(&bytes) else {
                panic!("accepted");
            };
            let text = error.to_string();
            assert!(
                text.contains(&format!("speaks protocol {protocol} with schema {schema}")),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_too_large_is_neither_read_nor_written() {
        let bytes = frame(FrameKind::Response, b"01234567890");
        assert!(matches!(
            read_back(&bytes),
            Err(SocketError::TooLarge {
                length: 11,
                limit: 10
            })
        ));
        let mut bytes = Vec::new();
        let result = block(write(&mut bytes, FrameKind::Request, &[0; 11], 10));
        assert!(matches!(result, Err(SocketError::TooLarge { .. })));
        assert!(bytes.is_empty());
    }

    #[test]
    fn other_protocols_and_wrong_kinds_are_refused() {
        assert!(matches!(
            read_back(b"GET / HTTP/1.1\r\n\r\n"),
            Err(SocketError::NotEdgeprobe)
        ));
        assert!(matches!(
            read_back(&frame(FrameKind::Request, b"")),
            Err(SocketError::NotEdgeprobe)
        ));
    }

    #[test]
    fn an_error_frame_is_an_error() {
        let Err(SocketError::Refused(text)) = read_back(&frame(FrameKind::Error, b"too busy"))
        else {
            panic!("not refused");
        };
        assert_eq!(text, "too busy");
    }
}
