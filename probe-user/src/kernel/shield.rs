//! Process 1, where the kernel shields it.
//!
//! Some hardened kernels protect process 1 even from root: its binary cannot be read,
//! and no BPF program runs while one of its threads is current. An interrupt on its time
//! handles segments of other sockets all the same, and those events reach no program.
//! The kernel's perf events see them: one for each tracepoint and thread, which costs
//! next to nothing while another thread is current.

use std::{
    collections::HashSet,
    fs,
    io::{self, ErrorKind},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use probe_common::hooks::PROGRAMS;

use super::{
    perf::{ThreadCounter, trace_event},
    process,
};
use crate::logging::Limit;

const BINARY: &str = "/proc/1/exe";
const THREADS: &str = "/proc/1/task";
/// More threads than that are not watched, and then nothing is counted: each takes a
/// descriptor for each tracepoint.
const MAX_THREADS: usize = 256;
/// How often the watch is taken up anew.
const ANEW: Duration = Duration::from_secs(60);

/// Whether the kernel shields process 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shield {
    /// It does not.
    Absent,
    /// It does.
    Present,
    /// This process may not know; why.
    Unknown(String),
}

impl Shield {
    /// That of the process 1 that this process sees.
    pub fn of_process_1() -> Self {
        let can_trace = process::read().is_ok_and(|process| {
            let mut held = process.capabilities.iter();
            held.any(|name| name == "CAP_SYS_PTRACE")
        });
        Self::judge(fs::read_link(BINARY).map(drop), can_trace)
    }

    /// `can_trace`: whether this process holds what lets it read the binary of any
    /// other one.
    fn judge(binary: io::Result<()>, can_trace: bool) -> Self {
        match binary.map_err(|error| (error.kind(), error)) {
            Ok(()) => Self::Absent,
            Err((ErrorKind::PermissionDenied, _)) if can_trace => Self::Present,
            Err((ErrorKind::PermissionDenied, _)) => {
                Self::Unknown(format!("needs CAP_SYS_PTRACE to read {BINARY}"))
            }
            Err((_, error)) => Self::Unknown(format!("cannot read {BINARY}: {error}")),
        }
    }
}

/// The tracepoints whose hidden events are counted, by the group of their trace event.
pub fn counted() -> impl Iterator<Item = (&'static str, &'static str)> {
    PROGRAMS
        .iter()
        .filter_map(|info| Some((info.shielded?, info.hook)))
}

/// Counts events that no program sees since a thread of process 1 is current.
///
/// The threads that are there are watched, and those that they start later with them.
/// The kernel stops watching a process that becomes another program which may not be
/// traced, and tells nobody: so the watch is taken up anew from time to time.
#[derive(Debug)]
pub struct HiddenEvents {
    tracepoints: Vec<Tracepoint>,
    watch: Watch,
    begun: Instant,
}

#[derive(Debug)]
struct Tracepoint {
    name: &'static str,
    event: u64,
    /// What earlier watches had counted.
    earlier: u64,
}

/// For each thread a counter of each tracepoint.
type Watch = Vec<Vec<ThreadCounter>>;

impl HiddenEvents {
    /// Counts from now on.
    ///
    /// # Errors
    ///
    /// tracefs cannot be read, the kernel does not let this process count, or process 1
    /// has too many threads: a line that says which.
    pub fn start() -> anyhow::Result<Self> {
        let tracepoint = |(group, name)| {
            let event = trace_event(group, name)?;
            anyhow::Ok(Tracepoint {
                name,
                event,
                earlier: 0,
            })
        };
        let tracepoints = counted()
            .map(tracepoint)
            .collect::<anyhow::Result<Vec<_>>>()?;
        let watch = watch(&tracepoints)?;
        Ok(Self {
            tracepoints,
            watch,
            begun: Instant::now(),
        })
    }

    /// How many events each tracepoint had since the start, in the order of
    /// [`counted`]. Never less than before.
    pub fn read(&mut self) -> Vec<(&'static str, u64)> {
        if self.begun.elapsed() >= ANEW {
            self.begin_anew();
        }
        let mut counts: Vec<_> = (self.tracepoints.iter())
            .map(|one| (one.name, one.earlier))
            .collect();
        add(&mut self.watch, counts.iter_mut().map(|(_, sum)| sum));
        counts
    }

    /// Watches what is there now. The old watch ends when the new one has begun: an event
    /// in between counts twice, and none is missing.
    fn begin_anew(&mut self) {
        static FAILURES: Limit = Limit::new();
        self.begun = Instant::now();
        match watch(&self.tracepoints) {
            Ok(new) => {
                let mut old = std::mem::replace(&mut self.watch, new);
                add(
                    &mut old,
                    self.tracepoints.iter_mut().map(|one| &mut one.earlier),
                );
            }
            Err(error) => {
                if let Some(left_out) = FAILURES.pass() {
                    tracing::warn!(
                        "process 1 is watched as before: what it has become cannot be: \
                         {error:#}{left_out}"
                    );
                }
            }
        }
    }
}

/// Adds what a watch has counted of each tracepoint.
fn add<'a>(watch: &mut Watch, sums: impl Iterator<Item = &'a mut u64>) {
    for (n, sum) in sums.enumerate() {
        *sum += (watch.iter_mut())
            .filter_map(|counters| counters.get_mut(n))
            .map(ThreadCounter::read)
            .sum::<u64>();
    }
}

/// Watches every thread of process 1. One that comes later is started by one of them,
/// and counts with it; one that comes meanwhile may count twice, and never not at all.
fn watch(tracepoints: &[Tracepoint]) -> anyhow::Result<Watch> {
    let mut watch = Watch::new();
    let mut known = HashSet::new();
    loop {
        let mut new = threads().with_context(|| format!("cannot read {THREADS}"))?;
        new.retain(|thread| known.insert(*thread));
        if new.is_empty() {
            return Ok(watch);
        }
        anyhow::ensure!(
            known.len() <= MAX_THREADS,
            "process 1 has more than {MAX_THREADS} threads"
        );
        for thread in new {
            let counters = (tracepoints.iter())
                .map(|one| ThreadCounter::start(one.event, thread))
                .collect::<io::Result<_>>();
            match counters {
                Ok(counters) => watch.push(counters),
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) => {
                    return Err(error).context("cannot watch process 1 by perf events");
                }
            }
        }
    }
}

/// Numbers of the threads of process 1.
fn threads() -> io::Result<Vec<i32>> {
    let number = |entry: io::Result<fs::DirEntry>| {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.parse().ok());
        number.ok_or_else(|| io::Error::other("an entry is no number"))
    };
    fs::read_dir(THREADS)?.map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_root_may_not_read_is_shielded() {
        let denied = || Err(ErrorKind::PermissionDenied.into());
        assert_eq!(Shield::judge(Ok(()), true), Shield::Absent);
        assert_eq!(Shield::judge(Ok(()), false), Shield::Absent);
        assert_eq!(Shield::judge(denied(), true), Shield::Present);
        let unknown = |shield| match shield {
            Shield::Unknown(why) => why,
            other => panic!("{other:?}"),
        };
        let why = unknown(Shield::judge(denied(), false));
        assert_eq!(why, "needs CAP_SYS_PTRACE to read /proc/1/exe");
        let gone = Err(io::Error::from_raw_os_error(libc::ENOENT));
        assert!(unknown(Shield::judge(gone, true)).starts_with("cannot read /proc/1/exe: No such"));
    }

    #[test]
    fn every_counted_tracepoint_is_one_of_the_programs() {
        let names: Vec<_> = counted().map(|(_, name)| name).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), names.len(), "{names:?}");
        assert!(names.contains(&"inet_sock_set_state"), "{names:?}");
    }
}
