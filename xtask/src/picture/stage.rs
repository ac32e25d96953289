//! What the picture shows: a web server, the program behind it, a database that
//! is down, and two kinds of clients.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use crate::cmd;

/// Addresses of the server, one for each kind of clients.
const SERVER: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
/// Addresses of the clients: of a stranger, and of a site of one's own.
const CLIENT: [&str; 2] = ["198.51.100.7", "203.0.113.9"];
/// One segment in so many is lost on its way to the clients.
const LOST_OF: u32 = 60;
/// Size of a file in bytes: some segments, so that there is something to lose.
const FILE: usize = 96 << 10;
const READY: Duration = Duration::from_secs(10);

/// Requests on short connections, a few of them to what is slow or down.
const SHORT: &str = r#"
local n = 0
function delay() return math.random(5, 40) end
function request()
  n = n + 1
  local path = n % 25 == 0 and "/session" or n % 5 == 0 and "/app" or "/file"
  return wrk.format("GET", path, { Connection = "close" })
end
"#;

/// Requests on connections that stay open.
const LONG: &str = r#"
function delay() return math.random(20, 80) end
function request() return wrk.format("GET", "/file") end
"#;

/// The namespaces and what runs in them; all of it ends with its owner.
pub struct Stage {
    folder: PathBuf,
    server: String,
    client: String,
    nginx: Option<Child>,
    load: Vec<Child>,
}

impl Stage {
    /// Makes the namespaces and starts nginx.
    ///
    /// # Errors
    ///
    /// A tool is missing or refuses, or nginx does not answer.
    pub fn new(folder: &Path) -> Result<Self> {
        let pid = std::process::id();
        let mut stage = Self {
            folder: folder.to_owned(),
            server: format!("ep-{pid}-edge"),
            client: format!("ep-{pid}-world"),
            nginx: None,
            load: Vec::new(),
        };
        stage.network()?;
        stage.serve()?;
        Ok(stage)
    }

    /// Name of the namespace that is looked at.
    pub fn server(&self) -> &str {
        &self.server
    }

    fn network(&self) -> Result<()> {
        let (server, client) = (self.server.as_str(), self.client.as_str());
        for name in [server, client] {
            cmd::output(Command::new("ip").args(["netns", "add", name]))?;
            ip(name, &["link", "set", "lo", "up"])?;
        }
        let pair = [
            "link", "add", "epp0", "type", "veth", "peer", "name", "epp1",
        ];
        ip(server, &[&pair[..], &["netns", client]].concat())?;
        for (name, device, addresses) in [(server, "epp0", SERVER), (client, "epp1", CLIENT)] {
            for address in addresses {
                let address = format!("{address}/32");
                ip(name, &["address", "add", &address, "dev", device])?;
            }
            ip(name, &["link", "set", device, "up"])?;
        }
        for (to, from) in SERVER.into_iter().zip(CLIENT) {
            ip(client, &["route", "add", to, "dev", "epp1", "src", from])?;
            ip(server, &["route", "add", from, "dev", "epp0", "src", to])?;
        }
        // On the receiver's side: there the sender sees a loss and no error.
        let rules = format!(
            "table inet ep {{ chain pre {{ type filter hook prerouting priority raw; \
             meta l4proto tcp numgen random mod {LOST_OF} == 0 drop; }}; }}"
        );
        cmd::output(inside(client, "nft").arg(rules))?;
        Ok(())
    }

    fn serve(&mut self) -> Result<()> {
        let at = self.folder.display();
        let mut certificate = Command::new("openssl");
        certificate
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
            .args(["ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"])
            .args(["-subj", "/CN=edge.example", "-keyout"])
            .arg(self.folder.join("key.pem"))
            .arg("-out")
            .arg(self.folder.join("certificate.pem"));
        cmd::output(&mut certificate)?;
        fs::write(self.folder.join("file"), vec![b'x'; FILE]).context("a file")?;
        fs::write(self.folder.join("app"), "app\n").context("a file")?;
        let [public, own] = SERVER;
        // The limit makes the program behind it slow: requests wait for their turn.
        let text = format!(
            "user root; daemon off; worker_processes 1; pid {at}/nginx.pid;\n\
             error_log stderr crit;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; proxy_temp_path {at}/proxy; root {at};\n\
               limit_req_zone $server_port zone=slow:1m rate=30r/s;\n\
               server {{ listen {public}:443 ssl; listen {own}:80;\n\
                 ssl_certificate certificate.pem; ssl_certificate_key key.pem;\n\
                 location /app {{ proxy_pass http://127.0.0.1:8080; }}\n\
                 location /session {{ proxy_pass http://127.0.0.1:6379; }} }}\n\
               server {{ listen 127.0.0.1:8080;\n\
                 location / {{ limit_req zone=slow burst=200; }} }} }}\n"
        );
        let config = self.folder.join("nginx.conf");
        fs::write(&config, text).context("the configuration of nginx cannot be written")?;
        let log_path = self.folder.join("nginx.log");
        let log = File::create(&log_path).context("a log file")?;
        let mut nginx = inside(&self.server, "nginx");
        nginx
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stderr(log);
        let mut nginx = nginx.spawn().context("nginx cannot be run")?;
        let begin = Instant::now();
        let served = loop {
            if let Some(status) = nginx.try_wait().context("a child cannot be waited for")? {
                let log = fs::read_to_string(&log_path).unwrap_or_default();
                bail!("nginx ended ({status}): {}", log.trim());
            }
            // Written once it listens.
            if self.folder.join("nginx.pid").exists() {
                break true;
            }
            if begin.elapsed() > READY {
                break false;
            }
            thread::sleep(Duration::from_millis(50));
        };
        self.nginx = Some(nginx);
        if !served {
            bail!("nginx does not listen after {} s", READY.as_secs());
        }
        Ok(())
    }

    /// Starts the clients: for that time, and a little longer.
    ///
    /// # Errors
    ///
    /// wrk cannot be run.
    pub fn load(&mut self, time: Duration) -> Result<()> {
        let [public, own] = SERVER;
        for (name, script, connections, url) in [
            ("short.lua", SHORT, 16, format!("https://{public}/")),
            ("long.lua", LONG, 12, format!("http://{own}/")),
        ] {
            let path = self.folder.join(name);
            fs::write(&path, script).context("a script")?;
            let mut wrk = inside(&self.client, "wrk");
            wrk.args(["-t1", &format!("-c{connections}")])
                .arg(format!("-d{}s", time.as_secs() + 10))
                .arg("-s")
                .arg(&path)
                .arg(url)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            self.load.push(wrk.spawn().context("wrk cannot be run")?);
        }
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for wrk in &mut self.load {
            let _ = wrk.kill();
            let _ = wrk.wait();
        }
        if let Some(nginx) = &mut self.nginx {
            // nginx ends its workers on SIGTERM; SIGKILL would leave them.
            if let Ok(pid) = i32::try_from(nginx.id()) {
                let _ = signal::kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
            let _ = nginx.wait();
        }
        for name in [&self.server, &self.client] {
            let _ = cmd::output(Command::new("ip").args(["netns", "del", name]));
        }
    }
}

/// `ip` in a namespace.
fn ip(name: &str, arguments: &[&str]) -> Result<()> {
    cmd::output(Command::new("ip").args(["-n", name]).args(arguments)).map(drop)
}

/// A program in a namespace. Not by `ip netns exec`: that would hide `/sys`.
fn inside(name: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net=/var/run/netns/{name}"))
        .arg(program);
    command
}
