//! What the programs log, among the messages of this process.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Level, Log, Metadata, Record};
use probe_common::{
    hooks::{LOSS_TARGET, losses},
    labels::Cause,
};

/// Name of the programs' level, a read-only global: what is above it is dead code.
pub(super) const LEVEL: &str = aya_log::LEVEL;
/// Name of the ring buffer.
pub(super) const RING: &str = "AYA_LOGS";
/// Bytes of the ring buffer where the programs log.
pub(super) const RING_BYTES: u32 = 1 << 17;
/// The same where they do not: a page is the least that there can be.
pub(super) const NO_RING_BYTES: u32 = 1 << 12;

/// Whether the programs are to log: with `--log-level debug` and below.
pub(super) fn is_wanted() -> bool {
    tracing::enabled!(tracing::Level::DEBUG)
}

/// The level of [`LEVEL`]: all that the programs say, or nothing.
pub(super) fn level() -> u8 {
    if is_wanted() {
        aya_log::Level::Debug as u8
    } else {
        0
    }
}

/// How often the ring buffer is read.
const INTERVAL: Duration = Duration::from_millis(100);

/// A thread that passes on what an object's programs log, until this is dropped. It
/// is one of its own, since programs may log faster than anybody reads. What finds the
/// ring buffer full is not logged.
#[derive(Debug)]
pub struct KernelLog {
    stop: Arc<AtomicBool>,
}

impl KernelLog {
    /// That of a loaded object, where its programs log.
    pub(super) fn of(ebpf: &mut Ebpf) -> Option<Self> {
        if !is_wanted() {
            return None;
        }
        Self::start(ebpf)
            .inspect_err(|error| tracing::warn!("the programs cannot log: {error:#}"))
            .ok()
    }

    fn start(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        let mut logger = EbpfLogger::init_with_logger(ebpf, Messages)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        thread::Builder::new()
            .name("kernel-log".into())
            .spawn(move || {
                while !stopped.load(Ordering::Acquire) {
                    logger.flush();
                    thread::sleep(INTERVAL);
                }
            })?;
        Ok(Self { stop })
    }
}

impl Drop for KernelLog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

struct Messages;

impl Log for Messages {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Debug
    }

    fn log(&self, record: &Record<'_>) {
        let text = record.args().to_string();
        let loss = (record.target() == LOSS_TARGET)
            .then(|| loss(&text))
            .flatten();
        tracing::debug!("kernel programs: {}", loss.unwrap_or(text));
    }

    fn flush(&self) {}
}

/// A loss in words, from the slot of the `LOST` map and the number that the programs
/// send.
fn loss(text: &str) -> Option<String> {
    let (slot, about) = text.split_once(' ')?;
    let (program, cause) = losses().nth(slot.parse().ok()?)?;
    let cause = Cause::NAMES[cause as usize];
    Some(format!(
        "{} lost an event ({cause}), about {about}",
        program.name
    ))
}

#[cfg(test)]
mod tests {
    use probe_common::{hooks::Loss, labels::Cause};

    use super::*;

    #[test]
    fn a_loss_is_told_by_its_program_and_cause() {
        let slot = Loss::of("tcp_probe", Cause::Parse).slot();
        assert_eq!(
            loss(&format!("{slot} 77")).as_deref(),
            Some("tcp_probe lost an event (parse), about 77")
        );
        assert_eq!(loss("999 1"), None);
        assert_eq!(loss("x"), None);
    }
}
