//! The client's end of the socket.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;

use super::protocol::{self, FrameKind, Request, SocketError};
use crate::model::Snapshot;

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
    match tokio::time::timeout(timeout, exchange(path, request)).await {
        Ok(result) => result,
        Err(_) => Err(SocketError::Timeout(timeout)),
    }
}

async fn exchange(path: &Path, request: Request) -> Result<Snapshot, SocketError> {
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
    match (
        protocol::read(&mut stream, FrameKind::Response, protocol::MAX_RESPONSE).await,
        written,
    ) {
        (Err(SocketError::Truncated), Err(error)) => Err(error),
        (Err(error), _) => Err(error),
        (Ok(body), _) => Ok(serde_json::from_slice(&body)?),
    }
}
