use std::io::{Read, Write};
use std::net::TcpStream as Blocking;
use std::sync::Mutex;

use super::*;
use crate::export::sample;
use crate::sampler::fake::block;

/// Fewer than usual: both ends are in this process.
const MOST: usize = 40;

/// A source that says what it is told to.
#[derive(Clone)]
struct Told(Arc<Mutex<Result<Arc<Snapshot>, String>>>);

impl LatestSnapshot for Told {
    const IS_EXPORTER: bool = true;

    async fn latest(&self) -> Result<Arc<Snapshot>, String> {
        self.0.lock().unwrap().clone()
    }

    fn health(&self) -> Result<(), String> {
        self.0.lock().unwrap().clone().map(drop)
    }
}

struct Server {
    address: SocketAddr,
    told: Told,
}

fn server() -> Server {
    let told = Told(Arc::new(Mutex::new(Ok(Arc::new(sample::snapshot())))));
    let (send, address) = std::sync::mpsc::channel();
    let source = told.clone();
    std::thread::spawn(move || {
        block(async {
            let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
            send.send(listener.local_addr().unwrap()).unwrap();
            serve_at_most(listener, source, MOST).await;
        });
    });
    Server {
        address: address.recv().unwrap(),
        told,
    }
}

/// Status line and headers in lower case, and the body.
struct Answer {
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    fn is(&self, status: u16) -> bool {
        self.head.starts_with(&format!("http/1.1 {status} "))
    }
}

impl Server {
    fn connect(&self) -> Blocking {
        let stream = Blocking::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        stream
    }

    fn request(&self, method: &str, path: &str, accept: &str) -> Answer {
        self.raw(&format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n"
        ))
    }

    fn get(&self, path: &str) -> Answer {
        self.request("GET", path, "*/*")
    }

    fn raw(&self, request: &str) -> Answer {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        let end = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        Answer {
            head: String::from_utf8(all[..end].to_vec())
                .unwrap()
                .to_lowercase(),
            body: all[end + 4..].to_vec(),
        }
    }

    fn tell(&self, latest: Result<Arc<Snapshot>, String>) {
        *self.told.0.lock().unwrap() = latest;
    }
}

#[test]
fn metrics_come_in_the_format_that_is_asked_for() {
    let server = server();
    let text = server.get("/metrics");
    assert!(text.is(200), "{}", text.head);
    assert!(
        text.head
            .contains("content-type: text/plain; version=0.0.4; charset=utf-8")
    );
    assert!(text.head.contains("vary: accept, accept-encoding"));
    assert!(text.text().contains("\nedgeprobe_daemon_up 1\n"));

    let open = server.request("GET", "/metrics", "application/openmetrics-text");
    assert!(
        open.head
            .contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    assert!(open.text().ends_with("# EOF\n"));

    let accept = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
    let binary = server.request("GET", "/metrics", accept);
    assert!(
        binary
            .head
            .contains("content-type: application/vnd.google.protobuf; proto=")
    );
    // A length, then field 1, the name.
    assert_eq!(binary.body[1..4], [0x0a, 19, b'e']);
}

#[test]
fn metrics_are_compressed_for_who_asks_for_it() {
    let server = server();
    server.tell(Ok(Arc::new(large())));
    let asking = |encodings: &str| {
        server.raw(&format!(
            "GET /metrics HTTP/1.1\r\nHost: x\r\n{encodings}\r\n"
        ))
    };
    let plain = asking("");
    assert!(!plain.head.contains("content-encoding"), "{}", plain.head);
    for encodings in [
        "Accept-Encoding: gzip\r\n",
        "Accept-Encoding: br\r\nAccept-Encoding: identity;q=0.1, gzip;q=0.5\r\n",
    ] {
        let zipped = asking(encodings);
        assert!(zipped.is(200) && zipped.head.contains("\r\ncontent-encoding: gzip"));
        assert!(zipped.head.contains("vary: accept, accept-encoding"));
        let length = format!("content-length: {}", zipped.body.len());
        assert!(zipped.head.contains(&length), "{}", zipped.head);
        let mut unzipped = Vec::new();
        let mut decoder = flate2::read::GzDecoder::new(&zipped.body[..]);
        decoder.read_to_end(&mut unzipped).unwrap();
        assert!(unzipped == plain.body);
        assert!(zipped.body.len() < plain.body.len() / 8);
    }
    for refused in ["gzip;q=0", "identity", "deflate, br"] {
        let plain = asking(&format!("Accept-Encoding: {refused}\r\n"));
        assert!(!plain.head.contains("content-encoding"), "{refused}");
    }
    // Other pages are small.
    let small = server.raw("GET /status HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n");
    assert!(!small.head.contains("content-encoding") && !small.head.contains("vary"));
}

#[test]
fn several_accept_headers_are_one_list() {
    let answer = server().raw(
        "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: text/plain;q=0.1\r\nAccept: application/openmetrics-text\r\n\r\n",
    );
    assert!(answer.head.contains("openmetrics"), "{}", answer.head);
}

#[test]
fn head_is_get_without_the_body() {
    let server = server();
    let get = server.get("/status");
    let head = server.request("HEAD", "/status", "*/*");
    assert!(head.is(200));
    assert!(head.body.is_empty());
    let length = format!("content-length: {}", get.body.len());
    assert!(head.head.contains(&length), "{}", head.head);
}

#[test]
fn unknown_pages_and_methods_are_refused() {
    let server = server();
    assert!(server.get("/metric").is(404));
    assert!(server.get("/metrics/").is(404));
    assert!(server.get("/metrics?x=1").is(200));
    let post = server.request("POST", "/metrics", "*/*");
    assert!(post.is(405), "{}", post.head);
    assert!(post.head.contains("allow: get, head"));
    assert!(server.request("DELETE", "/nothing", "*/*").is(404));
}

#[test]
fn without_a_snapshot_it_says_so_everywhere() {
    let server = server();
    for path in ["/healthz", "/readyz"] {
        assert!(server.get(path).is(200), "{path}");
    }
    server.tell(Err("the daemon is gone".into()));
    for path in ["/healthz", "/readyz"] {
        let answer = server.get(path);
        assert!(answer.is(503), "{path}");
        assert_eq!(answer.text(), "the daemon is gone\n");
    }
    let metrics = server.get("/metrics");
    assert!(metrics.is(200));
    let text = metrics.text();
    assert!(text.contains("\nedgeprobe_daemon_up 0\n"), "{text}");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let of_this_process = [
            "process_",
            "edgeprobe_build_info{",
            "edgeprobe_log_lines_lost_total{",
        ];
        assert!(
            of_this_process.iter().any(|start| line.starts_with(start))
                || line == "edgeprobe_daemon_up 0",
            "{line}"
        );
    }
    server.tell(Ok(Arc::new(sample::snapshot())));
    assert!(server.get("/readyz").is(200));
}

#[test]
fn status_tells_what_is_attached_and_why_not() {
    let server = server();
    let status: serde_json::Value = serde_json::from_slice(&server.get("/status").body).unwrap();
    assert_eq!(status["up"], true);
    assert_eq!(status["kernel"], "6.12.0");
    assert_eq!(status["programs"][0]["attached"], true);
    assert_eq!(status["programs"][2]["note"], "eth2: busy");
    assert_eq!(status["devices"][0]["xdp_mode"], "native");
    assert_eq!(status["capabilities"][0], "CAP_BPF");
    assert_eq!(status["log_lines_lost"], 6);
    assert_eq!(status["lost"][0]["count"], 15);

    server.tell(Err("the daemon is gone".into()));
    let status: serde_json::Value = serde_json::from_slice(&server.get("/status").body).unwrap();
    assert_eq!(status["up"], false);
    assert_eq!(status["reason"], "the daemon is gone");
    assert!(status.get("programs").is_none());
}

#[test]
fn the_first_page_links_the_others() {
    let answer = server().get("/");
    assert!(answer.is(200));
    for path in ["/metrics", "/status", "/healthz", "/readyz"] {
        assert!(answer.text().contains(&format!("href=\"{path}\"")));
    }
}

#[test]
fn bad_requests_are_answered_and_large_ones_refused() {
    let server = server();
    assert!(server.raw("no HTTP at all\r\n\r\n").is(400));
    let long = format!(
        "GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n",
        "a".repeat(MAX_HEAD)
    );
    assert!(server.raw(&long).is(431));
    assert!(server.get("/").is(200));
}

#[test]
fn of_silent_clients_the_oldest_is_evicted() {
    let server = server();
    let mut silent: Vec<_> = (0..3 * MOST).map(|_| server.connect()).collect();
    assert!(server.get("/healthz").is(200));
    let newest = silent.last().unwrap();
    newest.set_nonblocking(true).unwrap();
    let nothing = newest.peek(&mut [0]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock, "still open");
    newest.set_nonblocking(false).unwrap();
    // The others are dropped in time.
    for stream in &mut silent {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"));
    }
}

/// A snapshot whose text is larger than what the kernel takes of an answer.
fn large() -> Snapshot {
    let mut snapshot = sample::snapshot();
    let series = snapshot.tcp[0].clone();
    for n in 0..300 {
        let mut one = series.clone();
        one.labels.svc = format!("service-{n}");
        snapshot.tcp.push(one);
    }
    snapshot
}

#[test]
fn clients_that_never_read_keep_nobody_waiting() {
    let server = server();
    server.tell(Ok(Arc::new(large())));
    let length = server.get("/metrics").body.len();
    assert!(length > 2 << 20, "{length}");
    let deaf: Vec<_> = (0..2 * MOST)
        .map(|_| {
            let mut stream = server.connect();
            stream
                .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                .unwrap();
            stream
        })
        .collect();
    for _ in 0..10 {
        assert!(server.get("/healthz").is(200));
        assert_eq!(server.get("/metrics").body.len(), length);
    }
    drop(deaf);
}

#[test]
fn many_scrapes_at_once_are_all_answered() {
    let server = server();
    server.tell(Ok(Arc::new(large())));
    let length = server.get("/metrics").body.len();
    std::thread::scope(|scope| {
        let scrapes: Vec<_> = (0..MOST / 2)
            .map(|_| scope.spawn(|| server.get("/metrics").body.len()))
            .collect();
        for scrape in scrapes {
            assert_eq!(scrape.join().unwrap(), length);
        }
    });
}

#[test]
fn an_address_in_use_is_said_in_one_line() {
    let server = server();
    let error = block(async { bind(server.address).unwrap_err() });
    assert_eq!(
        format!("{error:#}"),
        format!(
            "cannot listen on {}: another program does; stop that one, or choose another address with --listen",
            server.address
        )
    );
    let error = block(async { bind("192.0.2.1:80".parse().unwrap()).unwrap_err() });
    assert!(
        error.to_string().contains("no address of this host"),
        "{error}"
    );
}
