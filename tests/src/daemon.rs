//! A daemon that does not outlive its test.

use std::{
    collections::BTreeSet,
    env,
    ffi::{OsStr, OsString},
    fs::{self, File, Permissions},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use probe_user::{
    model::Snapshot,
    serve::unix::{Request, client},
};
use tempfile::TempDir;

pub use crate::kernel_objects::{KernelObject, kernel_objects};
use crate::{netns::Netns, poll, skip};

/// How long an orderly end may take.
const SHUTDOWN: Duration = Duration::from_secs(2);
const SOCKET: &str = "edgeprobe.sock";
const FETCH: Duration = Duration::from_secs(30);
/// Connections that a snapshot lists: more than any test opens.
const ALL: usize = 10_000;

/// The binary: `EDGEPROBE_BIN`, else what the workspace built last.
///
/// # Panics
///
/// Where there is none.
pub fn binary() -> PathBuf {
    if let Some(path) = env::var_os("EDGEPROBE_BIN") {
        return path.into();
    }
    // Beside the test itself: target/<profile>/deps/<test>.
    let test = env::current_exe().expect("the path of this test");
    let target = test.ancestors().nth(3).expect("the target folder");
    let built = |profile: &str| {
        let path = target.join(profile).join("edgeprobe");
        let time = fs::metadata(&path).ok()?.modified().ok()?;
        Some((time, path))
    };
    let newest = ["release", "debug"].into_iter().filter_map(built).max();
    newest
        .expect("edgeprobe is not built: run `cargo xtask build`, or set EDGEPROBE_BIN")
        .1
}

/// A copy of the binary in a folder, where every user may read both: it may have
/// been built where nobody else can go.
///
/// # Panics
///
/// Where it cannot be made.
pub fn readable_binary(folder: &Path) -> PathBuf {
    let copy = folder.join("edgeprobe");
    fs::copy(binary(), &copy).expect("a copy of the binary");
    for path in [folder, &copy] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).expect("permissions");
    }
    copy
}

/// An `edgeprobe` command to run.
///
/// # Panics
///
/// Where there is no binary.
pub fn edgeprobe<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).stdin(Stdio::null());
    command
}

/// A running program whose messages are kept for the report of a failure.
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts it; `log` takes its messages.
    ///
    /// # Panics
    ///
    /// Where it cannot start.
    #[track_caller]
    pub fn start(mut command: Command, log: PathBuf) -> Self {
        let messages = File::create(&log).expect("a file for the messages");
        let child = command
            .stdout(Stdio::null())
            .stderr(messages)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, log }
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it said so far.
    pub fn messages(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: the child is not reaped yet, so the number is its own.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// Whether it has not ended.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Fails where it has ended.
    ///
    /// # Panics
    ///
    /// With its messages, where it has.
    #[track_caller]
    pub fn assert_alive(&mut self) {
        if let Some(status) = self.child.try_wait().expect("the state of a child") {
            panic!("it ended: {status}\n{}", self.messages());
        }
    }

    /// Ends it in order: exit code 0 within two seconds of a signal.
    ///
    /// # Panics
    ///
    /// Where it ends otherwise.
    #[track_caller]
    pub fn stop(mut self, signal: i32) {
        self.assert_alive();
        self.signal(signal);
        let asked = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("the state of a child") {
                break status;
            }
            assert!(
                asked.elapsed() < SHUTDOWN * slowness(),
                "still there {SHUTDOWN:?} after signal {signal}\n{}",
                self.messages()
            );
            thread::sleep(Duration::from_millis(5));
        };
        assert!(status.success(), "{status}\n{}", self.messages());
    }

    /// Ends it at once, as the kernel does when memory runs out.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
        if thread::panicking() {
            eprintln!(
                "--- messages of {}:\n{}",
                self.log.display(),
                self.messages()
            );
        }
    }
}

/// Emulated processors are some twenty times slower.
pub fn slowness() -> u32 {
    if skip::is_emulated() { 10 } else { 1 }
}

/// `edgeprobe daemon` on a socket of its own, watching namespaces of the test.
pub struct Daemon {
    running: Running,
    arguments: Vec<OsString>,
    folder: TempDir,
}

impl Daemon {
    /// Starts it and waits until it answers.
    ///
    /// # Panics
    ///
    /// Where it does not.
    #[track_caller]
    pub fn start(namespaces: &[&Netns], arguments: &[&str]) -> Self {
        Self::spawn(None, namespaces, arguments)
    }

    /// The same with a configuration, the text of its file.
    ///
    /// # Panics
    ///
    /// Where it does not answer.
    #[track_caller]
    pub fn configured(namespaces: &[&Netns], text: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the configuration");
        let file = folder.path().join("config.toml");
        fs::write(&file, text).expect("a file");
        let file = file.to_str().expect("a path of plain letters");
        // It is read before the daemon answers.
        Self::start(namespaces, &[&["--config", file], arguments].concat())
    }

    /// The same from inside a namespace: its devices and its loopback are the
    /// daemon's.
    ///
    /// # Panics
    ///
    /// Where it does not answer.
    #[track_caller]
    pub fn start_inside(netns: &Netns, arguments: &[&str]) -> Self {
        Self::spawn(Some(netns), &[netns], arguments)
    }

    #[track_caller]
    fn spawn(inside: Option<&Netns>, namespaces: &[&Netns], more: &[&str]) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("edgeprobe-test-")
            .tempdir()
            .expect("a folder for the socket");
        let mut arguments: Vec<OsString> = vec!["daemon".into(), "--socket".into()];
        arguments.push(folder.path().join(SOCKET).into());
        for netns in namespaces {
            arguments.extend(["--netns".into(), netns.name().into()]);
        }
        arguments.extend(more.iter().map(OsString::from));
        if let Some(level) = env::var_os("EP_LOG_LEVEL") {
            arguments.extend(["--log-level".into(), level]);
        }
        Self::run(inside, arguments, folder)
    }

    /// Starts it with a soft and hard limit of open files, watching all namespaces.
    ///
    /// # Panics
    ///
    /// Where it does not answer.
    #[track_caller]
    pub fn start_limited(files: u64) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the socket");
        let arguments: Vec<OsString> = vec![
            "daemon".into(),
            "--socket".into(),
            folder.path().join(SOCKET).into(),
        ];
        let mut command = edgeprobe(&arguments);
        let limit = libc::rlimit {
            rlim_cur: files,
            rlim_max: files,
        };
        // SAFETY: between fork and exec it calls `setrlimit` alone, which may be called
        // there and reads nothing but its own copy of the limit.
        unsafe {
            command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_NOFILE, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        Self::run_command(None, command, arguments, folder)
    }

    #[track_caller]
    fn run(inside: Option<&Netns>, arguments: Vec<OsString>, folder: TempDir) -> Self {
        Self::run_command(inside, edgeprobe(&arguments), arguments, folder)
    }

    #[track_caller]
    fn run_command(
        inside: Option<&Netns>,
        command: Command,
        arguments: Vec<OsString>,
        folder: TempDir,
    ) -> Self {
        let log = folder.path().join("messages");
        let running = match inside {
            Some(netns) => netns.run(|| Running::start(command, log)),
            None => Running::start(command, log),
        };
        let mut daemon = Self {
            running,
            arguments,
            folder,
        };
        let socket = daemon.socket();
        let first = poll::until("the daemon answers", || {
            daemon.running.assert_alive();
            client::fetch(&socket, Request::default(), FETCH).ok()
        });
        // It goes on without a program that the kernel refuses; no number may
        // depend on that here, unless a test leaves it out.
        let refused = first.programs.iter().filter(|program| {
            let is_there = !program.note.contains("unknown BTF type");
            let is_left_out = daemon.arguments.iter().any(|one| *one == *program.program);
            program.hook.starts_with("tp_btf/") && !program.attached && is_there && !is_left_out
        });
        let refused: Vec<_> = refused.collect();
        assert!(refused.is_empty(), "{refused:?}");
        daemon
    }

    /// Path of its socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join(SOCKET)
    }

    /// A folder that goes with it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its process.
    pub fn process(&self) -> &Running {
        &self.running
    }

    /// A snapshot that was begun after this call.
    ///
    /// # Panics
    ///
    /// Where none comes.
    #[track_caller]
    pub fn snapshot(&self) -> Snapshot {
        self.fresh(0)
    }

    /// A snapshot that has what only a visit of the sockets shows: on a slow
    /// machine these come some seconds apart. After twenty of them one that has it not.
    ///
    /// # Panics
    ///
    /// Where none comes.
    #[track_caller]
    pub fn visited(&self, shows: impl Fn(&Snapshot) -> bool) -> Snapshot {
        let mut snapshot = self.snapshot();
        for _ in 0..20 {
            if shows(&snapshot) {
                break;
            }
            thread::sleep(Duration::from_secs(1));
            snapshot = self.snapshot();
        }
        snapshot
    }

    /// The same with the connections that are open.
    ///
    /// # Panics
    ///
    /// Where none comes.
    #[track_caller]
    pub fn fresh_connections(&self) -> Snapshot {
        self.fresh(ALL)
    }

    #[track_caller]
    fn fresh(&self, connections: usize) -> Snapshot {
        let asked = now();
        poll::until("a fresh snapshot", || {
            let snapshot = self.ask(connections);
            (snapshot.timestamp_seconds - snapshot.duration_seconds > asked).then_some(snapshot)
        })
    }

    /// The snapshot that a client gets now.
    ///
    /// # Panics
    ///
    /// Where the daemon does not answer.
    #[track_caller]
    pub fn latest(&self) -> Snapshot {
        self.ask(0)
    }

    /// A snapshot with the connections that are open.
    ///
    /// # Panics
    ///
    /// Where the daemon does not answer.
    #[track_caller]
    pub fn connections(&self) -> Snapshot {
        self.ask(ALL)
    }

    #[track_caller]
    fn ask(&self, connections: usize) -> Snapshot {
        let request = Request {
            connections,
            known: None,
        };
        let deadline = Instant::now() + poll::PATIENCE;
        loop {
            match client::fetch(&self.socket(), request, FETCH) {
                Ok(snapshot) => return snapshot,
                // On a processor that is too slow for the load the collector may be
                // late, and the daemon then says so.
                Err(error) => assert!(
                    skip::is_emulated() && Instant::now() < deadline,
                    "the daemon does not answer: {error}\n{}",
                    self.running.messages()
                ),
            }
        }
    }

    /// Kernel objects that it holds.
    pub fn kernel_objects(&self) -> BTreeSet<KernelObject> {
        kernel_objects(self.running.pid())
    }

    /// Ends it in order.
    ///
    /// # Panics
    ///
    /// Where it does not end within two seconds with exit code 0.
    #[track_caller]
    pub fn stop(self) {
        self.running.stop(libc::SIGTERM);
    }

    /// The same with SIGINT, as the terminal sends it.
    ///
    /// # Panics
    ///
    /// Where it does not end within two seconds with exit code 0.
    #[track_caller]
    pub fn interrupt(self) {
        self.running.stop(libc::SIGINT);
    }

    /// Ends it at once.
    pub fn kill(self) -> Killed {
        self.running.kill();
        Killed {
            arguments: self.arguments,
            folder: self.folder,
        }
    }
}

/// What a killed daemon leaves: its folder with the socket in it.
pub struct Killed {
    arguments: Vec<OsString>,
    folder: TempDir,
}

impl Killed {
    /// Starts it again on the same socket.
    ///
    /// # Panics
    ///
    /// Where it does not answer.
    #[track_caller]
    pub fn restart(self) -> Daemon {
        Daemon::run(None, self.arguments, self.folder)
    }
}

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
