//! The daemon's end of the socket.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::protocol::{self, FrameKind, MAX_REQUEST, MAX_RESPONSE, Request, SocketError};
use crate::sampler::{LISTED_CONNECTIONS, Sampler, Unavailable};

/// Clients that are served at a time.
pub const MAX_CLIENTS: usize = 32;
/// Bounds each of: reading the request, finding the answer, writing it.
const DEADLINE: Duration = Duration::from_secs(5);
/// Answers with more live connections than usual that are made and sent at a
/// time: each takes up to 200 MiB.
const MAX_LARGE: usize = 1;
/// After a failure to accept, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves clients until it is dropped.
pub async fn serve(listener: UnixListener, sampler: Sampler) {
    serve_within(listener, sampler, DEADLINE).await;
}

async fn serve_within(listener: UnixListener, sampler: Sampler, deadline: Duration) {
    let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
    let large = Arc::new(Semaphore::new(MAX_LARGE));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("cannot accept a client on the socket: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&clients).try_acquire_owned() else {
            turn_away(stream);
            continue;
        };
        let (sampler, large) = (sampler.clone(), Arc::clone(&large));
        tokio::spawn(async move {
            if let Err(error) = client(stream, &sampler, &large, deadline).await {
                tracing::debug!("client on the socket: {error}");
            }
            drop(permit);
        });
    }
}

/// Says that there are too many clients, without waiting for this one.
fn turn_away(stream: UnixStream) {
    let frame = protocol::error_frame(&format!(
        "{MAX_CLIENTS} clients are connected already: try again"
    ));
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(&frame);
    }
}

async fn client(
    mut stream: UnixStream,
    sampler: &Sampler,
    large: &Semaphore,
    deadline: Duration,
) -> Result<(), SocketError> {
    let timed_out = |_| SocketError::Timeout(deadline);
    let request = timeout(
        deadline,
        protocol::read(&mut stream, FrameKind::Request, MAX_REQUEST),
    )
    .await
    .map_err(timed_out)?
    .and_then(|body| Ok(serde_json::from_slice::<Request>(&body)?));
    let is_large = matches!(&request, Ok(request) if request.connections > LISTED_CONNECTIONS);
    // Held until the answer is sent. Whoever has it takes two deadlines at the most.
    let large_permit = if is_large {
        timeout(2 * deadline, large.acquire()).await.ok()
    } else {
        None
    };
    let answer = match request {
        Ok(_) if is_large && large_permit.is_none() => Err(Unavailable::Busy.to_string()),
        Ok(request) => timeout(deadline, answer(sampler, request))
            .await
            .unwrap_or(Err(Unavailable::Busy))
            .map_err(|error| error.to_string()),
        // Whoever is no client of ours would not understand.
        Err(error @ (SocketError::NotEdgeprobe | SocketError::Truncated | SocketError::Io(_))) => {
            return Err(error);
        }
        Err(error) => Err(error.to_string()),
    };
    let write = async {
        match &answer {
            Ok(body) => protocol::write(&mut stream, FrameKind::Response, body, MAX_RESPONSE).await,
            Err(text) => {
                protocol::write(&mut stream, FrameKind::Error, text.as_bytes(), MAX_REQUEST).await
            }
        }
    };
    timeout(deadline, write).await.map_err(timed_out)?
}

async fn answer(sampler: &Sampler, request: Request) -> Result<Arc<[u8]>, Unavailable> {
    let latest = match sampler.latest() {
        Err(Unavailable::Starting) => {
            sampler.first().await;
            sampler.latest()
        }
        latest => latest,
    }?;
    let json = if request.connections > 0 {
        let mut snapshot = (*latest.snapshot).clone();
        let connections = sampler.connections(request.connections).await?;
        let number = connections.len().min(request.connections);
        snapshot.connections = connections[..number].to_vec();
        serde_json::to_vec(&snapshot).map(Into::into)
    } else {
        latest.json()
    };
    json.map_err(|error| Unavailable::Failed(format!("cannot write JSON: {error}")))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream as Blocking;
    use std::path::PathBuf;
    use std::time::Instant;

    use super::*;
    use crate::model::SCHEMA;
    use crate::sampler::SamplerThread;
    use crate::sampler::fake::Fake;
    use crate::serve::unix::fetch;

    const SHORT: Duration = Duration::from_millis(300);
    const LONG: Duration = Duration::from_secs(20);

    /// A server on a thread of its own.
    struct Server {
        path: PathBuf,
        fake: Fake,
        _thread: SamplerThread,
        _directory: tempfile::TempDir,
    }

    fn server() -> Server {
        let fake = Fake::default();
        let (sampler, thread) = fake.spawn(Duration::from_millis(20));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            crate::sampler::fake::block(async {
                let listener = UnixListener::from_std(listener).unwrap();
                serve_within(listener, sampler, SHORT).await;
            });
        });
        Server {
            path,
            fake,
            _thread: thread,
            _directory: directory,
        }
    }

    impl Server {
        fn connect(&self) -> Blocking {
            let stream = Blocking::connect(&self.path).unwrap();
            stream.set_read_timeout(Some(LONG)).unwrap();
            stream
        }

        fn fetch(&self, connections: usize) -> Result<crate::model::Snapshot, SocketError> {
            fetch(&self.path, Request { connections }, LONG)
        }

        /// Sends bytes and reads what comes back until the end.
        fn say(&self, bytes: &[u8]) -> Vec<u8> {
            let mut stream = self.connect();
            stream.write_all(bytes).unwrap();
            let mut answer = Vec::new();
            // What the server did not read turns its end into a reset.
            let _ = stream.read_to_end(&mut answer);
            answer
        }
    }

    #[test]
    fn a_snapshot_arrives_with_and_without_connections() {
        let server = server();
        let plain = server.fetch(0).unwrap();
        assert!(plain.connections.is_empty());
        assert_eq!(
            plain.tcp[0].rtt,
            crate::model::sample::snapshot().tcp[0].rtt
        );
        // The second one finds the permit for large answers free again.
        for _ in 0..2 {
            let all = server.fetch(LISTED_CONNECTIONS + 1).unwrap();
            assert_eq!(all.connections.len(), 3);
        }
        let live = server.fetch(1).unwrap();
        assert_eq!(live.connections.len(), 1);
        assert_eq!(live.connections[0].local, "192.0.2.1:80");
        assert_eq!(live.resets, plain.resets);
    }

    #[test]
    fn another_version_is_told_so() {
        let server = server();
        let mut frame = protocol::error_frame("");
        frame[5] = 9;
        frame[8] = FrameKind::Request as u8;
        let answer = server.say(&frame);
        assert_eq!(answer[8], FrameKind::Error as u8);
        let text = String::from_utf8_lossy(&answer[16..]);
        assert!(text.contains("it speaks protocol 9"), "{text}");
    }

    #[test]
    fn truncated_and_oversized_requests_do_no_harm() {
        let server = server();
        let request = [
            b"EPRB\x00\x02".as_slice(),
            &(SCHEMA as u16).to_be_bytes(),
            b"\x01\0\0\0\x00\x00\x00\x11",
            br#"{"connections":0}"#,
        ]
        .concat();
        assert_eq!(server.say(&request)[8], FrameKind::Response as u8);
        for length in 0..request.len() {
            let mut stream = server.connect();
            stream.write_all(&request[..length]).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            assert!(answer.is_empty(), "{length} bytes: {answer:?}");
        }
        let mut huge = request.clone();
        huge[12] = 0xff;
        let answer = server.say(&huge);
        let text = String::from_utf8_lossy(&answer[16..]);
        assert!(text.contains("larger than the 4096"), "{text}");
        let mut unknown = request;
        unknown[17..30].copy_from_slice(b"\"credentials\"");
        let answer = server.say(&unknown);
        assert_eq!(answer[8], FrameKind::Error as u8);
        server.fetch(0).unwrap();
    }

    #[test]
    fn silent_and_slow_clients_are_dropped_and_hold_nobody_up() {
        let server = server();
        let started = Instant::now();
        let mut silent = server.connect();
        let mut slow = server.connect();
        slow.write_all(b"EPRB").unwrap();
        for _ in 0..10 {
            server.fetch(1).unwrap();
        }
        assert!(started.elapsed() < Duration::from_secs(5), "was held up");
        let before = server
            .fake
            .snapshots
            .load(std::sync::atomic::Ordering::Relaxed);
        for stream in [&mut silent, &mut slow] {
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            assert!(answer.is_empty());
        }
        assert!(started.elapsed() >= SHORT, "dropped before the deadline");
        std::thread::sleep(Duration::from_millis(200));
        let after = server
            .fake
            .snapshots
            .load(std::sync::atomic::Ordering::Relaxed);
        assert!(after > before, "the collector stood still");
    }

    #[test]
    fn too_many_clients_are_turned_away_with_the_reason() {
        let server = server();
        let mut refused = None;
        // Those that are silent keep their permits until the deadline.
        let _silent: Vec<_> = (0..MAX_CLIENTS).map(|_| server.connect()).collect();
        for _ in 0..3 {
            if let Err(error) = server.fetch(0) {
                refused = Some(error.to_string());
                break;
            }
        }
        let refused = refused.unwrap();
        assert!(refused.contains("32 clients are connected"), "{refused}");
        std::thread::sleep(SHORT * 3);
        server.fetch(0).unwrap();
    }

    #[test]
    fn a_client_is_told_what_to_do_where_there_is_no_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sock");
        let request = Request::default();
        let error = fetch(&path, request, LONG).unwrap_err();
        assert!(matches!(error, SocketError::NotRunning { .. }), "{error}");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let error = fetch(&path, request, LONG).unwrap_err();
        assert!(matches!(error, SocketError::NotRunning { .. }), "{error}");
        assert!(error.to_string().contains("edgeprobe daemon"));
    }

    #[test]
    fn a_client_does_not_wait_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = fetch(&path, Request::default(), SHORT).unwrap_err();
        assert!(matches!(error, SocketError::Timeout(_)), "{error}");
    }
}
