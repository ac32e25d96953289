//! Whether a daemon with this host's configuration would start, and whether one runs.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use super::examine::{Check, Group, Status};
use super::links::Link;
use crate::config::{Config, DEFAULT_FILE};
use crate::kernel::netns::NetNs;
use crate::model::Snapshot;
use crate::serve::unix::{self, Request, SocketError};

/// How long a daemon or another program may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Enough of a page to know it by.
const PAGE: u64 = 4096;

/// What there is to judge.
#[derive(Debug)]
pub struct Setup {
    /// The file of the configuration, and whether it is there.
    file: (PathBuf, bool),
    /// The configuration, or a line for each error.
    config: Result<Config, Vec<String>>,
    /// What the daemon said.
    daemon: Result<Snapshot, SocketError>,
    /// What became of the address that the daemon is to serve HTTP on.
    port: Option<(SocketAddr, Port)>,
    /// Names of namespaces of the configuration that are not there, and why.
    namespaces: Vec<(String, String)>,
}

/// An address to listen on.
#[derive(Debug)]
enum Port {
    Free,
    Edgeprobe,
    /// Another program has it.
    Taken,
    Refused(io::Error),
}

impl Setup {
    /// Looks at the file, the socket and the port; `file` and `socket` win over the
    /// defaults.
    pub fn gather(file: Option<&Path>, socket: Option<&Path>) -> Self {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let config = match Config::load(file) {
            Ok(config) => match config.validate() {
                Ok(()) => Ok(config),
                Err(errors) => Err(errors.lines().to_vec()),
            },
            Err(error) => Err(vec![format!("{error:#}")]),
        };
        let default = Config::default();
        let known = config.as_ref().unwrap_or(&default);
        let socket = socket.unwrap_or(&known.daemon.socket);
        let missing = |name: &str| {
            let error = NetNs::named(name).err()?;
            Some((name.to_owned(), error.to_string()))
        };
        let namespaces = known.services.iter().filter_map(|one| one.netns.as_deref());
        Self {
            file: (path.to_owned(), path.exists()),
            daemon: unix::fetch(socket, Request::default(), PATIENCE),
            port: known.metrics.listen.map(|at| (at, Port::of(at))),
            namespaces: namespaces.filter_map(missing).collect(),
            config,
        }
    }

    /// Judges it; `links` are the interfaces of this network namespace.
    pub fn checks(&self, links: Option<&[Link]>) -> Vec<Check> {
        let mut checks = self.configuration();
        checks.push(daemon(&self.daemon));
        checks.extend(self.port.as_ref().map(|(at, port)| port.check(*at)));
        checks.extend(self.namespaces.iter().map(|(name, why)| {
            Check::new(Group::Setup, name, Status::Missing, why)
                .lost("the service with this \"netns\", until it is there")
                .remedy("make the namespace, or take it out of the configuration")
        }));
        let interfaces = self.config.iter().flat_map(|one| &one.packets.interfaces);
        checks.extend(interfaces.filter_map(|name| {
            let is_there = links?.iter().any(|link| link.name == *name);
            Some(if is_there {
                Check::new(
                    Group::Setup,
                    name,
                    Status::Ok,
                    "there, in packets.interfaces",
                )
            } else {
                Check::new(
                    Group::Setup,
                    name,
                    Status::Missing,
                    "no such interface here",
                )
                .lost("its packets and flows, until it is there: it is in packets.interfaces")
                .remedy("`ip link` lists the interfaces of this network namespace")
            })
        }));
        checks
    }

    fn configuration(&self) -> Vec<Check> {
        let (path, exists) = &self.file;
        let check =
            |status, found: String| Check::new(Group::Setup, "configuration", status, found);
        let path = path.display();
        match &self.config {
            Ok(_) if *exists => vec![check(Status::Ok, format!("{path}: valid"))],
            Ok(_) => vec![check(Status::Note, format!("no {path}: the defaults hold"))],
            Err(errors) => {
                let wrong = |error: &String| {
                    check(Status::Missing, error.clone())
                        .required()
                        .lost("the daemon, which does not start")
                };
                errors.iter().map(wrong).collect()
            }
        }
    }
}

fn daemon(answer: &Result<Snapshot, SocketError>) -> Check {
    let check = |status, found: String| Check::new(Group::Setup, "daemon", status, found);
    match answer {
        Ok(snapshot) => {
            let detached = snapshot.programs.iter().filter(|one| !one.attached);
            let missing: Vec<&str> = detached.map(|one| one.program.as_str()).collect();
            let version = &snapshot.version;
            if missing.is_empty() {
                check(Status::Ok, format!("runs, version {version}"))
            } else {
                let missing = missing.join(", ");
                check(
                    Status::Ok,
                    format!("runs, version {version}; not attached: {missing}"),
                )
                .remedy("`/status` or the cost screen of `edgeprobe top` says why")
            }
        }
        Err(error @ SocketError::NotRunning { .. }) => check(Status::Note, error.to_string()),
        Err(error @ SocketError::Denied { .. }) => {
            check(Status::Unknown, format!("unknown: {error}"))
        }
        Err(error) => check(Status::Missing, error.to_string())
            .lost("`edgeprobe top` and the exporter: they have nobody to ask")
            .remedy("see the daemon's messages"),
    }
}

impl Port {
    fn of(address: SocketAddr) -> Self {
        match TcpListener::bind(address) {
            Ok(_) => Self::Free,
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                if is_edgeprobe(address).unwrap_or(false) {
                    Self::Edgeprobe
                } else {
                    Self::Taken
                }
            }
            Err(error) => Self::Refused(error),
        }
    }

    fn check(&self, at: SocketAddr) -> Check {
        let name = "metrics.listen";
        let check = |status, found: String| Check::new(Group::Setup, name, status, found);
        let wrong = |found| {
            check(Status::Missing, found)
                .required()
                .lost("the daemon, which does not start")
                .remedy("choose another address")
        };
        match self {
            Self::Free => check(Status::Ok, format!("{at} is free")),
            Self::Edgeprobe => check(Status::Ok, format!("{at}: edgeprobe serves it")),
            Self::Taken => wrong(format!("{at}: another program has it")),
            Self::Refused(error) if error.kind() == ErrorKind::PermissionDenied => {
                check(Status::Unknown, format!("unknown: {at} needs root"))
            }
            Self::Refused(error) => wrong(format!("{at}: {error}")),
        }
    }
}

/// Whether the first page there is that of edgeprobe.
fn is_edgeprobe(mut address: SocketAddr) -> io::Result<bool> {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut page = Vec::new();
    stream.take(PAGE).read_to_end(&mut page)?;
    Ok(String::from_utf8_lossy(&page).contains("<h1>edgeprobe"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(directory: &Path, text: &str) -> Setup {
        let file = directory.join("config.toml");
        std::fs::write(&file, text).unwrap();
        Setup::gather(Some(&file), Some(&directory.join("none.sock")))
    }

    fn found(checks: &[Check], name: &str, status: Status) -> Vec<String> {
        let of_name = checks
            .iter()
            .filter(|one| one.name == name && one.status == status);
        of_name.map(|one| one.found.clone()).collect()
    }

    #[test]
    fn each_error_of_the_configuration_is_a_check() {
        let directory = tempfile::tempdir().unwrap();
        let text = "[daemon]\nsnapshot_interval = \"1ms\"\nsocket = \"x\"\n";
        let checks = setup(directory.path(), text).checks(None);
        let errors = found(&checks, "configuration", Status::Missing);
        assert_eq!(errors.len(), 2, "{checks:?}");
        assert!(
            errors[0].starts_with("daemon.socket: x is not"),
            "{errors:?}"
        );
        assert!(checks.iter().any(|one| one.required));
        assert_eq!(found(&checks, "daemon", Status::Note).len(), 1);
    }

    #[test]
    fn a_port_that_another_program_has_is_told_from_a_free_one() {
        let directory = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = taken.local_addr().unwrap();
        let answer = std::thread::spawn(move || {
            let (mut stream, _) = taken.accept().unwrap();
            stream
                .write_all(b"HTTP/1.1 200 OK\r\n\r\n<h1>another</h1>")
                .unwrap();
            taken
        });
        let text = format!("[metrics]\nlisten = \"{at}\"\n");
        let checks = setup(directory.path(), &text).checks(None);
        let wrong = found(&checks, "metrics.listen", Status::Missing);
        assert_eq!(wrong, [format!("{at}: another program has it")]);
        drop(answer.join().unwrap());
        let checks = setup(directory.path(), &text).checks(None);
        assert_eq!(found(&checks, "metrics.listen", Status::Missing).len(), 0);
    }

    #[test]
    fn interfaces_and_namespaces_of_the_configuration_are_looked_for() {
        let directory = tempfile::tempdir().unwrap();
        let text = "[packets]\ninterfaces = [\"lo\", \"ep-none\"]\n\
                    [[service]]\nname = \"web\"\nnetns = \"ep-none\"\n";
        let link = Link {
            name: "lo".to_owned(),
            ..Link::default()
        };
        let checks = setup(directory.path(), text).checks(Some(&[link]));
        assert_eq!(found(&checks, "lo", Status::Ok).len(), 1);
        let missing = found(&checks, "ep-none", Status::Missing);
        assert_eq!(missing.len(), 2, "{checks:?}");
        assert!(missing[0].contains("no network namespace"), "{missing:?}");
        assert_eq!(missing[1], "no such interface here");
    }
}
