//! Events that this kernel shows to no BPF program.
//!
//! Some hardened hosts shield process 1, even from root: no BPF program runs
//! while one of its threads is current. A softirq that interrupts it handles
//! segments of others, and what happens there reaches the classic trace but no
//! program, so it is in no counter of a program either. Where process 1 is
//! shielded the witness counts those events, and a table may be off by as many.
//! Anywhere else there is nothing to witness and a table must hold to the last.

use std::{
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
        let is_shielded = fs::read_link("/proc/1/exe").is_err();
        Self(is_shielded.then(Trace::start))
    }

    /// Events so far that no program could see.
    ///
    /// # Panics
    ///
    /// Where the trace cannot be read.
    pub fn hidden(&self) -> i64 {
        let Some(trace) = &self.0 else {
            return 0;
        };
        let file = File::open(trace.instance().join("trace")).expect("the trace");
        let events = BufReader::new(file)
            .lines()
            .map(|line| line.expect("a line of the trace"))
            .filter(|line| !line.starts_with('#'))
            .count();
        println!("hidden from every program while process 1 was current: {events} events");
        i64::try_from(events).expect("few events")
    }
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
        // Threads that they start are watched too.
        set("options/event-fork", "1");
        set("set_event_pid", &threads);
        for event in EVENTS {
            set(&format!("events/{event}/enable"), "1");
        }
        trace
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
