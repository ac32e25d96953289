//! Messages to stderr: a line that nobody can read is counted, and nothing waits
//! for it or fails.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::ValueEnum;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::{SFlag, fstat, major, minor},
};
use tracing::level_filters::LevelFilter;

/// How long a line waits for a slow reader, in milliseconds. Once a line was lost so,
/// the next ones do not wait.
const PATIENCE_MS: u8 = 100;
/// A pipe that can be written to takes so many bytes at once (`PIPE_BUF`).
const PIECE: usize = 4096;
/// Time between two messages that are [limited](Limit).
const LIMIT: Duration = Duration::from_secs(60);

static LINES_LOST: AtomicU64 = AtomicU64::new(0);

/// Severity of log messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Off,
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::OFF,
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// Sends messages of at least this severity to stderr, in colour on a terminal.
pub fn init(level: LogLevel) {
    // https://no-color.org: any value but the empty one.
    let colour = io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    // It fails only where there is a logger already, which then stays.
    let _ = tracing_subscriber::fmt()
        .with_writer(|| Stderr)
        // It would say on stderr that stderr fails, and panic.
        .log_internal_errors(false)
        .with_ansi(colour)
        .with_target(false)
        .with_max_level(LevelFilter::from(level))
        .try_init();
}

/// Says one thing on stderr, in a line of its own.
pub fn say(line: &str) {
    // It never fails.
    let _ = Stderr.write_all(format!("{line}\n").as_bytes());
}

/// Lines of this process that nobody could read, since its start.
pub fn lines_lost() -> u64 {
    LINES_LOST.load(Ordering::Relaxed)
}

/// Standard error that takes each line as a whole or counts it as lost.
#[derive(Debug)]
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        static IS_STUCK: AtomicBool = AtomicBool::new(false);
        // No other line gets in between.
        let stderr = io::stderr().lock();
        let patience = if IS_STUCK.load(Ordering::Relaxed) {
            0
        } else {
            PATIENCE_MS
        };
        let outcome = if leads_nowhere() {
            Err(Lost::NoReader)
        } else {
            put(stderr.as_fd(), line, patience)
        };
        if outcome.is_err() {
            LINES_LOST.fetch_add(1, Ordering::Relaxed);
        }
        IS_STUCK.store(outcome == Err(Lost::SlowReader), Ordering::Relaxed);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why a line was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// There is nobody at the other end.
    NoReader,
    /// The other end does not read.
    SlowReader,
}

/// Whether stderr is `/dev/null`: what it becomes where it was closed at the start.
fn leads_nowhere() -> bool {
    static NOWHERE: OnceLock<bool> = OnceLock::new();
    *NOWHERE.get_or_init(|| {
        fstat(io::stderr().as_fd()).is_ok_and(|stat| {
            let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
            let device = (major(stat.st_rdev), minor(stat.st_rdev));
            kind == SFlag::S_IFCHR && device == (1, 3)
        })
    })
}

/// Writes a line; waits `patience` milliseconds at most before each piece of it.
fn put(output: BorrowedFd<'_>, line: &[u8], patience: u8) -> Result<(), Lost> {
    for mut piece in line.chunks(PIECE) {
        while !piece.is_empty() {
            let mut polled = [PollFd::new(output, PollFlags::POLLOUT)];
            match poll(&mut polled, PollTimeout::from(patience)) {
                Ok(0) => return Err(Lost::SlowReader),
                // What is wrong with it the write tells.
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(_) => return Err(Lost::NoReader),
            }
            match nix::unistd::write(output, piece) {
                Ok(written) => piece = &piece[written..],
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(Lost::SlowReader),
                Err(_) => return Err(Lost::NoReader),
            }
        }
    }
    Ok(())
}

/// Lets one message of a kind through each minute, and counts the others.
#[derive(Debug, Default)]
pub struct Limit(Mutex<Passed>);

#[derive(Debug, Default)]
struct Passed {
    last: Option<Instant>,
    left_out: u64,
}

/// How many messages of a kind were left out; for the end of the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut(u64);

impl Limit {
    /// For a `static`, one for each kind of message.
    pub const fn new() -> Self {
        Self(Mutex::new(Passed {
            last: None,
            left_out: 0,
        }))
    }

    /// Whether a message goes out now, with what is to stand at its end; else it is
    /// counted.
    pub fn pass(&self) -> Option<LeftOut> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<LeftOut> {
        let mut passed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if passed
            .last
            .is_some_and(|last| now.saturating_duration_since(last) < LIMIT)
        {
            passed.left_out += 1;
            return None;
        }
        passed.last = Some(now);
        Some(LeftOut(std::mem::take(&mut passed.left_out)))
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            1 => f.write_str(" (1 message like this was left out)"),
            count => write!(f, " ({count} messages like this were left out)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _, os::fd::OwnedFd};

    use super::*;

    #[test]
    fn a_line_arrives_whole_and_one_without_a_reader_is_lost() {
        let (mut reader, writer) = io::pipe().unwrap();
        let writer = OwnedFd::from(writer);
        assert_eq!(put(writer.as_fd(), b"one line\n", 0), Ok(()));
        let mut read = [0; 9];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"one line\n");
        drop(reader);
        assert_eq!(put(writer.as_fd(), b"lost\n", 0), Err(Lost::NoReader));
    }

    #[test]
    fn a_reader_that_does_not_read_holds_nothing_up() {
        let (_reader, writer) = io::pipe().unwrap();
        let writer = OwnedFd::from(writer);
        // More than any pipe holds.
        let long = vec![b'x'; 4 << 20];
        assert_eq!(put(writer.as_fd(), &long, 1), Err(Lost::SlowReader));
        assert_eq!(put(writer.as_fd(), b"next\n", 0), Err(Lost::SlowReader));
    }

    #[test]
    fn a_full_device_loses_the_line() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        assert_eq!(put(full.as_fd(), b"line\n", 0), Err(Lost::NoReader));
    }

    #[test]
    fn one_message_a_minute_with_the_count_of_those_left_out() {
        let limit = Limit::new();
        let start = Instant::now();
        let at = |seconds| limit.pass_at(start + Duration::from_secs(seconds));
        assert_eq!(at(0), Some(LeftOut(0)));
        for second in [0, 1, 59] {
            assert_eq!(at(second), None);
        }
        let left_out = at(60).unwrap();
        assert_eq!(
            left_out.to_string(),
            " (3 messages like this were left out)"
        );
        assert_eq!(at(61), None);
        assert_eq!(
            at(180).unwrap().to_string(),
            " (1 message like this was left out)"
        );
        assert_eq!(at(300).unwrap().to_string(), "");
    }
}
