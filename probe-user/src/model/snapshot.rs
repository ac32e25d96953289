//! The one model under every view: Prometheus, socket, JSON and terminal.
//!
//! A snapshot is immutable and cumulative: counters count from the start of the
//! daemon. Names are resolved. Its serialised form is what the socket carries
//! and what `edgeprobe top --once --json` prints; [`SCHEMA`] is raised with
//! every change that a reader could trip over.

use serde::{Deserialize, Serialize};

use super::{Histogram, TcpLabels, TcpSeries};

/// Version of the serialised form.
pub const SCHEMA: u32 = 2;

/// What makes a snapshot another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Bits of [`Snapshot::start_seconds`].
    pub start: u64,
    /// Bits of [`Snapshot::timestamp_seconds`].
    pub taken: u64,
}

impl Snapshot {
    /// Which one it is, of all daemons of this host.
    pub fn identity(&self) -> Identity {
        Identity {
            start: self.start_seconds.to_bits(),
            taken: self.timestamp_seconds.to_bits(),
        }
    }
}

/// All that is known at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`SCHEMA`].
    pub schema: u32,
    /// When it was taken, seconds since 1970-01-01 UTC.
    pub timestamp_seconds: f64,
    /// When it was taken, in seconds since the daemon began to count, by a clock that
    /// nobody sets (`CLOCK_MONOTONIC`): the one for rates.
    pub uptime_seconds: f64,
    /// How long taking it lasted.
    pub duration_seconds: f64,
    /// When the daemon began to count, seconds since 1970-01-01 UTC.
    pub start_seconds: f64,
    /// Release of the running kernel.
    pub kernel: String,
    /// Version of the program that took it.
    pub version: String,
    /// TCP by side, service and peer; sorted by these, each combination once.
    pub tcp: Vec<TcpSeries>,
    /// Sockets by side, service and state, as they were found when all were last
    /// iterated over; each combination once, those without any left out.
    #[serde(default)]
    pub sockets: Vec<SocketCount>,
    /// Resets; each combination of labels once.
    pub resets: Vec<Reset>,
    /// Listeners by service.
    pub listeners: Vec<Listener>,
    /// Connections and requests that were dropped since the accept queue was full
    /// (`ListenOverflows`), of all listeners: the kernel does not tell of which.
    #[serde(default)]
    pub listen_overflows: u64,
    /// Packets that the kernel dropped.
    pub drops: Vec<Drop>,
    /// Some of those that are a loss, the newest first: at most 64, of one reason at
    /// most 8, and of some reasons together at most one in 16 jiffies.
    #[serde(default)]
    pub last_drops: Vec<LastDrop>,
    /// How many of them were looked at so; the others are counted only.
    #[serde(default)]
    pub drops_sampled: u64,
    /// Interfaces with an XDP program.
    pub devices: Vec<Device>,
    /// Connections that are open now. Filled only where a client asks for it
    /// (see `serve::unix::Request`); bounded, largest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub connections: Vec<Connection>,
    /// What the tool missed.
    pub lost: Vec<Lost>,
    /// The network namespaces that are watched, and those that should be.
    #[serde(default)]
    pub network_namespaces: NetworkNamespaces,
    /// Whether the kernel shields process 1.
    #[serde(default)]
    pub shield: Shield,
    /// The kernel maps; those that can fill up come first.
    pub maps: Vec<MapUse>,
    /// The kernel programs, attached or not.
    pub programs: Vec<Program>,
    /// What the daemon itself costs.
    pub process: Process,
}

/// The network namespaces at the last visit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkNamespaces {
    /// How many were visited.
    pub watched: u64,
    /// How many were left out: they could not be entered, are not there any more, or
    /// are none.
    pub left_out: u64,
    /// At most ten of those, each with the reason.
    pub left_out_names: Vec<String>,
}

/// Sockets of one side and service in one state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketCount {
    /// As [`TcpLabels::side`].
    pub side: String,
    /// As [`TcpLabels::svc`].
    pub svc: String,
    /// TCP state, such as `close_wait`.
    pub state: String,
    /// How many.
    pub count: u64,
}

/// Resets of one direction and reason.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reset {
    /// Whose they are.
    #[serde(flatten)]
    pub labels: TcpLabels,
    /// `sent` or `received`.
    pub direction: String,
    /// Name of the kernel's reason, or `unavailable`.
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// Queues and drops of the listeners of one service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    /// The service; `other` for what cannot be attributed.
    pub svc: String,
    /// Connections and requests that were dropped (`ListenDrops`).
    pub drops: u64,
    /// Their queues, added up.
    #[serde(flatten)]
    pub queues: ListenQueues,
    /// Sum of [`TcpSeries::accept_queue`] over all peers.
    pub accept_queue: Histogram,
    /// The listening sockets, at most 100; those that look alike are one, their
    /// queues added up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sockets: Vec<ListenSocket>,
}

/// The queues of a listener.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(default)]
pub struct ListenQueues {
    /// Half-open connections waiting.
    pub syn_queue_length: u64,
    /// How many may wait; 0 if there is no listener now.
    pub syn_queue_limit: u64,
    /// Connections waiting for `accept()`.
    pub accept_queue_length: u64,
    /// How many may wait; 0 if there is no listener now.
    pub accept_queue_limit: u64,
}

impl ListenQueues {
    /// Adds the queues of another listener.
    pub fn add(&mut self, other: &Self) {
        self.syn_queue_length += other.syn_queue_length;
        self.syn_queue_limit += other.syn_queue_limit;
        self.accept_queue_length += other.accept_queue_length;
        self.accept_queue_limit += other.accept_queue_limit;
    }
}

/// A listening socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ListenSocket {
    /// Where it listens, `address:port` or `[address]:port`.
    pub local: String,
    /// Number of its network namespace.
    pub netns: u32,
    /// As [`Connection::owner`].
    #[serde(default)]
    pub owner: Option<String>,
    /// As [`Connection::pid`].
    #[serde(default)]
    pub pid: Option<u32>,
    /// As [`Connection::process`].
    #[serde(default)]
    pub process: Option<String>,
    /// As [`Connection::cgroup`].
    #[serde(default)]
    pub cgroup: Option<String>,
    /// Its queues.
    #[serde(flatten)]
    pub queues: ListenQueues,
}

/// Packets that the kernel dropped for one reason, of one side and service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Drop {
    /// `loss`, or `housekeeping` where nobody lacks the packet.
    pub class: String,
    /// `core`, or the subsystem's name in lower case.
    pub subsystem: String,
    /// Name of the reason without its prefix; `UNKNOWN_n` where BTF has none.
    pub reason: String,
    /// `tcp`, `udp`, `icmp`, `icmp6`, `ipv4`, `ipv6`, `arp` or `other`.
    pub protocol: String,
    /// As [`TcpLabels::side`], of the socket or listener that was to get or had sent the
    /// segment; `none` where there is none, and of what is not TCP or `housekeeping`.
    #[serde(default)]
    pub side: String,
    /// As [`TcpLabels::svc`]; `none` likewise, `other` of what found no entry of its own.
    #[serde(default)]
    pub svc: String,
    /// Packets.
    pub count: u64,
}

/// A packet that the kernel dropped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LastDrop {
    /// When, seconds since 1970-01-01 UTC.
    pub time_seconds: f64,
    /// As [`Drop::subsystem`].
    pub subsystem: String,
    /// As [`Drop::reason`].
    pub reason: String,
    /// As [`Drop::protocol`].
    pub protocol: String,
    /// Function of the kernel that dropped it and the offset in it, `name+0x12`, with
    /// ` [module]` where it is of one; `unavailable` where the kernel did not tell.
    pub function: String,
    /// Source, `address:port`, `[address]:port`, or an address where there are no ports;
    /// absent where it could not be read.
    pub source: Option<String>,
    /// Destination, likewise.
    pub destination: Option<String>,
    /// Number of the network namespace.
    pub netns: u32,
    /// As [`Drop::side`].
    pub side: String,
    /// As [`Drop::svc`].
    pub svc: String,
    /// As [`Connection::owner`], of the socket or the listener that it belongs to.
    pub owner: Option<String>,
    /// Process that called `connect()`, or that holds the listener; absent where there is
    /// none.
    pub pid: Option<u32>,
    /// Name of that process.
    pub process: Option<String>,
    /// As [`Connection::cgroup`].
    pub cgroup: Option<String>,
}

/// An interface with an XDP program.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Name of the interface.
    pub device: String,
    /// `native` or `generic`; empty if attaching failed.
    pub xdp_mode: String,
    /// Packets and bytes by protocol and action.
    pub traffic: Vec<DeviceTraffic>,
    /// Number of flows in the flow table.
    pub flows: u64,
    /// The largest flows by bytes, at most 100.
    pub top_flows: Vec<PacketFlow>,
    /// What found no slot in the flow table.
    pub overflow_packets: u64,
    /// Bytes of it.
    pub overflow_bytes: u64,
    /// Flows that were evicted, since they had no packets.
    #[serde(default)]
    pub past_flows: u64,
    /// Packets of them.
    #[serde(default)]
    pub past_packets: u64,
    /// Bytes of them.
    #[serde(default)]
    pub past_bytes: u64,
    /// Sum over all flows, past ones and the overflow included; equals the sum over
    /// `traffic`.
    pub flow_packets: u64,
    /// Bytes of it.
    pub flow_bytes: u64,
}

/// Traffic of a device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceTraffic {
    /// As in [`Drop::protocol`].
    pub protocol: String,
    /// XDP action: `pass`.
    pub action: String,
    /// Packets.
    pub packets: u64,
    /// Bytes, link-layer header included.
    pub bytes: u64,
}

/// A flow as XDP sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PacketFlow {
    /// As in [`Drop::protocol`].
    pub protocol: String,
    /// Source, `address:port`, `[address]:port` or address.
    pub source: String,
    /// Destination, likewise.
    pub destination: String,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// An open connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// Series that it counts for.
    #[serde(flatten)]
    pub labels: TcpLabels,
    /// Local end, `address:port` or `[address]:port`.
    pub local: String,
    /// Remote end, likewise.
    pub remote: String,
    /// TCP state, such as `ESTABLISHED`.
    pub state: String,
    /// Number of its network namespace.
    pub netns: u32,
    /// Name of the owner: container, unit or last part of the control group's
    /// path; the process in the root group; `unknown` where the group was gone
    /// when it was looked up. Absent where nothing is known.
    #[serde(default)]
    pub owner: Option<String>,
    /// Process that holds the socket, the first of several; the listener's while
    /// it waits for `accept()`. Absent where there is none.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Name of that process.
    #[serde(default)]
    pub process: Option<String>,
    /// Path of the control group that the socket was made in, or its listener;
    /// absent where cgroup v2 is not mounted or the group is gone.
    #[serde(default)]
    pub cgroup: Option<String>,
    /// Age in seconds; absent where it was open before the start.
    pub age_seconds: Option<f64>,
    /// Smoothed RTT in seconds.
    pub srtt_seconds: f64,
    /// Least RTT in seconds; absent without a sample.
    pub min_rtt_seconds: Option<f64>,
    /// Congestion window in segments.
    pub cwnd_segments: u32,
    /// State of congestion control: `open`, `disorder`, `cwr`, `recovery` or
    /// `loss`.
    pub congestion: String,
    /// Payload bytes sent since it was opened.
    pub sent_bytes: u64,
    /// Payload bytes received since it was opened.
    pub received_bytes: u64,
    /// Segments retransmitted in its life.
    pub retransmits: u64,
    /// Packets to or from it that this host dropped while it was open, those of class
    /// `housekeeping` left out. It does not rise above some 4 294 900 000.
    #[serde(default)]
    pub drops: u64,
    /// Why the last of them was dropped, as [`Drop::reason`].
    #[serde(default)]
    pub drop_reason: Option<String>,
}

/// Events that are missing from the numbers or lost their labels; with the causes
/// `recursion`, `shielded` and `detached` at most so many.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lost {
    /// The hook.
    pub hook: String,
    /// `map_full`, `parse`, `limit`, `recursion`, `shielded`: no program sees what
    /// interrupts do while process 1 is current, or `detached`: packets of an interface
    /// that came again, before the program was attached to it again.
    pub cause: String,
    /// How many.
    pub count: u64,
}

/// Whether the kernel shields process 1: then no program runs while one of its threads
/// is current, and what interrupts do on its time is not seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shield {
    /// `absent`; `counted` or `not_counted`, where there is one; or `unknown`. Empty
    /// from a daemon that does not tell.
    pub state: String,
    /// Why what is hidden is not counted, or why nothing is known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// Fill and memory of a map.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MapUse {
    /// Name of the map.
    pub map: String,
    /// Entries in use; 0 where they are not counted.
    pub entries: u64,
    /// Entries that fit; 0 where those in use are not counted.
    pub capacity: u64,
    /// Kernel memory in bytes, as the kernel accounts it; at most a minute old.
    pub memory_bytes: u64,
}

/// A kernel program.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// Name as the kernel shows it.
    pub program: String,
    /// Hook, such as `tp_btf/tcp_probe`.
    pub hook: String,
    /// Whether it is attached.
    pub attached: bool,
    /// Why not, or a remark such as the XDP mode.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// Events at which the kernel skipped it, since it was interrupted on its CPU
    /// by the same event. What a later event reconciles is not in [`Lost`].
    #[serde(default)]
    pub skipped: u64,
    /// Runs; only with `--bpf-stats`.
    pub runs: Option<u64>,
    /// Time spent in it in seconds; only with `--bpf-stats`.
    pub run_seconds: Option<f64>,
}

/// Cost of the daemon's process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// CPU time in seconds, user and system.
    pub cpu_seconds: f64,
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// Virtual memory in bytes.
    #[serde(default)]
    pub virtual_bytes: u64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// Descriptors that may be open at a time; absent without a limit.
    #[serde(default)]
    pub max_fds: Option<u64>,
    /// Lines of its log that nobody could read.
    #[serde(default)]
    pub log_lines_lost: u64,
    /// Start, seconds since 1970-01-01 UTC.
    pub start_seconds: f64,
    /// Names of the effective capabilities, such as `CAP_BPF`.
    pub capabilities: Vec<String>,
}
