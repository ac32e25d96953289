//! What this process costs and may do, as the kernel accounts it.

use std::sync::OnceLock;

use anyhow::Context as _;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::time::{ClockId, clock_gettime};
use procfs::process::Process as Proc;

use super::caps;
use crate::{logging, model::Process};

/// Reads the figures of this process.
///
/// # Errors
///
/// `/proc` is not mounted, or lacks one of them.
pub fn read() -> anyhow::Result<Process> {
    let cpu = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).context("CPU time")?;
    // Counted first: what `procfs` holds open is not a descriptor of the tool.
    let open_fds = open_fds()?;
    let proc = Proc::myself()?;
    let status = proc.status()?;
    let resident_kib = status.vmrss.context("no VmRSS in /proc/self/status")?;
    let virtual_kib = status.vmsize.context("no VmSize in /proc/self/status")?;
    Ok(Process {
        cpu_seconds: std::time::Duration::from(cpu).as_secs_f64(),
        resident_bytes: resident_kib * 1024,
        virtual_bytes: virtual_kib * 1024,
        open_fds,
        max_fds: max_fds()?,
        log_lines_lost: logging::lines_lost(),
        start_seconds: start_seconds(&proc)?,
        capabilities: caps::names(status.capeff),
    })
}

/// Open descriptors. `procfs` counts those of its own listing too, and how many
/// those are depends on the kernel.
fn open_fds() -> anyhow::Result<u64> {
    let listed = std::fs::read_dir("/proc/self/fd")
        .context("/proc/self/fd")?
        .count();
    // Listing the directory opens it, which shows in the list.
    Ok((listed as u64).saturating_sub(1))
}

/// Descriptors that may be open at a time; `None` where there is no limit.
///
/// # Errors
///
/// The kernel does not tell.
pub fn max_fds() -> anyhow::Result<Option<u64>> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).context("the limit of open files")?;
    Ok((soft != RLIM_INFINITY).then_some(soft))
}

/// When this process started, seconds since 1970-01-01 UTC.
fn start_seconds(proc: &Proc) -> anyhow::Result<f64> {
    static START: OnceLock<f64> = OnceLock::new();
    if let Some(&start) = START.get() {
        return Ok(start);
    }
    let after_boot = proc.stat()?.starttime as f64 / procfs::ticks_per_second() as f64;
    let boot = procfs::boot_time_secs()? as f64;
    Ok(*START.get_or_init(|| boot + after_boot))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    /// Runs in a process of its own, since other tests open files and take memory
    /// meanwhile.
    #[test]
    fn figures_follow_what_the_process_does() {
        const ALONE: &str = "EDGEPROBE_TEST_ALONE";
        if std::env::var_os(ALONE).is_none() {
            let name = "kernel::process::tests::figures_follow_what_the_process_does";
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name])
                .env(ALONE, "1")
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{text}");
            assert!(text.contains("1 passed"), "{text}");
            return;
        }
        // What stands between the brackets of `stat` does not shift its fields.
        fs::write("/proc/self/comm", "a) (b) 1 2").unwrap();
        let before = read().unwrap();
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        let age = now.as_secs_f64() - before.start_seconds;
        // The kernel's boot time is a whole second and moves with the clock.
        assert!((-2.0..60.0).contains(&age), "{age}");

        let files: Vec<_> = (0..7)
            .map(|_| File::open("/proc/self/stat").unwrap())
            .collect();
        assert_eq!(read().unwrap().open_fds, before.open_fds + 7);
        drop(files);
        assert_eq!(read().unwrap().open_fds, before.open_fds);
        let limits = fs::read_to_string("/proc/self/limits").unwrap();
        let limit = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"))
            .and_then(|line| line.split_whitespace().next()?.parse().ok());
        assert_eq!(before.max_fds, limit);

        // Since Linux 6.2 the kernel has the number as the size of the directory.
        let size = fs::metadata("/proc/self/fd").unwrap().len();
        let release = crate::kernel::clocks::kernel_release();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        let mut number = || numbers.next().unwrap().parse::<u32>().unwrap();
        let tells = (number(), number()) >= (6, 2);
        assert_eq!(size, if tells { before.open_fds } else { 0 }, "{release}");

        // The kernel's count of pages is near: each processor keeps some back.
        const TAKEN: u64 = 64 << 20;
        const NEAR: u64 = 16 << 20;
        let memory = std::hint::black_box(vec![1u8; TAKEN as usize]);
        let after = read().unwrap();
        let grown = after.resident_bytes - before.resident_bytes;
        assert!((TAKEN - NEAR..TAKEN + NEAR).contains(&grown), "{grown}");
        assert!(after.virtual_bytes >= after.resident_bytes);
        assert!(after.cpu_seconds > before.cpu_seconds);
        drop(memory);
    }

    #[test]
    fn capabilities_are_those_that_the_system_call_tells() {
        let told = ::caps::read(None, ::caps::CapSet::Effective).unwrap();
        let mut told: Vec<_> = told.iter().collect();
        told.sort_by_key(|capability| capability.index());
        let told: Vec<_> = told.iter().map(ToString::to_string).collect();
        assert_eq!(read().unwrap().capabilities, told);
    }
}
