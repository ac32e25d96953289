//! The only code that reads counters from maps: once, at one moment, into a
//! [`Snapshot`] of what they hold.

mod connections;
mod drop_samples;
mod drops;
mod listeners;
mod map_memory;
mod mmap_array;
mod namespaces;
mod resets;
mod self_metrics;
mod shield;
mod socket_iter;
mod socket_states;
mod tcp;
mod watched;
mod xdp;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use aya::maps::{Array, HashMap as BpfHash, MapData, lpm_trie::LpmTrie};
use probe_common::{
    abi::{
        config::{ProbeConfig, SENDS_AFTER, SENDS_BEFORE, SENDS_UNSEEN},
        drop::{CORE_REASONS, REASON_WORDS},
        iter::Endpoint,
        series::{NAMED_PORTS, OVERFLOW_ROW, ResetKey},
        status,
    },
    hooks::{PROGRAMS, Use},
    labels::Direction,
    layout::{ABSENT, KernelLayout},
};

use self::{
    drop_samples::DropSamples, drops::CoreDrops, listeners::Listeners, map_memory::MapMemory,
    namespaces::Namespaces, self_metrics::Skipped, shield::ShieldWatch,
    socket_states::SocketStates, tcp::Rows, watched::WatchedNumbers, xdp::XdpDevice,
};
use crate::{
    attribution::{Attribution, owners::Processes},
    config::Config,
    kernel::{
        btf::{Btf, VMLINUX},
        clocks,
        drop_class::{self, LOSS},
        kfuncs::Kfuncs,
        layout, limits, preemption,
        reasons::Reasons,
    },
    loader::{self, Globals, Loaded, Selection, maps},
    model::{self, SCHEMA, Snapshot},
};

/// Shards of a row on a large host: memory against CPUs that share a cache line.
const MAX_SHARDS: u32 = 8;
/// The iteration over all sockets may take one part in so many of the time.
const ITERATION_SHARE: u32 = 100;
/// But it is never longer ago than this.
const ITERATION_INTERVAL: Duration = Duration::from_secs(30);

/// Loaded programs and what is known of their maps.
#[derive(Debug)]
pub struct Collector {
    host: Loaded,
    devices: Vec<XdpDevice>,
    rows: Rows,
    core_drops: CoreDrops,
    drop_samples: DropSamples,
    attribution: Attribution,
    reasons: Reasons,
    listeners: Listeners,
    namespaces: Namespaces,
    /// Follows the names of those that are watched by name.
    _watched: Option<WatchedNumbers>,
    last_iteration: Instant,
    iteration_cost: Duration,
    /// Number of the last iteration over the sockets.
    iteration: u32,
    socket_states: SocketStates,
    shield: ShieldWatch,
    map_memory: MapMemory,
    /// When the least RTT of open connections was last observed.
    min_rtt_observed: Instant,
    connections: u64,
    /// SYN cookies that have come back, in all namespaces together, and when that
    /// was last seen to change.
    cookies: u64,
    cookies_came: Option<Instant>,
    start_seconds: f64,
    started: Instant,
    kernel: String,
    /// Whether the kernel preempts programs on tracepoints.
    preempts: bool,
    skipped: Skipped,
    /// Keeps the measurement of run times on.
    _stats: Option<std::os::fd::OwnedFd>,
}

impl Collector {
    /// Loads and attaches the programs and takes in the connections that are
    /// open already.
    ///
    /// # Errors
    ///
    /// One line that says what is missing and what to do about it.
    pub fn start(config: &Config) -> anyhow::Result<Self> {
        let start_seconds = clocks::unix_seconds();
        let started = Instant::now();
        limits::raise_open_files();
        let own_btf = Btf::from_sys_fs()?;
        let layout = layout::resolve(&own_btf)?;
        let modules = Path::new(VMLINUX).parent().unwrap_or(Path::new("/"));
        let reasons = Reasons::read(&own_btf, modules);
        let kernel = clocks::kernel_release();
        let preempts = preemption::preempts_programs(&own_btf);
        let kfuncs = Kfuncs::resolve(&own_btf);
        let has_hook = |used| {
            let mut programs = PROGRAMS.iter().filter(|info| info.used == used);
            programs.any(|info| own_btf.has_tracepoint(info.hook))
        };
        let sends = match [Use::SendsBegun, Use::SendsReturned].map(has_hook) {
            [true, _] => SENDS_BEFORE,
            [false, true] => SENDS_AFTER,
            [false, false] => SENDS_UNSEEN,
        };
        drop(own_btf);
        tracing::debug!("read the kernel's types");
        let btf = aya::Btf::from_sys_fs().context("cannot read the kernel's BTF")?;

        let namespaces = Namespaces::find(&config.netns)?;
        let interfaces = xdp::find(config, &namespaces)?;
        let attribution = Attribution::new(config)?;
        let shards = loader::possible_cpus()?.next_power_of_two().min(MAX_SHARDS);
        let globals = Globals {
            layout,
            config: ProbeConfig {
                rows: config.rows,
                conn_slots: config.connections.max(1),
                sends,
                preempts: preempts.into(),
                payload: kfuncs.reads_payload().into(),
                ..probe_config(config.netns.len(), &attribution, &reasons, &layout, shards)
            },
            accept_exit: config.metrics.accept_queue_exact,
            kfuncs,
        };
        let stats = if config.bpf_stats {
            let fd = aya::sys::enable_stats(aya::sys::Stats::RunTime)
                .context("cannot measure the programs' run time (--bpf-stats)")?;
            Some(fd)
        } else {
            None
        };
        // Before anything is attached: more than was missed, never less.
        let shield = ShieldWatch::start();
        let mut watched = None;
        let selection = Selection {
            noop: config.noop_programs,
            left_out: &config.left_out,
        };
        let mut host = loader::host(&btf, &globals, selection, |loaded| {
            if namespaces.are_named() {
                watched = Some(WatchedNumbers::start(loaded, config.netns.clone())?);
            }
            prepare(loaded, &attribution)
        })?;
        attribution.owners.tell(&mut host)?;
        let devices = xdp::attach(config, &btf, &globals, interfaces)?;
        let rows = Rows::new(&host, config.rows, shards)?;
        let core_drops = CoreDrops::new(&host, shards)?;
        let drop_samples = DropSamples::new(&host)?;
        let socket_states = SocketStates::new(&host, config.rows)?;
        let mut collector = Self {
            host,
            devices,
            rows,
            core_drops,
            drop_samples,
            attribution,
            reasons,
            listeners: Listeners::default(),
            namespaces,
            _watched: watched,
            last_iteration: Instant::now(),
            iteration_cost: Duration::ZERO,
            iteration: 0,
            socket_states,
            shield,
            map_memory: MapMemory::default(),
            min_rtt_observed: Instant::now(),
            connections: 0,
            cookies: 0,
            cookies_came: None,
            start_seconds,
            started,
            preempts,
            skipped: Skipped::default(),
            kernel,
            _stats: stats,
        };
        tracing::debug!("loaded the programs");
        if !config.noop_programs {
            collector.iterate_sockets()?;
            collector.set_status(status::COMPLETE, clocks::monotonic_ns())?;
            collector.listeners.start();
        }
        Ok(collector)
    }

    /// Reads the maps once.
    ///
    /// # Errors
    ///
    /// The kernel refuses to read a map.
    pub fn snapshot(&mut self) -> anyhow::Result<Snapshot> {
        let begin = Instant::now();
        if self.last_iteration.elapsed()
            >= (self.iteration_cost * ITERATION_SHARE).min(ITERATION_INTERVAL)
        {
            self.iterate_sockets()?;
        }
        let mut snapshot = Snapshot {
            schema: SCHEMA,
            start_seconds: self.start_seconds,
            kernel: self.kernel.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Snapshot::default()
        };
        self.read_rows()?;
        snapshot.tcp = self.rows.series(&self.attribution);
        snapshot.sockets = self
            .socket_states
            .counts(self.iteration, &self.rows, &self.attribution);
        let (resets, reset_entries) = self.resets()?;
        snapshot.resets = resets;
        snapshot.listeners = self.listening(&snapshot.tcp);
        snapshot.listen_overflows = self.listeners.overflows();
        let drops = self.drops()?;
        snapshot.drops = drops.rows;
        self.read_drop_samples()?;
        snapshot.last_drops = self.drop_samples.newest().to_vec();
        snapshot.drops_sampled = self.drop_samples.taken();
        for device in &mut self.devices {
            device.follow();
            snapshot.devices.push(device.read()?);
        }
        snapshot.network_namespaces = self.namespaces.summary();
        self.self_metrics(&mut snapshot)?;
        (snapshot.maps).push(maps::usage(&self.host, "RESETS", reset_entries));
        snapshot.maps.extend(drops.maps);
        self.map_memory(&mut snapshot.maps);
        snapshot.timestamp_seconds = clocks::unix_seconds();
        snapshot.uptime_seconds = self.started.elapsed().as_secs_f64();
        snapshot.duration_seconds = begin.elapsed().as_secs_f64();
        Ok(snapshot)
    }

    /// Learns of new rows and of the attribution that they need.
    fn read_rows(&mut self) -> anyhow::Result<()> {
        if self.rows.read(&self.host)? {
            let (attribution, rows) = (&mut self.attribution, &self.rows);
            attribution.services.follow_namespaces();
            attribution.learn_namespaces(rows.keys().map(|key| key.netns));
            let owners = rows.keys().map(|key| key.owner);
            attribution.owners.learn(&mut self.host, owners)?;
        }
        Ok(())
    }

    /// The listeners by service, with their owners.
    fn listening(&mut self, tcp: &[model::TcpSeries]) -> Vec<model::Listener> {
        let sockets: Vec<Endpoint> = self.listeners.sockets().map(|one| one.socket).collect();
        let owners = &mut self.attribution.owners;
        owners.socket_pids.refresh(&mut self.host, &sockets);
        let mut processes = Processes::new();
        self.listeners.rows(tcp, |socket| {
            let pid = owners.socket_pids.of_listener(socket);
            let owner = owners.of_socket(socket, pid, &mut processes);
            listeners::listen_socket(socket, owner)
        })
    }
}

fn probe_config(
    named_namespaces: usize,
    attribution: &Attribution,
    reasons: &Reasons,
    layout: &KernelLayout,
    shards: u32,
) -> ProbeConfig {
    ProbeConfig {
        shards,
        key_netns: u32::from(attribution.by_netns()),
        key_owner: attribution.owners.mode(),
        peers: u32::from(!attribution.peers.prefixes().is_empty()),
        groups: u32::from(!attribution.services.prefixes().is_empty()),
        netns_len: named_namespaces as u32,
        reason_not_specified: reasons.not_specified(),
        nobodys_drops: nobodys_drops(reasons, layout),
        ..ProbeConfig::default()
    }
}

/// See [`ProbeConfig::nobodys_drops`].
fn nobodys_drops(reasons: &Reasons, layout: &KernelLayout) -> [u32; REASON_WORDS] {
    let mut words = [0; REASON_WORDS];
    let is_receiver_known = layout.arg_kfree_rx_sk != ABSENT;
    for reason in 0..CORE_REASONS {
        let is_loss = (reasons.of_drop(reason))
            .is_some_and(|(subsystem, name)| drop_class::class(&subsystem, &name) == LOSS);
        let is_known = is_receiver_known || reason != reasons.not_specified();
        if !is_loss || !is_known {
            words[reason as usize / 32] |= 1 << (reason % 32);
        }
    }
    words
}

/// Fills the maps that the programs read, before any of them runs.
fn prepare(loaded: &mut Loaded, attribution: &Attribution) -> anyhow::Result<()> {
    attribution.owners.tell(loaded)?;
    let mut next: Array<&mut MapData, u64> = loaded.map_mut("NEXT_ROW")?;
    next.set(0, u64::from(OVERFLOW_ROW + 1), 0)?;
    let mut ports: BpfHash<&mut MapData, u32, u8> = loaded.map_mut("NAMED_PORTS")?;
    for port in attribution.services.ports() {
        ports
            .insert(u32::from(port), 1, 0)
            .with_context(|| format!("the services have more than {NAMED_PORTS} ports"))?;
    }
    let mut resets: BpfHash<&mut MapData, ResetKey, u64> = loaded.map_mut("RESETS")?;
    for direction in [Direction::Sent, Direction::Received] {
        resets.insert(ResetKey::overflow(direction), 0, 0)?;
    }
    for (map, prefixes) in [
        ("PEERS", attribution.peers.prefixes()),
        ("GROUPS", attribution.services.prefixes()),
    ] {
        let mut trie: LpmTrie<&mut MapData, [u8; 16], u32> = loaded.map_mut(map)?;
        for (key, number) in prefixes {
            trie.insert(&key, number, 0).with_context(|| {
                format!("cannot insert a prefix into {map}: are there more than it holds?")
            })?;
        }
    }
    Ok(())
}
