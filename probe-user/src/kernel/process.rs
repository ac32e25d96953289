//! What this process costs and may do, as the kernel accounts it.

use std::sync::OnceLock;

use anyhow::{Context, anyhow};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};

use super::caps;
use crate::model::Process;

/// Reads the figures of this process.
pub fn read() -> anyhow::Result<Process> {
    let cpu = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).context("CPU time")?;
    let status = read_file("/proc/self/status")?;
    let open_fds = std::fs::read_dir("/proc/self/fd")
        .context("/proc/self/fd")?
        .count();
    Ok(Process {
        cpu_seconds: std::time::Duration::from(cpu).as_secs_f64(),
        resident_bytes: field(&status, "VmRSS:")?
            .trim_end_matches(" kB")
            .parse::<u64>()
            .context("VmRSS")?
            * 1024,
        // Listing the directory opens it, which shows in the list.
        open_fds: (open_fds as u64).saturating_sub(1),
        start_seconds: start_seconds()?,
        capabilities: caps::from_status(&status),
    })
}

/// When this process started, seconds since 1970-01-01 UTC.
fn start_seconds() -> anyhow::Result<f64> {
    static START: OnceLock<f64> = OnceLock::new();
    if let Some(&start) = START.get() {
        return Ok(start);
    }
    let ticks = start_ticks(&read_file("/proc/self/stat")?)?;
    let boot: f64 = field(&read_file("/proc/stat")?, "btime ")?
        .parse()
        .context("btime")?;
    let per_second = sysconf(SysconfVar::CLK_TCK)
        .ok()
        .flatten()
        .context("clock ticks")?;
    Ok(*START.get_or_init(|| boot + ticks as f64 / per_second as f64))
}

/// Field 22 of `/proc/self/stat`. The name of the program, field 2, can hold
/// spaces and brackets.
fn start_ticks(stat: &str) -> anyhow::Result<u64> {
    let (_, after) = stat.rsplit_once(')').context("/proc/self/stat")?;
    let ticks = after.split_whitespace().nth(22 - 3);
    ticks
        .context("/proc/self/stat")?
        .parse()
        .context("start time")
}

fn read_file(path: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

/// What follows `key` on its line.
fn field<'a>(text: &'a str, key: &str) -> anyhow::Result<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(key))
        .map(str::trim)
        .ok_or_else(|| anyhow!("no {key:?} in /proc"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_this_process_are_plausible() {
        let before = read().unwrap();
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        let age = now.as_secs_f64() - before.start_seconds;
        // The kernel's boot time is a whole second and moves with the clock.
        assert!((-2.0..3600.0).contains(&age), "{age}");
        assert!(before.resident_bytes > 1 << 20);
        let _file = std::fs::File::open("/proc/self/stat").unwrap();
        let mut sum = 0u64;
        for n in 0..20_000_000u64 {
            sum = std::hint::black_box(sum ^ n);
        }
        let after = read().unwrap();
        assert!(after.open_fds >= 3);
        assert!(after.cpu_seconds > before.cpu_seconds);
    }

    #[test]
    fn a_program_name_with_brackets_does_not_shift_the_fields() {
        let fields: Vec<_> = (4..30).map(|n| n.to_string()).collect();
        let stat = format!("1 (a) b) c) S {}", fields.join(" "));
        assert_eq!(start_ticks(&stat).unwrap(), 22);
        assert!(start_ticks("1 (a").is_err());
        assert!(start_ticks("1 (a) S 4").is_err());
    }
}
