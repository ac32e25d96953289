//! The rows of counters and histograms.
//!
//! The kernel's memory of the rows in use is mapped, so that reading it takes
//! no system call; only what is in use is mapped, since all of it counts as
//! resident memory.

use std::collections::BTreeMap;

use anyhow::Context as _;
use aya::maps::{Array, HashMap, MapData};
use probe_common::{
    abi::series::{OVERFLOW_ROW, Row, SeriesKey, SpareRows},
    hist,
    metrics::{COUNTER_WORDS, Counters, HISTOGRAMS},
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
    mapped: MmapArray<Row>,
    capacity: u32,
    shards: u32,
    keys: Vec<Option<SeriesKey>>,
    sums: Vec<[LongSum; HISTOGRAMS.len()]>,
}

impl Rows {
    /// Maps the rows of a loaded object.
    pub fn new(loaded: &Loaded, capacity: u32, shards: u32) -> anyhow::Result<Self> {
        let mapped = MmapArray::new(loaded, "ROWS", shards as usize)?;
        Ok(Self {
            mapped,
            capacity,
            shards,
            keys: vec![None],
            sums: Vec::new(),
        })
    }

    /// Number of rows in use, the overflow row included.
    pub fn used_rows(&self) -> usize {
        self.keys.len()
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
        // A number is taken before its key is inserted, so look again as long as one is
        // missing, unless it is spare.
        if next == self.keys.len() {
            let missing = self.keys[1..].iter().filter(|key| key.is_none()).count();
            if missing == 0 || missing == spare_rows(loaded)? {
                return Ok(false);
            }
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
        if self.keys.len() * self.shards as usize > self.mapped.len() {
            let used = self.keys.len() * self.shards as usize;
            self.mapped = MmapArray::new(loaded, "ROWS", used)?;
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
    pub fn series(&mut self, attribution: &Attribution) -> Vec<TcpSeries> {
        let mut sums: BTreeMap<TcpLabels, Sum> = BTreeMap::new();
        self.sums
            .resize(self.keys.len(), [LongSum::default(); HISTOGRAMS.len()]);
        for row in 0..self.keys.len() {
            let Some(labels) = self.labels(row as u32, attribution) else {
                continue;
            };
            let shards = || {
                let first = row * self.shards as usize;
                (first..first + self.shards as usize).map(|shard| self.mapped.element(shard))
            };
            // The overflow row, and one that only tells whose dropped packets are, show
            // once there is something in them.
            if !shards().any(|shard| has_counted(shard)) {
                continue;
            }
            let mut here = Sum::default();
            shards().for_each(|shard| here.add(shard));
            let all = sums.entry(labels).or_default();
            all.add_row(&here, &mut self.sums[row]);
        }
        sums.into_iter()
            .map(|(labels, sum)| sum.into_series(labels))
            .collect()
    }
}

/// How many numbers of rows were taken and are not needed yet.
fn spare_rows(loaded: &Loaded) -> anyhow::Result<usize> {
    let map: Array<&MapData, SpareRows> = loaded.map("SPARE_ROWS")?;
    let rows = map.get(&0, 0).context("cannot read SPARE_ROWS")?;
    Ok(rows.iter().filter(|&&row| row != 0).count())
}

/// A sum that goes on where the one in the kernel wraps. Between two looks at a row the
/// latter grows by less than 2^64: 584 years of latency.
#[derive(Clone, Copy, Debug, Default)]
struct LongSum {
    total: u128,
}

impl LongSum {
    /// What was added up to now, given the lower 64 bits of it.
    fn follow(&mut self, now: u64) -> u128 {
        let more = now.wrapping_sub(self.total as u64);
        self.total += u128::from(more);
        self.total
    }
}

/// Whether a counter of a shard of a row is not 0. Where none of a row is, its
/// histograms are empty: who observes anything counts as open or closed.
fn has_counted(row: *const Row) -> bool {
    // SAFETY: as in `Sum::add`; only the address of a member is taken.
    let counters = unsafe { &raw const (*row).counters }.cast::<u64>();
    // SAFETY: as in `Sum::add`.
    (0..COUNTER_WORDS).any(|n| unsafe { counters.wrapping_add(n).read_volatile() } != 0)
}

/// Shards of a row, or rows, added up.
struct Sum {
    counters: [u64; COUNTER_WORDS],
    slots: [[u64; hist::SLOTS]; HISTOGRAMS.len()],
    /// Of shards the lower 64 bits only.
    sums: [u128; HISTOGRAMS.len()],
}

impl Default for Sum {
    fn default() -> Self {
        Self {
            counters: [0; COUNTER_WORDS],
            slots: [[0; hist::SLOTS]; HISTOGRAMS.len()],
            sums: [0; HISTOGRAMS.len()],
        }
    }
}

impl Sum {
    fn add(&mut self, row: *const Row) {
        // SAFETY: every word read below lies in the row, which is mapped as long as
        // `Rows` lives, and is aligned; the kernel raises it with atomic adds
        // meanwhile, which a volatile read of the whole word sees before or after.
        let read = |at: *const u64| unsafe { at.read_volatile() };
        // SAFETY: only the addresses of members of the mapped row are taken.
        let (counters, histograms) =
            unsafe { (&raw const (*row).counters, &raw const (*row).histograms) };
        for (n, sum) in self.counters.iter_mut().enumerate() {
            // A gauge is a difference and wraps.
            *sum = sum.wrapping_add(read(counters.cast::<u64>().wrapping_add(n)));
        }
        for (n, (sum, slots)) in self.sums.iter_mut().zip(&mut self.slots).enumerate() {
            let words = histograms.cast::<u64>().wrapping_add(n * (1 + hist::SLOTS));
            *sum = u128::from((*sum as u64).wrapping_add(read(words)));
            for (slot, sum) in slots.iter_mut().enumerate() {
                *sum += read(words.wrapping_add(1 + slot));
            }
        }
    }

    /// Adds a row whose shards are added up.
    fn add_row(&mut self, row: &Self, sums: &mut [LongSum; HISTOGRAMS.len()]) {
        for (all, here) in self.counters.iter_mut().zip(row.counters) {
            *all = all.wrapping_add(here);
        }
        let slots = self.slots.iter_mut().flatten();
        for (all, here) in slots.zip(row.slots.iter().flatten()) {
            *all += here;
        }
        for ((all, here), sum) in self.sums.iter_mut().zip(row.sums).zip(sums) {
            *all += sum.follow(here as u64);
        }
    }

    fn into_series(self, labels: TcpLabels) -> TcpSeries {
        // SAFETY: `Counters` is `repr(C)`, has this size, and any words are a value of
        // it, since it is `Pod`.
        let counters =
            unsafe { std::mem::transmute::<[u64; COUNTER_WORDS], Counters>(self.counters) };
        let histograms = std::array::from_fn(|n| Histogram {
            sum_seconds: self.sums[n] as f64 * HISTOGRAMS[n].buckets.sum_unit_ns() as f64 / 1e9,
            slots: (0..)
                .zip(self.slots[n])
                .filter(|&(_, count)| count != 0)
                .collect(),
        });
        TcpSeries::new(labels, &counters, histograms)
    }
}

#[cfg(test)]
mod tests {
    use super::LongSum;

    #[test]
    fn a_sum_goes_on_where_its_lower_half_wraps() {
        let mut sum = LongSum::default();
        assert_eq!(sum.follow(u64::MAX - 1), u128::from(u64::MAX) - 1);
        assert_eq!(sum.follow(u64::MAX - 1), u128::from(u64::MAX) - 1);
        assert_eq!(sum.follow(5), u128::from(u64::MAX) + 6);
        assert_eq!(sum.follow(4), 2 * (u128::from(u64::MAX) + 1) + 4);
    }
}
