//! Messages to stderr.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;

use crate::cli::LogLevel;

/// Sends messages of at least this severity to stderr, in colour on a terminal.
pub fn init(level: LogLevel) {
    // https://no-color.org: any value but the empty one.
    let colour = std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    // It fails only where there is a logger already, which then stays.
    let _ = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false)
        .with_max_level(LevelFilter::from(level))
        .try_init();
}
