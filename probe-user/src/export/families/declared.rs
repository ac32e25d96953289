//! The families beside those of the table of TCP metrics
//! ([`probe_common::metrics`]), each declared once: `docs/metrics.md` follows.

use probe_common::metrics::MetricKind;

/// What is known of a family.
#[derive(Clone, Copy, Debug)]
pub struct FamilyInfo {
    /// Name, for a counter without `_total`.
    pub name: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// Type.
    pub kind: MetricKind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// Where its values come from.
    pub source: &'static str,
}

macro_rules! families {
    ($(
        $(#[doc = $help:literal])+
        $constant:ident: $kind:ident $name:literal [$($label:literal),*], $source:literal;
    )*) => {
        $(
            $(#[doc = $help])+
            pub const $constant: FamilyInfo = FamilyInfo {
                name: $name,
                help: concat!($($help),+).trim_ascii(),
                kind: MetricKind::$kind,
                labels: &[$($label),*],
                source: $source,
            };
        )*

        /// All of them.
        pub const DECLARED: &[FamilyInfo] = &[$($constant),*];
    };
}

families! {
    /// Whether the daemon delivers snapshots (1) or not (0).
    DAEMON_UP: Gauge "edgeprobe_daemon_up" [], "the process that answers";
    /// Sockets by their TCP state when all were last iterated over.
    SOCKETS: Gauge "edgeprobe_tcp_sockets" ["side", "svc", "state"], "`sock_common.skc_state`";
    /// Resets, by direction and the kernel's reason.
    RESETS: Counter "edgeprobe_tcp_resets" ["side", "svc", "peer", "direction", "reason"],
        "`tcp_send_reset`, `tcp_receive_reset`; sent ones equal `OutRsts` from 6.12 on";
    /// Connections and requests that listeners dropped.
    LISTEN_DROPS: Counter "edgeprobe_tcp_listen_drops" ["svc"],
        "`ListenDrops` of the network namespace, divided by `sock.sk_drops`";
    /// Connections and requests that listeners dropped since their accept queue was full; the kernel does not tell of which listener.
    LISTEN_OVERFLOWS: Counter "edgeprobe_tcp_listen_overflows" [], "`ListenOverflows`";
    /// Connections that wait in a listener's queue.
    LISTEN_QUEUE_LENGTH: Gauge "edgeprobe_tcp_listen_queue_length" ["svc", "queue"],
        "`sock.sk_ack_backlog`, `icsk_accept_queue.qlen`";
    /// Connections that may wait in a listener's queue, 0 without a listener.
    LISTEN_QUEUE_LIMIT: Gauge "edgeprobe_tcp_listen_queue_limit" ["svc", "queue"],
        "`sock.sk_max_ack_backlog`";
    /// Packets that the kernel dropped, by its reason and by whose they were; none where that is nobody.
    SKB_DROPS: Counter "edgeprobe_skb_drops" ["class", "subsystem", "reason", "protocol", "side", "svc"],
        "`kfree_skb`, `enum skb_drop_reason`";
    /// Packets received at an interface, as XDP saw them.
    XDP_PACKETS: Counter "edgeprobe_xdp_packets" ["device", "protocol", "action"], "XDP";
    /// Bytes received at an interface, link-layer header included, as XDP saw them.
    XDP_BYTES: Counter "edgeprobe_xdp_bytes" ["device", "protocol", "action"], "XDP";
    /// Events that are missing from the numbers or lost their labels; with the causes recursion, shielded and detached at most so many.
    EVENTS_LOST: Counter "edgeprobe_events_lost" ["hook", "cause"],
        "the programs; `recursion` from the kernel's `recursion_misses`, `shielded` from perf events that watch process 1, `detached` from the interface's `rx_packets`";
    /// Network namespaces at the last visit of their sockets, visited or left out.
    NETWORK_NAMESPACES: Gauge "edgeprobe_network_namespaces" ["state"], "the daemon";
    /// Entries of a kernel map in use.
    MAP_ENTRIES: Gauge "edgeprobe_map_entries" ["map"], "the programs' maps";
    /// Entries that fit into a kernel map.
    MAP_CAPACITY: Gauge "edgeprobe_map_capacity" ["map"], "the programs' maps";
    /// Kernel memory of a map, at most a minute old.
    MAP_MEMORY: Gauge "edgeprobe_map_memory_bytes" ["map"],
        "`memlock` in `/proc/self/fdinfo/FD` of the map; before 6.4 that of its keys and values if it was full";
    /// Whether a kernel program is attached to its hook (1) or not (0).
    PROGRAM_ATTACHED: Gauge "edgeprobe_program_attached" ["program", "hook"], "the daemon";
    /// Events at which the kernel skipped a program that was interrupted by the same event; most are reconciled by a later event.
    PROGRAM_SKIPPED: Counter "edgeprobe_program_skipped" ["program"],
        "the kernel's `recursion_misses`";
    /// Runs of a kernel program.
    PROGRAM_RUNS: Counter "edgeprobe_program_runs" ["program"],
        "the kernel's `run_cnt`; only with `--bpf-stats`";
    /// Time spent in a kernel program.
    PROGRAM_RUN_SECONDS: Counter "edgeprobe_program_run_seconds" ["program"],
        "the kernel's `run_time_ns`; only with `--bpf-stats`";
    /// How long reading the maps for the latest snapshot took.
    SNAPSHOT_DURATION: Gauge "edgeprobe_snapshot_duration_seconds" [], "the daemon";
    /// When the latest snapshot was taken, seconds since 1970-01-01 UTC.
    SNAPSHOT_TIMESTAMP: Gauge "edgeprobe_snapshot_timestamp_seconds" [], "the daemon";
    /// Lines of the log that nobody could read: stderr is closed, has no reader, or the reader does not read.
    LOG_LINES_LOST: Counter "edgeprobe_log_lines_lost" ["process"],
        "the daemon and the exporter, each of its own log";
    /// CPU time of the daemon's process, user and system.
    DAEMON_CPU: Counter "edgeprobe_daemon_cpu_seconds" [], "`CLOCK_PROCESS_CPUTIME_ID`";
    /// Resident memory of the daemon's process.
    DAEMON_RESIDENT: Gauge "edgeprobe_daemon_resident_memory_bytes" [],
        "`VmRSS` of `/proc/PID/status`";
    /// Version and source revision of the program that answers.
    BUILD_INFO: Gauge "edgeprobe_build_info" ["version", "revision"], "the build";
    /// CPU time of the process that answers, user and system.
    PROCESS_CPU: Counter "process_cpu_seconds" [], "`CLOCK_PROCESS_CPUTIME_ID`";
    /// Resident memory of the process that answers.
    PROCESS_RESIDENT: Gauge "process_resident_memory_bytes" [], "`VmRSS` of `/proc/PID/status`";
    /// Open file descriptors of the process that answers.
    PROCESS_OPEN_FDS: Gauge "process_open_fds" [], "`/proc/PID/fd`";
    /// File descriptors that the process that answers may have open.
    PROCESS_MAX_FDS: Gauge "process_max_fds" [], "`getrlimit(RLIMIT_NOFILE)`; none without a limit";
    /// Virtual memory of the process that answers.
    PROCESS_VIRTUAL: Gauge "process_virtual_memory_bytes" [], "`VmSize` of `/proc/PID/status`";
    /// Start of the process that answers, seconds since 1970-01-01 UTC.
    PROCESS_START: Gauge "process_start_time_seconds" [], "`/proc/PID/stat`";
}
