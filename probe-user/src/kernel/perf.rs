//! Events of a tracepoint while a thread is current, counted by the kernel's perf
//! events. Nothing is recorded: no ring, no wake-up.

use std::{
    fs, io,
    os::fd::{FromRawFd as _, OwnedFd},
};

use anyhow::Context as _;

/// Where tracefs is mounted.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// `PERF_TYPE_TRACEPOINT` of `linux/perf_event.h`.
const TYPE_TRACEPOINT: u32 = 2;
/// `PERF_FLAG_FD_CLOEXEC`.
const CLOSE_ON_EXEC: libc::c_ulong = 1 << 3;
/// `inherit` and `inherit_thread`, from 5.13 on: what the thread starts is counted too,
/// processes are not.
const INHERIT_THREADS: u64 = 1 << 1 | 1 << 35;

/// The first version of `struct perf_event_attr`, which every kernel takes.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    event_type: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    config1: u64,
}

/// `PERF_ATTR_SIZE_VER0`.
const ATTRIBUTES_SIZE: u32 = 64;
const _: () = assert!(size_of::<Attributes>() == ATTRIBUTES_SIZE as usize);

/// The kernel's number of a trace event, such as `tcp`, `tcp_probe`.
///
/// # Errors
///
/// tracefs is not mounted or not to be read, or this kernel has no such event.
pub fn trace_event(group: &str, name: &str) -> anyhow::Result<u64> {
    let file = |root| format!("{root}/events/{group}/{name}/id");
    let [first, second] = TRACEFS.map(file);
    let text = fs::read_to_string(&first)
        .or_else(|error| fs::read_to_string(second).map_err(|_| error))
        .with_context(|| format!("cannot read {first} (is tracefs mounted there?)"))?;
    text.trim()
        .parse()
        .with_context(|| format!("{first} is no number"))
}

/// Counts the events of a tracepoint while one thread, or one that it has started
/// since, is current, on whatever CPU. What an interrupt does on its time counts too.
#[derive(Debug)]
pub struct ThreadCounter {
    fd: OwnedFd,
    count: u64,
}

impl ThreadCounter {
    /// Counts from now on.
    ///
    /// # Errors
    ///
    /// `ESRCH`: there is no such thread. `EACCES`, `EPERM`: the right to it is missing
    /// (`CAP_PERFMON`), or lockdown or a security module forbids it. `EMFILE`.
    pub fn start(event: u64, thread: i32) -> io::Result<Self> {
        const ANY_CPU: i32 = -1;
        const NO_GROUP: i32 = -1;
        let attributes = Attributes {
            event_type: TYPE_TRACEPOINT,
            size: ATTRIBUTES_SIZE,
            config: event,
            flags: INHERIT_THREADS,
            ..Attributes::default()
        };
        // SAFETY: the kernel reads as many bytes of the attributes as they say they
        // have, and keeps no pointer to them.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                thread,
                ANY_CPU,
                NO_GROUP,
                CLOSE_ON_EXEC,
            )
        };
        let fd = i32::try_from(fd).unwrap_or(-1);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just opened it for this process, and nobody else
        // knows of it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, count: 0 })
    }

    /// Events so far. Where the kernel does not tell, as many as it last told of.
    pub fn read(&mut self) -> u64 {
        let mut bytes = [0; 8];
        if nix::unistd::read(&self.fd, &mut bytes) == Ok(bytes.len()) {
            self.count = self.count.max(u64::from_ne_bytes(bytes));
        }
        self.count
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, process::Command, thread};

    use super::*;

    /// Opens and closes a listener: two changes of a socket's state.
    fn two_changes() {
        drop(TcpListener::bind("127.0.0.1:0").unwrap());
    }

    fn counter() -> Option<ThreadCounter> {
        if !nix::unistd::Uid::effective().is_root() {
            println!("SKIPPED: needs root");
            return None;
        }
        let event = match trace_event("sock", "inet_sock_set_state") {
            Ok(event) => event,
            Err(error) => {
                println!("SKIPPED: {error:#}");
                return None;
            }
        };
        Some(ThreadCounter::start(event, nix::unistd::gettid().as_raw()).unwrap())
    }

    #[test]
    fn what_this_thread_and_its_threads_do_is_counted_and_nothing_else() {
        thread::spawn(|| {
            // Before the counter there is no event of its own.
            two_changes();
            let Some(mut counter) = counter() else {
                return;
            };
            assert_eq!(counter.read(), 0);
            two_changes();
            assert_eq!(counter.read(), 2);
            // A thread of a thread, which ends before anybody looks.
            let nested = || thread::spawn(two_changes).join().unwrap();
            thread::spawn(nested).join().unwrap();
            assert_eq!(counter.read(), 4);
            // Another process: its own thread opens the listener.
            let listen = "exec 3<>/dev/tcp/127.0.0.1/1";
            let _ = Command::new("bash").args(["-c", listen]).output().unwrap();
            assert_eq!(counter.read(), 4);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_count_of_a_thread_outlives_it() {
        let counted = thread::spawn(|| {
            let counter = counter();
            two_changes();
            counter
        });
        let Some(mut counter) = counted.join().unwrap() else {
            return;
        };
        assert_eq!(counter.read(), 2);
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let error = trace_event("tcp", "no_such_event").unwrap_err();
        assert!(format!("{error:#}").contains("no_such_event"), "{error:#}");
        let error = ThreadCounter::start(u64::MAX, 0).unwrap_err();
        assert!(error.raw_os_error().is_some(), "{error}");
    }
}
