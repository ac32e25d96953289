//! A daemon that is measured, and what its kernel programs did.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cmd;

const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";
const READY: Duration = Duration::from_secs(30);

/// What a daemon attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Programs {
    /// Empty programs on the same hooks.
    Empty,
    /// Its own.
    All,
}

/// A running daemon, ended with its owner.
pub struct Daemon(Child);

/// A kernel program and what it did so far.
pub struct Program {
    /// Its name.
    pub name: String,
    /// Its type, as `bpftool` says.
    pub kind: String,
    /// Whether it is attached: an iterator is only while the daemon reads.
    is_attached: bool,
    runs: u64,
    nanoseconds: u64,
}

/// What a program did in some time.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Work {
    /// Its name.
    pub program: String,
    /// Times that it ran.
    pub runs: u64,
    /// Time in it, all runs together, of the clock that the kernel has: in a guest
    /// that counts instructions, instructions.
    pub nanoseconds: u64,
}

impl Daemon {
    /// Starts `command`, which is `edgeprobe daemon` with what the caller adds, and
    /// waits until it answers. Its socket and its log are kept in `folder`.
    pub fn start(
        mut command: Command,
        edgeprobe: &Path,
        folder: &Path,
        programs: Programs,
    ) -> Result<Self> {
        let socket = folder.join("edgeprobe.sock");
        let log_path = folder.join("daemon.log");
        let log = File::create(&log_path).context("a log file")?;
        command
            .args(["--log-level", "warn", "--socket"])
            .arg(&socket)
            .args((programs == Programs::Empty).then_some("--noop-programs"))
            .stdin(Stdio::null())
            .stderr(log);
        let mut daemon = Self(command.spawn().context("edgeprobe cannot be run")?);
        wait("the daemon", || {
            if let Some(status) = daemon.0.try_wait().context("a child")? {
                let log = fs::read_to_string(&log_path).unwrap_or_default();
                bail!("the daemon ended ({status}): {}", log.trim());
            }
            let mut top = Command::new(edgeprobe);
            top.args(["top", "--once", "--json", "--socket"])
                .arg(&socket);
            Ok(cmd::output(&mut top).is_ok())
        })?;
        Ok(daemon)
    }

    /// Processor time that it used.
    pub fn processor_time(&self) -> Result<Duration> {
        let stat = self.read("stat")?;
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let field = |n: usize| after_name.split_whitespace().nth(n)?.parse::<u64>().ok();
        let ticks = field(11).zip(field(12)).map(|(user, system)| user + system);
        // SAFETY: the call takes a number and touches no memory.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        let seconds = ticks.context("/proc/PID/stat")? as f64 / per_second as f64;
        Ok(Duration::from_secs_f64(seconds))
    }

    /// Its resident memory.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = self.read("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        Ok(kibibytes.context("/proc/PID/status has no VmRSS")? * 1024)
    }

    /// Kernel memory of its maps.
    pub fn map_bytes(&self) -> Result<u64> {
        let bytes = |id: u32| {
            let map = bpftool(&["map", "show", "id", &id.to_string()])?;
            Ok(map["bytes_memlock"].as_u64().unwrap_or_default())
        };
        self.numbers("map_id:")?.into_iter().map(bytes).sum()
    }

    /// What the attached tracing programs did during `load`, the most time first,
    /// and what that returned.
    pub fn work<T>(&self, load: impl FnOnce() -> Result<T>) -> Result<(Vec<Work>, T)> {
        let before = self.programs()?;
        let load = load()?;
        let mut work = Vec::new();
        for (id, end) in self.programs()? {
            let begin = before.get(&id);
            let runs = end.runs - begin.map_or(0, |begin| begin.runs);
            let nanoseconds = end.nanoseconds - begin.map_or(0, |begin| begin.nanoseconds);
            if runs > 0 && end.kind == "tracing" && end.is_attached {
                work.push(Work {
                    program: end.name,
                    runs,
                    nanoseconds,
                });
            }
        }
        work.sort_by_key(|work| Reverse(work.nanoseconds));
        Ok((work, load))
    }

    /// Its programs by number.
    pub fn programs(&self) -> Result<BTreeMap<u32, Program>> {
        let own = self.numbers("prog_id:")?;
        let attached = self.attached()?;
        let all = bpftool(&["prog", "show"])?;
        let programs = all.as_array().context("bpftool listed no programs")?;
        let programs = programs.iter().filter_map(|program| {
            let number = |key: &str| program[key].as_u64().unwrap_or_default();
            let text = |key: &str| program[key].as_str().unwrap_or_default().to_owned();
            let id = u32::try_from(number("id")).ok()?;
            let program = Program {
                name: text("name"),
                kind: text("type"),
                is_attached: attached.contains(&id),
                runs: number("run_cnt"),
                nanoseconds: number("run_time_ns"),
            };
            own.contains(&id).then_some((id, program))
        });
        Ok(programs.collect())
    }

    /// Programs of its links.
    fn attached(&self) -> Result<Vec<u32>> {
        let texts = self.descriptors()?;
        let links = texts.iter().filter(|text| {
            text.lines()
                .any(|line| line.starts_with("link_type:") && !line.ends_with("iter"))
        });
        Ok(links.filter_map(|text| number(text, "prog_id:")).collect())
    }

    fn numbers(&self, key: &str) -> Result<Vec<u32>> {
        let texts = self.descriptors()?;
        let mut numbers: Vec<u32> = texts.iter().filter_map(|text| number(text, key)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        Ok(numbers)
    }

    fn descriptors(&self) -> Result<Vec<String>> {
        let folder = format!("/proc/{}/fdinfo", self.0.id());
        let entries = fs::read_dir(&folder).with_context(|| format!("{folder} cannot be read"))?;
        Ok(entries
            .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
            .collect())
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.0.id());
        fs::read_to_string(&path).with_context(|| format!("{path} cannot be read"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // SAFETY: the child is not reaped yet, so the number is its own.
        unsafe { libc::kill(self.0.id() as i32, libc::SIGTERM) };
        let _ = self.0.wait();
    }
}

fn number(text: &str, key: &str) -> Option<u32> {
    text.lines()
        .find_map(|line| line.strip_prefix(key))?
        .trim()
        .parse()
        .ok()
}

fn bpftool(arguments: &[&str]) -> Result<Value> {
    let text = cmd::output(Command::new("bpftool").arg("--json").args(arguments))?;
    serde_json::from_str(&text).context("bpftool printed no JSON")
}

/// Nanoseconds that one run of a program takes with a packet.
pub fn run_program(id: u32, packet: &Path, repeat: &str) -> Result<f64> {
    let mut command = Command::new("bpftool");
    command
        .args(["--json", "prog", "run", "id", &id.to_string(), "data_in"])
        .arg(packet)
        .args(["repeat", repeat]);
    let text = cmd::output(&mut command)?;
    let result: Value = serde_json::from_str(&text).context("bpftool printed no JSON")?;
    result["duration"]
        .as_f64()
        .context("bpftool printed no duration")
}

/// `kernel.bpf_stats_enabled` for a while.
pub struct Statistics(String);

impl Statistics {
    /// Turns it on.
    pub fn on() -> Result<Self> {
        let usual = fs::read_to_string(STATISTICS).context("kernel.bpf_stats_enabled")?;
        fs::write(STATISTICS, "1").context("kernel.bpf_stats_enabled cannot be set")?;
        Ok(Self(usual))
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        let _ = fs::write(STATISTICS, self.0.trim());
    }
}

/// Waits until `is_ready`, for no longer than half a minute.
pub fn wait(what: &str, mut is_ready: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + READY;
    while !is_ready()? {
        if Instant::now() > deadline {
            bail!("{what} is not ready after {} s", READY.as_secs());
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
