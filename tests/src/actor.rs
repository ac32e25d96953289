//! Processes in control groups of a test's own, which listen and connect when
//! they are told to.

use std::{
    env, fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    thread,
    time::Duration,
};

use socket2::Protocol;

use crate::{load, netns::Netns};

/// Set for the process that is to be an actor.
const ACTOR: &str = "EP_ACTOR";
const DONE: &str = "actor: done";

/// A control group of version 2 that is removed at the end of its test.
pub struct Cgroup {
    mount: PathBuf,
    path: String,
}

impl Cgroup {
    /// Where they are mounted.
    pub fn mount() -> Option<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        let mut all = mounts.lines().map(|line| line.split(' '));
        all.find_map(|mut fields| {
            let place = fields.nth(1)?;
            (fields.next()? == "cgroup2").then(|| place.into())
        })
    }

    /// Makes one; `name` is the end of the name of its folder.
    ///
    /// # Panics
    ///
    /// Where they are not mounted, or it cannot be made.
    #[track_caller]
    pub fn new(name: &str) -> Self {
        Self::make(format!("/ep-{}-{name}", std::process::id()))
    }

    /// Makes one below this one.
    ///
    /// # Panics
    ///
    /// Where it cannot be made.
    #[track_caller]
    pub fn below(&self, name: &str) -> Self {
        Self::make(format!("{}/{name}", self.path))
    }

    #[track_caller]
    fn make(path: String) -> Self {
        let mount = Self::mount().expect("cgroup v2 is mounted");
        let made = Self { mount, path };
        fs::create_dir(made.folder()).expect("a new control group");
        made
    }

    /// Its path below the mount.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The last part of its path.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    fn folder(&self) -> PathBuf {
        self.mount.join(self.path.trim_start_matches('/'))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The kernel takes a moment to let go of a process that has ended.
        for _ in 0..100 {
            if fs::remove_dir(self.folder()).is_ok() || !self.folder().exists() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{} is left behind", self.folder().display());
    }
}

/// A process of a control group, in a network namespace.
pub struct Actor {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<std::process::ChildStderr>,
}

impl Actor {
    /// Starts one: this test program once more, whose test `actor` must call
    /// [`perform`].
    ///
    /// # Panics
    ///
    /// Where it cannot start.
    #[track_caller]
    pub fn start(netns: &Netns, cgroup: &Cgroup) -> Self {
        let processes = cgroup.folder().join("cgroup.procs");
        let mut command = Command::new(env::current_exe().expect("the path of this test"));
        command
            .args(["--exact", "actor", "--ignored", "--nocapture"])
            .arg("--test-threads=1")
            .env(ACTOR, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // SAFETY: a write of a file, between fork and exec.
        unsafe { command.pre_exec(move || fs::write(&processes, "0")) };
        let mut child = netns.run(|| command.spawn()).expect("an actor");
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut actor = Self {
            child,
            orders,
            answers,
        };
        actor.wait();
        actor
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The name that the kernel shows for it.
    ///
    /// # Panics
    ///
    /// Where it is gone.
    pub fn process(&self) -> String {
        let name = fs::read_to_string(Path::new("/proc").join(format!("{}/comm", self.pid())));
        name.expect("the name of an actor").trim_end().to_owned()
    }

    /// Listens, with MPTCP where `protocol` says so, and holds what it accepts
    /// until the other end closes it.
    pub fn listen(&mut self, address: SocketAddr, protocol: Protocol) {
        let kind = if protocol == Protocol::MPTCP {
            "mptcp"
        } else {
            "listen"
        };
        self.order(&format!("{kind} {address} 0"));
    }

    /// Connects and keeps the connection to its end.
    pub fn connect(&mut self, address: SocketAddr) {
        self.order(&format!("connect {address} 1"));
    }

    /// Opens and closes connections.
    pub fn churn(&mut self, address: SocketAddr, count: u32) {
        self.order(&format!("churn {address} {count}"));
    }

    #[track_caller]
    fn order(&mut self, order: &str) {
        let orders = self.orders.as_mut().expect("a pipe");
        writeln!(orders, "{order}").expect("the actor listens");
        self.wait();
    }

    #[track_caller]
    fn wait(&mut self) {
        let mut said = String::new();
        loop {
            let before = said.len();
            let read = self.answers.read_line(&mut said).expect("an answer");
            assert_ne!(read, 0, "the actor has ended: {said}");
            if said[before..].trim_end() == DONE {
                return;
            }
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the process of an [`Actor`] does; nothing in any other process.
///
/// # Panics
///
/// Where an order cannot be followed.
pub fn perform() {
    if env::var_os(ACTOR).is_none() {
        return;
    }
    eprintln!("{DONE}");
    let mut kept = Vec::new();
    for order in io::stdin().lines() {
        let order = order.expect("an order");
        let mut words = order.split(' ');
        let mut word = || words.next().expect("three words");
        let (what, address, count) = (word(), word(), word());
        let address = address.parse().expect("an address");
        let count: u32 = count.parse().expect("a number");
        let connect = || TcpStream::connect(address).expect("a connection");
        match what {
            "listen" => serve(address, Protocol::TCP),
            "mptcp" => serve(address, Protocol::MPTCP),
            "connect" => kept.push(connect()),
            _ => (0..count).for_each(|_| {
                let mut stream = connect();
                stream.shutdown(std::net::Shutdown::Write).expect("a FIN");
                stream.read_to_end(&mut Vec::new()).expect("a FIN back");
            }),
        }
        eprintln!("{DONE}");
    }
}

fn serve(address: SocketAddr, protocol: Protocol) {
    let listener = load::listen(address, protocol, 128).expect("a listener");
    listener
        .set_nonblocking(false)
        .expect("a blocking listener");
    thread::spawn(move || {
        while let Ok((socket, _)) = listener.accept() {
            thread::spawn(move || TcpStream::from(socket).read_to_end(&mut Vec::new()));
        }
    });
}

/// Whether there is a control group to be had; said loudly where not.
pub fn possible(test: &str) -> bool {
    let is_mounted = Cgroup::mount().is_some();
    if !is_mounted {
        crate::skip::skipped(test, "cgroup v2 is not mounted");
    }
    is_mounted
}

/// Waits until a question has the answer that is expected, and shows the last
/// one where it never has.
///
/// # Panics
///
/// Where it never has.
#[track_caller]
pub fn expect<T: PartialEq + std::fmt::Debug>(what: &str, wanted: &T, mut ask: impl FnMut() -> T) {
    let mut last = None;
    for _ in 0..100 {
        let answer = ask();
        if answer == *wanted {
            return;
        }
        last = Some(answer);
        thread::sleep(Duration::from_millis(100));
    }
    panic!("{what}: {last:#?}, expected {wanted:#?}");
}
