//! The counters of the kernel, as `/proc/net` has them.

use std::{
    collections::BTreeMap,
    fs, iter,
    ops::{Add, Sub},
};

/// `snmp`, `netstat` and `snmp6` of a namespace, by names such as
/// `Tcp.PassiveOpens`, `TcpExt.ListenDrops` and `Ip6InHdrErrors`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<String, i64>);

impl Counters {
    /// Reads them for the namespace of the calling thread.
    ///
    /// # Panics
    ///
    /// Where the kernel does not offer them.
    pub fn here() -> Self {
        let read = |file: &str| {
            fs::read_to_string(format!("/proc/thread-self/net/{file}"))
                .unwrap_or_else(|error| panic!("counters in {file}: {error}"))
        };
        let mut counters = BTreeMap::new();
        parse_table(&read("snmp"), &mut counters);
        parse_table(&read("netstat"), &mut counters);
        parse_list(&read("snmp6"), &mut counters);
        Self(counters)
    }

    /// One counter.
    ///
    /// # Panics
    ///
    /// Where this kernel has none of that name.
    #[track_caller]
    pub fn get(&self, name: &str) -> i64 {
        *self
            .0
            .get(name)
            .unwrap_or_else(|| panic!("this kernel has no counter {name}"))
    }
}

impl Add for Counters {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        for (name, value) in other.0 {
            *self.0.entry(name).or_default() += value;
        }
        self
    }
}

impl Sub for &Counters {
    type Output = Counters;

    fn sub(self, earlier: Self) -> Counters {
        let difference = |(name, value): (&String, &i64)| {
            let before = earlier.0.get(name).copied().unwrap_or_default();
            (name.clone(), value - before)
        };
        Counters(self.0.iter().map(difference).collect())
    }
}

/// Pairs of lines, names then values, each beginning with `Group:`.
fn parse_table(text: &str, into: &mut BTreeMap<String, i64>) {
    let mut lines = text.lines();
    for (names, values) in iter::from_fn(|| Some((lines.next()?, lines.next()?))) {
        let mut pairs = names.split_whitespace().zip(values.split_whitespace());
        let Some((group, _)) = pairs.next() else {
            continue;
        };
        let group = group.trim_end_matches(':');
        for (name, value) in pairs {
            // Unsigned values beyond i64 are limits, not counts.
            let value = value.parse().unwrap_or(i64::MAX);
            into.insert(format!("{group}.{name}"), value);
        }
    }
}

/// Lines of a name and a value.
fn parse_list(text: &str, into: &mut BTreeMap<String, i64>) {
    for line in text.lines() {
        if let Some((name, value)) = line.split_once(char::is_whitespace) {
            into.insert(name.to_owned(), value.trim().parse().unwrap_or(i64::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let mut counters = BTreeMap::new();
        parse_table(
            "Tcp: MaxConn PassiveOpens\nTcp: -1 12\nTcpExt: ListenDrops\nTcpExt: 3\n",
            &mut counters,
        );
        parse_list("Ip6InReceives        \t7\n", &mut counters);
        let counters = Counters(counters);
        assert_eq!(counters.get("Tcp.MaxConn"), -1);
        assert_eq!(counters.get("Tcp.PassiveOpens"), 12);
        assert_eq!(counters.get("TcpExt.ListenDrops"), 3);
        assert_eq!(counters.get("Ip6InReceives"), 7);
    }

    #[test]
    fn differences_and_sums_go_by_name() {
        let one = Counters(BTreeMap::from([("a".to_owned(), 5)]));
        let two = Counters(BTreeMap::from([("a".to_owned(), 7), ("b".to_owned(), 1)]));
        let difference = &two - &one;
        assert_eq!((difference.get("a"), difference.get("b")), (2, 1));
        assert_eq!((one + two).get("a"), 12);
    }
}
