use std::io::{Read, Write};
use std::os::unix::net::UnixStream as Blocking;
use std::path::PathBuf;
use std::time::Instant;

use super::*;
use crate::model::SCHEMA;
use crate::sampler::SamplerThread;
use crate::sampler::fake::Fake;
use crate::serve::unix::{client, fetch};

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
    server_of(Fake::default())
}

fn server_of(fake: Fake) -> Server {
    server_within(fake, SHORT)
}

fn server_within(fake: Fake, deadline: Duration) -> Server {
    let (sampler, thread) = fake.spawn(Duration::from_millis(20));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        crate::sampler::fake::block(async {
            let listener = UnixListener::from_std(listener).unwrap();
            serve_within(listener, sampler, deadline).await;
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
        fetch(&self.path, asking(connections), LONG)
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
    let none = server_of(Fake {
        connections: 0,
        ..Fake::default()
    });
    assert!(none.fetch(10).unwrap().connections.is_empty());
    let live = server.fetch(1).unwrap();
    assert_eq!(live.connections.len(), 1);
    assert_eq!(live.connections[0].local, "192.0.2.1:80");
    assert_eq!(live.resets, plain.resets);
}

fn asking(connections: usize) -> Request {
    Request {
        connections,
        known: None,
    }
}

#[test]
fn a_snapshot_that_is_known_is_not_sent_again() {
    // The first one stays the latest.
    let (sampler, _thread) = Fake::default().spawn(Duration::from_secs(60));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.sock");
    crate::sampler::fake::block(async {
        assert!(sampler.first().await);
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(serve(listener, sampler));
        let newer = |known| client::fetch_newer(&path, known, LONG);
        let first = newer(None).await.unwrap();
        let same = newer(Some(Arc::clone(&first))).await.unwrap();
        assert!(Arc::ptr_eq(&first, &same));
        // Of another time, or of another daemon.
        for (later, start) in [(1.0, 0.0), (0.0, 1.0)] {
            let mut other = (*first).clone();
            other.timestamp_seconds -= later;
            other.start_seconds -= start;
            let other = newer(Some(Arc::new(other))).await.unwrap();
            assert_eq!(other, first);
            assert!(!Arc::ptr_eq(&first, &other));
        }
        // Who asks for connections gets the snapshot that they belong to.
        let request = Request {
            connections: 1,
            known: Some(first.identity()),
        };
        let whole = client::fetch_async(&path, request, LONG).await.unwrap();
        assert_eq!(
            (whole.identity(), whole.connections.len()),
            (first.identity(), 1)
        );
    });
}

/// The kinds of the frames of an answer and their bodies.
fn frames(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some((header, rest)) = bytes.split_at_checked(16) {
        let length = u32::from_be_bytes(header[12..].try_into().unwrap()) as usize;
        frames.push((header[8], rest[..length].to_vec()));
        bytes = &rest[length..];
    }
    frames
}

/// A request frame.
fn request(body: &str) -> Vec<u8> {
    let schema = (SCHEMA as u16).to_be_bytes();
    let length = (body.len() as u32).to_be_bytes();
    let head = [b"EPRB\x00\x04".as_slice(), &schema, b"\x01\0\0\0", &length];
    [&head.concat()[..], body.as_bytes()].concat()
}

#[test]
fn many_connections_come_in_frames_of_few_in_their_order() {
    let fake = Fake {
        connections: 72_000,
        ..Fake::default()
    };
    let server = server_within(fake, LONG);
    let all = server
        .fetch(crate::sampler::MAX_LISTED_CONNECTIONS)
        .unwrap();
    assert_eq!(all.connections.len(), 72_000);
    let order = all.connections.iter().map(|one| one.sent_bytes);
    assert!(order.eq(0..72_000));

    let frames = frames(&server.say(&request(r#"{"connections":1001}"#)));
    let kinds: Vec<u8> = frames.iter().map(|(kind, _)| *kind).collect();
    let connections = 1001_usize.div_ceil(IN_A_FRAME);
    assert_eq!(kinds[0], FrameKind::Response as u8);
    assert_eq!(kinds.last(), Some(&(FrameKind::End as u8)));
    assert_eq!(kinds.len(), connections + 2);
    for (kind, body) in &frames[1..=connections] {
        assert_eq!(*kind, FrameKind::Connections as u8);
        let some: Vec<crate::model::Connection> = serde_json::from_slice(body).unwrap();
        assert!(some.len() <= IN_A_FRAME);
        assert!(body.len() < MAX_CONNECTIONS as usize);
    }
}

/// A daemon that ends in the middle is no daemon with few connections.
#[test]
fn an_answer_without_its_end_is_no_answer() {
    let server = server();
    let whole = server.say(&request(r#"{"connections":3}"#));
    for length in [whole.len() - 16, whole.len() - 17] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let part = whole[..length].to_vec();
        let other = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 16];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(&part).unwrap();
        });
        let error = fetch(&path, asking(3), LONG).unwrap_err();
        assert!(matches!(error, SocketError::Truncated), "{error}");
        other.join().unwrap();
    }
}

#[test]
fn another_version_is_told_so() {
    let server = server();
    let mut frame = request("");
    frame[5] = 9;
    let answer = server.say(&frame);
    assert_eq!(answer[8], FrameKind::Error as u8);
    let text = String::from_utf8_lossy(&answer[16..]);
    assert!(text.contains("it speaks protocol 9"), "{text}");
}

#[test]
fn truncated_and_oversized_requests_do_no_harm() {
    let server = server();
    let request = request(r#"{"connections":0}"#);
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
fn of_silent_clients_the_oldest_is_evicted() {
    let server = server();
    let mut silent: Vec<_> = (0..2 * MAX_CLIENTS).map(|_| server.connect()).collect();
    for _ in 0..10 {
        server.fetch(1).unwrap();
    }
    for stream in &mut silent {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty());
    }
}

#[test]
fn clients_that_never_read_keep_nobody_waiting() {
    let server = server_of(Fake {
        connections: 5000,
        ..Fake::default()
    });
    let deaf: Vec<_> = (0..MAX_CLIENTS + 10)
        .map(|_| {
            let mut stream = server.connect();
            stream
                .write_all(&request(r#"{"connections":1000}"#))
                .unwrap();
            stream
        })
        .collect();
    for _ in 0..10 {
        assert!(server.fetch(0).unwrap().connections.is_empty());
    }
    drop(deaf);
    assert_eq!(server.fetch(5000).unwrap().connections.len(), 5000);
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
