//! Events that this kernel shows to no BPF program.
//!
//! Some hardened hosts shield process 1, even from root: no BPF program runs
//! while one of its threads is current. A softirq that interrupts it handles
//! segments of others, and what happens there reaches the classic trace but no
//! program, so it is in no counter of a program either. Where process 1 is
//! shielded the witness counts those events, and a table may be off by as many.
//! Anywhere else there is nothing to witness and a table must hold to the last.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs::{self, File},
    io::{BufRead as _, BufReader},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use tempfile::TempDir;

const EVENTS: [&str; 6] = [
    "sock/inet_sock_set_state",
    "tcp/tcp_destroy_sock",
    "tcp/tcp_receive_reset",
    "tcp/tcp_retransmit_skb",
    "tcp/tcp_retransmit_synack",
    "tcp/tcp_send_reset",
];

/// Watches from its making on.
pub struct Witness(Option<Trace>);

/// A mount of tracefs with an instance of the test's own.
struct Trace {
    mount: TempDir,
}

impl Witness {
    /// Begins to watch, where there is something to watch for.
    ///
    /// # Panics
    ///
    /// Where tracefs does not do as it is told.
    #[must_use]
    pub fn start() -> Self {
        Self(is_shielded().then(Trace::start))
    }

    /// Events so far that no program could see.
    ///
    /// # Panics
    ///
    /// Where the trace cannot be read.
    pub fn hidden(&self) -> i64 {
        let by_event = self.hidden_by_event();
        println!("hidden from every program while process 1 was current: {by_event:?}");
        let events = by_event.values().sum::<u64>();
        i64::try_from(events).expect("few events")
    }

    /// The same by tracepoint; those that hid nothing are left out.
    ///
    /// # Panics
    ///
    /// Where the trace cannot be read, or has lost events.
    pub fn hidden_by_event(&self) -> BTreeMap<String, u64> {
        let mut by_event = BTreeMap::new();
        let Some(trace) = &self.0 else {
            return by_event;
        };
        let file = File::open(trace.instance().join("trace")).expect("the trace");
        for line in BufReader::new(file).lines() {
            let line = line.expect("a line of the trace");
            if let Some(event) = event_of_process_1(&line) {
                *by_event.entry(event.to_owned()).or_default() += 1;
            }
        }
        trace.assert_whole();
        by_event
    }
}

/// Whether this kernel shields process 1, to root.
pub fn is_shielded() -> bool {
    fs::read_link("/proc/1/exe").is_err()
}

/// Perf events that a process holds open: what the daemon counts hidden events with.
///
/// # Panics
///
/// Where the process is gone.
pub fn perf_events(pid: u32) -> usize {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("its open files");
    files
        .filter_map(|file| fs::read_link(file.ok()?.path()).ok())
        .filter(|file| file.as_os_str() == "anon_inode:[perf_event]")
        .count()
}

/// The event of a line of the trace, where a thread of process 1 was current. The
/// trace follows processes that it starts too: their events are hidden from nobody.
fn event_of_process_1(line: &str) -> Option<&str> {
    if line.starts_with('#') {
        return None;
    }
    let (task, rest) = line.split_once("] ")?;
    let (process, _) = task.rsplit_once('(')?.1.split_once(')')?;
    // The kernel learns of a thread's process when it next switches to it.
    let is_1 = match process.trim().parse::<u32>() {
        Ok(process) => process == 1,
        Err(_) => true,
    };
    rest.split(": ").nth(1).filter(|_| is_1)
}

impl Trace {
    fn start() -> Self {
        let mount = TempDir::with_prefix("edgeprobe-test-tracing-").expect("a folder");
        let target = c_path(mount.path());
        // SAFETY: the strings end in a zero; tracefs takes no data.
        let result = unsafe {
            libc::mount(
                c"tracefs".as_ptr(),
                target.as_ptr(),
                c"tracefs".as_ptr(),
                0,
                std::ptr::null(),
            )
        };
        assert_eq!(result, 0, "tracefs cannot be mounted");
        let trace = Self { mount };
        let instance = trace.instance();
        fs::create_dir(&instance).expect("an instance of the trace");
        let threads: String = fs::read_dir("/proc/1/task")
            .expect("the threads of process 1")
            .map(|entry| entry.expect("a thread").file_name())
            .map(|name| format!("{} ", name.display()))
            .collect();
        let set = |file: &str, value: &str| {
            fs::write(instance.join(file), value).unwrap_or_else(|error| panic!("{file}: {error}"));
        };
        // Threads that they start are watched too; each line names the process.
        set("options/event-fork", "1");
        set("options/record-tgid", "1");
        set("set_event_pid", &threads);
        for event in EVENTS {
            set(&format!("events/{event}/enable"), "1");
        }
        trace
    }

    /// Fails where the ring has overrun: then there were more events than lines.
    fn assert_whole(&self) {
        let folder = self.instance().join("per_cpu");
        for cpu in fs::read_dir(folder).expect("the rings of the trace") {
            let file = cpu.expect("a ring").path().join("stats");
            let text = fs::read_to_string(&file).expect("what a ring has lost");
            let whole = text.lines().any(|line| line == "overrun: 0");
            assert!(whole, "{}: {text}", file.display());
        }
    }

    fn instance(&self) -> std::path::PathBuf {
        let name = self.mount.path().file_name().expect("a folder has a name");
        self.mount.path().join("instances").join(name)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(self.instance()) {
            println!("the instance of the trace cannot be removed: {error}");
        }
        let target = c_path(self.mount.path());
        // SAFETY: the string ends in a zero.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path without a zero")
}

#[cfg(test)]
mod tests {
    use super::event_of_process_1;

    #[test]
    fn only_events_on_the_time_of_process_1_are_hidden() {
        let line = |task: &str, process: &str| {
            format!(
                "{task:>16}-75      ({process:>7}) [001] ..s1. 13803.787148: tcp_send_reset: a: b"
            )
        };
        for process in ["1", "-------"] {
            let line = line("a (2) worker", process);
            assert_eq!(event_of_process_1(&line), Some("tcp_send_reset"), "{line}");
        }
        assert_eq!(event_of_process_1(&line("process_api", "4711")), None);
        assert_eq!(event_of_process_1("# entries-in-buffer: 1/1   #P:2"), None);
    }
}
