//! Buckets of an exponential histogram, as the encodings want them.

use probe_common::hist;

use crate::model::{Histogram, bucket_seconds};

/// Slots whose upper bounds the text formats show for round trips and
/// handshakes: every eighth, that is steps of the square root of two, from
/// 2^-16 s (15.3 µs) to 2^3 s (8 s).
pub static LATENCY: [u16; 39] = every(63, 8);
/// Slots whose upper bounds the text formats show for the age of connections:
/// every 32nd, that is steps of four, from 2^-12 s (244 µs) to 2^6 s (64 s).
pub static LIFETIME: [u16; 10] = every(127, 32);

const _: () = assert!(LATENCY[38] as i32 + hist::FIRST_INDEX == 3 * 16);
const _: () = assert!(LIFETIME[9] as usize == hist::BOUNDS - 1);

const fn every<const N: usize>(first: u16, step: u16) -> [u16; N] {
    let mut slots = [first; N];
    let mut n = 1;
    while n < N {
        slots[n] = slots[n - 1] + step;
        n += 1;
    }
    slots
}

/// Upper bounds and the number of observations between each and the one
/// before it; the last bound is infinite.
pub fn classic(histogram: &Histogram, shown: &[u16]) -> Vec<(f64, u64)> {
    let mut slots = histogram.slots.iter().peekable();
    let mut take_to = |last: u16| {
        let mut sum = 0u64;
        while let Some((_, count)) = slots.next_if(|&&(slot, _)| slot <= last) {
            sum += count;
        }
        sum
    };
    let mut buckets: Vec<_> = shown
        .iter()
        .map(|&slot| (bucket_seconds(slot).1, take_to(slot)))
        .collect();
    buckets.push((f64::INFINITY, take_to(u16::MAX)));
    buckets
}

/// The positive buckets of a native histogram: runs of neighbours as
/// `(gap to the run before, length)`, and the difference of each count to the
/// one before it. The gap of the first run is the index of its first bucket.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Native {
    /// Observations up to [`zero_threshold`].
    pub zero_count: u64,
    /// Runs.
    pub spans: Vec<(i32, u32)>,
    /// Differences.
    pub deltas: Vec<i64>,
}

/// Upper bound of the bucket around zero: that of slot 0.
pub fn zero_threshold() -> f64 {
    bucket_seconds(0).1
}

/// The native buckets of a histogram: the slots as they are.
pub fn native(histogram: &Histogram) -> Native {
    let mut native = Native::default();
    let mut next_index = 0;
    let mut last_count = 0;
    for &(slot, count) in &histogram.slots {
        if slot == 0 {
            native.zero_count = count;
            continue;
        }
        let index = i32::from(slot) + hist::FIRST_INDEX;
        match native.spans.last_mut() {
            Some((_, length)) if index == next_index => *length += 1,
            _ => native.spans.push((index - next_index, 1)),
        }
        next_index = index + 1;
        let count = count.cast_signed();
        native.deltas.push(count.wrapping_sub(last_count));
        last_count = count;
    }
    native
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(slots: &[(u16, u64)]) -> Histogram {
        Histogram {
            sum_seconds: 0.0,
            slots: slots.to_vec(),
        }
    }

    #[test]
    fn shown_bounds_are_the_powers_they_claim_to_be() {
        for (n, &slot) in LATENCY.iter().enumerate() {
            assert_eq!(bucket_seconds(slot).1, f64::exp2(n as f64 / 2.0 - 16.0));
        }
        for (n, &slot) in LIFETIME.iter().enumerate() {
            assert_eq!(bucket_seconds(slot).1, f64::exp2(n as f64 * 2.0 - 12.0));
        }
    }

    #[test]
    fn classic_buckets_hold_every_observation_once() {
        let all: Vec<_> = (0..hist::SLOTS as u16).map(|slot| (slot, 1)).collect();
        let all = histogram(&all);
        for shown in [&LATENCY[..], &LIFETIME[..]] {
            let buckets = classic(&all, shown);
            assert_eq!(buckets.len(), shown.len() + 1);
            assert_eq!(buckets.iter().map(|(_, n)| n).sum::<u64>(), all.count());
            // A slot counts under the first bound that is not below its own.
            assert_eq!(buckets[0].1, u64::from(shown[0]) + 1);
            assert_eq!(buckets[1].1, u64::from(shown[1] - shown[0]));
            assert!(buckets.is_sorted_by(|a, b| a.0 < b.0));
        }
        assert_eq!(classic(&all, &LIFETIME).last(), Some(&(f64::INFINITY, 1)));
    }

    #[test]
    fn native_buckets_are_the_slots() {
        let native = native(&histogram(&[
            (0, 9),
            (1, 5),
            (2, 7),
            (319, 4),
            (415, 1),
            (416, 3),
        ]));
        assert_eq!(
            native,
            Native {
                zero_count: 9,
                // Indices -318, -317; 0; 96, 97.
                spans: vec![(-318, 2), (316, 1), (95, 2)],
                deltas: vec![5, 2, -3, -3, 2],
            }
        );
        assert_eq!(super::native(&histogram(&[])), Native::default());
    }
}
