//! One boot of a guest.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::Guest;
use crate::cmd;

/// How often a guest that is at work is looked at.
const TICK: Duration = Duration::from_millis(100);
/// How often it is said that a guest is still at work.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// What time is in a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The host's.
    Host,
    /// A nanosecond for each instruction, and none for waiting: whatever the
    /// guest measures is the same in every run. For one processor only.
    Instructions,
}

/// The processors of a guest, and how long it may take.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Processors; the emulator may let a guest down with more than one.
    pub cpus: u32,
    /// What its time is.
    pub clock: Clock,
    /// When it is ended.
    pub patience: Duration,
}

impl Machine {
    /// Boots a guest with `initramfs`, waits for its end and returns what it
    /// printed to its console, which stays in the file `log`.
    ///
    /// # Errors
    ///
    /// QEMU cannot be run. A guest that was ended for its time is no error: its
    /// console ends early.
    pub fn boot(&self, guest: &Guest, initramfs: &Path, log: &Path) -> Result<String> {
        let name = guest.name();
        let console =
            File::create(log).with_context(|| format!("{} cannot be made", log.display()))?;
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-accel", "tcg", "-cpu", "max", "-m", "3G"])
            .args(["-smp", &self.cpus.to_string()])
            .args(["-nodefaults", "-display", "none"])
            .args(["-serial", "stdio", "-no-reboot"]);
        if self.clock == Clock::Instructions {
            // What the kernel asks for at random, and the time of day, are the same
            // too: it places itself and its tables by them.
            command
                .args(["-icount", "shift=0,sleep=off", "-seed", "1"])
                .args(["-rtc", "base=2026-01-01,clock=vm"]);
        }
        command
            .arg("-kernel")
            .arg(&guest.vmlinuz)
            .arg("-initrd")
            .arg(initramfs)
            .args(["-append", "console=ttyS0 panic=-1 quiet loglevel=4"])
            .stdin(Stdio::null())
            .stdout(console.try_clone().context("a log file cannot be shared")?)
            .stderr(console);
        cmd::say(&format!("{name}: booting"));
        let started = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("`{}` cannot be run", cmd::line(&command)))?;
        let mut next = HEARTBEAT;
        while child
            .try_wait()
            .context("QEMU cannot be waited for")?
            .is_none()
        {
            if started.elapsed() > self.patience {
                child.kill().context("QEMU cannot be ended")?;
                child.wait().context("QEMU cannot be waited for")?;
                cmd::say(&format!(
                    "error: {name}: ended after {} s",
                    self.patience.as_secs()
                ));
                break;
            }
            if started.elapsed() > next {
                cmd::say(&format!("{name}: {} s so far", next.as_secs()));
                next += HEARTBEAT;
            }
            thread::sleep(TICK);
        }
        let console = fs::read(log).with_context(|| format!("{} cannot be read", log.display()))?;
        Ok(String::from_utf8_lossy(&console).replace('\r', ""))
    }
}
