//! The part that runs in a guest: the load, and what the programs did meanwhile.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::bench::daemon::{Daemon, Programs, Statistics, Work};

/// The hidden subcommand of xtask that is this.
pub const SUBCOMMAND: &str = "measure-inside";
/// What stands before the figures in the console.
const RESULT: &str = "EDGEPROBE-GUEST-FIGURES ";

/// Connections before the measured ones: rows and pages are there afterwards.
const WARM_UP: u32 = 200;
/// Measured connections.
const CONNECTIONS: u32 = 2200;
const REQUEST: [u8; 18] = *b"GET / HTTP/1.0\r\n\r\n";
const ANSWER: [u8; 512] = [b'x'; 512];

/// Which binary.
#[derive(Args, Debug)]
pub struct Options {
    /// The binary to measure
    edgeprobe: PathBuf,
}

/// What the programs did for so many connections.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub struct Measured {
    /// Connections that were made.
    pub connections: u32,
    /// The programs of edgeprobe.
    pub all: Vec<Work>,
    /// Empty programs on the same hooks.
    pub empty: Vec<Work>,
}

impl Measured {
    /// The figures in what a guest printed.
    pub fn find(console: &str) -> Option<Self> {
        let line = console.lines().find_map(|line| line.strip_prefix(RESULT))?;
        serde_json::from_str(line).ok()
    }
}

/// Measures and prints the figures.
pub fn run(options: &Options) -> Result<()> {
    let _statistics = Statistics::on()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 8080)).context("a listener")?;
    let measured = Measured {
        connections: CONNECTIONS,
        all: measure(&options.edgeprobe, Programs::All, &listener)?,
        empty: measure(&options.edgeprobe, Programs::Empty, &listener)?,
    };
    println!("{RESULT}{}", serde_json::to_string(&measured)?);
    Ok(())
}

fn measure(edgeprobe: &Path, programs: Programs, listener: &TcpListener) -> Result<Vec<Work>> {
    let mut command = Command::new(edgeprobe);
    command.arg("daemon");
    let daemon = Daemon::start(command, edgeprobe, Path::new("/tmp"), programs)?;
    connections(listener, WARM_UP)?;
    let (work, ()) = daemon.work(|| connections(listener, CONNECTIONS))?;
    ensure!(!work.is_empty(), "no program ran");
    Ok(work)
}

/// Short connections, one after the other, with both ends in this process; the
/// server closes first.
fn connections(listener: &TcpListener, count: u32) -> Result<()> {
    let address = listener.local_addr().context("the listener's address")?;
    for _ in 0..count {
        let mut client = TcpStream::connect(address).context("connect")?;
        let (mut server, _) = listener.accept().context("accept")?;
        client.write_all(&REQUEST).context("the client sends")?;
        let mut request = [0; REQUEST.len()];
        server
            .read_exact(&mut request)
            .context("the server reads")?;
        server.write_all(&ANSWER).context("the server sends")?;
        drop(server);
        let mut answer = Vec::with_capacity(ANSWER.len() + 1);
        client
            .read_to_end(&mut answer)
            .context("the client reads")?;
        ensure!(answer.len() == ANSWER.len(), "an answer is not whole");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_between_the_kernels_messages() {
        let measured = Measured {
            connections: 7,
            all: vec![Work {
                program: "tcp_probe".to_owned(),
                runs: 35,
                nanoseconds: 700,
            }],
            empty: Vec::new(),
        };
        let line = serde_json::to_string(&measured).expect("JSON");
        let console = format!("[ 1.0] tsc: unstable\n{RESULT}{line}\nDONE\n");
        assert_eq!(Measured::find(&console), Some(measured));
        assert_eq!(Measured::find("a panic\n"), None);
    }

    #[test]
    fn connections_end_and_are_as_many_as_asked_for() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
        connections(&listener, 3).expect("three connections");
        listener.set_nonblocking(true).expect("a flag");
        assert!(listener.accept().is_err(), "none is left");
    }
}
