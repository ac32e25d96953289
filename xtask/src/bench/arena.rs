//! Where the load runs: a namespace with nginx in it, and a daemon beside it.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::daemon::{Daemon, Programs, wait};
use crate::cmd;

const ADDRESS: &str = "127.0.0.1:8080";
/// Of how many segments one is lost under [`Arena::lossy_load`].
pub const LOST_OF: u32 = 20;

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

    /// Starts a daemon in it.
    pub fn daemon(&self, programs: Programs, arguments: &[&str]) -> Result<Daemon> {
        let mut command = self.inside(&self.edgeprobe);
        command.arg("daemon").args(arguments);
        Daemon::start(command, &self.edgeprobe, &self.folder, programs)
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
