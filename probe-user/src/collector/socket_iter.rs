//! The iteration over all sockets: it finds connections that were open before the
//! start, and how long queues are.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use aya::maps::{Array, HashMap as BpfHash, MapData};
use probe_common::{
    abi::conn::STATUS_COOKIES,
    abi::iter::{LISTEN, ListenerKey, SockRecord, listener_key},
};

use super::{
    Collector, ITERATION_INTERVAL,
    listeners::{ClosedListeners, NetstatCounts},
};
use crate::{
    kernel::netns,
    loader::{self, maps},
};

/// How long after its last one a listener still takes SYN cookies
/// (`TCP_SYNCOOKIE_VALID`).
const COOKIES_VALID: Duration = Duration::from_secs(120);
/// How often new network namespaces are looked for.
const NETNS_INTERVAL: Duration = Duration::from_secs(10);

impl Collector {
    pub(super) fn set_status(&mut self, element: u32, value: u64) -> anyhow::Result<()> {
        let mut status: Array<&mut MapData, u64> = self.host.map_mut("STATUS")?;
        status.set(element, value, 0)?;
        Ok(())
    }

    /// Iterates over all sockets of the watched namespaces.
    pub(super) fn iterate_sockets(&mut self) -> anyhow::Result<Vec<SockRecord>> {
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
            let iterated = netns.run(|| {
                let bytes = loader::iterate(ebpf, loader::ITER_TCP);
                (bytes, NetstatCounts::here())
            });
            match iterated {
                Ok((bytes, counted)) => {
                    let seen = maps::records(&bytes?);
                    cookies += counted.map_or(0, |counted| counted.cookies);
                    self.listeners
                        .update(inum, &seen, &ended, counted, &mut self.attribution);
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
        let come = |came: Instant| came.elapsed() < COOKIES_VALID + ITERATION_INTERVAL;
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
        self.last_iteration = Instant::now();
        self.iteration_cost = begin.elapsed();
        Ok(records)
    }

    /// What listeners that have closed had dropped.
    fn ended(&self) -> anyhow::Result<ClosedListeners> {
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
}
