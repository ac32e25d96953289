//! Servers and clients that others wrote, run inside a namespace: nginx and
//! wrk. Their own counts are what the tests compare with.

use std::{
    cell::Cell,
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

use crate::{daemon::Running, netns::Netns, poll};

/// Starts a program inside a namespace; its messages go to a file.
#[track_caller]
pub fn start(netns: &Netns, mut command: Command, log: PathBuf) -> Running {
    command.stdin(Stdio::null());
    netns.run(|| Running::start(command, log))
}

/// A folder for a program's files, removed with its owner.
///
/// # Panics
///
/// Where it cannot be made.
#[track_caller]
pub fn folder() -> TempDir {
    TempDir::with_prefix("edgeprobe-test-").expect("a folder")
}

/// A certificate of its own signing, and its key.
pub struct Certificate {
    /// The certificate, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

impl Certificate {
    /// Makes one in a folder.
    ///
    /// # Panics
    ///
    /// Where `openssl` fails.
    #[track_caller]
    pub fn make(openssl: &Path, folder: &Path) -> Self {
        let made = Self {
            certificate: folder.join("certificate.pem"),
            key: folder.join("key.pem"),
        };
        let output = Command::new(openssl)
            .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"])
            .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args(["-subj", "/CN=edgeprobe.test", "-out"])
            .arg(&made.certificate)
            .arg("-keyout")
            .arg(&made.key)
            .stdin(Stdio::null())
            .output()
            .expect("openssl runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl req: {errors}");
        made
    }
}

/// An nginx of one process.
pub struct Nginx {
    running: Running,
    folder: TempDir,
    asked: Cell<u64>,
}

/// A request that nginx answered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Answer {
    /// Port that it came to.
    pub port: u16,
    /// Number of its connection.
    pub connection: u64,
    /// Whether TLS took up an earlier session.
    pub resumed: bool,
    /// HTTP status.
    pub status: u16,
}

impl Nginx {
    /// Starts it inside a namespace with `servers` as the `http` section.
    ///
    /// # Panics
    ///
    /// Where it does not answer.
    #[track_caller]
    pub fn start(netns: &Netns, program: &Path, servers: &str) -> Self {
        let folder = folder();
        let at = folder.path();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {}/{kind};\n", at.display()))
            .concat();
        let text = format!(
            "daemon off; master_process off; pid {at}/pid; error_log stderr warn;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ {temporary}\
             log_format answers '$server_port $connection $ssl_session_reused $status';\n\
             access_log {at}/answers answers;\n\
             server {{ listen unix:{at}/status; access_log off; location / {{ stub_status; }} }}\n\
             {servers} }}\n",
            at = at.display(),
        );
        let config = at.join("nginx.conf");
        fs::write(&config, text).expect("a file");
        let mut command = Command::new(program);
        command.arg("-c").arg(&config);
        let running = start(netns, command, at.join("messages"));
        let mut nginx = Self {
            running,
            folder,
            asked: Cell::new(0),
        };
        poll::until("nginx answers", || {
            nginx.running.assert_alive();
            nginx.status()
        });
        nginx
    }

    /// The page of `stub_status`, over a socket that is not TCP.
    fn status(&self) -> Option<String> {
        let mut stream = UnixStream::connect(self.folder.path().join("status")).ok()?;
        self.asked.set(self.asked.get() + 1);
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).ok()?;
        Some(page)
    }

    /// TCP connections that it accepted, by its own count.
    ///
    /// # Panics
    ///
    /// Where it does not say.
    #[track_caller]
    pub fn accepted(&self) -> u64 {
        let page = self.status().expect("the status of nginx");
        let accepted: Option<u64> = (page.lines())
            .skip_while(|line| !line.starts_with("server accepts"))
            .nth(1)
            .and_then(|line| line.split_whitespace().next()?.parse().ok());
        accepted.expect("its number of connections") - self.asked.get()
    }

    /// The requests that it answered, from its log.
    ///
    /// # Panics
    ///
    /// Where the log is not as it was asked for.
    #[track_caller]
    pub fn answers(&self) -> Vec<Answer> {
        let text = fs::read_to_string(self.folder.path().join("answers")).expect("its log");
        let answer = |line: &str| {
            let mut words = line.split(' ');
            Some(Answer {
                port: words.next()?.parse().ok()?,
                connection: words.next()?.parse().ok()?,
                resumed: words.next()? == "r",
                status: words.next()?.parse().ok()?,
            })
        };
        (text.lines())
            .map(|line| answer(line).unwrap_or_else(|| panic!("a line of its log: {line}")))
            .collect()
    }
}

/// Number of different connections among answers.
pub fn connections(answers: &[Answer]) -> u64 {
    let numbers: BTreeSet<u64> = answers.iter().map(|answer| answer.connection).collect();
    numbers.len() as u64
}

/// Loads an address with `wrk` from inside a namespace; returns the number of
/// answers that it read. At its end it cuts what is under way: at most one
/// request on each of `connections`.
///
/// # Panics
///
/// Where it meets an error, or an answer is none of success.
#[track_caller]
pub fn wrk(netns: &Netns, connections: u32, seconds: u32, close: bool, url: &str) -> u64 {
    let (many, long) = (format!("-c{connections}"), format!("-d{seconds}s"));
    // A slow machine is late, which is no error.
    let mut arguments = vec!["-t1", &many, &long, "--timeout", "60s"];
    if close {
        arguments.extend(["--header", "Connection: close"]);
    }
    arguments.push(url);
    let text = netns.command("wrk", &arguments);
    for word in ["Socket errors", "Non-2xx"] {
        assert!(!text.contains(word), "{text}");
    }
    let count = (text.lines())
        .find(|line| line.contains(" requests in "))
        .and_then(|line| line.split_whitespace().next()?.parse().ok());
    count.unwrap_or_else(|| panic!("no number of requests: {text}"))
}
