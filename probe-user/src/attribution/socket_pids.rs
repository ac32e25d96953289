//! Which process holds which socket: asked when somebody looks, since it is
//! answered by a walk over all open files.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use probe_common::abi::iter::{ConnectionRecord, Endpoint, SocketPid};

use crate::{
    kernel::clocks,
    loader::{self, Loaded, maps},
};

/// The walk may take one part in so many of the time.
const SHARE: u32 = 100;

/// A listener: a number is used again, but hardly by one of the same address.
type ListenerIdentity = (u64, u32, [u8; 16], u16);

/// The processes that held sockets at the last walk.
#[derive(Debug, Default)]
pub struct SocketPids {
    pids: HashMap<u64, u32>,
    /// Listeners that the last walk was made for.
    listeners: HashSet<ListenerIdentity>,
    /// When the last walk began, in nanoseconds of CLOCK_MONOTONIC.
    began_ns: u64,
    ended: Option<Instant>,
    cost: Duration,
    broken: bool,
}

fn identity(socket: &Endpoint) -> ListenerIdentity {
    (socket.id, socket.netns, socket.local, socket.local_port)
}

impl SocketPids {
    /// Walks, unless the last time was just now.
    pub fn walk(&mut self, loaded: &mut Loaded, listeners: &[Endpoint]) {
        let rested = |ended: Instant| ended.elapsed() >= self.cost * SHARE;
        if self.broken || !self.ended.is_none_or(rested) {
            return;
        }
        let begin = Instant::now();
        self.began_ns = clocks::monotonic_ns();
        match loader::iterate(&mut loaded.ebpf, loader::ITER_TASK_FILE) {
            Ok(bytes) => {
                self.pids.clear();
                let records = bytes.chunks_exact(size_of::<SocketPid>());
                for entry in records.filter_map(maps::record::<SocketPid>) {
                    // Of several the first: a parent, mostly.
                    self.pids.entry(entry.id).or_insert(entry.pid);
                }
                self.listeners = listeners.iter().map(identity).collect();
            }
            Err(error) => {
                tracing::warn!("the processes that hold sockets are not known: {error:#}");
                self.broken = true;
            }
        }
        self.cost = begin.elapsed();
        self.ended = Some(Instant::now());
    }

    /// Walks where a listener is new, or its process is gone.
    pub fn refresh(&mut self, loaded: &mut Loaded, listeners: &[Endpoint]) {
        let is_known = |listener: &Endpoint| {
            self.listeners.contains(&identity(listener))
                && self.of_listener(listener).is_none_or(is_alive)
        };
        if !listeners.iter().all(is_known) {
            self.walk(loaded, listeners);
        }
    }

    /// The process that holds a listener. A socket that came after the walk may have
    /// the number of one that is gone.
    pub fn of_listener(&self, listener: &Endpoint) -> Option<u32> {
        let was_there = self.listeners.contains(&identity(listener));
        self.pids.get(&listener.id).copied().filter(|_| was_there)
    }

    /// The process that holds a connection, likewise.
    pub fn of_connection(&self, connection: &ConnectionRecord) -> Option<u32> {
        let was_there = connection.since_ns <= self.began_ns;
        let pid = self.pids.get(&connection.socket.id).copied();
        pid.filter(|_| was_there)
    }
}

fn is_alive(pid: u32) -> bool {
    std::path::Path::new("/proc").join(pid.to_string()).exists()
}

/// The name of a process; `None` where it is gone. A name is bytes: what is not UTF-8
/// in it is shown as U+FFFD.
pub fn name(pid: u32) -> Option<String> {
    let name = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(text(&name))
}

fn text(name: &[u8]) -> String {
    let name = name.strip_suffix(b"\n").unwrap_or(name);
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, process::Command};

    use super::*;

    #[test]
    fn a_name_that_is_no_text_is_shown_as_far_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join(OsStr::from_bytes(b"s\xffeep"));
        std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
        let mut process = Command::new(program).arg("60").spawn().unwrap();
        let name = name(process.id());
        process.kill().unwrap();
        process.wait().unwrap();
        assert_eq!(name.as_deref(), Some("s\u{fffd}eep"));
    }
}
