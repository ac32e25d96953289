//! Network namespaces of a test's own, removed with it.

use std::{
    fmt::Display,
    fs::{self, File},
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{self, Command, Output, Stdio},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use crate::snmp::Counters;

const FOLDER: &str = "/var/run/netns";
const PREFIX: &str = "ep-";

static NEXT: AtomicU32 = AtomicU32::new(0);
static CLEAN: Once = Once::new();

/// A namespace named `ep-<pid>-<n>` with its loopback up.
pub struct Netns {
    name: String,
    handle: File,
}

impl Netns {
    /// Makes one; removes first what runs that are gone have left.
    ///
    /// # Panics
    ///
    /// Where `ip netns` fails.
    #[expect(
        clippy::new_without_default,
        reason = "making a namespace is no default value"
    )]
    pub fn new() -> Self {
        CLEAN.call_once(remove_stale);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", process::id());
        run("ip", &["netns", "add", &name]);
        let handle = File::open(Path::new(FOLDER).join(&name)).expect("the new namespace");
        let netns = Self { name, handle };
        netns.ip("link set lo up");
        netns
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path.
    pub fn path(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.name)
    }

    /// Calls a function on a thread of its own inside the namespace; threads
    /// and programs started there are inside too.
    ///
    /// # Panics
    ///
    /// Where the function does.
    pub fn run<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter();
                inside()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread in.
    pub(crate) fn enter(&self) {
        // SAFETY: the descriptor is open for as long as `self` lives.
        let result = unsafe { libc::setns(self.handle.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(result, 0, "setns: {}", std::io::Error::last_os_error());
    }

    /// Runs `ip` inside, with arguments separated by blanks.
    ///
    /// # Panics
    ///
    /// Where it fails.
    #[track_caller]
    pub fn ip(&self, arguments: &str) -> String {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments.split_whitespace());
        run("ip", &all)
    }

    /// Feeds rules to `nft` inside.
    ///
    /// # Panics
    ///
    /// Where it refuses them.
    #[track_caller]
    pub fn nft(&self, rules: &str) {
        let output = self.run(|| {
            let mut nft = Command::new("nft")
                .args(["-f", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("nft is installed");
            let mut stdin = nft.stdin.take().expect("a pipe");
            stdin.write_all(rules.as_bytes()).expect("nft reads");
            drop(stdin);
            nft.wait_with_output().expect("nft ends")
        });
        check("nft", &output);
    }

    /// Writes a value below `/proc/sys/net`.
    ///
    /// # Panics
    ///
    /// Where the kernel does not take it.
    #[track_caller]
    pub fn sysctl(&self, key: &str, value: impl Display) {
        let path = format!("/proc/sys/net/{key}");
        let value = value.to_string();
        self.run(|| fs::write(&path, &value))
            .unwrap_or_else(|error| panic!("{path} = {value}: {error}"));
    }

    /// The counters of the kernel, now.
    pub fn counters(&self) -> Counters {
        self.run(Counters::here)
    }

    /// Runs a program inside and returns what it printed.
    ///
    /// # Panics
    ///
    /// Where it fails.
    #[track_caller]
    pub fn command(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.run(|| Command::new(program).args(arguments).output());
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
        check(program, &output)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // The name goes, the rest follows with its last user.
        remove(&self.name);
    }
}

/// Runs `ip` in the namespace of the calling thread.
///
/// # Panics
///
/// Where it fails.
#[track_caller]
pub fn ip(arguments: &str) {
    run("ip", &arguments.split(' ').collect::<Vec<_>>());
}

/// Removes a name of `ip netns`, if it is there.
pub fn remove(name: &str) {
    let _ = Command::new("ip").args(["netns", "del", name]).output();
}

/// Two namespaces joined by a veth pair, with addresses of both families.
pub struct Pair {
    /// Where the servers are.
    pub server: Netns,
    /// Where the clients are.
    pub client: Netns,
}

/// Name of the device in both namespaces of a [`Pair`].
pub const DEVICE: &str = "ep0";
/// Hardware address of the server's device.
pub const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Hardware address of the client's device.
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

impl Pair {
    /// Makes one.
    #[expect(
        clippy::new_without_default,
        reason = "making namespaces is no default value"
    )]
    pub fn new() -> Self {
        let pair = Self {
            server: Netns::new(),
            client: Netns::new(),
        };
        pair.join();
        pair
    }

    /// Makes [`DEVICE`] in both, which have none.
    pub fn join(&self) {
        let peer = self.client.name.as_str();
        self.server.ip(&format!(
            "link add {DEVICE} type veth peer name {DEVICE} netns {peer}"
        ));
        Self::configure(&self.server, 1);
        Self::configure(&self.client, 2);
    }

    /// Gives [`DEVICE`] its addresses: 1 is the server, 2 the client.
    pub(crate) fn configure(netns: &Netns, host: u8) {
        // One set-up for all: no duplicate detection, no router discovery.
        netns.sysctl(&format!("ipv6/conf/{DEVICE}/accept_ra"), 0);
        netns.ip(&format!("addr add {}/24 dev {DEVICE}", v4(host)));
        netns.ip(&format!(
            "addr add {}/64 dev {DEVICE} nodad",
            v6(host.into())
        ));
        let up = format!("link set {DEVICE} addr 02:00:00:00:00:0{host} up");
        netns.ip(&up);
        let other = 3 - host;
        // Known neighbours: no packet of a test waits for an answer.
        for address in [IpAddr::V4(v4(other)), IpAddr::V6(v6(other.into()))] {
            netns.ip(&format!(
                "neigh replace {address} lladdr 02:00:00:00:00:0{other} dev {DEVICE} nud permanent"
            ));
        }
    }

    /// Address of the server, IPv4.
    pub const SERVER_V4: IpAddr = IpAddr::V4(v4(1));
    /// Address of the server, IPv6.
    pub const SERVER_V6: IpAddr = IpAddr::V6(v6(1));
    /// Address of the client, IPv4.
    pub const CLIENT_V4: IpAddr = IpAddr::V4(v4(2));
    /// Address of the client, IPv6.
    pub const CLIENT_V6: IpAddr = IpAddr::V6(v6(2));
    /// Addresses on the link that nobody has: connecting to them ends in
    /// EHOSTUNREACH once nobody has answered. (An ICMP error from a host on a
    /// veth comes while `connect()` still holds the socket, and is dropped.)
    pub const NOBODY: [IpAddr; 2] = [IpAddr::V4(v4(99)), IpAddr::V6(v6(99))];
    /// Addresses of the server, both families.
    pub const SERVERS: [IpAddr; 2] = [Self::SERVER_V4, Self::SERVER_V6];

    /// A connection from the client's namespace: its listener, the client's end and
    /// the server's. No read waits for more than a minute.
    ///
    /// # Panics
    ///
    /// Where it does not open.
    #[track_caller]
    pub fn connect(&self, at: SocketAddr) -> (TcpListener, TcpStream, TcpStream) {
        let listener = self.server.run(|| TcpListener::bind(at)).expect("a port");
        let client = self
            .client
            .run(|| TcpStream::connect(at))
            .expect("it is open");
        let (server, _) = listener.accept().expect("it is open");
        for stream in [&client, &server] {
            let patience = Some(Duration::from_secs(60));
            stream.set_read_timeout(patience).expect("a timeout");
        }
        (listener, client, server)
    }

    /// Both namespaces.
    pub fn both(&self) -> [&Netns; 2] {
        [&self.server, &self.client]
    }

    /// Sum of the counters of both namespaces.
    pub fn counters(&self) -> Counters {
        self.server.counters() + self.client.counters()
    }
}

const fn v4(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, host)
}

const fn v6(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, host)
}

/// Removes namespaces whose process is gone.
fn remove_stale() {
    let Ok(entries) = fs::read_dir(FOLDER) else {
        return;
    };
    for name in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        let Some(rest) = name.strip_prefix(PREFIX) else {
            continue;
        };
        let pid = rest.split_once('-').map_or("", |(pid, _)| pid);
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            remove(&name);
        }
    }
}

/// Runs a program and returns what it printed.
#[track_caller]
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    check(&format!("{program} {}", arguments.join(" ")), &output)
}

#[track_caller]
fn check(what: &str, output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{what}: {}: {errors}",
        output.status
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
