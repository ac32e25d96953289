//! A PostgreSQL server of the test's own, and `pgbench`.

use std::{
    fs::{self, Permissions},
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    daemon::Running,
    netns::{Netns, Pair},
    poll, programs, skip,
};

/// The server refuses to be root.
const USER: &str = "postgres";

/// Where the programs of the newest version are, or `None`, said loudly.
/// Debian keeps them off the path.
#[track_caller]
#[must_use]
pub fn programs_of(test: &str) -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let newest = versions
        .filter_map(|entry| {
            let version: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let folder = PathBuf::from(format!("/usr/lib/postgresql/{version}/bin"));
            let all = ["initdb", "postgres", "pgbench"];
            (all.iter().all(|program| folder.join(program).is_file())).then_some((version, folder))
        })
        .max();
    if newest.is_none() {
        skip::skipped(test, "postgresql is not installed");
    }
    newest.map(|(_, folder)| folder)
}

/// A server with its data in a folder that goes with it.
pub struct Postgres {
    running: Running,
    programs: PathBuf,
    folder: TempDir,
    address: IpAddr,
    port: u16,
}

/// A program as the server's user.
fn as_user(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", USER, "--regid", USER, "--clear-groups", "--"])
        .arg(program)
        .current_dir("/")
        .stdin(Stdio::null());
    command
}

impl Postgres {
    /// Makes a cluster and serves it on an address of a namespace.
    ///
    /// # Panics
    ///
    /// Where it does not begin to serve.
    #[track_caller]
    pub fn start(netns: &Netns, programs: &Path, address: IpAddr, port: u16) -> Self {
        let folder = programs::folder();
        let at = folder.path();
        let data = at.join("data");
        fs::create_dir(&data).expect("a folder");
        fs::set_permissions(at, Permissions::from_mode(0o755)).expect("permissions");
        let owner = Command::new("chown").arg(USER).arg(&data).status();
        assert!(owner.is_ok_and(|status| status.success()), "chown {USER}");
        let made = as_user(&programs.join("initdb"))
            .args(["--auth", "trust", "--no-sync", "--locale", "C", "--pgdata"])
            .arg(&data)
            .output()
            .expect("initdb runs");
        let errors = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "initdb: {errors}");
        let rules = data.join("pg_hba.conf");
        fs::write(&rules, "host all all 10.77.0.0/24 trust\n").expect("a file");
        let mut command = as_user(&programs.join("postgres"));
        command.arg("-D").arg(&data);
        for setting in [
            &format!("listen_addresses={address}"),
            &format!("port={port}"),
            "unix_socket_directories=",
            "fsync=off",
            "autovacuum=off",
            "log_connections=on",
        ] {
            command.args(["-c", setting]);
        }
        let running = programs::start(netns, command, at.join("messages"));
        let mut postgres = Self {
            running,
            programs: programs.to_owned(),
            folder,
            address,
            port,
        };
        poll::until("PostgreSQL serves", || {
            postgres.running.assert_alive();
            postgres
                .messages()
                .contains("ready to accept")
                .then_some(())
        });
        postgres
    }

    fn messages(&self) -> String {
        self.running.messages()
    }

    /// Connections that it accepted, by its own log.
    pub fn accepted(&self) -> u64 {
        self.messages().matches("connection received: ").count() as u64
    }

    /// Runs `pgbench` from inside the other namespace with a script of one
    /// statement: each of `clients` makes as many transactions, on one
    /// connection or each on its own. Returns the transactions that it counted.
    ///
    /// # Panics
    ///
    /// Where it fails.
    #[track_caller]
    pub fn bench(&self, pair: &Pair, clients: u32, each: u32, reconnect: bool) -> u64 {
        let script = self.folder.path().join("script");
        fs::write(&script, "SELECT 1;\n").expect("a file");
        let (address, port) = (self.address.to_string(), self.port.to_string());
        let (clients, each) = (clients.to_string(), each.to_string());
        let program = self.programs.join("pgbench");
        let mut arguments = vec!["--no-vacuum", "--host", &address, "--port", &port];
        arguments.extend(["--username", USER, "--client", &clients]);
        arguments.extend(["--transactions", &each, "--protocol", "simple", "--file"]);
        arguments.push(script.to_str().expect("a path of plain letters"));
        if reconnect {
            arguments.push("--connect");
        }
        arguments.push("postgres");
        let program = program.to_str().expect("a path of plain letters");
        let text = pair.client.command(program, &arguments);
        let count = (text.lines())
            .find_map(|line| line.strip_prefix("number of transactions actually processed: "))
            .and_then(|line| line.split('/').next()?.trim().parse().ok());
        count.unwrap_or_else(|| panic!("no number of transactions: {text}"))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // On SIGQUIT it ends its children and removes its shared memory.
        self.running.signal(libc::SIGQUIT);
        let asked = Instant::now();
        while self.running.is_alive() && asked.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
