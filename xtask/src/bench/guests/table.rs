//! What a connection costs on one kernel, by program.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use anyhow::{Result, ensure};
use serde::Deserialize;

use super::inside::Measured;
use crate::bench::daemon::Work;

/// One kernel's figures.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// What `uname -r` says.
    pub release: String,
    /// Instructions a connection of empty programs on the same hooks.
    pub empty: u64,
    /// By name.
    pub programs: BTreeMap<String, Cost>,
}

/// What a program costs a connection.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Times that it ran.
    pub runs: f64,
    /// Instructions, all these runs together.
    pub instructions: u64,
    /// The same of its replicas, which kernels that preempt programs get.
    #[serde(default)]
    pub replica_runs: f64,
    /// Instructions of the replicas.
    #[serde(default)]
    pub replica_instructions: u64,
}

impl Cost {
    /// Instructions with those of the replicas.
    pub fn total(&self) -> u64 {
        self.instructions + self.replica_instructions
    }
}

impl Kernel {
    /// What was measured, for one connection.
    pub fn new(release: &str, measured: &Measured) -> Result<Self> {
        ensure!(measured.connections > 0, "no connection was made");
        let count = u64::from(measured.connections);
        let names: BTreeSet<&str> = measured.all.iter().map(|work| &*work.program).collect();
        let mut programs: BTreeMap<String, Cost> = BTreeMap::new();
        for work in &measured.all {
            let runs = (work.runs as f64 / count as f64 * 100.0).round() / 100.0;
            let instructions = each(work, count);
            let replica_of = replica_of(&work.program, &names);
            let name = replica_of.unwrap_or(&work.program);
            let cost = programs.entry(name.to_owned()).or_default();
            if replica_of.is_some() {
                cost.replica_runs += runs;
                cost.replica_instructions += instructions;
            } else {
                cost.runs += runs;
                cost.instructions += instructions;
            }
        }
        Ok(Self {
            release: release.to_owned(),
            empty: measured.empty.iter().map(|work| each(work, count)).sum(),
            programs,
        })
    }

    /// Instructions a connection, replicas included.
    pub fn total(&self) -> u64 {
        self.programs.values().map(Cost::total).sum()
    }
}

/// Instructions a connection, rounded.
fn each(work: &Work, connections: u64) -> u64 {
    (work.nanoseconds + connections / 2) / connections
}

/// The program that `name` is a replica of: that with the name without the digits
/// at its end.
fn replica_of<'a>(name: &str, names: &BTreeSet<&'a str>) -> Option<&'a str> {
    let plain = name.trim_end_matches(|c: char| c.is_ascii_digit());
    (plain != name).then(|| names.get(plain).copied())?
}

/// `9077` is `9 077`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "kernel {}: instructions for a short connection, both ends",
            self.release
        )?;
        writeln!(
            f,
            "  {:<24}{:>10}{:>10}{:>16}",
            "program", "runs", "a run", "a connection"
        )?;
        let line = |f: &mut fmt::Formatter<'_>, name: &str, runs: f64, instructions: u64| {
            let a_run = instructions as f64 / runs;
            let instructions = grouped(instructions);
            writeln!(f, "  {name:<24}{runs:>10.2}{a_run:>10.0}{instructions:>16}")
        };
        let mut programs: Vec<_> = self.programs.iter().collect();
        programs.sort_by_key(|(_, cost)| Reverse(cost.total()));
        let mut sum = Cost::default();
        for (name, cost) in programs {
            line(f, name, cost.runs, cost.instructions)?;
            if cost.replica_runs > 0.0 {
                let (runs, instructions) = (cost.replica_runs, cost.replica_instructions);
                line(f, "  its replicas", runs, instructions)?;
            }
            sum.runs += cost.runs;
            sum.instructions += cost.instructions;
            sum.replica_runs += cost.replica_runs;
            sum.replica_instructions += cost.replica_instructions;
        }
        if sum.replica_runs > 0.0 {
            line(f, "all programs", sum.runs, sum.instructions)?;
            line(
                f,
                "all replicas",
                sum.replica_runs,
                sum.replica_instructions,
            )?;
        }
        line(f, "total", sum.runs + sum.replica_runs, sum.total())?;
        let empty = grouped(self.empty);
        write!(f, "  {:<44}{empty:>16}", "empty programs on the same hooks")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(program: &str, runs: u64, nanoseconds: u64) -> Work {
        Work {
            program: program.to_owned(),
            runs,
            nanoseconds,
        }
    }

    fn kernel() -> Kernel {
        let measured = Measured {
            connections: 100,
            all: vec![
                work("set_state", 1000, 500_049),
                work("set_state2", 1000, 100_000),
                work("set_state3", 1000, 110_000),
                work("drop6", 33, 3_300),
            ],
            empty: vec![work("noop", 1000, 48_000), work("noop2", 33, 1_584)],
        };
        Kernel::new("7.2.13", &measured).expect("figures")
    }

    #[test]
    fn replicas_are_counted_with_their_program() {
        let kernel = kernel();
        assert_eq!(
            kernel.programs["set_state"],
            Cost {
                runs: 10.0,
                instructions: 5000,
                replica_runs: 20.0,
                replica_instructions: 2100,
            }
        );
        // A digit alone makes no replica.
        assert_eq!(kernel.programs["drop6"].total(), 33);
        assert_eq!((kernel.total(), kernel.empty), (7133, 496));
    }

    #[test]
    fn the_table_names_each_program_and_the_sums() {
        let table = kernel().to_string();
        let lines: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[2], ["set_state", "10.00", "500", "5", "000"]);
        assert_eq!(lines[3], ["its", "replicas", "20.00", "105", "2", "100"]);
        assert_eq!(lines[4], ["drop6", "0.33", "100", "33"]);
        assert_eq!(lines[7], ["total", "30.33", "235", "7", "133"]);
        assert_eq!(lines[8].last(), Some(&"496"));
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(9077), "9 077");
        assert_eq!(grouped(1_234_567), "1 234 567");
    }
}
