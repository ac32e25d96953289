//! The last packets that were dropped, read from the samples that the drop program keeps.

use std::{
    collections::HashMap,
    ffi::CStr,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use probe_common::{
    abi::{
        address_bytes,
        drop::{DropSample, GROUP_SAMPLES, NOBODY, SAMPLE_GROUPS, SampleGroup},
        iter::Endpoint,
    },
    labels::{Protocol, Side},
};

use super::{Collector, drops::protocol, mmap_array::MmapArray};
use crate::{
    attribution::{NOBODY_LABEL, owners::Processes},
    kernel::{
        address::{address, endpoint},
        clocks,
    },
    loader::Loaded,
    model::LastDrop,
};

/// The newest ones that are shown.
const MOST: usize = 64;
/// The newest ones of one reason: the others stay to be seen while there are many of it.
const MOST_OF_REASON: usize = 8;
/// Where the kernel did not tell the function.
const UNAVAILABLE: &str = "unavailable";

const SLOTS: usize = (SAMPLE_GROUPS * GROUP_SAMPLES) as usize;

/// The samples, and what is known of those that were read.
#[derive(Debug)]
pub struct DropSamples {
    slots: MmapArray<DropSample>,
    groups: MmapArray<SampleGroup>,
    /// The sequence that was last read in each slot.
    read: [u64; SLOTS],
    /// The newest ones, the newest first.
    newest: Vec<LastDrop>,
}

impl DropSamples {
    /// Maps the samples of a loaded object.
    ///
    /// # Errors
    ///
    /// The kernel does not map them.
    pub fn new(loaded: &Loaded) -> anyhow::Result<Self> {
        Ok(Self {
            slots: MmapArray::new(loaded, "DROP_SAMPLES", SLOTS)?,
            groups: MmapArray::new(loaded, "SAMPLE_GROUPS", SAMPLE_GROUPS as usize)?,
            read: [0; SLOTS],
            newest: Vec::new(),
        })
    }

    /// The newest ones, the newest first.
    pub fn newest(&self) -> &[LastDrop] {
        &self.newest
    }

    /// Samples that were taken since the start.
    pub fn taken(&self) -> u64 {
        let groups = (0..self.groups.len()).map(|group| self.groups.element(group));
        // SAFETY: a member of an element of the mapping, which lives as long as `self`
        // and is aligned; a volatile read sees the whole word before or after an add.
        groups
            .map(|group| unsafe { (&raw const (*group).taken).read_volatile() })
            .sum()
    }

    /// Those that have been taken since the last time and are there still.
    fn take_new(&mut self) -> Vec<DropSample> {
        let mut new = Vec::new();
        for (slot, read) in self.read.iter_mut().enumerate() {
            // SAFETY: an element of the mapping, which lives as long as `self` and is
            // aligned.
            let sample = unsafe { read_whole(self.slots.element(slot)) };
            if let Some(sample) = sample.filter(|sample| sample.sequence != *read) {
                *read = sample.sequence;
                new.push(sample);
            }
        }
        new
    }

    /// Adds newer ones, and forgets those that are too many.
    fn add(&mut self, new: Vec<LastDrop>) {
        self.newest.extend(new);
        keep_newest(&mut self.newest);
    }
}

fn keep_newest(all: &mut Vec<LastDrop>) {
    all.sort_by(|a, b| b.time_seconds.total_cmp(&a.time_seconds));
    let mut of_reason: HashMap<(String, String), usize> = HashMap::new();
    all.retain(|one| {
        let key = (one.subsystem.clone(), one.reason.clone());
        let count = of_reason.entry(key).or_default();
        *count += 1;
        *count <= MOST_OF_REASON
    });
    all.truncate(MOST);
}

/// A sample that a program may be writing to; `None` where there is none, or it changed
/// while it was read.
///
/// # Safety
///
/// `slot` can be read, is aligned, and is written by the programs alone.
unsafe fn read_whole(slot: *mut DropSample) -> Option<DropSample> {
    const WORDS: usize = size_of::<DropSample>() / 8;
    // SAFETY: the caller vouches for the slot; its first member is a word that all write
    // as a whole.
    let sequence = unsafe { AtomicU64::from_ptr(&raw mut (*slot).sequence) };
    let before = sequence.load(Ordering::Acquire);
    if before == 0 || before % 2 == 1 {
        return None;
    }
    let mut words = [0; WORDS];
    for (n, word) in words.iter_mut().enumerate() {
        // SAFETY: as above; what is read is used only if nobody has written meanwhile.
        *word = unsafe { slot.cast::<u64>().add(n).read_volatile() };
    }
    fence(Ordering::Acquire);
    if sequence.load(Ordering::Relaxed) != before {
        return None;
    }
    // SAFETY: a `DropSample` has that many words and no padding, and any words are one,
    // since it is `Pod`.
    Some(unsafe { std::mem::transmute::<[u64; WORDS], DropSample>(words) })
}

impl Collector {
    /// Reads the samples that are new, and gives them their names.
    pub(super) fn read_drop_samples(&mut self) -> anyhow::Result<()> {
        let new = self.drop_samples.take_new();
        if new.is_empty() {
            return Ok(());
        }
        // Rows that came after the last look have their keys by now.
        self.read_rows()?;
        let monotonic_ns = clocks::monotonic_ns();
        let unix_seconds = clocks::unix_seconds();
        let mut processes = Processes::new();
        let mut named = Vec::new();
        for sample in new {
            let ago = monotonic_ns.saturating_sub(sample.time_ns) as f64 / 1e9;
            named.extend(self.named(&sample, unix_seconds - ago, &mut processes));
        }
        self.drop_samples.add(named);
        Ok(())
    }

    /// A sample with names; `None` if it is no drop.
    fn named(
        &mut self,
        sample: &DropSample,
        time_seconds: f64,
        processes: &mut Processes,
    ) -> Option<LastDrop> {
        let (subsystem, reason) = self.reasons.of_drop(sample.reason)?;
        let (side, svc) = match sample.row {
            NOBODY => (NOBODY_LABEL.to_owned(), NOBODY_LABEL.to_owned()),
            row => {
                let labels = self.rows.labels(row, &self.attribution);
                let labels = labels.unwrap_or_else(|| self.attribution.folded());
                (labels.side, labels.svc)
            }
        };
        let ends = [
            (sample.source, sample.source_port),
            (sample.destination, sample.destination_port),
        ]
        .map(|(words, port)| (address_bytes(words), port));
        // Where the local end is a listener's, it is the destination of most.
        let is_server = side == Side::NAMES[Side::Server as usize];
        let listener = ends.iter().rev().filter(|_| is_server).find_map(|end| {
            let socket = local_end(sample, *end);
            self.listeners.of(&socket).copied()
        });
        let socket_pids = &self.attribution.owners.socket_pids;
        let listening = listener.and_then(|listener| socket_pids.of_listener(&listener));
        let pids = [Some(sample.pid), listening].into_iter().flatten();
        // Without a socket of its own a packet to a listener is the listener's.
        let socket = match listener {
            Some(listener) if sample.cgroup == 0 => listener,
            _ => local_end(sample, ends[0]),
        };
        let owner = self.attribution.owners.of_socket(&socket, pids, processes);
        let [source, destination] = ends.map(|end| shown(end, sample.protocol));
        Some(LastDrop {
            time_seconds,
            subsystem,
            reason,
            protocol: protocol(sample.protocol).to_owned(),
            function: function(&sample.place),
            source,
            destination,
            netns: sample.netns,
            side,
            svc,
            owner: owner.name,
            pid: owner.pid,
            process: owner.process,
            cgroup: owner.cgroup,
        })
    }
}

/// The socket of a sample, whose local end is this.
fn local_end(sample: &DropSample, (local, local_port): ([u8; 16], u16)) -> Endpoint {
    Endpoint {
        id: sample.socket,
        cgroup: sample.cgroup,
        local,
        netns: sample.netns,
        local_port,
        _pad: 0,
    }
}

/// An end of a packet; `None` where it could not be read.
fn shown((ip, port): ([u8; 16], u16), protocol: u32) -> Option<String> {
    let has_ports = [Protocol::Tcp, Protocol::Udp].map(|one| one as u32);
    match ip {
        [0, ..] if ip == [0; 16] && port == 0 => None,
        _ if has_ports.contains(&protocol) => Some(endpoint(ip, port)),
        _ => Some(address(ip).to_string()),
    }
}

/// The function and the offset in it, from what the kernel wrote: `name+0x12/0x345`, and
/// ` [module]` after it. Without symbols the kernel writes a number.
fn function(place: &[u8]) -> String {
    let text = CStr::from_bytes_until_nul(place).map_or("".into(), CStr::to_string_lossy);
    if text.is_empty() || text.starts_with("0x") {
        return UNAVAILABLE.to_owned();
    }
    let Some((at, rest)) = text.split_once('/') else {
        return text.into_owned();
    };
    match rest.split_once(' ') {
        Some((_, module)) => format!("{at} {module}"),
        None => at.to_owned(),
    }
}

#[cfg(test)]
mod tests;
