//! `cargo xtask run`: the daemon in the foreground, and a first report.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitCode, ExitStatus},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGKILL, SIGTERM};

use crate::{build, cmd, workspace::Workspace};

const LISTEN: &str = "127.0.0.1:9977";
/// How long the daemon may take to load and attach.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// How much of the traffic the first report shows.
const FIRST_REPORT_AFTER: Duration = Duration::from_secs(3);
/// How long the daemon may take to detach and end.
const STOP_WITHIN: Duration = Duration::from_secs(5);
const MAX_ANSWER: u64 = 64 * 1024;
const TICK: Duration = Duration::from_millis(50);

/// How long, and what the daemon is told.
#[derive(Args, Debug)]
pub struct Options {
    /// End after this time, such as 10s, 5m or 1h
    #[arg(long = "for", value_name = "TIME", value_parser = parse_time)]
    duration: Option<Duration>,
    /// Options of `edgeprobe daemon`
    #[arg(last = true)]
    args: Vec<String>,
}

/// Sets up, builds, runs the daemon and returns how it ended.
pub fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    if !cmd::is_root() {
        bail!(
            "loading kernel programs needs root: run `sudo -E env \"PATH=$PATH\" cargo xtask run`"
        );
    }
    let binary = build::edgeprobe(workspace, true)?;
    let mut command = Command::new(&binary);
    command.arg("daemon");
    if option(&options.args, "--listen").is_none() {
        command.args(["--listen", LISTEN]);
    }
    command.args(&options.args);
    // A Ctrl-C reaches it once: from here, not also from the terminal.
    command.process_group(0);

    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .context("signals cannot be watched")?;
    }
    cmd::say(&format!("running `{}`", cmd::line(&command)));
    let started = Instant::now();
    let child = command
        .spawn()
        .with_context(|| format!("{} cannot be run", binary.display()))?;
    let mut daemon = Daemon(child);
    let status = attend(&mut daemon, &binary, options, &interrupted, started)?;
    Ok(match status.code() {
        Some(code) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        None => bail!("the daemon was killed ({status})"),
    })
}

/// Waits for the daemon to be ready, reports, and waits for the end.
fn attend(
    daemon: &mut Daemon,
    binary: &Path,
    options: &Options,
    interrupted: &AtomicBool,
    started: Instant,
) -> Result<ExitStatus> {
    let listen = option(&options.args, "--listen").unwrap_or(LISTEN);
    let mut ready = None;
    let mut reported = false;
    loop {
        if let Some(status) = daemon.ended()? {
            return Ok(status);
        }
        if interrupted.load(Ordering::Relaxed)
            || options
                .duration
                .is_some_and(|time| started.elapsed() >= time)
        {
            return daemon.stop();
        }
        match ready {
            None if is_ready(listen) => {
                cmd::say(&format!(
                    "ready after {:.1} s: http://{listen}/metrics, first report in {} s, \
                     Ctrl-C ends it",
                    started.elapsed().as_secs_f64(),
                    FIRST_REPORT_AFTER.as_secs()
                ));
                ready = Some(Instant::now());
            }
            None if started.elapsed() > READY_WITHIN => {
                daemon.stop()?;
                bail!(
                    "the daemon was not ready within {} s",
                    READY_WITHIN.as_secs()
                );
            }
            Some(since) if !reported && since.elapsed() >= FIRST_REPORT_AFTER => {
                report(binary, &options.args);
                reported = true;
            }
            _ => {}
        }
        thread::sleep(TICK);
    }
}

/// Prints one table from the daemon's socket.
fn report(binary: &Path, args: &[String]) {
    let mut top = Command::new(binary);
    top.args(["top", "--once"]);
    for name in ["--config", "--socket"] {
        if let Some(value) = option(args, name) {
            top.args([name, value]);
        }
    }
    match top.status() {
        Ok(status) if status.success() => {}
        Ok(status) => cmd::say(&format!("`{}` failed ({status})", cmd::line(&top))),
        Err(error) => cmd::say(&format!("`{}` cannot be run: {error}", cmd::line(&top))),
    }
}

/// Whether `/readyz` of the daemon answers 200.
fn is_ready(listen: &str) -> bool {
    let ask = || -> Result<bool> {
        let mut address: SocketAddr = match listen.strip_prefix(':') {
            Some(port) => format!("127.0.0.1:{port}").parse()?,
            None => listen.parse()?,
        };
        match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        let patience = Duration::from_millis(500);
        let mut stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        // Read to the end: closing with something unread would send a reset,
        // and the first report is about to show it.
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
        Ok(answer.starts_with(b"HTTP/1.1 200"))
    };
    ask().unwrap_or(false)
}

/// The value of `--name VALUE` or `--name=VALUE` among `args`.
fn option<'a>(args: &'a [String], name: &str) -> Option<&'a str> {
    args.iter().enumerate().find_map(|(index, arg)| {
        if arg == name {
            return args.get(index + 1).map(String::as_str);
        }
        arg.strip_prefix(name)?.strip_prefix('=')
    })
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time such as 10s, 5m or 1h");
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(wrong)
}

/// The child; it does not outlive this.
struct Daemon(Child);

impl Daemon {
    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.0.try_wait().context("the daemon cannot be waited for")
    }

    /// Sends SIGINT and waits for the end.
    fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(SIGINT);
        let asked = Instant::now();
        while asked.elapsed() < STOP_WITHIN {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            thread::sleep(TICK);
        }
        self.signal(SIGKILL);
        let status = self.0.wait().context("the daemon cannot be waited for")?;
        bail!(
            "the daemon did not end within {} s of SIGINT and was killed ({status})",
            STOP_WITHIN.as_secs()
        );
    }

    fn signal(&self, signal: i32) {
        if let Ok(pid) = libc::pid_t::try_from(self.0.id()) {
            // SAFETY: kill only takes numbers; the child has not been waited
            // for, so that its number is still its own.
            unsafe { libc::kill(pid, signal) };
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // An error on the way must not leave it running.
        if matches!(self.0.try_wait(), Ok(None)) {
            self.signal(SIGKILL);
            let _ = self.0.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_in_both_spellings() {
        let args: Vec<String> = ["--socket", "/run/x", "--listen=[::1]:1", "--config"]
            .map(str::to_owned)
            .to_vec();
        assert_eq!(option(&args, "--socket"), Some("/run/x"));
        assert_eq!(option(&args, "--listen"), Some("[::1]:1"));
        assert_eq!(option(&args, "--config"), None);
        assert_eq!(option(&args, "--netns"), None);
    }

    #[test]
    fn times_have_units() {
        assert_eq!(parse_time("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_time("7"), Ok(Duration::from_secs(7)));
        assert_eq!(parse_time("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_time("2h"), Ok(Duration::from_secs(7200)));
        for wrong in [
            "",
            "s",
            "1d",
            "-1s",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert!(parse_time(wrong).is_err(), "{wrong:?}");
        }
    }
}
