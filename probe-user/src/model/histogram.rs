//! Exponential histograms, as Prometheus has them.

use std::collections::BTreeMap;

use probe_common::hist;
use serde::{Deserialize, Serialize};

/// An exponential histogram; see [`probe_common::hist`] for the bounds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Sum of the observations in seconds.
    pub sum_seconds: f64,
    /// `[slot, count]` for each slot that is not empty, by rising slot.
    pub slots: Vec<(u16, u64)>,
}

impl Histogram {
    /// Number of observations.
    pub fn count(&self) -> u64 {
        self.slots.iter().map(|&(_, count)| count).sum()
    }

    /// Adds another histogram to this one.
    pub fn add(&mut self, other: &Self) {
        let mut slots: BTreeMap<u16, u64> = self.slots.iter().copied().collect();
        for &(slot, count) in &other.slots {
            *slots.entry(slot).or_default() += count;
        }
        self.slots = slots.into_iter().collect();
        self.sum_seconds += other.sum_seconds;
    }

    /// What was observed since an earlier state; `None` if a count went backwards.
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        let mut before: BTreeMap<u16, u64> = earlier.slots.iter().copied().collect();
        let mut slots = Vec::with_capacity(self.slots.len());
        for &(slot, count) in &self.slots {
            match count.checked_sub(before.remove(&slot).unwrap_or(0))? {
                0 => {}
                count => slots.push((slot, count)),
            }
        }
        // A slot that only the earlier one has went backwards.
        if before.values().any(|&count| count > 0) {
            return None;
        }
        Some(Self {
            sum_seconds: (self.sum_seconds - earlier.sum_seconds).max(0.0),
            slots,
        })
    }

    /// The quantile `q` (0 to 1) in seconds, interpolated within its bucket as
    /// Prometheus does for native histograms; `None` without observations.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = q.clamp(0.0, 1.0) * count as f64;
        let mut below = 0;
        for &(slot, here) in &self.slots {
            if (below + here) as f64 >= rank {
                let (low, high) = bucket_seconds(slot);
                let part = ((rank - below as f64) / here as f64).clamp(0.0, 1.0);
                return Some(match (low > 0.0, high.is_finite()) {
                    (true, true) => low * (high / low).powf(part),
                    (true, false) => low,
                    _ => high * part,
                });
            }
            below += here;
        }
        None
    }
}

/// Lower (exclusive) and upper (inclusive) bound of a slot, in seconds.
pub fn bucket_seconds(slot: u16) -> (f64, f64) {
    let bound = |slot: usize| f64::exp2(f64::from(slot as i32 + hist::FIRST_INDEX) / 16.0);
    match usize::from(slot) {
        0 => (0.0, bound(0)),
        slot if slot < hist::BOUNDS => (bound(slot - 1), bound(slot)),
        _ => (bound(hist::BOUNDS - 1), f64::INFINITY),
    }
}
