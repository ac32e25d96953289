//! The answers to scrapes: each snapshot is encoded once for each format.

use std::sync::Arc;

use anyhow::Context as _;
use hyper::body::Bytes;
use tokio::sync::Mutex;

use crate::export::{Exposition, Format};
use crate::kernel::process;
use crate::logging::Limit;
use crate::model::Snapshot;

/// The latest body of each format.
#[derive(Debug, Default)]
pub struct Bodies {
    text: Latest,
    open_metrics: Latest,
    protobuf: Latest,
}

/// Held while a body is made: those who want it too wait for it.
type Latest = Mutex<Option<(Identity, Bytes)>>;

/// What makes a snapshot another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    /// Bits of the time when the daemon began to count.
    start: u64,
    /// Bits of the time when the snapshot was taken.
    taken: u64,
}

impl Identity {
    fn of(snapshot: &Snapshot) -> Self {
        Self {
            start: snapshot.start_seconds.to_bits(),
            taken: snapshot.timestamp_seconds.to_bits(),
        }
    }
}

impl Bodies {
    /// The body for a snapshot, or for none. What this process costs is as of when the
    /// body was made.
    pub async fn get(
        &self,
        snapshot: Option<Arc<Snapshot>>,
        is_exporter: bool,
        format: Format,
    ) -> anyhow::Result<Bytes> {
        let latest = match format {
            Format::Text => &self.text,
            Format::OpenMetrics => &self.open_metrics,
            Format::Protobuf => &self.protobuf,
        };
        let mut latest = latest.lock().await;
        let identity = snapshot.as_deref().map(Identity::of);
        if let Some((known, body)) = &*latest
            && Some(*known) == identity
        {
            return Ok(body.clone());
        }
        // The old one goes before there is a new one.
        *latest = None;
        // Others are answered meanwhile.
        let encode = move || encode(snapshot, is_exporter, format);
        let body = tokio::task::spawn_blocking(encode)
            .await
            .context("the encoder stopped unexpectedly: this is a bug")??;
        *latest = identity.map(|identity| (identity, body.clone()));
        Ok(body)
    }
}

fn encode(
    snapshot: Option<Arc<Snapshot>>,
    is_exporter: bool,
    format: Format,
) -> anyhow::Result<Bytes> {
    static PROCESS_FAILURES: Limit = Limit::new();
    let process = process::read();
    if let Err(error) = &process
        && let Some(left_out) = PROCESS_FAILURES.pass()
    {
        tracing::warn!("cannot read what this process costs: {error:#}{left_out}");
    }
    let exposition = Exposition {
        snapshot,
        process: process.ok(),
        is_exporter,
    };
    let mut body = exposition.encode(format)?;
    // It grew by doubling.
    body.shrink_to_fit();
    Ok(body.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::sample;
    use crate::sampler::fake::block;

    #[test]
    fn one_body_for_each_snapshot_and_format() {
        let first = Arc::new(sample::snapshot());
        let mut second = sample::snapshot();
        second.timestamp_seconds += 1.0;
        let second = Arc::new(second);
        let bodies = Bodies::default();
        block(async {
            let get = |snapshot: &Arc<Snapshot>, format| {
                bodies.get(Some(Arc::clone(snapshot)), true, format)
            };
            let text = get(&first, Format::Text).await.unwrap();
            // An exporter gets the same snapshot again as another allocation.
            let again = get(&Arc::new((*first).clone()), Format::Text)
                .await
                .unwrap();
            assert_eq!(again.as_ptr(), text.as_ptr());
            let open = get(&first, Format::OpenMetrics).await.unwrap();
            assert!(open.ends_with(b"# EOF\n"));
            let still = get(&first, Format::Text).await.unwrap();
            assert_eq!(still.as_ptr(), text.as_ptr());
            let newer = get(&second, Format::Text).await.unwrap();
            assert_ne!(newer.as_ptr(), text.as_ptr());

            let none = bodies.get(None, true, Format::Text).await.unwrap();
            let none = String::from_utf8_lossy(&none);
            assert!(none.contains("edgeprobe_daemon_up 0\n"), "{none}");
        });
    }

    #[test]
    fn who_wants_one_at_the_same_time_shares_it() {
        let snapshot = Arc::new(sample::snapshot());
        let bodies = Bodies::default();
        block(async {
            let get = || bodies.get(Some(Arc::clone(&snapshot)), false, Format::Text);
            let (one, two, three) = tokio::join!(get(), get(), get());
            let one = one.unwrap();
            assert_eq!(two.unwrap().as_ptr(), one.as_ptr());
            assert_eq!(three.unwrap().as_ptr(), one.as_ptr());
        });
    }
}
