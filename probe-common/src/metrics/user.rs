//! Split counters as user space writes and reads them: an object in JSON, with a
//! number for each value of the label.

use core::{
    fmt,
    marker::PhantomData,
    ops::{Index, IndexMut},
};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, Visitor},
};

use super::By;
use crate::labels::Label;

impl<L: Label, const N: usize> By<L, N> {
    /// Counts by the names of their values; the others are 0.
    ///
    /// # Panics
    ///
    /// Where the label has no such value.
    pub fn of(counts: &[(&str, u64)]) -> Self {
        let mut by = Self::default();
        for (name, count) in counts {
            by[*name] = *count;
        }
        by
    }
}

/// The position of a value.
///
/// # Panics
///
/// Where the label has none of that name.
fn position<L: Label>(name: &str) -> usize {
    let position = L::NAMES.iter().position(|known| *known == name);
    position.unwrap_or_else(|| panic!("{name:?} is none of {:?}", L::NAMES))
}

impl<L: Label, const N: usize> Index<&str> for By<L, N> {
    type Output = u64;

    /// The count of the value of that name.
    ///
    /// # Panics
    ///
    /// Where the label has no such value.
    fn index(&self, name: &str) -> &u64 {
        &self.as_slice()[position::<L>(name)]
    }
}

impl<L: Label, const N: usize> IndexMut<&str> for By<L, N> {
    /// The same, to be changed.
    ///
    /// # Panics
    ///
    /// Likewise.
    fn index_mut(&mut self, name: &str) -> &mut u64 {
        &mut self.as_mut_slice()[position::<L>(name)]
    }
}

impl<L: Label, const N: usize> Serialize for By<L, N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, L: Label, const N: usize> Deserialize<'de> for By<L, N> {
    /// Reads a map; values that it lacks are 0, others than the label's are an error.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Counts(PhantomData))
    }
}

struct Counts<L, const N: usize>(PhantomData<L>);

impl<'de, L: Label, const N: usize> Visitor<'de> for Counts<L, N> {
    type Value = By<L, N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "counts by {:?}", L::NAMES)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut by = By::default();
        while let Some(name) = map.next_key::<Name<L>>()? {
            by.as_mut_slice()[name.0] = map.next_value()?;
        }
        Ok(by)
    }
}

/// A position among the values of a label.
struct Name<L>(usize, PhantomData<L>);

impl<'de, L: Label> Deserialize<'de> for Name<L> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Position<L>(PhantomData<L>);

        impl<L: Label> Visitor<'_> for Position<L> {
            type Value = usize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "one of {:?}", L::NAMES)
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<usize, E> {
                let position = L::NAMES.iter().position(|known| *known == name);
                position.ok_or_else(|| E::unknown_variant(name, L::NAMES))
            }
        }

        let position = deserializer.deserialize_str(Position::<L>(PhantomData))?;
        Ok(Self(position, PhantomData))
    }
}
