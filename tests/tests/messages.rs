//! Messages that nobody reads, and what becomes of the programs that send them.

use std::{
    fs,
    io::PipeReader,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use probe_tests::{
    daemon::{Daemon, binary, edgeprobe, slowness},
    http,
    netns::Netns,
    poll, skip,
};
use probe_user::{
    model::Snapshot,
    serve::unix::{Request, client},
};

const FETCH: Duration = Duration::from_secs(30);

/// Where the messages of a program go.
#[derive(Clone, Copy, Debug)]
enum Messages {
    /// Nowhere: stderr is closed, and stdout too.
    Closed,
    /// Into a pipe whose reader goes away.
    ReaderGone,
    /// Into a pipe whose reader does not read.
    ReaderStuck,
}

/// A program that is killed where the test fails.
struct Speaker {
    child: Child,
    /// The other end of its messages.
    reader: Option<PipeReader>,
}

impl Speaker {
    fn start(command: &Command, messages: Messages) -> Self {
        let mut command = match messages {
            Messages::Closed => {
                let mut shell = Command::new("sh");
                shell.args(["-c", "exec \"$0\" \"$@\" >&- 2>&-"]);
                shell.arg(command.get_program()).args(command.get_args());
                shell
            }
            Messages::ReaderGone | Messages::ReaderStuck => {
                let mut plain = Command::new(command.get_program());
                plain.args(command.get_args()).stdout(Stdio::null());
                plain
            }
        };
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let child = command
            .stdin(Stdio::null())
            .stderr(OwnedFd::from(writer))
            .spawn()
            .expect("it runs");
        let reader = matches!(messages, Messages::ReaderStuck).then_some(reader);
        Self { child, reader }
    }

    fn signal(&self, signal: i32) {
        // SAFETY: the child is not reaped yet, so the number is its own.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    #[track_caller]
    fn assert_alive(&mut self) {
        let status = self.child.try_wait().expect("the state of a child");
        assert!(status.is_none(), "it ended: {status:?}");
    }

    /// Ends it in order.
    #[track_caller]
    fn stop(mut self) {
        self.signal(libc::SIGTERM);
        let asked = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("the state of a child") {
                break status;
            }
            assert!(asked.elapsed() < Duration::from_secs(4) * slowness());
            thread::sleep(Duration::from_millis(10));
        };
        assert!(status.success(), "{status}");
        drop(self.reader.take());
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn snapshot(speaker: &mut Speaker, socket: &Path) -> Snapshot {
    poll::until("the daemon answers", || {
        speaker.assert_alive();
        client::fetch(socket, Request::default(), FETCH).ok()
    })
}

#[test]
fn the_daemon_goes_on_where_nobody_reads_its_messages() {
    let Some(_turn) = skip::turn("the_daemon_goes_on_where_nobody_reads_its_messages") else {
        return;
    };
    let netns = Netns::new();
    for messages in [
        Messages::Closed,
        Messages::ReaderGone,
        Messages::ReaderStuck,
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("edgeprobe.sock");
        let mut command = edgeprobe(["daemon", "--netns", netns.name(), "--socket"]);
        command.arg(&socket);
        let mut daemon = Speaker::start(&command, messages);
        snapshot(&mut daemon, &socket);
        // Each is refused in a line of the log; a pipe holds some hundred of them.
        let lost = poll::until("a line is lost", || {
            for _ in 0..20 {
                daemon.signal(libc::SIGHUP);
                thread::sleep(Duration::from_millis(1));
            }
            let lost = snapshot(&mut daemon, &socket).process.log_lines_lost;
            (lost > 0).then_some(lost)
        });
        println!("{messages:?}: {lost} lines lost");
        daemon.stop();
        assert!(!socket.exists(), "{messages:?}: it ended in order");
    }
}

#[test]
fn the_exporter_goes_on_where_nobody_reads_its_messages() {
    let Some(_turn) = skip::turn("the_exporter_goes_on_where_nobody_reads_its_messages") else {
        return;
    };
    let netns = Netns::new();
    let daemon = Daemon::start(&[&netns], &[]);
    for messages in [Messages::Closed, Messages::ReaderGone] {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address: SocketAddr = free.local_addr().expect("its address");
        drop(free);
        let mut command = edgeprobe(["exporter", "--listen", &address.to_string(), "--socket"]);
        command.arg(daemon.socket());
        let mut exporter = Speaker::start(&command, messages);
        poll::until("the exporter is ready", || {
            exporter.assert_alive();
            (http::get(address, "/readyz", "*/*").ok()?.status == 200).then_some(())
        });
        let page = poll::until("the exporter has lost a line", || {
            exporter.assert_alive();
            exporter.signal(libc::SIGHUP);
            let page = http::get(address, "/metrics", "text/plain").ok()?.body;
            let series = "edgeprobe_log_lines_lost_total{process=\"exporter\"}";
            (http::sample(&page, series)? > 0.0).then_some(page)
        });
        let of_daemon = "edgeprobe_log_lines_lost_total{process=\"daemon\"}";
        assert_eq!(http::sample(&page, of_daemon), Some(0.0));
        exporter.stop();
    }
    daemon.stop();
}

/// What a command prints goes to stdout; who closes that wants nothing.
#[test]
fn a_report_that_nobody_reads_is_no_failure() {
    let Some(_turn) = skip::turn("a_report_that_nobody_reads_is_no_failure") else {
        return;
    };
    let netns = Netns::new();
    let daemon = Daemon::start(&[&netns], &[]);
    let socket = daemon.socket();
    let (binary, socket) = (binary(), socket.to_str().expect("plain letters"));
    let top = format!("{} top --once --socket {socket}", binary.display());
    for tail in ["--json >&-", "--json 2>&- >&-", ">&-", "--json | true"] {
        let status = Command::new("sh")
            .args(["-c", &format!("{top} {tail}")])
            .status();
        let status = status.expect("a shell");
        assert!(status.success(), "{tail}: {status}");
    }
    // An error is still an error, said or not.
    let status = Command::new("sh")
        .args(["-c", &format!("{top}-typo 2>&-")])
        .status();
    assert_eq!(status.expect("a shell").code(), Some(1));
    fs::metadata(socket).expect("the daemon is well");
    daemon.stop();
}

/// Half a second stands for a minute: what was missed stays missed.
#[test]
fn a_daemon_that_was_stopped_goes_on_without_a_burst() {
    let Some(_turn) = skip::turn("a_daemon_that_was_stopped_goes_on_without_a_burst") else {
        return;
    };
    let netns = Netns::new();
    let text = "[daemon]\nsnapshot_interval = \"100ms\"\n";
    let daemon = Daemon::configured(&[&netns], text, &[]);
    daemon.process().signal(libc::SIGSTOP);
    thread::sleep(Duration::from_secs(3));
    daemon.process().signal(libc::SIGCONT);
    // Snapshots differ in their time; a burst would be dozens at once.
    let begin = Instant::now();
    let mut times = Vec::new();
    while begin.elapsed() < Duration::from_secs(1) {
        let taken = client::fetch(&daemon.socket(), Request::default(), FETCH);
        times.extend(taken.ok().map(|snapshot| snapshot.timestamp_seconds));
    }
    times.dedup();
    assert!(times.len() <= 15, "{} snapshots in a second", times.len());
    daemon.snapshot();
    daemon.stop();
}
