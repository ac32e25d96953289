//! What this process costs and may do, as the kernel accounts it.

use std::sync::OnceLock;

use anyhow::{Context, anyhow};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};

use crate::snapshot::Process;

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
        capabilities: capability_names(
            u64::from_str_radix(field(&status, "CapEff:")?, 16).context("CapEff")?,
        ),
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

/// Names of the capabilities in a bit mask, such as `CAP_BPF`; a number where
/// a newer kernel has one that has no name here.
pub fn capability_names(mask: u64) -> Vec<String> {
    (0..64)
        .filter(|bit| mask & (1 << bit) != 0)
        .map(|bit| match CAPABILITIES.get(bit) {
            Some(name) => format!("CAP_{name}"),
            None => format!("CAP_{bit}"),
        })
        .collect()
}

/// Names from `linux/capability.h`, by number.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

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

    #[test]
    fn capabilities_have_their_names() {
        assert_eq!(
            capability_names(1 << 12 | 1 << 38 | 1 << 39 | 1 << 63),
            ["CAP_NET_ADMIN", "CAP_PERFMON", "CAP_BPF", "CAP_63"]
        );
        assert!(capability_names(0).is_empty());
    }
}
