//! Listeners: the lengths of their queues, and the connections they dropped.
//!
//! The kernel counts these drops for a namespace (`ListenDrops` in
//! `/proc/net/netstat`) and, nearly, for a socket (`sk_drops`, which counts
//! some of them twice and other drops too). The sum over the services is that
//! of the namespace, exactly; what the sockets do not explain is `other`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use probe_common::{
    series::Side,
    sock::{LISTEN, SockRecord},
};

use super::names::{Names, OTHER, address};
use crate::snapshot::{ListenSocket, Listener, TcpSeries};

/// The services that listen.
#[derive(Debug, Default)]
pub struct Listeners {
    namespaces: HashMap<u32, Namespace>,
    drops: BTreeMap<String, u64>,
    started: bool,
}

#[derive(Debug, Default)]
struct Namespace {
    /// `ListenDrops` when it was last read.
    drops: u64,
    /// `sk_drops` by address and port when it was last read; sockets that share
    /// them are added up.
    sockets: HashMap<([u8; 16], u16), u64>,
    queues: BTreeMap<String, Listener>,
    /// The sockets, each with its service.
    listening: Vec<(String, SockRecord)>,
}

/// Sockets of a service in a snapshot.
const MAX_SOCKETS: usize = 100;

impl Listeners {
    /// Takes in what one visit of a namespace saw. `listen_drops` is `None`
    /// where `/proc` cannot be read.
    pub fn update(
        &mut self,
        netns: u32,
        records: &[SockRecord],
        listen_drops: Option<u64>,
        names: &mut Names,
    ) {
        let is_new = !self.namespaces.contains_key(&netns);
        let known = self.namespaces.entry(netns).or_default();
        let mut sockets: HashMap<_, u64> = HashMap::new();
        let mut services = HashMap::new();
        known.queues.clear();
        known.listening.clear();
        for record in records.iter().filter(|record| record.state == LISTEN) {
            let key = (record.local, record.local_port);
            *sockets.entry(key).or_default() += u64::from(record.retransmits);
            let net = address(record.local).into();
            let owners = names.owners.bits_of(record);
            let (side, port) = (Side::Server as u8, record.local_port);
            let svc = names.service(netns, side, port, Some(&net), owners);
            known.listening.push((svc.clone(), *record));
            let queue = known.queues.entry(svc.clone()).or_default();
            queue.accept_queue_length += u64::from(record.srtt_us);
            queue.accept_queue_limit += u64::from(record.min_rtt_us);
            queue.syn_queue_length += u64::from(record.snd_cwnd);
            queue.syn_queue_limit += u64::from(record.min_rtt_us);
            services.insert(key, svc);
        }
        let Some(listen_drops) = listen_drops else {
            return;
        };
        // What was dropped before the start does not count; a namespace that
        // came later counts from its beginning.
        let counts = !is_new || self.started;
        // Less than before: another namespace has that number now.
        let total = listen_drops
            .checked_sub(known.drops)
            .unwrap_or(listen_drops);
        let raised: Vec<(String, u64)> = sockets
            .iter()
            .map(|(key, &drops)| {
                let before = known.sockets.get(key).copied().unwrap_or(0);
                // Less than before: another socket listens there now.
                let raised = drops.checked_sub(before).unwrap_or(drops);
                (services.get(key).cloned().unwrap_or_default(), raised)
            })
            .collect();
        known.drops = listen_drops;
        known.sockets = sockets;
        if counts {
            attribute(total, &raised, &mut self.drops);
        }
    }

    /// All that was there at the start has been seen.
    pub fn start(&mut self) {
        self.started = true;
    }

    /// Forgets the sockets of namespaces that are gone, and not what had been
    /// counted there: one may only have been out of sight.
    pub fn retain(&mut self, exists: impl Fn(u32) -> bool) {
        for (_, gone) in self
            .namespaces
            .iter_mut()
            .filter(|(inum, _)| !exists(**inum))
        {
            *gone = Namespace {
                drops: gone.drops,
                ..Namespace::default()
            };
        }
    }

    /// The sockets as they were seen last.
    pub fn sockets(&self) -> impl Iterator<Item = &SockRecord> {
        let all = self.namespaces.values().flat_map(|one| &one.listening);
        all.map(|(_, record)| record)
    }

    /// The listener that a connection came from, as far as its address tells.
    pub fn of(&self, connection: &SockRecord) -> Option<&SockRecord> {
        let all = &self.namespaces.get(&connection.netns)?.listening;
        let of_port = all
            .iter()
            .map(|(_, listener)| listener)
            .filter(|listener| listener.local_port == connection.local_port);
        let fit = |listener: &&SockRecord| match listener.local {
            exact if exact == connection.local => Some(0),
            any => address(any).is_unspecified().then_some(1),
        };
        of_port
            .filter(|listener| fit(listener).is_some())
            .min_by_key(fit)
    }

    /// One row for each service, with the accept queue's times of its series.
    pub fn rows(
        &self,
        tcp: &[TcpSeries],
        mut socket: impl FnMut(&SockRecord) -> ListenSocket,
    ) -> Vec<Listener> {
        let mut rows: BTreeMap<&str, Listener> = BTreeMap::new();
        for (svc, &drops) in &self.drops {
            rows.entry(svc).or_default().drops = drops;
        }
        rows.entry(OTHER).or_default();
        for (svc, queue) in self
            .namespaces
            .values()
            .flat_map(|namespace| &namespace.queues)
        {
            let row = rows.entry(svc).or_default();
            row.accept_queue_length += queue.accept_queue_length;
            row.accept_queue_limit += queue.accept_queue_limit;
            row.syn_queue_length += queue.syn_queue_length;
            row.syn_queue_limit += queue.syn_queue_limit;
        }
        let mut sockets: BTreeMap<&str, BTreeSet<ListenSocket>> = BTreeMap::new();
        for (svc, record) in self.namespaces.values().flat_map(|one| &one.listening) {
            sockets.entry(svc).or_default().insert(socket(record));
        }
        for (svc, sockets) in sockets {
            let row = rows.entry(svc).or_default();
            row.sockets = sockets.into_iter().take(MAX_SOCKETS).collect();
        }
        for series in tcp.iter().filter(|one| !one.accept_queue.slots.is_empty()) {
            let row = rows.entry(&series.labels.svc).or_default();
            row.accept_queue.add(&series.accept_queue);
        }
        rows.into_iter()
            .map(|(svc, row)| Listener {
                svc: svc.to_owned(),
                ..row
            })
            .collect()
    }
}

/// Divides `total` drops among services by what their sockets counted. Where
/// the sockets counted more than that, each gets its share, rounded down.
fn attribute(total: u64, raised: &[(String, u64)], drops: &mut BTreeMap<String, u64>) {
    let sum: u64 = raised.iter().map(|(_, raised)| raised).sum();
    let mut rest = total;
    for (svc, raised) in raised.iter().filter(|(_, raised)| *raised != 0) {
        let share = if sum > total {
            raised * total / sum
        } else {
            *raised
        };
        *drops.entry(svc.clone()).or_default() += share;
        rest -= share;
    }
    if rest != 0 {
        *drops.entry(OTHER.to_owned()).or_default() += rest;
    }
}

/// What the kernel counts for a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// `ListenDrops`.
    pub listen_drops: u64,
    /// `SyncookiesRecv`.
    pub cookies: u64,
}

impl Counted {
    /// Those of the network namespace of the calling thread.
    pub fn here() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/thread-self/net/netstat").ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
        let (names, values) = (lines.next()?, lines.next()?);
        let value = |wanted: &str| {
            let column = names.split_whitespace().position(|name| name == wanted)?;
            values.split_whitespace().nth(column)?.parse().ok()
        };
        Some(Self {
            listen_drops: value("ListenDrops")?,
            cookies: value("SyncookiesRecv")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_the_namespaces() {
        for (total, raised) in [(5, vec![3, 2]), (5, vec![1]), (3, vec![4, 2]), (7, vec![])] {
            let mut drops = BTreeMap::new();
            let raised: Vec<_> = raised
                .into_iter()
                .enumerate()
                .map(|(n, raised)| (n.to_string(), raised))
                .collect();
            attribute(total, &raised, &mut drops);
            assert_eq!(drops.values().sum::<u64>(), total);
        }
    }

    #[test]
    fn what_sockets_explain_is_theirs() {
        let mut drops = BTreeMap::new();
        attribute(6, &[("web".to_owned(), 4)], &mut drops);
        assert_eq!(drops["web"], 4);
        assert_eq!(drops[OTHER], 2);
    }

    #[test]
    fn reads_the_column_by_its_name() {
        let text = "TcpExt: SyncookiesRecv ListenOverflows ListenDrops\nTcpExt: 1 2 3\nIpExt: A\nIpExt: 9\n";
        let counted = Counted {
            listen_drops: 3,
            cookies: 1,
        };
        assert_eq!(Counted::parse(text), Some(counted));
        assert_eq!(Counted::parse("TcpExt: A\nTcpExt: 1\n"), None);
        assert_eq!(Counted::parse(""), None);
    }
}
