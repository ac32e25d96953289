//! The daemon's end of the socket.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::protocol::{
    self, FrameKind, MAX_CONNECTIONS, MAX_REQUEST, MAX_RESPONSE, Request, SocketError,
};
use crate::kernel::memory;
use crate::sampler::{LISTED_CONNECTIONS, Published, Sampler, Unavailable};
use crate::serve::clients::{Activity, Clients};

/// Clients that are served at a time.
pub const MAX_CLIENTS: usize = 128;
/// Bounds each of: reading the request, finding a part of the answer, writing it.
const DEADLINE: Duration = Duration::from_secs(5);
/// For a whole answer, in deadlines.
const WHOLE: u32 = 4;
/// Lists with more live connections than usual that are held at a time: each takes some
/// 10 MiB.
const MAX_LARGE: usize = 1;
/// Connections in a frame. They are named and written before the next ones are.
const IN_A_FRAME: usize = 200;

/// Serves clients until it is dropped.
pub async fn serve(listener: UnixListener, sampler: Sampler) {
    serve_within(listener, sampler, DEADLINE).await;
}

async fn serve_within(listener: UnixListener, sampler: Sampler, deadline: Duration) {
    let clients = Clients::new("socket", MAX_CLIENTS);
    let server = Arc::new(Server {
        sampler,
        large: Semaphore::new(MAX_LARGE),
        clients: Arc::clone(&clients),
        deadline,
    });
    let accept = || async { Ok(listener.accept().await?.0) };
    let serve = |stream, activity| Arc::clone(&server).client(stream, activity);
    clients.serve_all(accept, serve).await;
}

/// What all clients share.
struct Server {
    sampler: Sampler,
    large: Semaphore,
    clients: Arc<Clients>,
    deadline: Duration,
}

/// Why an answer ends.
enum Ends {
    /// The client is gone or too slow, or is no client of ours: it would not
    /// understand a word about it.
    Silently(SocketError),
    /// It is told why.
    Told(String),
}

impl From<Unavailable> for Ends {
    fn from(error: Unavailable) -> Self {
        Self::Told(error.to_string())
    }
}

impl Server {
    async fn client(self: Arc<Self>, mut stream: UnixStream, activity: Arc<Activity>) {
        let ended = match self.answer(&mut stream, &activity).await {
            Err(Ends::Told(text)) => {
                let mut text = text.into_bytes();
                text.truncate(MAX_REQUEST as usize);
                self.write(&mut stream, &activity, FrameKind::Error, &text)
                    .await
            }
            ended => ended,
        };
        if let Err(Ends::Silently(error)) = ended {
            tracing::debug!("client on the socket: {error}");
        }
    }

    async fn answer(&self, stream: &mut UnixStream, activity: &Activity) -> Result<(), Ends> {
        let request = self.request(stream).await?;
        activity.moves();
        let latest = self.latest().await?;
        let is_known = request.known == Some(latest.snapshot.identity());
        if is_known && request.connections == 0 {
            return self
                .write(stream, activity, FrameKind::Unchanged, &[])
                .await;
        }
        // Others are answered meanwhile.
        let json = tokio::task::spawn_blocking(move || latest.json())
            .await
            .map_err(|error| Ends::Told(error.to_string()))?
            .map_err(Ends::Told)?;
        self.clients.sends(activity, &json);
        if request.connections == 0 {
            return self
                .write(stream, activity, FrameKind::Response, &json)
                .await;
        }
        let is_large = request.connections > LISTED_CONNECTIONS;
        // Held until the answer is sent.
        let _large = if is_large {
            let wait = timeout(WHOLE * self.deadline, self.large.acquire());
            Some(wait.await.map_err(|_| Unavailable::Busy)?)
        } else {
            None
        };
        let whole = async {
            self.write(stream, activity, FrameKind::Response, &json)
                .await?;
            self.connections(stream, activity, request.connections)
                .await
        };
        let result = timeout(WHOLE * self.deadline, whole)
            .await
            .unwrap_or_else(|_| {
                let error = SocketError::Timeout(WHOLE * self.deadline);
                Err(Ends::Silently(error))
            });
        if is_large {
            memory::trim();
        }
        result
    }

    async fn request(&self, stream: &mut UnixStream) -> Result<Request, Ends> {
        let read = protocol::read(stream, &[FrameKind::Request], MAX_REQUEST);
        let read = timeout(self.deadline, read)
            .await
            .unwrap_or(Err(SocketError::Timeout(self.deadline)));
        let request = read.and_then(|(_, body)| Ok(serde_json::from_slice(&body)?));
        request.map_err(|error| match error {
            SocketError::NotEdgeprobe
            | SocketError::Truncated
            | SocketError::Timeout(_)
            | SocketError::Io(_) => Ends::Silently(error),
            error => Ends::Told(error.to_string()),
        })
    }

    async fn latest(&self) -> Result<Arc<Published>, Unavailable> {
        match self.sampler.latest() {
            Err(Unavailable::Starting) => {
                let first = timeout(self.deadline, self.sampler.first());
                first.await.map_err(|_| Unavailable::Starting)?;
                self.sampler.latest()
            }
            latest => latest,
        }
    }

    /// Sends the largest live connections, `limit` at most, frame by frame.
    async fn connections(
        &self,
        stream: &mut UnixStream,
        activity: &Activity,
        limit: usize,
    ) -> Result<(), Ends> {
        let listed = self.in_time(self.sampler.list(limit)).await?;
        let number = listed.len().min(limit);
        for start in (0..number).step_by(IN_A_FRAME) {
            let range = start..number.min(start + IN_A_FRAME);
            let connections = self.in_time(self.sampler.describe(&listed, range)).await?;
            let body = serde_json::to_vec(&connections)
                .map_err(|error| Ends::Told(format!("cannot write JSON: {error}")))?;
            drop(connections);
            self.write(stream, activity, FrameKind::Connections, &body)
                .await?;
        }
        self.write(stream, activity, FrameKind::End, &[]).await
    }

    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, Unavailable>>,
    ) -> Result<T, Unavailable> {
        timeout(self.deadline, answer)
            .await
            .unwrap_or(Err(Unavailable::Busy))
    }

    async fn write(
        &self,
        stream: &mut UnixStream,
        activity: &Activity,
        kind: FrameKind,
        body: &[u8],
    ) -> Result<(), Ends> {
        let limit = match kind {
            FrameKind::Connections => MAX_CONNECTIONS,
            FrameKind::Response => MAX_RESPONSE,
            _ => MAX_REQUEST,
        };
        let write = protocol::write_in_pieces(stream, kind, body, limit, || activity.moves());
        timeout(self.deadline, write)
            .await
            .unwrap_or(Err(SocketError::Timeout(self.deadline)))
            .map_err(Ends::Silently)
    }
}

#[cfg(test)]
mod tests;
