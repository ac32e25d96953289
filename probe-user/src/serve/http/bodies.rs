//! The answers to scrapes: each snapshot is encoded once for each form.

use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use flate2::{Compression, write::GzEncoder};
use hyper::body::Bytes;
use tokio::sync::{OnceCell, Semaphore};

use crate::export::{Exposition, Format};
use crate::kernel::{memory, process};
use crate::logging::Limit;
use crate::model::{Identity, Snapshot};

/// Bodies that are made at a time: each takes some multiple of its size meanwhile.
const MADE_AT_A_TIME: usize = 1;
/// Text shrinks to a twentieth with the fastest one, and a little more takes a lot
/// longer.
const COMPRESSION: Compression = Compression::fast();

/// From this size of the plain body on, what its making took of memory is given back to
/// the kernel at once. The allocator would keep it, in each of its heaps.
const LARGE: usize = 1 << 20;

/// From so many series of connections on a body takes a tenth of a second, and longer
/// beside many who want it. Meanwhile that of the snapshot before is sent.
const MANY_SERIES: usize = 200;

/// How much older than the latest one that snapshot may be, in seconds.
const NOT_OLD: f64 = 3.0;

/// A body and its length before it was compressed.
type Made = (Bytes, usize);

/// In which form a body is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Its format.
    pub format: Format,
    /// Whether it is compressed with gzip (RFC 1952).
    pub gzip: bool,
}

impl Form {
    const ALL: usize = 6;

    fn index(self) -> usize {
        let format = match self.format {
            Format::Text => 0,
            Format::OpenMetrics => 1,
            Format::Protobuf => 2,
        };
        2 * format + usize::from(self.gzip)
    }
}

/// The bodies of the latest snapshot that was asked for.
#[derive(Debug)]
pub struct Bodies {
    latest: Mutex<Option<Arc<OfSnapshot>>>,
    makers: Arc<Semaphore>,
    /// [`MANY_SERIES`], but in tests.
    many_series: usize,
}

/// The bodies of one snapshot, each made by the first who wants it.
#[derive(Debug)]
struct OfSnapshot {
    identity: Identity,
    snapshot: Arc<Snapshot>,
    bodies: [OnceCell<Bytes>; Form::ALL],
    before: Mutex<[Before; Form::ALL]>,
}

/// The body of the snapshot before, until the one of this snapshot is made.
#[derive(Debug, Default)]
struct Before {
    body: Option<Bytes>,
    /// Whether somebody has asked, so that the one of this snapshot is being made.
    was_sent: bool,
}

impl OfSnapshot {
    /// What is sent while a body is made, if there is such, and whether it is the first
    /// time.
    fn meanwhile(&self, form: Form) -> Option<(Bytes, bool)> {
        let mut before = lock(&self.before);
        let before = &mut before[form.index()];
        let is_first = !std::mem::replace(&mut before.was_sent, true);
        Some((before.body.clone()?, is_first))
    }

    /// The bodies that are sent while those of a newer snapshot are made.
    fn bodies_for(&self, newer: &Snapshot, many_series: usize) -> [Before; Form::ALL] {
        let age = newer.timestamp_seconds - self.snapshot.timestamp_seconds;
        let is_of_use = newer.tcp.len() >= many_series
            && newer.identity().start == self.identity.start
            && age <= NOT_OLD;
        self.bodies.each_ref().map(|body| Before {
            body: body.get().filter(|_| is_of_use).cloned(),
            was_sent: false,
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Bodies {
    fn default() -> Self {
        Self {
            latest: Mutex::default(),
            makers: Arc::new(Semaphore::new(MADE_AT_A_TIME)),
            many_series: MANY_SERIES,
        }
    }
}

impl Bodies {
    /// The body for a snapshot, or for none. What this process costs is as of when the
    /// body was made. A large one may be of the snapshot before, see [`MANY_SERIES`].
    ///
    /// # Errors
    ///
    /// It cannot be encoded.
    pub async fn get(
        &self,
        snapshot: Option<Arc<Snapshot>>,
        is_exporter: bool,
        form: Form,
    ) -> anyhow::Result<Bytes> {
        let Some(snapshot) = snapshot else {
            return make(&self.makers, move || encode(None, is_exporter, form)).await;
        };
        let latest = self.of(snapshot);
        if let Some(body) = latest.bodies[form.index()].get() {
            return Ok(body.clone());
        }
        let meanwhile = latest.meanwhile(form);
        if let Some((body, false)) = meanwhile {
            return Ok(body);
        }
        // A task of its own: it is made once, even if who asked first is evicted.
        let makers = Arc::clone(&self.makers);
        let making = tokio::spawn(async move {
            let make = || {
                let snapshot = Some(Arc::clone(&latest.snapshot));
                let known = form.gzip.then(|| {
                    Form {
                        gzip: false,
                        ..form
                    }
                    .index()
                });
                let known = known.and_then(|index| latest.bodies[index].get().cloned());
                make(&makers, move || match known {
                    Some(body) => compress(&body),
                    None => encode(snapshot, is_exporter, form),
                })
            };
            let body = latest.bodies[form.index()].get_or_try_init(make).await;
            lock(&latest.before)[form.index()].body = None;
            body.cloned()
        });
        if let Some((body, _)) = meanwhile {
            return Ok(body);
        }
        making
            .await
            .context("the encoder stopped unexpectedly: this is a bug")?
    }

    /// The bodies of this snapshot, or of a newer one of the same daemon. Those of older
    /// ones stay with those who take them.
    fn of(&self, snapshot: Arc<Snapshot>) -> Arc<OfSnapshot> {
        let identity = snapshot.identity();
        let mut latest = lock(&self.latest);
        match &*latest {
            Some(known)
                if known.identity == identity
                    || (known.identity.start == identity.start
                        && known.snapshot.timestamp_seconds > snapshot.timestamp_seconds) =>
            {
                Arc::clone(known)
            }
            known => {
                let before = known
                    .as_ref()
                    .map(|known| known.bodies_for(&snapshot, self.many_series));
                let new = Arc::new(OfSnapshot {
                    identity,
                    snapshot,
                    bodies: Default::default(),
                    before: Mutex::new(before.unwrap_or_default()),
                });
                *latest = Some(Arc::clone(&new));
                new
            }
        }
    }
}

/// Makes a body on a thread beside the runtime, which answers others meanwhile.
async fn make(
    makers: &Arc<Semaphore>,
    body: impl FnOnce() -> anyhow::Result<Made> + Send + 'static,
) -> anyhow::Result<Bytes> {
    let turn = Arc::clone(makers).acquire_owned().await;
    let turn = turn.context("this is a bug")?;
    let (body, length) = tokio::task::spawn_blocking(body)
        .await
        .context("the encoder stopped unexpectedly: this is a bug")??;
    if length >= LARGE {
        // Before the next one is made, but this one is not kept waiting.
        tokio::task::spawn_blocking(|| {
            memory::trim();
            drop(turn);
        });
    }
    Ok(body)
}

fn compress(body: &[u8]) -> anyhow::Result<Made> {
    // Repeated names and labels: few bodies are larger than a sixteenth of the text.
    let room = Vec::with_capacity(body.len() / 16);
    let mut encoder = GzEncoder::new(room, COMPRESSION);
    encoder.write_all(body).context("cannot compress")?;
    let mut compressed = encoder.finish().context("cannot compress")?;
    compressed.shrink_to_fit();
    Ok((compressed.into(), body.len()))
}

fn encode(snapshot: Option<Arc<Snapshot>>, is_exporter: bool, form: Form) -> anyhow::Result<Made> {
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
    let mut body = exposition.encode(form.format)?;
    if form.gzip {
        return compress(&body);
    }
    // It grew by doubling.
    body.shrink_to_fit();
    let length = body.len();
    Ok((body.into(), length))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::export::sample;
    use crate::sampler::fake::block;

    const TEXT: Form = Form {
        format: Format::Text,
        gzip: false,
    };
    const ZIPPED: Form = Form { gzip: true, ..TEXT };

    fn unzip(body: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        let mut decoder = flate2::read::GzDecoder::new(body);
        decoder.read_to_end(&mut plain).unwrap();
        plain
    }

    #[test]
    fn one_body_for_each_snapshot_and_form() {
        let first = Arc::new(sample::snapshot());
        let mut second = sample::snapshot();
        second.timestamp_seconds += 1.0;
        let second = Arc::new(second);
        let bodies = Bodies::default();
        block(async {
            let get =
                |snapshot: &Arc<Snapshot>, form| bodies.get(Some(Arc::clone(snapshot)), true, form);
            let text = get(&first, TEXT).await.unwrap();
            // An exporter gets the same snapshot again as another allocation.
            let again = get(&Arc::new((*first).clone()), TEXT).await.unwrap();
            assert_eq!(again.as_ptr(), text.as_ptr());
            let open = Form {
                format: Format::OpenMetrics,
                gzip: false,
            };
            let open = get(&first, open).await.unwrap();
            assert!(open.ends_with(b"# EOF\n"));
            let still = get(&first, TEXT).await.unwrap();
            assert_eq!(still.as_ptr(), text.as_ptr());
            let newer = get(&second, TEXT).await.unwrap();
            assert_ne!(newer.as_ptr(), text.as_ptr());
            // Who asked before is given the newer one too: there is one only.
            let late = get(&first, TEXT).await.unwrap();
            assert_eq!(late.as_ptr(), newer.as_ptr());

            let none = bodies.get(None, true, TEXT).await.unwrap();
            let none = String::from_utf8_lossy(&none);
            assert!(none.contains("edgeprobe_daemon_up 0\n"), "{none}");
            let zipped = bodies.get(None, true, ZIPPED).await.unwrap();
            let zipped = String::from_utf8(unzip(&zipped)).unwrap();
            assert!(zipped.contains("edgeprobe_daemon_up 0\n"), "{zipped}");
        });
    }

    #[test]
    fn a_large_body_is_of_the_snapshot_before_while_it_is_made() {
        let at = |seconds| {
            let mut snapshot = sample::snapshot();
            snapshot.timestamp_seconds += seconds;
            Arc::new(snapshot)
        };
        let bodies = Bodies {
            many_series: 1,
            ..Bodies::default()
        };
        block(async {
            let get = |snapshot: &Arc<Snapshot>| bodies.get(Some(Arc::clone(snapshot)), true, TEXT);
            let (first, second, late) = (at(0.0), at(1.0), at(1.1 + NOT_OLD));
            let old = get(&first).await.unwrap();
            // Both who ask first and who ask after them.
            for _ in 0..2 {
                assert_eq!(get(&second).await.unwrap().as_ptr(), old.as_ptr());
            }
            let latest = bodies.of(Arc::clone(&second));
            while latest.bodies[TEXT.index()].get().is_none() {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            let new = get(&second).await.unwrap();
            assert_ne!(new.as_ptr(), old.as_ptr());
            // An old one is not sent: this waits for its own.
            let own = get(&late).await.unwrap();
            assert_ne!(own.as_ptr(), new.as_ptr());
            let latest = bodies.of(Arc::clone(&late));
            assert_eq!(
                latest.bodies[TEXT.index()].get().map(Bytes::len),
                Some(own.len())
            );
        });
    }

    #[test]
    fn a_compressed_body_is_the_plain_one_and_made_once() {
        let snapshot = Arc::new(sample::snapshot());
        let bodies = Bodies::default();
        block(async {
            let get = |form| bodies.get(Some(Arc::clone(&snapshot)), true, form);
            let plain = get(TEXT).await.unwrap();
            let zipped = get(ZIPPED).await.unwrap();
            assert_eq!(unzip(&zipped), plain);
            assert!(zipped.len() < plain.len() / 4, "{}", zipped.len());
            assert_eq!(get(ZIPPED).await.unwrap().as_ptr(), zipped.as_ptr());
        });
    }

    #[test]
    fn who_wants_one_at_the_same_time_shares_it() {
        let snapshot = Arc::new(sample::snapshot());
        let bodies = Bodies::default();
        block(async {
            for form in [TEXT, ZIPPED] {
                let get = || bodies.get(Some(Arc::clone(&snapshot)), false, form);
                let (one, two, three) = tokio::join!(get(), get(), get());
                let one = one.unwrap();
                assert_eq!(two.unwrap().as_ptr(), one.as_ptr());
                assert_eq!(three.unwrap().as_ptr(), one.as_ptr());
            }
        });
    }

    #[test]
    fn who_leaves_while_a_body_is_made_leaves_it_to_others() {
        let snapshot = Arc::new(sample::snapshot());
        let bodies = Bodies::default();
        block(async {
            {
                let mut get =
                    std::pin::pin!(bodies.get(Some(Arc::clone(&snapshot)), false, ZIPPED));
                let poll = std::future::poll_fn(|cx| std::task::Poll::Ready(get.as_mut().poll(cx)));
                assert!(poll.await.is_pending());
            }
            let latest = bodies.of(Arc::clone(&snapshot));
            while latest.bodies[ZIPPED.index()].get().is_none() {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        });
    }
}
