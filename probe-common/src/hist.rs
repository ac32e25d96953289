//! Exponential histogram buckets: the bounds of Prometheus native histograms
//! of schema 4, `2^(i/16)` seconds, held as whole nanoseconds.
//!
//! Slot 0 holds values up to 0.995 µs (`2^(-319/16)` s), slot `j` of
//! `1..=415` values in `(2^((j-320)/16), 2^((j-319)/16)]` s, slot 416 values
//! above 64 s. A bucket is 4.4 % wide, so a quantile read at its middle is off
//! by at most 2.2 %. [`slot`] is exact at every bound.

/// Number of finite upper bounds.
pub const BOUNDS: usize = 416;
/// Number of slots: one for each bound and one for what exceeds the last.
pub const SLOTS: usize = BOUNDS + 1;
/// Native histogram schema of the bounds: the growth factor is `2^(2^-4)`.
pub const SCHEMA: i32 = 4;
/// Native histogram index of slot 0: its upper bound is `2^(FIRST_INDEX/16)` s.
pub const FIRST_INDEX: i32 = -319;

/// `2^(r/16) * 1e9 * 2^32`, rounded down, for `r` in `0..16`.
const STEPS: [u64; 16] = [
    4_294_967_296_000_000_000,
    4_485_121_743_595_961_938,
    4_683_695_047_832_392_561,
    4_891_059_943_336_479_569,
    5_107_605_667_107_197_932,
    5_333_738_689_137_727_937,
    5_569_883_475_385_291_208,
    5_816_483_284_520_547_243,
    6_074_000_999_952_099_384,
    6_342_919_998_687_872_737,
    6_623_745_058_664_271_696,
    6_917_003_306_246_231_185,
    7_223_245_205_676_679_009,
    7_543_045_592_332_668_431,
    7_877_004_751_727_667_949,
    8_225_749_546_285_363_694,
];

/// Upper bounds in nanoseconds, rounded down: a whole number of nanoseconds is
/// at most the real bound exactly when it is at most the rounded one.
pub static BOUND_NS: [u64; BOUNDS] = bounds();

/// For values in steps that are at most 3.2 % of them: the first slot whose bound is
/// not below the step's smallest value. A bucket is 4.4 % wide, so the slot is this one
/// or the next.
///
/// The steps are 16 ns wide from 2^9 ns on, and 16 times wider after every four
/// octaves: to find the highest bit of a value takes four times the instructions.
static START: [u16; CLASSES * STEPS_OF_CLASS] = starts();

const LOWEST_BIT: u32 = 9;
/// Octaves of one width of the steps.
const OCTAVES: u32 = 4;
const CLASSES: usize = 7;
const STEPS_OF_CLASS: usize = (32 << OCTAVES) - 32;

const fn bounds() -> [u64; BOUNDS] {
    let mut table = [0; BOUNDS];
    let mut j = 0;
    while j < BOUNDS {
        let i = j as i32 + FIRST_INDEX;
        let octave = i.div_euclid(16);
        let step = STEPS[i.rem_euclid(16) as usize] as u128;
        // `octave` runs from -20 to 6.
        table[j] = ((step << 20) >> (32 + 20 - octave)) as u64;
        j += 1;
    }
    table
}

const fn starts() -> [u16; CLASSES * STEPS_OF_CLASS] {
    let bounds = bounds();
    let mut table = [0; CLASSES * STEPS_OF_CLASS];
    let mut j = 0;
    let mut n = 0;
    while n < CLASSES * STEPS_OF_CLASS {
        let low = ((n % STEPS_OF_CLASS + 32) as u64) << shift(n / STEPS_OF_CLASS);
        while j < BOUNDS && bounds[j] < low {
            j += 1;
        }
        table[n] = j as u16;
        n += 1;
    }
    table
}

/// By how many bits a step of a class is wide.
const fn shift(class: usize) -> u32 {
    LOWEST_BIT - 5 + OCTAVES * class as u32
}

/// Which element of [`START`] is that of a value in a class.
#[inline(always)]
const fn step(ns: u64, class: usize) -> u32 {
    (ns >> shift(class)) as u32 + (STEPS_OF_CLASS * class) as u32 - 32
}

/// The slot of a duration in nanoseconds, `0..SLOTS`, for every `u64`.
#[inline(always)]
pub fn slot(ns: u64) -> u32 {
    if ns <= BOUND_NS[0] {
        return 0;
    }
    if ns > BOUND_NS[BOUNDS - 1] {
        return BOUNDS as u32;
    }
    let step = if ns < 1 << 21 {
        if ns < 1 << 13 {
            step(ns, 0)
        } else if ns < 1 << 17 {
            step(ns, 1)
        } else {
            step(ns, 2)
        }
    } else if ns < 1 << 29 {
        if ns < 1 << 25 {
            step(ns, 3)
        } else {
            step(ns, 4)
        }
    } else if ns < 1 << 33 {
        step(ns, 5)
    } else {
        step(ns, 6)
    };
    // The bounds checks below are for the kernel's verifier, which does not
    // see what the compiler can prove; `black_box` keeps the compiler from
    // removing them.
    let step = core::hint::black_box(step);
    let Some(&start) = START.get(step as usize) else {
        return BOUNDS as u32;
    };
    let start = core::hint::black_box(u32::from(start));
    let Some(&bound) = BOUND_NS.get(start as usize) else {
        return BOUNDS as u32;
    };
    start + u32::from(ns > bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: the first slot whose bound is not below the value.
    fn by_search(ns: u64) -> u32 {
        BOUND_NS.partition_point(|&bound| bound < ns) as u32
    }

    #[test]
    fn bounds_are_the_powers_of_two_they_claim_to_be() {
        for (j, &bound) in BOUND_NS.iter().enumerate() {
            let exact = f64::exp2(f64::from(j as i32 + FIRST_INDEX) / 16.0) * 1e9;
            let off = exact - bound as f64;
            assert!(
                (-1e-4..1.0001).contains(&off),
                "slot {j}: {bound} for {exact}"
            );
        }
        assert_eq!(BOUND_NS[319], 1_000_000_000, "2^0 s");
        assert_eq!(BOUND_NS[BOUNDS - 1], 64_000_000_000, "2^6 s");
    }

    #[test]
    fn every_bound_and_its_neighbours_fall_where_the_definition_says() {
        for &bound in &BOUND_NS {
            for ns in [bound - 1, bound, bound + 1] {
                assert_eq!(slot(ns), by_search(ns), "{ns} ns");
            }
        }
    }

    #[test]
    fn every_power_of_two_and_its_neighbours_fall_where_the_definition_says() {
        for bit in 0..64 {
            for fraction in 0..64u64 {
                let ns = (1u64 << bit) | (fraction << 58 >> (63 - bit));
                for ns in [ns.saturating_sub(1), ns, ns.saturating_add(1)] {
                    assert_eq!(slot(ns), by_search(ns), "{ns} ns");
                }
            }
        }
        for ns in [0, 1, 2, u64::MAX - 1, u64::MAX] {
            assert_eq!(slot(ns), by_search(ns), "{ns} ns");
        }
    }

    #[test]
    fn every_small_value_falls_where_the_definition_says() {
        for ns in 0..3_000_000 {
            assert_eq!(slot(ns), by_search(ns), "{ns} ns");
        }
    }

    #[test]
    fn slots_never_decrease_over_the_whole_range() {
        let mut last = 0;
        let mut ns = 1u64;
        while ns < u64::MAX / 1001 * 1000 {
            let here = slot(ns);
            assert!(here >= last && here < SLOTS as u32, "{ns} ns");
            assert_eq!(here, by_search(ns), "{ns} ns");
            last = here;
            ns += ns / 1000 + 1;
        }
        assert_eq!(last, BOUNDS as u32);
    }
}
