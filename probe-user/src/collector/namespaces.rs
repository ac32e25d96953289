//! The network namespaces that are watched: looked for again and again, since they come
//! and go, and none is held open.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    time::{Duration, Instant},
};

use anyhow::ensure;
use probe_common::abi::config::MAX_NETNS;

use crate::{
    kernel::netns::{self, EnterError, NetNs},
    model::NetworkNamespaces,
};

/// How often all processes are asked for theirs.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long one line about a kind of what is left out is enough.
const SAID: Duration = Duration::from_secs(3600);
/// Names in a line and in a snapshot.
const NAMED: usize = 10;

/// Those that are there.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// The only ones that are watched; empty: all are.
    names: Vec<String>,
    known: HashMap<u32, NetNs>,
    looked: Option<Instant>,
    /// Names that are of no namespace.
    others: BTreeSet<String>,
    /// Those of them that were so the time before, too: `ip netns add` makes the file
    /// first.
    stale: BTreeSet<String>,
    left_out: LeftOut,
}

impl Namespaces {
    /// Those of these names, or with none all of them.
    ///
    /// # Errors
    ///
    /// There is none of a name.
    pub fn find(names: &[String]) -> anyhow::Result<Self> {
        ensure!(
            names.len() <= MAX_NETNS,
            "--netns can be given {MAX_NETNS} times at most"
        );
        let mut namespaces = Self {
            names: names.to_vec(),
            ..Self::default()
        };
        for name in names {
            let netns = NetNs::named(name)?;
            namespaces.known.entry(netns.inum).or_insert(netns);
        }
        Ok(namespaces)
    }

    /// Whether only some are watched.
    pub fn are_named(&self) -> bool {
        !self.names.is_empty()
    }

    /// Those that are there.
    pub fn known(&self) -> impl Iterator<Item = &NetNs> {
        self.known.values()
    }

    /// The one of a number.
    pub fn get(&self, inum: u32) -> Option<&NetNs> {
        self.known.get(&inum)
    }

    /// Begins a visit of all: looks for them if that is due.
    pub fn begin_visit(&mut self) {
        self.left_out.now.clear();
        if self.are_named() || (self.looked).is_none_or(|looked| looked.elapsed() >= INTERVAL) {
            self.look();
        }
    }

    /// Looks for them now.
    pub fn look(&mut self) {
        self.looked = Some(Instant::now());
        if self.are_named() {
            let named = (self.names.iter()).filter_map(|name| NetNs::named(name).ok());
            self.known = named.map(|netns| (netns.inum, netns)).collect();
            return;
        }
        match netns::all() {
            Ok(found) => {
                self.known = found.namespaces;
                let others = found.others.into_iter().collect();
                self.stale = self.others.intersection(&others).cloned().collect();
                self.others = others;
            }
            // Those that were there may still be.
            Err(error) => self.left_out.add("those that are new", &error),
        }
    }

    /// One could not be visited this time.
    pub fn leave_out(&mut self, netns: &NetNs, error: &EnterError) {
        let number = netns.inum.to_string();
        let name = netns.name.as_ref().unwrap_or(&number);
        let source = std::error::Error::source(error);
        match source.and_then(|source| source.downcast_ref::<io::Error>()) {
            Some(source) => self.left_out.add(name, source),
            None => self.left_out.add(name, error),
        }
    }

    /// Ends a visit: says what was left out, those among it that services name.
    pub fn end_visit<'a>(&mut self, of_services: impl Iterator<Item = &'a str>) {
        for name in &self.stale {
            self.left_out.add(name, &"not a network namespace");
        }
        for name in &self.names {
            if !(self.known()).any(|netns| netns.name.as_ref() == Some(name))
                && NetNs::named(name).is_err()
            {
                self.left_out
                    .add(name, &"not there: watched again once it is");
            }
        }
        for name in of_services.filter(|name| !self.names.iter().any(|one| one == name)) {
            if NetNs::named(name).is_err() {
                self.left_out
                    .add(name, &"not there: its service begins once it is");
            }
        }
        self.left_out.say();
    }

    /// How many were visited and what was left out.
    pub fn summary(&self) -> NetworkNamespaces {
        let left_out = &self.left_out.now;
        let all = left_out.iter().flat_map(|(why, names)| {
            let line = move |name: &String| format!("{name}: {why}");
            names.iter().map(line)
        });
        let unvisited = |inum: &u32, netns: &NetNs| {
            let number = inum.to_string();
            let name = netns.name.as_ref().unwrap_or(&number);
            left_out.values().any(|names| names.contains(name))
        };
        let visited = (self.known.iter()).filter(|(inum, netns)| !unvisited(inum, netns));
        NetworkNamespaces {
            watched: visited.count() as u64,
            left_out: left_out.values().map(|names| names.len() as u64).sum(),
            left_out_names: all.take(NAMED).collect(),
        }
    }
}

/// What is left out, by the reason.
#[derive(Debug, Default)]
struct LeftOut {
    now: BTreeMap<String, BTreeSet<String>>,
    said: HashMap<String, Instant>,
}

impl LeftOut {
    fn add(&mut self, name: &str, why: &dyn std::fmt::Display) {
        let names = self.now.entry(why.to_string()).or_default();
        names.insert(name.to_owned());
    }

    /// One line for each kind that has not been told of lately.
    fn say(&mut self) {
        self.said.retain(|_, at| at.elapsed() < SAID);
        for (why, names) in &self.now {
            if self.said.contains_key(why) {
                continue;
            }
            self.said.insert(why.clone(), Instant::now());
            let shown: Vec<&str> = names.iter().take(NAMED).map(String::as_str).collect();
            let more = names.len() - shown.len();
            let more = (more != 0).then(|| format!(" and {more} more"));
            tracing::warn!(
                "network namespaces left out: {}{}: {why}",
                shown.join(", "),
                more.unwrap_or_default()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_counted_and_named_and_said_once_a_kind() {
        let mut namespaces = Namespaces::find(&[]).unwrap();
        for visit in 0..3 {
            namespaces.begin_visit();
            for n in 0..30 {
                let mut netns = NetNs::own().unwrap();
                netns.name = Some(format!("ep-none{n:02}"));
                namespaces.leave_out(&netns, &EnterError::Files);
            }
            namespaces.end_visit(std::iter::empty());
            let summary = namespaces.summary();
            // This host may have some that are left out for another reason.
            let now = &namespaces.left_out.now;
            let of_test = now[&EnterError::Files.to_string()].len();
            assert_eq!(of_test, 30, "visit {visit}: {now:?}");
            let all = now.values().map(BTreeSet::len).sum::<usize>();
            assert_eq!(summary.left_out, all as u64);
            assert_eq!(summary.left_out_names.len(), NAMED);
            let first = &summary.left_out_names[0];
            assert_eq!(first, "ep-none00: too many open files");
            assert_eq!(
                namespaces.left_out.said.len(),
                namespaces.left_out.now.len()
            );
        }
    }

    #[test]
    fn a_name_must_be_there_at_the_start() {
        let names = ["ep-none".to_owned()];
        let error = Namespaces::find(&names).unwrap_err().to_string();
        assert!(
            error.contains("no network namespace \"ep-none\""),
            "{error}"
        );
        let names = vec!["/proc/self/ns/net".to_owned(); MAX_NETNS + 1];
        let error = Namespaces::find(&names).unwrap_err().to_string();
        assert!(error.contains("16 times at most"), "{error}");
    }

    #[test]
    fn two_names_of_one_are_one() {
        let names = ["/proc/self/ns/net", "/proc/thread-self/ns/net"].map(str::to_owned);
        let mut namespaces = Namespaces::find(&names).unwrap();
        namespaces.begin_visit();
        namespaces.end_visit(std::iter::empty());
        assert_eq!(namespaces.known().count(), 1);
        assert_eq!(namespaces.summary().left_out, 0);
        assert_eq!(namespaces.summary().watched, 1);
    }

    #[test]
    fn what_a_service_names_is_left_out_until_it_is_there() {
        let mut namespaces = Namespaces::find(&["/proc/self/ns/net".to_owned()]).unwrap();
        for (name, left_out) in [("/proc/thread-self/ns/net", 0), ("ep-none", 1)] {
            namespaces.begin_visit();
            namespaces.end_visit([name].into_iter());
            let summary = namespaces.summary();
            assert_eq!(summary.left_out, left_out, "{summary:?}");
        }
        let why = "ep-none: not there: its service begins once it is";
        assert_eq!(namespaces.summary().left_out_names, [why]);
    }
}
