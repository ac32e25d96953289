//! Where the load runs: a namespace with nginx in it, and a daemon beside it.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::cmd;

const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";
const ADDRESS: &str = "127.0.0.1:8080";
/// Of how many segments one is lost under [`Arena::lossy_load`].
pub const LOST_OF: u32 = 20;
const READY: Duration = Duration::from_secs(30);

/// The namespace and the server.
pub struct Arena {
    name: String,
    folder: PathBuf,
    edgeprobe: PathBuf,
    nginx: Option<Child>,
}

impl Arena {
    /// Makes the namespace and starts nginx in it.
    pub fn new(folder: &Path, edgeprobe: &Path) -> Result<Self> {
        // SAFETY: geteuid takes nothing, touches no memory and cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            bail!("the benchmark loads kernel programs: run it as root");
        }
        let name = format!("ep-{}-bench", std::process::id());
        cmd::output(Command::new("ip").args(["netns", "add", &name]))?;
        let mut arena = Self {
            name,
            folder: folder.to_owned(),
            edgeprobe: edgeprobe.to_owned(),
            nginx: None,
        };
        cmd::output(Command::new("ip").args(["-n", &arena.name, "link", "set", "lo", "up"]))?;
        let ports = ["net.ipv4.ip_local_port_range=1024 65535"];
        cmd::output(arena.inside("sysctl").arg("--quiet").args(ports))?;
        let config = folder.join("nginx.conf");
        let text = format!(
            "daemon off; worker_processes 1; pid {at}/nginx.pid; error_log stderr crit;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; keepalive_timeout 0;\n\
               server {{ listen {ADDRESS} backlog=4096;\n\
                 location / {{ return 200 \"edgeprobe\\n\"; }} }} }}\n",
            at = folder.display()
        );
        fs::write(&config, text).context("the configuration of nginx cannot be written")?;
        let log = File::create(folder.join("nginx.log")).context("a log file")?;
        let mut nginx = arena.inside("nginx");
        nginx
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stderr(log);
        arena.nginx = Some(nginx.spawn().context("nginx cannot be run")?);
        wait("nginx", || {
            let mut get = arena.inside("wrk");
            get.args(["-t1", "-c1", "-d1s", &format!("http://{ADDRESS}/")]);
            Ok(cmd::output(&mut get).is_ok_and(|text| requests(&text).is_some_and(|n| n > 0)))
        })?;
        Ok(arena)
    }

    /// A program inside the namespace. Not by `ip netns exec`: that would hide
    /// `/sys`.
    fn inside(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/var/run/netns/{}", self.name))
            .arg(program);
        command
    }

    /// Makes connections for some time, as many as go.
    pub fn load(&self, time: Duration) -> Result<Load> {
        let (load, errors) = self.wrk(time, 16)?;
        match errors {
            Some(errors) => bail!("wrk met errors: {errors}"),
            None => Ok(load),
        }
    }

    /// The same while one segment in [`LOST_OF`] is lost, with more connections
    /// at once, since most of them wait.
    pub fn lossy_load(&self, time: Duration) -> Result<Load> {
        let rules = format!(
            "table inet ep {{ chain pre {{ type filter hook prerouting priority raw; \
             meta l4proto tcp numgen random mod {LOST_OF} == 0 drop; }}; }}"
        );
        cmd::output(self.inside("nft").arg(rules))?;
        let load = self.wrk(time, 1024);
        cmd::output(self.inside("nft").args(["delete", "table", "inet", "ep"]))?;
        // What takes wrk too long is an error to it.
        Ok(load?.0)
    }

    /// What `wrk` did on so many connections, and what it calls errors.
    fn wrk(&self, time: Duration, connections: u32) -> Result<(Load, Option<String>)> {
        let mut wrk = self.inside("wrk");
        wrk.args(["-t1", &format!("-c{connections}")])
            .arg(format!("-d{}s", time.as_secs()))
            .args([
                "--header",
                "Connection: close",
                &format!("http://{ADDRESS}/"),
            ]);
        let begin = Instant::now();
        let text = cmd::output(&mut wrk)?;
        let seconds = begin.elapsed().as_secs_f64();
        let errors = text.lines().find(|line| line.contains("Socket errors"));
        let requests = requests(&text).context("wrk printed no number of requests")?;
        let rate = text
            .lines()
            .find_map(|line| line.strip_prefix("Requests/sec:"))
            .and_then(|rate| rate.trim().parse().ok())
            .context("wrk printed no rate")?;
        let load = Load {
            requests,
            rate,
            seconds,
        };
        Ok((load, errors.map(|errors| errors.trim().to_owned())))
    }

    /// A device for XDP in the namespace.
    pub fn device(&self) -> Result<String> {
        let add = [
            "link", "add", "epb0", "type", "veth", "peer", "name", "epb1",
        ];
        cmd::output(Command::new("ip").args(["-n", &self.name]).args(add))?;
        for device in ["epb0", "epb1"] {
            let up = ["link", "set", device, "up"];
            cmd::output(Command::new("ip").args(["-n", &self.name]).args(up))?;
        }
        Ok("epb0".to_owned())
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if let Some(nginx) = &mut self.nginx {
            // nginx ends its workers on SIGTERM; SIGKILL would leave them.
            // SAFETY: the child is not reaped yet, so the number is its own.
            unsafe { libc::kill(nginx.id() as i32, libc::SIGTERM) };
            let _ = nginx.wait();
        }
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

/// What one turn did.
pub struct Load {
    /// Requests, each on a connection of its own.
    pub requests: u64,
    /// Requests a second, as wrk counts.
    pub rate: f64,
    /// Time that it took, wrk's start and end included.
    pub seconds: f64,
}

/// `  12345 requests in 5.00s, 1.00MB read`.
fn requests(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains(" requests in "))?;
    line.split_whitespace().next()?.parse().ok()
}

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
    pub is_attached: bool,
    /// Runs.
    pub runs: u64,
    /// Time in them.
    pub nanoseconds: u64,
}

impl Daemon {
    /// Starts it in the arena and waits until it answers.
    pub fn start(arena: &Arena, programs: Programs, arguments: &[&str]) -> Result<Self> {
        let socket = arena.folder.join("edgeprobe.sock");
        let log_path = arena.folder.join("daemon.log");
        let log = File::create(&log_path).context("a log file")?;
        let mut command = arena.inside(&arena.edgeprobe);
        command
            .args(["daemon", "--log-level", "warn", "--socket"])
            .arg(&socket)
            .args((programs == Programs::Empty).then_some("--noop-programs"))
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(log);
        let mut daemon = Self(command.spawn().context("edgeprobe cannot be run")?);
        wait("the daemon", || {
            if let Some(status) = daemon.0.try_wait().context("a child")? {
                let log = fs::read_to_string(&log_path).unwrap_or_default();
                bail!("the daemon ended ({status}): {}", log.trim());
            }
            let mut top = Command::new(&arena.edgeprobe);
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

    /// Its programs by number.
    pub fn programs(&self) -> Result<BTreeMap<u32, Program>> {
        let attached = self.attached()?;
        let program = |id: u32| {
            let program = bpftool(&["prog", "show", "id", &id.to_string()])?;
            let text = |key: &str| program[key].as_str().unwrap_or_default().to_owned();
            let number = |key: &str| program[key].as_u64().unwrap_or_default();
            Ok((
                id,
                Program {
                    name: text("name"),
                    kind: text("type"),
                    is_attached: attached.contains(&id),
                    runs: number("run_cnt"),
                    nanoseconds: number("run_time_ns"),
                },
            ))
        };
        self.numbers("prog_id:")?.into_iter().map(program).collect()
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

fn wait(what: &str, mut is_ready: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + READY;
    while !is_ready()? {
        if Instant::now() > deadline {
            bail!("{what} is not ready after {} s", READY.as_secs());
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
