//! Sockets by side, service and state, as the last iteration counted them.

use std::collections::BTreeMap;

use probe_common::abi::iter::SOCKET_STATES;

use super::{mmap_array::MmapArray, tcp::Rows};
use crate::{
    attribution::Attribution,
    loader::Loaded,
    model::{SocketCount, TcpLabels},
};

/// The counts of all rows, mapped.
#[derive(Debug)]
pub struct SocketStates {
    mapped: MmapArray<u64>,
}

impl SocketStates {
    /// Maps the counts of a loaded object with as many rows.
    ///
    /// # Errors
    ///
    /// The kernel does not map them.
    pub fn new(loaded: &Loaded, rows: u32) -> anyhow::Result<Self> {
        let len = rows as usize * SOCKET_STATES.len();
        Ok(Self {
            mapped: MmapArray::new(loaded, "SOCKETS", len)?,
        })
    }

    /// What `iteration` counted, without zeros; sorted by the labels.
    pub fn counts(
        &self,
        iteration: u32,
        rows: &Rows,
        attribution: &Attribution,
    ) -> Vec<SocketCount> {
        let mut counts: BTreeMap<(String, String, &str), u64> = BTreeMap::new();
        for row in 0..rows.used_rows() {
            for (n, (_, state)) in SOCKET_STATES.into_iter().enumerate() {
                // SAFETY: an element of the mapped array, which the kernel writes and
                // this reads as a whole word.
                let word = unsafe {
                    let element = self.mapped.element(row * SOCKET_STATES.len() + n);
                    element.read_volatile()
                };
                let count = count_of(word, iteration);
                if count != 0
                    && let Some(labels) = rows.labels(row as u32, attribution)
                {
                    let TcpLabels { side, svc, .. } = labels;
                    *counts.entry((side, svc, state)).or_default() += count;
                }
            }
        }
        let all = counts.into_iter();
        all.map(|((side, svc, state), count)| SocketCount {
            side,
            svc,
            state: state.to_owned(),
            count,
        })
        .collect()
    }
}

/// The count in a word of the map, 0 where another iteration has written it.
fn count_of(word: u64, iteration: u32) -> u64 {
    if word >> 32 == u64::from(iteration) {
        word & 0xffff_ffff
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_of_another_iteration_is_of_the_past() {
        assert_eq!(count_of(7 << 32 | 150, 7), 150);
        assert_eq!(count_of(7 << 32 | 150, 8), 0);
        assert_eq!(count_of(0, 1), 0);
    }

    #[test]
    fn each_state_has_its_position() {
        for (n, (state, _)) in SOCKET_STATES.into_iter().enumerate() {
            assert_eq!(
                probe_common::abi::iter::state_index(state) as usize,
                n,
                "{state}"
            );
        }
    }
}
