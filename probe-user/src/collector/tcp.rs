//! The rows of counters and histograms.
//!
//! The kernel's memory of the rows in use is mapped, so that reading it takes
//! no system call; only what is in use is mapped, since all of it counts as
//! resident memory.

use std::collections::BTreeMap;

use aya::maps::{HashMap, MapData};
use probe_common::{
    abi::series::{Closed, Failed, Kind, OVERFLOW_ROW, Retransmit, Row, SeriesKey, TlsFailed},
    hist,
};

use super::mmap_array::MmapArray;
use crate::{
    attribution::Attribution,
    loader::{Loaded, maps},
    model::{Histogram, TcpLabels, TcpSeries},
};

/// The rows and their keys.
#[derive(Debug)]
pub struct Rows {
    mapping: MmapArray<Row>,
    capacity: u32,
    shards: u32,
    keys: Vec<Option<SeriesKey>>,
}

impl Rows {
    /// Maps the rows of a loaded object.
    pub fn new(loaded: &Loaded, capacity: u32, shards: u32) -> anyhow::Result<Self> {
        let mapping = MmapArray::new(loaded, "ROWS", shards as usize)?;
        Ok(Self {
            mapping,
            capacity,
            shards,
            keys: vec![None],
        })
    }

    /// Entries of the map in use, the overflow row included.
    pub fn used_entries(&self) -> u64 {
        self.keys.len() as u64 * u64::from(self.shards)
    }

    /// The keys of the rows.
    pub fn keys(&self) -> impl Iterator<Item = &SeriesKey> {
        self.keys.iter().flatten()
    }

    /// Learns of the rows that were taken since the last time, if any.
    pub fn read(&mut self, loaded: &Loaded) -> anyhow::Result<bool> {
        let next = maps::counter(loaded, "NEXT_ROW")?.min(u64::from(self.capacity)) as usize;
        // A number is taken before its key is inserted, so look again as long
        // as one is missing.
        if next == self.keys.len() && self.keys[1..].iter().all(Option::is_some) {
            return Ok(false);
        }
        let numbers: HashMap<&MapData, SeriesKey, u32> = loaded.map("ROW_OF")?;
        self.keys = vec![None; next];
        for entry in &numbers {
            let (key, row) = entry?;
            let row = row as usize;
            // A row that was taken after `next` was read.
            if row >= self.keys.len() {
                self.keys.resize(row + 1, None);
            }
            self.keys[row] = Some(key);
        }
        if self.keys.len() * self.shards as usize > self.mapping.len() {
            let used = self.keys.len() * self.shards as usize;
            self.mapping = MmapArray::new(loaded, "ROWS", used)?;
        }
        Ok(true)
    }

    /// The labels of a row; `None` of one that was taken just now, whose key
    /// comes with the next snapshot.
    pub fn labels(&self, row: u32, attribution: &Attribution) -> Option<TcpLabels> {
        if row == OVERFLOW_ROW {
            return Some(attribution.folded());
        }
        let key = self.keys.get(row as usize)?.as_ref()?;
        Some(attribution.labels(key))
    }

    /// The series: rows with equal labels added up.
    pub fn series(&self, attribution: &Attribution) -> Vec<TcpSeries> {
        let mut sums: BTreeMap<TcpLabels, Sum> = BTreeMap::new();
        for row in 0..self.keys.len() {
            let Some(labels) = self.labels(row as u32, attribution) else {
                continue;
            };
            let shards = || {
                let first = row * self.shards as usize;
                (first..first + self.shards as usize).map(|shard| self.mapping.element(shard))
            };
            // The overflow row shows once there is something in it.
            if row == OVERFLOW_ROW as usize && shards().all(|shard| Sum::of(shard).is_empty()) {
                continue;
            }
            let sum = sums.entry(labels).or_default();
            shards().for_each(|shard| sum.add(shard));
        }
        sums.into_iter()
            .map(|(labels, sum)| sum.into_series(labels))
            .collect()
    }
}

/// Rows added up.
struct Sum {
    counters: [u64; COUNTERS],
    slots: [[u64; hist::SLOTS]; probe_common::abi::series::KINDS],
    sums_us: [u64; probe_common::abi::series::KINDS],
}

const COUNTERS: usize = size_of::<probe_common::abi::series::Counters>() / 8;

impl Default for Sum {
    fn default() -> Self {
        Self {
            counters: [0; COUNTERS],
            slots: [[0; hist::SLOTS]; probe_common::abi::series::KINDS],
            sums_us: [0; probe_common::abi::series::KINDS],
        }
    }
}

impl Sum {
    fn of(row: *const Row) -> Self {
        let mut sum = Self::default();
        sum.add(row);
        sum
    }

    fn is_empty(&self) -> bool {
        self.counters
            .iter()
            .chain(self.slots.iter().flatten())
            .all(|&count| count == 0)
    }

    fn add(&mut self, row: *const Row) {
        // SAFETY: the row lies in the mapping, all its members are `u64`, and
        // the kernel raises them with atomic adds while they are read here, one
        // word at a time.
        let read = |at: *const u64| unsafe { at.read_volatile() };
        // SAFETY: as above.
        let (counters, histograms) =
            unsafe { (&raw const (*row).counters, &raw const (*row).histograms) };
        for (n, sum) in self.counters.iter_mut().enumerate() {
            // The number open is a difference and wraps.
            *sum = sum.wrapping_add(read(counters.cast::<u64>().wrapping_add(n)));
        }
        for kind in 0..probe_common::abi::series::KINDS {
            let words = histograms
                .cast::<u64>()
                .wrapping_add(kind * (1 + hist::SLOTS));
            self.sums_us[kind] += read(words);
            for (slot, sum) in self.slots[kind].iter_mut().enumerate() {
                *sum += read(words.wrapping_add(1 + slot));
            }
        }
    }

    fn histogram(&self, kind: Kind) -> Histogram {
        let slots = self.slots[kind as usize].iter().enumerate();
        Histogram {
            sum_seconds: self.sums_us[kind as usize] as f64 / 1e6,
            slots: slots
                .filter(|&(_, &count)| count != 0)
                .map(|(slot, &count)| (slot as u16, count))
                .collect(),
        }
    }

    fn into_series(self, labels: TcpLabels) -> TcpSeries {
        // SAFETY: `Counters` is made of `u64` only and has this size.
        let counters: probe_common::abi::series::Counters =
            unsafe { std::mem::transmute(self.counters) };
        let named = |names: &[&str], counts: &[u64]| {
            names
                .iter()
                .zip(counts)
                .map(|(name, &count)| ((*name).to_owned(), count))
                .collect()
        };
        TcpSeries {
            labels,
            opened: counters.opened,
            // Never negative at rest; between the adds of two shards it can be.
            open: u64::try_from(counters.open.cast_signed()).unwrap_or(0),
            closed: named(&Closed::NAMES, &counters.closed),
            aborted: counters.aborted,
            connect_failures: named(&Failed::NAMES, &counters.failed),
            sent_bytes: counters.sent_bytes,
            received_bytes: counters.received_bytes,
            sent_segments: counters.sent_segments,
            received_segments: counters.received_segments,
            retransmits: named(&Retransmit::NAMES, &counters.retransmits),
            spurious_retransmits: counters.spurious_retransmits,
            out_of_order: counters.out_of_order,
            zero_window: counters.zero_window,
            syn_cookies: counters.syn_cookies,
            tls_failures: named(&TlsFailed::NAMES, &counters.tls_failed),
            rtt: self.histogram(Kind::Rtt),
            handshake: self.histogram(Kind::Handshake),
            duration: self.histogram(Kind::Duration),
            accept_queue: self.histogram(Kind::AcceptQueue),
            first_byte: self.histogram(Kind::FirstByte),
            tls_handshake: self.histogram(Kind::Tls),
        }
    }
}
