//! How a row is written: the adders follow from the table of metrics.

use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use probe_common::{
    abi::series::{Histogram, Row},
    hist,
    metrics::{Counters, HistogramId},
    tcp_metrics,
};

use crate::{atomic, globals::global, maps::ROWS};

/// The shard that this CPU writes to.
#[inline(always)]
pub fn shard() -> u32 {
    // SAFETY: the helper takes no arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    cpu & (global!(CONFIG.shards) - 1)
}

/// One shard of one row.
#[derive(Clone, Copy)]
pub struct RowRef(*mut Row);

/// A method for each counter that adds to it; of one that is split by a label, to
/// that of a value of the label.
macro_rules! adders {
    (
        counters {$(
            $(#[$help:meta])+
            $field:ident {
                name: $name:literal, type: $type:ident, unit: $unit:ident, $(by: $label:ident as $key:literal,)?
                from: $from:ident $(($($source:tt)*))?, kernel: $kernel:literal,
            }
        )*}
        $($histograms:tt)*
    ) => {
        impl RowRef {
            $(adders!(@one $(#[$help])+ $field $($label)?);)*
        }
    };
    (@one $(#[$help:meta])+ $field:ident) => {
        $(#[$help])+
        #[inline(always)]
        pub fn $field(self, amount: u64) {
            // SAFETY: a member of a value of `ROWS`, which are never removed.
            unsafe { atomic::add(&raw mut (*self.counters()).$field, amount) };
        }
    };
    (@one $(#[$help:meta])+ $field:ident $label:ident) => {
        $(#[$help])+
        #[inline(always)]
        pub fn $field(self, by: probe_common::labels::$label, amount: u64) {
            // SAFETY: a member of a value of `ROWS`, which has an element for each
            // value of the label.
            unsafe {
                let counts = (&raw mut (*self.counters()).$field).cast::<u64>();
                atomic::add(counts.add(by as usize), amount);
            }
        }
    };
}
tcp_metrics!(adders);

impl RowRef {
    /// The shard of this CPU of a row.
    #[inline(always)]
    pub fn get(row: u32) -> Option<Self> {
        ROWS.get_ptr_mut(row * global!(CONFIG.shards) + shard())
            .map(Self)
    }

    #[inline(always)]
    fn counters(self) -> *mut Counters {
        // SAFETY: a value of `ROWS`; only the address of a member is taken.
        unsafe { &raw mut (*self.0).counters }
    }

    /// One observation.
    #[inline(always)]
    pub fn observe(self, histogram: HistogramId, ns: u64) {
        let slot = core::hint::black_box(hist::slot(ns));
        if slot >= hist::SLOTS as u32 {
            return;
        }
        let sum = match histogram.sum_unit_ns() {
            1 => ns,
            unit => ns.saturating_add(unit / 2) / unit,
        };
        // SAFETY: members of a value of `ROWS`; the slot is in bounds.
        unsafe {
            let histogram: *mut Histogram = &raw mut (*self.0).histograms[histogram as usize];
            atomic::add(
                (&raw mut (*histogram).slots)
                    .cast::<u64>()
                    .add(slot as usize),
                1,
            );
            atomic::add(&raw mut (*histogram).sum, sum);
        }
    }
}
