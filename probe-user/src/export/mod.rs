//! Prometheus metrics: one model of families, made from a snapshot, and its
//! three encodings.

mod buckets;
pub mod families;
pub mod negotiate;
pub mod reference;
mod registry;
#[cfg(test)]
pub(crate) mod sample;
mod text;

use std::sync::Arc;

use crate::model::{Process, Snapshot};

pub use negotiate::Format;

/// What one scrape shows.
#[derive(Clone, Debug)]
pub struct Exposition {
    /// The snapshot; absent while there is none that is fresh.
    pub snapshot: Option<Arc<Snapshot>>,
    /// The process that answers the scrape, where it can be read.
    pub process: Option<Process>,
    /// Whether that process is an exporter, not the daemon itself.
    pub is_exporter: bool,
}

impl Exposition {
    /// The body of the answer to a scrape.
    pub fn encode(self, format: Format) -> anyhow::Result<Vec<u8>> {
        match format {
            Format::Text => Ok(text::encode(&self.families()).into_bytes()),
            Format::OpenMetrics => registry::open_metrics(self),
            Format::Protobuf => registry::protobuf(self),
        }
    }
}
