//! The only code that touches maps: reads them once, at one moment, and makes a
//! [`Snapshot`] of what they hold.

mod devices;
mod flows;
mod holders;
mod listeners;
mod mapping;
mod maps;
mod names;
mod own;
pub mod owner_names;
mod owners;
mod rows;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use aya::maps::{Array, HashMap as BpfHash, MapData, lpm_trie::LpmTrie};
use probe_common::{
    config::{MAX_NETNS, ProbeConfig, SENDS_AFTER, SENDS_BEFORE, SENDS_UNSEEN},
    conn::{STATUS_COMPLETE, STATUS_COOKIES, STATUS_FULL, STATUS_REPORT},
    lost::{Cause, Hook},
    packet::Protocol,
    series::{CORE_REASONS, DropKey, NAMED_PORTS, OVERFLOW_ROW, ResetKey},
    sock::{LISTEN, ListenerKey, SockRecord, listener_key},
};

use self::{
    devices::Device,
    listeners::{Counted, Ended, Listeners},
    names::Names,
    owners::Processes,
    rows::Rows,
};
use crate::{
    config::Config,
    kernel::{
        btf::{Btf, VMLINUX},
        kfuncs::Kfuncs,
        layout,
        netns::{self, NetNs},
        reasons::Reasons,
    },
    loader::{self, Globals, Loaded, SOCK_SEND, TCP_SEND},
    snapshot::{self, Connection, SCHEMA, Snapshot},
};

/// Rows: combinations of side, service port and peer that are told apart.
pub const ROWS: u32 = 512;
/// Shards of a row on a large host: memory against CPUs that share a cache line.
const MAX_SHARDS: u32 = 8;
/// Connections that are remembered.
pub const CONNECTIONS: u32 = 131_072;
/// Hooks whose skipped events a later one makes up for.
const HEALED: [&str; 3] = [
    "inet_sock_set_state",
    "tcp_retransmit_skb",
    "tcp_destroy_sock",
];
/// The visit of all sockets may take one part in so many of the time.
const VISIT_SHARE: u32 = 100;
/// But it is never longer ago than this.
const VISIT_INTERVAL: Duration = Duration::from_secs(30);
/// How long after its last one a listener still takes SYN cookies
/// (`TCP_SYNCOOKIE_VALID`).
const COOKIES_VALID: Duration = Duration::from_secs(120);
/// How often new network namespaces are looked for.
const NETNS_INTERVAL: Duration = Duration::from_secs(10);

/// Loaded programs and what is known of their maps.
#[derive(Debug)]
pub struct Collector {
    host: Loaded,
    devices: Vec<Device>,
    rows: Rows,
    names: Names,
    reasons: Reasons,
    listeners: Listeners,
    namespaces: HashMap<u32, NetNs>,
    /// Named on the command line: no others are looked for.
    fixed_namespaces: bool,
    namespaces_read: Instant,
    last_visit: Instant,
    visit_cost: Duration,
    connections: u64,
    /// SYN cookies that have come back, in all namespaces together, and when that
    /// was last seen to change.
    cookies: u64,
    cookies_came: Option<Instant>,
    start_seconds: f64,
    kernel: String,
    /// Whether the kernel preempts programs on tracepoints.
    preempts: bool,
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
        let start_seconds = own::unix_seconds();
        let own_btf = Btf::from_sys_fs()?;
        let layout = layout::resolve(&own_btf)?;
        let modules = Path::new(VMLINUX).parent().unwrap_or(Path::new("/"));
        let reasons = Reasons::read(&own_btf, modules);
        let kernel = own::kernel_release();
        let preempts = own::preempts_programs(&kernel);
        let kfuncs = Kfuncs::resolve(&own_btf);
        let sends = match [TCP_SEND, SOCK_SEND].map(|name| own_btf.has_tracepoint(name)) {
            [true, _] => SENDS_BEFORE,
            [false, true] => SENDS_AFTER,
            [false, false] => SENDS_UNSEEN,
        };
        drop(own_btf);
        tracing::debug!("read the kernel's types");
        let btf = aya::Btf::from_sys_fs().context("cannot read the kernel's BTF")?;

        let namespaces = named_namespaces(config)?;
        let interfaces = devices::find(config, &namespaces)?;
        let fixed_namespaces = !namespaces.is_empty();
        let names = Names::new(config)?;
        let shards = loader::possible_cpus()?.next_power_of_two().min(MAX_SHARDS);
        let globals = Globals {
            layout,
            config: ProbeConfig {
                rows: config.rows.unwrap_or(ROWS),
                places: config.connections.unwrap_or(CONNECTIONS).max(1),
                sends,
                preempts: preempts.into(),
                payload: kfuncs.reads_payload().into(),
                ..probe_config(&namespaces, &names, &reasons, shards)
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
        let mut host = loader::host(&btf, &globals, config.noop_programs, |loaded| {
            prepare(loaded, &names)
        })?;
        names.owners.tell(&mut host)?;
        let devices = devices::attach(config, &btf, &globals, interfaces)?;
        let rows = Rows::new(&host, config.rows.unwrap_or(ROWS), shards)?;
        let mut collector = Self {
            host,
            devices,
            rows,
            names,
            reasons,
            listeners: Listeners::default(),
            namespaces,
            fixed_namespaces,
            namespaces_read: Instant::now(),
            last_visit: Instant::now(),
            visit_cost: Duration::ZERO,
            connections: 0,
            cookies: 0,
            cookies_came: None,
            start_seconds,
            preempts,
            kernel,
            _stats: stats,
        };
        tracing::debug!("loaded the programs");
        if !collector.fixed_namespaces {
            collector.namespaces = netns::all();
        }
        if !config.noop_programs {
            collector.visit()?;
            collector.set_status(STATUS_COMPLETE, 1)?;
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
        if self.last_visit.elapsed() >= (self.visit_cost * VISIT_SHARE).min(VISIT_INTERVAL) {
            self.visit()?;
        }
        let mut snapshot = Snapshot {
            schema: SCHEMA,
            start_seconds: self.start_seconds,
            kernel: self.kernel.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Snapshot::default()
        };
        self.read_rows()?;
        snapshot.tcp = self.rows.series(&self.names);
        let (resets, reset_entries) = self.resets()?;
        snapshot.resets = resets;
        snapshot.listeners = self.listening(&snapshot.tcp);
        snapshot.listen_overflows = self.listeners.overflows();
        let (drops, drop_entries) = self.drops()?;
        snapshot.drops = drops;
        for device in &mut self.devices {
            snapshot.devices.push(device.read()?);
        }
        self.own(&mut snapshot)?;
        for (map, entries) in [("RESETS", reset_entries), ("DROPS", drop_entries)] {
            snapshot.maps.push(maps::usage(&self.host, map, entries));
        }
        snapshot.timestamp_seconds = own::unix_seconds();
        snapshot.duration_seconds = begin.elapsed().as_secs_f64();
        Ok(snapshot)
    }

    /// The connections that are open now, those with most bytes first.
    ///
    /// # Errors
    ///
    /// The kernel refuses to list sockets.
    pub fn connections(&mut self, limit: usize) -> anyhow::Result<Vec<Connection>> {
        let listeners: Vec<SockRecord> = self.listeners.sockets().copied().collect();
        self.names.owners.holders.walk(&mut self.host, &listeners);
        self.set_status(STATUS_REPORT, 1)?;
        let visited = self.visit();
        self.set_status(STATUS_REPORT, 0)?;
        let mut records = visited?;
        records.retain(|record| record.state != LISTEN);
        records.sort_by_key(|record| std::cmp::Reverse(record.sent_bytes + record.received_bytes));
        records.truncate(limit);
        self.read_rows()?;
        let now_ns = own::monotonic_ns();
        let mut processes = Processes::new();
        let connections = records.iter().map(|record| {
            let listener = self.listeners.of(record);
            let holders = &self.names.owners.holders;
            // The last is of use while it waits for `accept()`.
            let pids = [
                holders.of(record),
                Some(record.pid),
                listener.and_then(|listener| holders.of(listener)),
            ];
            let pids = pids.into_iter().flatten();
            let owner = self.names.owners.of_socket(record, pids, &mut processes);
            let labels = self.rows.labels(record.row, &self.names);
            let labels = labels.unwrap_or_else(|| self.names.folded());
            names::connection(record, labels, owner, now_ns)
        });
        Ok(connections.collect())
    }

    /// Learns of new rows and of the names that they need.
    fn read_rows(&mut self) -> anyhow::Result<()> {
        if self.rows.read(&self.host)? {
            let (names, rows) = (&mut self.names, &self.rows);
            names.learn_namespaces(rows.keys().map(|key| key.netns));
            let owners = rows.keys().map(|key| key.owner);
            names.owners.learn(&mut self.host, owners)?;
        }
        Ok(())
    }

    /// The listeners by service, with their owners.
    fn listening(&mut self, tcp: &[snapshot::TcpSeries]) -> Vec<snapshot::Listener> {
        let sockets: Vec<SockRecord> = self.listeners.sockets().copied().collect();
        let owners = &mut self.names.owners;
        owners.holders.refresh(&mut self.host, &sockets);
        let mut processes = Processes::new();
        self.listeners.rows(tcp, |record| {
            let pid = owners.holders.of(record);
            let owner = owners.of_socket(record, pid, &mut processes);
            names::listen_socket(record, owner)
        })
    }

    fn set_status(&mut self, element: u32, value: u64) -> anyhow::Result<()> {
        let mut status: Array<&mut MapData, u64> = self.host.map_mut("STATUS")?;
        status.set(element, value, 0)?;
        Ok(())
    }

    /// Visits all sockets of the watched namespaces.
    fn visit(&mut self) -> anyhow::Result<Vec<SockRecord>> {
        let begin = Instant::now();
        if !self.fixed_namespaces && self.namespaces_read.elapsed() >= NETNS_INTERVAL {
            self.namespaces = netns::all();
            self.namespaces_read = begin;
        }
        let before = maps::counter(&self.host, "VISITED")?;
        let mut records = Vec::new();
        let mut gone = Vec::new();
        let mut cookies = 0;
        let ended = self.ended()?;
        for (&inum, netns) in &self.namespaces {
            let ebpf = &mut self.host.ebpf;
            let visited = netns.run(|| {
                let bytes = loader::iterate(ebpf, loader::VISIT);
                (bytes, Counted::here())
            });
            match visited {
                Ok((bytes, counted)) => {
                    let seen = maps::records(&bytes?);
                    cookies += counted.map_or(0, |counted| counted.cookies);
                    self.listeners
                        .update(inum, &seen, &ended, counted, &mut self.names);
                    records.extend(seen);
                }
                Err(error) => {
                    tracing::warn!("network namespace {inum} is left out: {error:#}");
                    gone.push(inum);
                }
            }
        }
        if cookies != self.cookies {
            self.cookies = cookies;
            self.cookies_came = Some(begin);
        }
        let come = |came: Instant| came.elapsed() < COOKIES_VALID + VISIT_INTERVAL;
        let come = self.cookies_came.is_some_and(come);
        self.set_status(STATUS_COOKIES, come.into())?;
        self.forget_listeners(&records)?;
        for inum in gone {
            self.namespaces.remove(&inum);
        }
        let namespaces = &self.namespaces;
        self.listeners.retain(|inum| namespaces.contains_key(&inum));
        let is_gone = |key: &&ListenerKey| !namespaces.contains_key(&key.netns);
        for key in ended.keys().filter(is_gone) {
            let mut map: BpfHash<&mut MapData, ListenerKey, u64> =
                self.host.map_mut("LISTENER_DROPS")?;
            map.remove(key)?;
        }
        self.connections = maps::counter(&self.host, "VISITED")? - before;
        self.last_visit = Instant::now();
        self.visit_cost = begin.elapsed();
        Ok(records)
    }

    /// What listeners that have closed had dropped.
    fn ended(&self) -> anyhow::Result<Ended> {
        let map: BpfHash<&MapData, ListenerKey, u64> = self.host.map("LISTENER_DROPS")?;
        Ok(map.iter().collect::<Result<_, _>>()?)
    }

    /// Forgets the listeners that are gone: a client may get their port.
    fn forget_listeners(&mut self, seen: &[SockRecord]) -> anyhow::Result<()> {
        let listening: HashSet<u64> = seen
            .iter()
            .filter(|record| record.state == LISTEN)
            .map(|record| listener_key(record.netns, record.local_port))
            .collect();
        let mut known: BpfHash<&mut MapData, u64, u8> = self.host.map_mut("LISTENERS")?;
        let keys = known.keys().collect::<Result<Vec<u64>, _>>()?;
        for key in keys.into_iter().filter(|key| !listening.contains(key)) {
            known.remove(&key)?;
        }
        Ok(())
    }

    fn resets(&self) -> anyhow::Result<(Vec<snapshot::Reset>, u64)> {
        let map: BpfHash<&MapData, ResetKey, u64> = self.host.map("RESETS")?;
        let mut sums = BTreeMap::new();
        let mut entries = 0;
        for entry in &map {
            let (key, count) = entry?;
            // The entry for those that find none is there from the start on.
            if count == 0 {
                continue;
            }
            entries += 1;
            let Some(labels) = self.rows.labels(key.row, &self.names) else {
                continue;
            };
            let direction = if key.direction == 0 {
                "sent"
            } else {
                "received"
            };
            *sums
                .entry((labels, direction, self.reasons.of_reset(key.reason)))
                .or_default() += count;
        }
        let rows = sums
            .into_iter()
            .map(|((labels, direction, reason), count)| snapshot::Reset {
                labels,
                direction: direction.to_owned(),
                reason,
                count,
            })
            .collect();
        Ok((rows, entries))
    }

    /// Drops by name, and the entries of the map of the rarer ones.
    fn drops(&self) -> anyhow::Result<(Vec<snapshot::Drop>, u64)> {
        let protocols = Protocol::NAMES.len() as u32;
        let core: Array<&MapData, u64> = self.host.map("CORE_DROPS")?;
        let mut counts = Vec::new();
        for (index, count) in (0..).zip(core.iter()) {
            let count = count?;
            if count != 0 {
                let reason = index / protocols % CORE_REASONS;
                counts.push((
                    DropKey {
                        reason,
                        protocol: index % protocols,
                    },
                    count,
                ));
            }
        }
        let map: BpfHash<&MapData, DropKey, u64> = self.host.map("DROPS")?;
        let core_counts = counts.len();
        for entry in &map {
            counts.push(entry?);
        }
        let entries = (counts.len() - core_counts) as u64;
        let mut sums = BTreeMap::new();
        for (key, count) in counts {
            if let Some((subsystem, reason)) = self.reasons.of_drop(key.reason) {
                let protocol = Protocol::NAMES
                    .get(key.protocol as usize)
                    .unwrap_or(&"other");
                *sums.entry((subsystem, reason, *protocol)).or_default() += count;
            }
        }
        let rows = sums
            .into_iter()
            .map(|((subsystem, reason, protocol), count)| snapshot::Drop {
                subsystem,
                reason,
                protocol: protocol.to_owned(),
                count,
            })
            .collect();
        Ok((rows, entries))
    }

    /// What the tool missed, what it holds and what it costs.
    fn own(&self, snapshot: &mut Snapshot) -> anyhow::Result<()> {
        let loadeds = || std::iter::once(&self.host).chain(self.devices.iter().map(|d| &d.loaded));
        let mut lost: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        let mut skipped = BTreeMap::new();
        let status: Array<&MapData, u64> = self.host.map("STATUS")?;
        let is_full = status.get(&STATUS_FULL, 0)? != 0;
        for loaded in loadeds() {
            let counts: Array<&MapData, u64> = loaded.map("LOST")?;
            for (h, hook) in Hook::NAMES.into_iter().enumerate() {
                for (c, cause) in Cause::NAMES.into_iter().enumerate() {
                    let slot = (h * Cause::NAMES.len() + c) as u32;
                    *lost.entry((hook, cause)).or_default() += counts.get(&slot, 0)?;
                }
            }
            for program in &loaded.programs {
                let mut program = program.clone();
                let facts = loaded.program_facts(&program.program);
                if self._stats.is_some() {
                    program.runs = facts.get("run_cnt").copied();
                    program.run_seconds = facts.get("run_time_ns").map(|&ns| ns as f64 / 1e9);
                }
                // The kernel skips a program that is interrupted on its CPU by its own
                // event. The life of a connection and its retransmissions are made up
                // for by later events; the rest is lost, where no copy has taken it.
                let missed = facts.get("recursion_misses").copied().unwrap_or(0);
                program.skipped = missed;
                let hook = program
                    .hook
                    .split_once('/')
                    .map_or("", |(kind, hook)| match kind {
                        "xdp" => "xdp",
                        "iter" => "iter_tcp",
                        _ => hook,
                    });
                // Where programs are preempted that may not be enough, and with a
                // full table nothing is made up for.
                let is_healed = !self.preempts && !is_full && HEALED.contains(&hook);
                let hook = Hook::NAMES.into_iter().find(|&name| name == hook);
                if let Some(hook) = hook.filter(|_| program.attached && !is_healed) {
                    let known = skipped.entry(hook).or_insert(missed);
                    *known = missed.min(*known);
                }
                snapshot.programs.push(program);
            }
        }
        lost.extend(
            skipped
                .into_iter()
                .map(|(hook, count)| ((hook, "recursion"), count)),
        );
        snapshot.lost = lost
            .into_iter()
            .map(|((hook, cause), count)| snapshot::Lost {
                hook: hook.to_owned(),
                cause: cause.to_owned(),
                count,
            })
            .collect();
        for (map, entries) in [
            ("ROWS", self.rows.used_entries()),
            ("CONNS", self.connections),
        ] {
            snapshot.maps.push(maps::usage(&self.host, map, entries));
        }
        for (device, read) in self.devices.iter().zip(&snapshot.devices) {
            snapshot.maps.push(device.usage(read.flows));
        }
        let known: HashSet<&str> = ["ROWS", "CONNS", "RESETS", "DROPS"].into();
        let mut others = 0;
        for loaded in loadeds() {
            others += maps::memory_of_others(loaded, &known);
        }
        snapshot.maps.push(snapshot::MapUse {
            map: "others".to_owned(),
            entries: 0,
            capacity: 0,
            memory_bytes: others,
        });
        snapshot.process = crate::process::read().context("cannot read what this process costs")?;
        Ok(())
    }
}

fn named_namespaces(config: &Config) -> anyhow::Result<HashMap<u32, NetNs>> {
    if config.netns.len() > MAX_NETNS {
        anyhow::bail!("--netns can be given {MAX_NETNS} times at most");
    }
    let named = config
        .netns
        .iter()
        .map(|name| NetNs::named(name).map(|netns| (netns.inum, netns)));
    named.collect()
}

fn probe_config(
    namespaces: &HashMap<u32, NetNs>,
    names: &Names,
    reasons: &Reasons,
    shards: u32,
) -> ProbeConfig {
    let mut config = ProbeConfig {
        shards,
        key_netns: u32::from(names.by_netns()),
        key_owner: names.owners.mode(),
        peers: u32::from(!names.peers().is_empty()),
        groups: u32::from(!names.groups().is_empty()),
        netns_len: namespaces.len() as u32,
        reason_not_specified: reasons.not_specified(),
        ..ProbeConfig::default()
    };
    for (slot, inum) in config.netns.iter_mut().zip(namespaces.keys()) {
        *slot = *inum;
    }
    config
}

/// Fills the maps that the programs read, before any of them runs.
fn prepare(loaded: &mut Loaded, names: &Names) -> anyhow::Result<()> {
    names.owners.tell(loaded)?;
    let mut next: Array<&mut MapData, u64> = loaded.map_mut("NEXT_ROW")?;
    next.set(0, u64::from(OVERFLOW_ROW + 1), 0)?;
    let mut ports: BpfHash<&mut MapData, u32, u8> = loaded.map_mut("NAMED_PORTS")?;
    for port in names.ports() {
        ports
            .insert(u32::from(port), 1, 0)
            .with_context(|| format!("the services have more than {NAMED_PORTS} ports"))?;
    }
    let mut resets: BpfHash<&mut MapData, ResetKey, u64> = loaded.map_mut("RESETS")?;
    for direction in [0, 1] {
        resets.insert(ResetKey::overflow(direction), 0, 0)?;
    }
    for (map, prefixes) in [("PEERS", names.peers()), ("GROUPS", names.groups())] {
        let mut trie: LpmTrie<&mut MapData, [u8; 16], u32> = loaded.map_mut(map)?;
        for (key, number) in prefixes {
            trie.insert(&key, number, 0).with_context(|| {
                format!("cannot insert a prefix into {map}: are there more than it holds?")
            })?;
        }
    }
    Ok(())
}
