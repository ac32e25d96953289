//! What is known at one moment, and what follows from two of them: no descriptor,
//! no kernel, no terminal.

pub mod delta;
mod histogram;
#[cfg(test)]
pub(crate) mod sample;
mod series;
mod snapshot;

pub use histogram::{Histogram, bucket_seconds};
pub use series::{TcpLabels, TcpSeries};
pub use snapshot::*;
