//! Listeners: the lengths of their queues, and the connections they dropped.
//!
//! The kernel counts these drops for a namespace (`ListenDrops` in
//! `/proc/net/netstat`) and, nearly, for a socket (`sk_drops`, which counts
//! some of them twice and other drops too). The sum over the services is that
//! of the namespace, exactly; what the sockets do not explain is `other`. What
//! a socket had counted when it closed is in `LISTENER_DROPS`.

use std::collections::{BTreeMap, HashMap};

use probe_common::abi::{
    iter::{Endpoint, ListenerRecord},
    listener::ListenerKey,
};

use crate::{
    attribution::{Attribution, OTHER, owners::Owner},
    kernel::{
        address::{address, endpoint},
        netstat::NetstatCounts,
    },
    model::{ListenQueues, ListenSocket, Listener, TcpSeries},
};

/// The services that listen.
#[derive(Debug, Default)]
pub struct Listeners {
    namespaces: HashMap<u32, NamespaceListeners>,
    drops: BTreeMap<String, u64>,
    overflows: u64,
    started: bool,
}

/// What listeners that have closed had counted, by where they listened.
pub type ClosedListeners = HashMap<ListenerKey, u64>;

/// A namespace that was visited.
#[derive(Clone, Copy, Debug)]
pub struct VisitedNamespace {
    /// Its number.
    pub inum: u32,
    /// Tells it from others that had the number before, see
    /// [`cookie`](crate::kernel::netns::cookie); `None`
    /// where the kernel did not say.
    pub identity: Option<u64>,
    /// What its kernel counters said; `None` where `/proc` cannot be read.
    pub counted: Option<NetstatCounts>,
}

#[derive(Debug, Default)]
struct NamespaceListeners {
    /// As [`VisitedNamespace::identity`].
    identity: Option<u64>,
    /// What the kernel had counted when it was last read.
    counted: NetstatCounts,
    /// The most that was ever counted at an address and port, with the service;
    /// sockets that share them are added up, those that have closed included.
    sockets: HashMap<([u8; 16], u16), (u64, String)>,
    queues: BTreeMap<String, ListenQueues>,
    /// The sockets, each with its service.
    listening: Vec<(String, ListenerRecord)>,
}

/// Sockets of a service in a snapshot.
const MAX_SOCKETS: usize = 100;

impl Listeners {
    /// Takes in what one iteration over the sockets of a namespace saw. `ended` was
    /// read before it.
    pub fn update(
        &mut self,
        namespace: &VisitedNamespace,
        records: &[ListenerRecord],
        ended: &ClosedListeners,
        attribution: &mut Attribution,
    ) {
        let VisitedNamespace {
            inum: netns,
            identity,
            counted,
        } = *namespace;
        let is_new = !self.namespaces.contains_key(&netns);
        let known = self.namespaces.entry(netns).or_default();
        if known.identity.is_some() && identity.is_some() && known.identity != identity {
            // Another one has the number now: all that it counts is new.
            *known = NamespaceListeners::default();
        }
        known.identity = identity;
        // Drops of an address and port, and the service where one listens there now.
        let mut sockets: HashMap<_, (u64, Option<String>)> = HashMap::new();
        for (key, &drops) in ended.iter().filter(|(key, _)| key.netns == netns) {
            let local = (key.bytes(), key.port as u16);
            sockets.insert(local, (drops, None));
        }
        known.queues.clear();
        known.listening.clear();
        for record in records {
            let Endpoint {
                local, local_port, ..
            } = record.socket;
            let owners = attribution.owners.bits_of(&record.socket);
            let services = &attribution.services;
            let svc = services.of_listener(netns, local, local_port, owners);
            let (drops, service) = sockets.entry((local, local_port)).or_default();
            *drops += u64::from(record.drops);
            *service = Some(svc.clone());
            known.listening.push((svc.clone(), *record));
            known.queues.entry(svc).or_default().add(&queues(record));
        }
        let Some(counted) = counted else {
            return;
        };
        // What was dropped before the start does not count; a namespace that
        // came later counts from its beginning.
        let counts = !is_new || self.started;
        let NetstatCounts {
            listen_drops,
            listen_overflows,
            ..
        } = counted.since(known.counted);
        known.counted = counted;
        let mut raised = Vec::new();
        for ((local, port), (drops, svc)) in sockets {
            let (most, service) = known.sockets.entry((local, port)).or_default();
            match svc {
                Some(svc) => *service = svc,
                // It came and went between two iterations.
                None if service.is_empty() => {
                    *service = attribution.services.of_listener(netns, local, port, 0);
                }
                None => {}
            }
            raised.push((service.clone(), drops.saturating_sub(*most)));
            *most = drops.max(*most);
        }
        known.sockets.retain(|_, (most, _)| *most != 0);
        if counts {
            attribute(listen_drops, &raised, &mut self.drops);
            self.overflows += listen_overflows;
        }
    }

    /// Connections and requests that were dropped since the accept queue was
    /// full (`ListenOverflows`).
    pub fn overflows(&self) -> u64 {
        self.overflows
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
            *gone = NamespaceListeners {
                identity: gone.identity,
                counted: gone.counted,
                ..NamespaceListeners::default()
            };
        }
    }

    /// The sockets as they were seen last.
    pub fn sockets(&self) -> impl Iterator<Item = &ListenerRecord> {
        let all = self.namespaces.values().flat_map(|one| &one.listening);
        all.map(|(_, record)| record)
    }

    /// The listener that the socket of a connection came from, as far as its address
    /// tells.
    pub fn of(&self, connection: &Endpoint) -> Option<&Endpoint> {
        let all = &self.namespaces.get(&connection.netns)?.listening;
        let of_port = all
            .iter()
            .map(|(_, listener)| &listener.socket)
            .filter(|listener| listener.local_port == connection.local_port);
        let fit = |listener: &&Endpoint| match listener.local {
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
        mut socket: impl FnMut(&Endpoint) -> ListenSocket,
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
            row.queues.add(queue);
        }
        let mut sockets: BTreeMap<&str, BTreeMap<ListenSocket, ListenSocket>> = BTreeMap::new();
        for (svc, record) in self.namespaces.values().flat_map(|one| &one.listening) {
            let socket = socket(&record.socket);
            let alike = sockets.entry(svc).or_default().entry(socket.clone());
            let sum = alike.or_insert(socket);
            sum.queues.add(&queues(record));
        }
        for (svc, sockets) in sockets {
            let row = rows.entry(svc).or_default();
            row.sockets = sockets.into_values().take(MAX_SOCKETS).collect();
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

/// The queues of a listener. The backlog bounds both.
fn queues(record: &ListenerRecord) -> ListenQueues {
    ListenQueues {
        syn_queue_length: record.syn_queue.into(),
        syn_queue_limit: record.backlog.into(),
        accept_queue_length: record.accept_queue.into(),
        accept_queue_limit: record.backlog.into(),
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

/// A listening socket for people.
pub fn listen_socket(socket: &Endpoint, owner: Owner) -> ListenSocket {
    ListenSocket {
        local: endpoint(socket.local, socket.local_port),
        netns: socket.netns,
        owner: owner.name,
        pid: owner.pid,
        process: owner.process,
        cgroup: owner.cgroup,
        ..ListenSocket::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

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
    fn another_namespace_of_the_same_number_counts_from_its_beginning() {
        let mut attribution = Attribution::new(&Config::default()).unwrap();
        let mut listeners = Listeners::default();
        let mut visit = |listeners: &mut Listeners, identity, listen_drops| {
            let namespace = VisitedNamespace {
                inum: 7,
                identity: Some(identity),
                counted: Some(NetstatCounts {
                    listen_drops,
                    listen_overflows: listen_drops,
                    cookies: 0,
                }),
            };
            listeners.update(&namespace, &[], &HashMap::new(), &mut attribution);
        };
        visit(&mut listeners, 1, 100);
        listeners.start();
        visit(&mut listeners, 1, 110);
        assert_eq!((listeners.drops[OTHER], listeners.overflows()), (10, 10));
        // More than the first had counted.
        visit(&mut listeners, 2, 500);
        assert_eq!((listeners.drops[OTHER], listeners.overflows()), (510, 510));
        // One that was out of sight in between is no other one.
        listeners.retain(|_| false);
        visit(&mut listeners, 2, 501);
        assert_eq!(listeners.drops[OTHER], 511);
    }
}
