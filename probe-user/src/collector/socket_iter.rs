//! The iteration over all sockets: it finds connections that were open before the
//! start, and how long queues are.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use aya::{
    Pod,
    maps::{Array, HashMap as BpfHash, MapData},
};
use probe_common::abi::{
    iter::{ConnectionRecord, ListenerRecord, RecordKind},
    listener::{self, ListenerKey, listener_key, listener_netns},
    status,
};

use super::{
    Collector, ITERATION_INTERVAL,
    listeners::{ClosedListeners, VisitedNamespace},
};
use crate::{
    kernel::{
        netns::{self, EnterError, NetNs},
        netstat::NetstatCounts,
    },
    loader::{self, maps},
};

/// How long after its last one a listener still takes SYN cookies
/// (`TCP_SYNCOOKIE_VALID`).
const COOKIES_VALID: Duration = Duration::from_secs(120);
/// How often the least RTT of an open connection is observed at most.
const MIN_RTT_INTERVAL: Duration = Duration::from_secs(30);

impl Collector {
    pub(super) fn set_status(&mut self, element: u32, value: u64) -> anyhow::Result<()> {
        let mut status: Array<&mut MapData, u64> = self.host.map_mut("STATUS")?;
        status.set(element, value, 0)?;
        Ok(())
    }

    /// Iterates over all sockets of the watched namespaces; returns the connections
    /// where these are to be reported.
    pub(super) fn iterate_sockets(&mut self) -> anyhow::Result<Vec<ConnectionRecord>> {
        let begin = Instant::now();
        let before = maps::counter(&self.host, "VISITED")?;
        // 0 is what a word holds that was never written.
        self.iteration = self.iteration.wrapping_add(1).max(1);
        self.set_status(status::ITERATION, self.iteration.into())?;
        let observes = self.min_rtt_observed.elapsed() >= MIN_RTT_INTERVAL;
        self.set_status(status::OBSERVE_MIN_RTT, observes.into())?;
        if observes {
            self.min_rtt_observed = begin;
        }
        let mut seen = SeenSockets {
            closed: self.closed_listeners()?,
            ..SeenSockets::default()
        };
        self.namespaces.begin_visit();
        self.attribution.services.follow_namespaces();
        let mut waiting: Vec<NetNs> = self.namespaces.known().cloned().collect();
        for attempt in [Attempt::First, Attempt::Last] {
            let mut gone = Vec::new();
            for netns in waiting {
                match self.visit(&netns, &mut seen)? {
                    Ok(()) => {}
                    // The process that it was found at has ended: others may be there.
                    Err(EnterError::Gone(_)) if attempt == Attempt::First => gone.push(netns.inum),
                    Err(EnterError::Gone(_)) => {}
                    Err(error) => {
                        self.namespaces.leave_out(&netns, &error);
                        seen.left_out.insert(netns.inum);
                    }
                }
            }
            if gone.is_empty() {
                break;
            }
            self.namespaces.look();
            let found = gone.iter().filter_map(|&inum| self.namespaces.get(inum));
            waiting = found.cloned().collect();
        }
        let of_services = self.attribution.services.namespaces();
        self.namespaces.end_visit(of_services);
        if seen.cookies != self.cookies {
            self.cookies = seen.cookies;
            self.cookies_came = Some(begin);
        }
        let come = |came: Instant| came.elapsed() < COOKIES_VALID + ITERATION_INTERVAL;
        let come = self.cookies_came.is_some_and(come);
        self.set_status(status::COOKIES, come.into())?;
        self.forget_listeners(&seen)?;
        let namespaces = &self.namespaces;
        (self.listeners).retain(|inum| namespaces.get(inum).is_some());
        let is_gone = |key: &&ListenerKey| namespaces.get(key.netns).is_none();
        for key in seen.closed.keys().filter(is_gone) {
            let mut map: BpfHash<&mut MapData, ListenerKey, u64> =
                self.host.map_mut("LISTENER_DROPS")?;
            map.remove(key)?;
        }
        self.connections = maps::counter(&self.host, "VISITED")? - before;
        self.last_iteration = Instant::now();
        self.iteration_cost = begin.elapsed();
        Ok(seen.connections)
    }

    /// Iterates over the sockets of a namespace. The outer error is the kernel's, of
    /// the iteration.
    fn visit(
        &mut self,
        netns: &NetNs,
        seen: &mut SeenSockets,
    ) -> anyhow::Result<Result<(), EnterError>> {
        let ebpf = &mut self.host.ebpf;
        let visited = netns.run(|| {
            let bytes = loader::iterate(ebpf, loader::ITER_TCP);
            (bytes, NetstatCounts::here(), netns::cookie().ok())
        });
        let (bytes, counted, identity) = match visited {
            Ok(visited) => visited,
            Err(error) => return Ok(Err(error)),
        };
        let records = SocketRecords::read(&bytes?);
        seen.cookies += counted.map_or(0, |counted| counted.cookies);
        let namespace = VisitedNamespace {
            inum: netns.inum,
            identity,
            counted,
        };
        self.listeners.update(
            &namespace,
            &records.listeners,
            &seen.closed,
            &mut self.attribution,
        );
        let key = |one: &ListenerRecord| listener_key(one.socket.netns, one.socket.local_port);
        seen.listening.extend(records.listeners.iter().map(key));
        seen.connections.extend(records.connections);
        Ok(Ok(()))
    }

    /// What listeners that have closed had dropped.
    fn closed_listeners(&self) -> anyhow::Result<ClosedListeners> {
        let map: BpfHash<&MapData, ListenerKey, u64> = self.host.map("LISTENER_DROPS")?;
        Ok(map.iter().collect::<Result<_, _>>()?)
    }

    /// Forgets the listeners that are gone: a client may get their port.
    fn forget_listeners(&mut self, seen: &SeenSockets) -> anyhow::Result<()> {
        let mut known: BpfHash<&mut MapData, u64, u8> = self.host.map_mut("LISTENERS")?;
        let all = known.iter().collect::<Result<Vec<(u64, u8)>, _>>()?;
        let is_gone = |key: &u64| {
            !seen.listening.contains(key) && !seen.left_out.contains(&listener_netns(*key))
        };
        for (key, value) in all.into_iter().filter(|(key, _)| is_gone(key)) {
            match value {
                listener::NEW => known.insert(key, listener::NOT_MET, 0)?,
                _ => known.remove(&key)?,
            }
        }
        Ok(())
    }
}

/// Which time a namespace is visited in an iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    First,
    Last,
}

/// What an iteration saw in all namespaces.
#[derive(Debug, Default)]
struct SeenSockets {
    /// What listeners had dropped that closed before it.
    closed: ClosedListeners,
    /// The listeners that are there.
    listening: HashSet<u64>,
    /// Connections, where these are to be reported.
    connections: Vec<ConnectionRecord>,
    /// SYN cookies that have come back.
    cookies: u64,
    /// Numbers of namespaces that could not be visited and may be there.
    left_out: HashSet<u32>,
}

/// What the iterator reported of a network namespace.
#[derive(Debug, Default, PartialEq, Eq)]
struct SocketRecords {
    listeners: Vec<ListenerRecord>,
    connections: Vec<ConnectionRecord>,
}

impl SocketRecords {
    /// Reads records of both kinds, up to the first that is cut short or of no kind
    /// that is known: the programs write neither.
    fn read(mut bytes: &[u8]) -> Self {
        const LISTENER: u32 = RecordKind::Listener as u32;
        const CONNECTION: u32 = RecordKind::Connection as u32;
        let mut records = Self::default();
        while let Some(kind) = maps::record::<u32>(bytes) {
            let length = match kind {
                LISTENER => push(&mut records.listeners, bytes),
                CONNECTION => push(&mut records.connections, bytes),
                _ => None,
            };
            let Some(length) = length else {
                tracing::debug!("a record of kind {kind} cannot be read");
                break;
            };
            bytes = &bytes[length..];
        }
        records
    }
}

/// Adds the record at the beginning of some bytes; returns its length.
fn push<T: Pod>(records: &mut Vec<T>, bytes: &[u8]) -> Option<usize> {
    records.push(maps::record(bytes)?);
    Some(size_of::<T>())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of a record, as the programs write them.
    fn bytes<T: Pod>(record: &T) -> Vec<u8> {
        let start = std::ptr::from_ref(record).cast::<u8>();
        // SAFETY: a `Pod` has no padding, so all of its bytes are initialised.
        unsafe { std::slice::from_raw_parts(start, size_of::<T>()) }.to_vec()
    }

    #[test]
    fn records_of_both_kinds_are_read_in_any_order() {
        let listener = |drops| ListenerRecord {
            kind: RecordKind::Listener as u32,
            drops,
            ..ListenerRecord::default()
        };
        let connection = ConnectionRecord {
            kind: RecordKind::Connection as u32,
            row: 7,
            ..ConnectionRecord::default()
        };
        let all = [bytes(&listener(1)), bytes(&connection), bytes(&listener(2))].concat();
        let read = SocketRecords::read(&all);
        assert_eq!(read.listeners, [listener(1), listener(2)]);
        assert_eq!(read.connections, [connection]);
        for length in 0..all.len() {
            let read = SocketRecords::read(&all[..length]);
            assert!(read.listeners.len() + read.connections.len() < 3);
        }
        let unknown = SocketRecords::read(&[9; 200]);
        assert_eq!(unknown, SocketRecords::default());
    }
}
