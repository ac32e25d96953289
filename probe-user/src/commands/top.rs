//! `edgeprobe top`.

use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::configure;
use super::stdout::print;
use crate::cli::TopArgs;
use crate::config::{Config, DEFAULT_SOCKET};
use crate::logging;
use crate::sampler::SnapshotSource;
use crate::table::Style;
use crate::top::poll::Counting;
use crate::top::{once, poll, terminal};

/// Age in seconds from which a snapshot of the daemon is reported as old: its
/// interval is at most 60 s and by default 1 s.
const OLD_SECONDS: f64 = 10.0;

/// Intervals that make sense.
const INTERVALS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3600);

/// Shows the live view, or prints one report; `start` loads the programs where
/// there is no daemon.
pub fn run<S: SnapshotSource + Send + 'static>(
    args: &TopArgs,
    start: fn(&Config) -> anyhow::Result<S>,
) -> anyhow::Result<ExitCode> {
    ensure!(
        INTERVALS.contains(&args.interval),
        "--interval: {:?} is not between 100ms and 1h",
        args.interval
    );
    if args.once {
        logging::init(args.collect.log_level);
    } else {
        // Messages would go through the screen; what they tell is on it.
        terminal::check()?;
    }
    let config = configure::for_collector(&args.collect)?;
    let host = nix::unistd::gethostname()
        .context("cannot read the name of this host")?
        .to_string_lossy()
        .into_owned();
    let limit = args.limit as usize;
    // Only the daemon of the default socket may be absent.
    let is_named =
        args.collect.socket.is_some() || config.daemon.socket != Path::new(DEFAULT_SOCKET);
    let counting = match (args.alone, is_named) {
        (true, _) => Counting::Alone,
        (false, true) => Counting::Daemon,
        (false, false) => Counting::Anyone,
    };
    let mut input = poll::open(&config, counting, start)?;
    if !args.once {
        terminal::run(input, host, args.interval, limit)?;
        return Ok(ExitCode::SUCCESS);
    }
    if input.is_new {
        thread::sleep(args.interval);
    }
    let snapshot = input
        .source
        .snapshot_with(if args.json { limit } else { 0 })?;
    let age = terminal::now_seconds() - snapshot.timestamp_seconds;
    if age > OLD_SECONDS {
        logging::say(&format!(
            "warning: the snapshot of the {} is {age:.0} s old",
            input.description
        ));
    }
    // What was loaded for this is detached before anything is printed.
    drop(input);
    let text = if args.json {
        let mut text = serde_json::to_string_pretty(&snapshot).context("cannot write JSON")?;
        text.push('\n');
        text
    } else {
        once::report(&snapshot, &host, Style::of_stdout())
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}
