//! The client's end of the socket.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::protocol::{self, FrameKind, Request, SocketError};
use crate::model::{Connection, Snapshot};

/// Asks the daemon for a snapshot and blocks for at most `timeout`.
///
/// Not for use within an asynchronous runtime; there is [`fetch_async`].
pub fn fetch(path: &Path, request: Request, timeout: Duration) -> Result<Snapshot, SocketError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(SocketError::Io)?
        .block_on(fetch_async(path, request, timeout))
}

/// Asks the daemon for a snapshot and waits for at most `timeout`.
pub async fn fetch_async(
    path: &Path,
    request: Request,
    timeout: Duration,
) -> Result<Snapshot, SocketError> {
    let request = Request {
        known: None,
        ..request
    };
    let answer = ask(path, request, timeout).await?;
    answer.ok_or(SocketError::NotEdgeprobe)
}

/// Asks the daemon for its latest snapshot and waits for at most `timeout`; gives
/// `known` back where that is the latest.
///
/// # Errors
///
/// There is no daemon, it has no fresh snapshot, or it does not answer.
pub async fn fetch_newer(
    path: &Path,
    known: Option<Arc<Snapshot>>,
    timeout: Duration,
) -> Result<Arc<Snapshot>, SocketError> {
    let request = Request {
        connections: 0,
        known: known.as_deref().map(Snapshot::identity),
    };
    match ask(path, request, timeout).await? {
        Some(newer) => Ok(Arc::new(newer)),
        None => known.ok_or(SocketError::NotEdgeprobe),
    }
}

/// `None`: it is the one that is known.
async fn ask(
    path: &Path,
    request: Request,
    timeout: Duration,
) -> Result<Option<Snapshot>, SocketError> {
    match tokio::time::timeout(timeout, exchange(path, request)).await {
        Ok(result) => result,
        Err(_) => Err(SocketError::Timeout(timeout)),
    }
}

async fn exchange(path: &Path, request: Request) -> Result<Option<Snapshot>, SocketError> {
    let mut stream = UnixStream::connect(path)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => SocketError::NotRunning {
                path: path.to_owned(),
            },
            io::ErrorKind::PermissionDenied => SocketError::Denied {
                path: path.to_owned(),
            },
            _ => SocketError::Io(error),
        })?;
    let body = serde_json::to_vec(&request)?;
    // A daemon that refuses does so without reading the request, which makes
    // this write fail: its answer says more than that failure does.
    let written = protocol::write(
        &mut stream,
        FrameKind::Request,
        &body,
        protocol::MAX_REQUEST,
    )
    .await;
    let kinds = [FrameKind::Response, FrameKind::Unchanged];
    let response = protocol::read(&mut stream, &kinds, protocol::MAX_RESPONSE).await;
    let (kind, body) = match (response, written) {
        (Err(SocketError::Truncated), Err(error)) => return Err(error),
        (Err(error), _) => return Err(error),
        (Ok(answer), _) => answer,
    };
    if kind == FrameKind::Unchanged {
        return Ok(None);
    }
    let mut snapshot: Snapshot = decode(body).await?;
    if request.connections > 0 {
        snapshot.connections = connections(&mut stream, request.connections).await?;
    }
    Ok(Some(snapshot))
}

/// Reads frames of connections up to the end; `limit` were asked for.
async fn connections(
    stream: &mut UnixStream,
    limit: usize,
) -> Result<Vec<Connection>, SocketError> {
    let kinds = [FrameKind::Connections, FrameKind::End];
    let mut connections = Vec::new();
    loop {
        let (kind, body) = protocol::read(stream, &kinds, protocol::MAX_CONNECTIONS).await?;
        if kind == FrameKind::End {
            return Ok(connections);
        }
        let more: Vec<Connection> = decode(body).await?;
        if connections.len() + more.len() > limit {
            return Err(SocketError::NotEdgeprobe);
        }
        connections.extend(more);
    }
}

/// Reads JSON on a thread beside the runtime, which has others to answer.
async fn decode<T: DeserializeOwned + Send + 'static>(body: Vec<u8>) -> Result<T, SocketError> {
    match tokio::task::spawn_blocking(move || serde_json::from_slice(&body)).await {
        Ok(decoded) => Ok(decoded?),
        Err(error) => Err(SocketError::Io(io::Error::other(error))),
    }
}
