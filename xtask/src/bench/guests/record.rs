//! The accepted figures, in a file of the repository.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::table::{Cost, Kernel, grouped};
use crate::workspace::Workspace;

/// Below the workspace's root.
pub const PATH: &str = "xtask/instructions.toml";
/// By how much a connection may differ from its figure.
const TOLERATED_PERCENT: u64 = 3;
const HEADER: &str = "\
# Instructions that the kernel programs take for one short TCP connection over
# loopback, both ends together: connect, accept, 18 bytes, 512 bytes, and the
# server closes first. `cargo xtask bench --guests` measures them, `--update`
# writes this file, and `cargo xtask test` fails where a connection takes over
# 3 % more than is written here.
";

/// What the file says.
#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// By the version of the guest, such as `6.12`.
    kernels: BTreeMap<String, Kernel>,
}

/// How figures compare with the accepted ones.
#[derive(Debug)]
pub struct Verdict {
    /// Whether a connection takes more than is accepted, or nothing is known.
    pub has_failed: bool,
    /// What to tell.
    pub text: String,
}

impl Record {
    /// Reads the file; nothing where there is none.
    pub fn read(workspace: &Workspace) -> Result<Self> {
        let path = path(workspace);
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(&path).with_context(|| format!("{PATH} cannot be read"))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).with_context(|| format!("{PATH} is not what `--update` writes"))
    }

    /// Writes the file.
    pub fn write(&self, workspace: &Workspace) -> Result<()> {
        fs::write(path(workspace), self.to_toml())
            .with_context(|| format!("{PATH} cannot be written"))
    }

    /// Keeps the figures of a guest.
    pub fn insert(&mut self, version: &str, kernel: Kernel) {
        self.kernels.insert(version.to_owned(), kernel);
    }

    /// One line for each program, so that a change shows what it changed.
    fn to_toml(&self) -> String {
        let mut text = HEADER.to_owned();
        for (version, kernel) in &self.kernels {
            let _ = write!(
                text,
                "\n# {} a connection.\n[kernels.\"{version}\"]\nrelease = \"{}\"\nempty = {}\n\n\
                 [kernels.\"{version}\".programs]\n",
                grouped(kernel.total()),
                kernel.release,
                kernel.empty
            );
            for (name, cost) in &kernel.programs {
                let Cost {
                    runs,
                    instructions,
                    replica_runs,
                    replica_instructions,
                } = cost;
                let _ = write!(
                    text,
                    "{name} = {{ runs = {runs:.2}, instructions = {instructions}"
                );
                if *replica_runs > 0.0 {
                    let _ = write!(
                        text,
                        ", replica_runs = {replica_runs:.2}, \
                         replica_instructions = {replica_instructions}"
                    );
                }
                text.push_str(" }\n");
            }
        }
        text
    }

    /// Holds the figures of a guest against the accepted ones.
    pub fn compare(&self, version: &str, now: &Kernel) -> Verdict {
        let release = &now.release;
        let total = now.total();
        let Some(accepted) = self.kernels.get(version) else {
            return Verdict {
                has_failed: true,
                text: format!(
                    "kernel {release}: {} instructions a connection, and {PATH} has no figure for \
                     {version}; {}",
                    grouped(total),
                    how_to_update(version)
                ),
            };
        };
        let before = accepted.total();
        let is_renamed = !accepted.programs.keys().eq(now.programs.keys());
        let has_failed = total * 100 > before * (100 + TOLERATED_PERCENT);
        let is_stale = total * 100 < before * (100 - TOLERATED_PERCENT);
        let change = (total as f64 / before.max(1) as f64 - 1.0) * 100.0;
        let mut text = format!(
            "kernel {release}: {} instructions a connection, {change:+.1} % against the {} of {PATH}",
            grouped(total),
            grouped(before)
        );
        if accepted.release != *release {
            let _ = write!(text, ", which are of {}", accepted.release);
        }
        if has_failed || is_stale {
            text.push_str(&changes(accepted, now));
        }
        if has_failed {
            let _ = write!(
                text,
                ". More than {TOLERATED_PERCENT} % is too much; if it is worth it, {}",
                how_to_update(version)
            );
        } else if is_stale || is_renamed {
            let other = if is_renamed {
                ", of other programs"
            } else {
                ""
            };
            let update = how_to_update(version);
            let _ = write!(text, ". The file is stale{other}; {update}");
        }
        Verdict { has_failed, text }
    }
}

/// Programs whose instructions differ, the greatest change first.
fn changes(accepted: &Kernel, now: &Kernel) -> String {
    let of = |kernel: &Kernel, name: &str| kernel.programs.get(name).map_or(0, Cost::total);
    let mut names: Vec<&String> = accepted
        .programs
        .keys()
        .chain(now.programs.keys())
        .collect();
    names.sort_unstable();
    names.dedup();
    let mut changes: Vec<_> = names
        .into_iter()
        .map(|name| (name, of(accepted, name), of(now, name)))
        .filter(|(_, before, after)| before != after)
        .collect();
    changes.sort_by_key(|(_, before, after)| std::cmp::Reverse(before.abs_diff(*after)));
    let change = |(name, before, after): &(&String, u64, u64)| {
        let sign = if after > before { '+' } else { '-' };
        let difference = grouped(before.abs_diff(*after));
        let after = grouped(*after);
        format!("{name} {sign}{difference} to {after}")
    };
    let list: Vec<_> = changes.iter().map(change).collect();
    format!(": {}", list.join(", "))
}

fn how_to_update(version: &str) -> String {
    format!("run `cargo xtask bench --guests --kernel {version} --update` and commit the file")
}

fn path(workspace: &Workspace) -> PathBuf {
    workspace.root.join(PATH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(instructions: u64) -> Kernel {
        let own = Cost {
            runs: 10.0,
            instructions,
            ..Cost::default()
        };
        let with_replicas = Cost {
            runs: 0.5,
            instructions: 100,
            replica_runs: 2.5,
            replica_instructions: 300,
        };
        Kernel {
            release: "6.12.1".to_owned(),
            empty: 48,
            programs: [("a".to_owned(), own), ("b".to_owned(), with_replicas)].into(),
        }
    }

    fn record() -> Record {
        let mut record = Record::default();
        record.insert("6.12", kernel(9_600));
        record
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = record().to_toml();
        assert_eq!(Record::parse(&text).expect("TOML"), record());
        assert!(text.contains("\n# 10 000 a connection.\n[kernels.\"6.12\"]\n"));
        assert!(text.contains("\na = { runs = 10.00, instructions = 9600 }\n"));
        assert!(Record::parse("[kernels.\"6.12\"]\nreleased = 1\n").is_err());
    }

    #[test]
    fn three_percent_more_is_tolerated_and_no_more() {
        let verdict = record().compare("6.12", &kernel(9_900));
        assert!(!verdict.has_failed, "{}", verdict.text);
        let verdict = record().compare("6.12", &kernel(9_901));
        assert!(verdict.has_failed);
        assert!(verdict.text.contains("+3.0 %"), "{}", verdict.text);
        assert!(verdict.text.contains(": a +301 to 9 901."));
        assert!(verdict.text.contains("--kernel 6.12 --update"));
    }

    #[test]
    fn much_less_is_stale_and_no_failure() {
        let verdict = record().compare("6.12", &kernel(9_299));
        assert!(!verdict.has_failed);
        assert!(verdict.text.contains("stale"), "{}", verdict.text);
        let verdict = record().compare("6.12", &kernel(9_300));
        assert!(!verdict.text.contains("stale"), "{}", verdict.text);
    }

    #[test]
    fn another_release_and_an_unknown_kernel_are_said() {
        let mut other = kernel(9_600);
        other.release = "6.12.2".to_owned();
        let verdict = record().compare("6.12", &other);
        assert!(verdict.text.contains("which are of 6.12.1"));
        assert!(record().compare("7.2", &other).has_failed);
    }

    #[test]
    fn a_new_and_a_lost_program_are_changes() {
        let mut now = kernel(9_600);
        let cost = now.programs.remove("b").expect("b");
        now.programs.insert(
            "c".to_owned(),
            Cost {
                instructions: 2_000,
                ..cost
            },
        );
        let text = changes(&record().kernels["6.12"], &now);
        assert_eq!(text, ": c +2 300 to 2 300, b -400 to 0");
        now = kernel(9_600);
        let cost = now.programs.remove("b").expect("b");
        now.programs.insert("renamed".to_owned(), cost);
        let verdict = record().compare("6.12", &now);
        assert!(!verdict.has_failed);
        assert!(verdict.text.contains("stale, of other programs"));
    }
}
