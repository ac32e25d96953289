//! Which process holds which socket: asked when somebody looks, since it is
//! answered by a walk over all open files.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use probe_common::abi::iter::{Holder, LISTEN, SockRecord};

use crate::{
    kernel::clocks,
    loader::{self, Loaded, maps},
};

/// The walk may take one part in so many of the time.
const SHARE: u32 = 100;

/// A listener: a number is used again, but hardly by one of the same address.
type ListenerIdentity = (u64, u32, [u8; 16], u16);

/// The processes that held sockets at the last walk.
#[derive(Debug, Default)]
pub struct SocketPids {
    pids: HashMap<u64, u32>,
    /// Listeners that the last walk was made for.
    listeners: HashSet<ListenerIdentity>,
    /// When the last walk began, in nanoseconds of CLOCK_MONOTONIC.
    began_ns: u64,
    ended: Option<Instant>,
    cost: Duration,
    broken: bool,
}

fn identity(record: &SockRecord) -> ListenerIdentity {
    (record.id, record.netns, record.local, record.local_port)
}

impl SocketPids {
    /// Walks, unless the last time was just now.
    pub fn walk(&mut self, loaded: &mut Loaded, listeners: &[SockRecord]) {
        let rested = |ended: Instant| ended.elapsed() >= self.cost * SHARE;
        if self.broken || !self.ended.is_none_or(rested) {
            return;
        }
        let begin = Instant::now();
        self.began_ns = clocks::monotonic_ns();
        match loader::iterate(&mut loaded.ebpf, loader::ITER_TASK_FILE) {
            Ok(bytes) => {
                self.pids.clear();
                for entry in maps::records::<Holder>(&bytes) {
                    // Of several the first: a parent, mostly.
                    self.pids.entry(entry.id).or_insert(entry.pid);
                }
                self.listeners = listeners.iter().map(identity).collect();
            }
            Err(error) => {
                tracing::warn!("the processes that hold sockets are not known: {error:#}");
                self.broken = true;
            }
        }
        self.cost = begin.elapsed();
        self.ended = Some(Instant::now());
    }

    /// Walks where a listener is new, or its process is gone.
    pub fn refresh(&mut self, loaded: &mut Loaded, listeners: &[SockRecord]) {
        let is_known = |record: &SockRecord| {
            self.listeners.contains(&identity(record)) && self.of(record).is_none_or(is_alive)
        };
        if !listeners.iter().all(is_known) {
            self.walk(loaded, listeners);
        }
    }

    /// The process that holds a socket.
    pub fn of(&self, record: &SockRecord) -> Option<u32> {
        // A socket that came later has the number of one that is gone.
        let was_there = match record.state {
            LISTEN => self.listeners.contains(&identity(record)),
            _ => record.since_ns <= self.began_ns,
        };
        let pid = self.pids.get(&record.id).filter(|_| was_there);
        pid.copied()
    }
}

fn is_alive(pid: u32) -> bool {
    std::path::Path::new("/proc").join(pid.to_string()).exists()
}

/// The name of a process; `None` where it is gone.
pub fn name(pid: u32) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end_matches('\n').to_owned())
}
