//! Network namespaces: finding them, and running something inside one.
//!
//! Nothing here keeps one open for longer than a visit: an open file holds a namespace
//! that was deleted, and the far ends of its veth pairs with it.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use anyhow::{anyhow, bail};
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

/// Where `ip netns` and container engines keep them by name.
const NAMED: [&str; 2] = ["/run/netns", "/run/docker/netns"];
/// The namespace of this process.
const OWN: &str = "/proc/self/ns/net";

/// A network namespace, and where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetNs {
    /// Its number: the inode, which is also `net.ns.inum` in the kernel. Another one
    /// may have it once this one is gone, see [`cookie`].
    pub inum: u32,
    /// Its name, if it has one.
    pub name: Option<String>,
    path: PathBuf,
}

/// Why a network namespace was not entered.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// It is not where it was found.
    #[error("it is not at {} any more", .0.display())]
    Gone(PathBuf),
    /// This process may not.
    #[error("not permitted: CAP_SYS_ADMIN is needed, and CAP_SYS_PTRACE for one without a name")]
    Denied,
    /// This process has too many open files, or the host has.
    #[error("too many open files")]
    Files,
    /// Anything else.
    #[error("cannot be entered")]
    Other(#[source] io::Error),
}

impl EnterError {
    fn of(error: io::Error, path: &Path) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH | libc::ENOTDIR) => Self::Gone(path.to_owned()),
            Some(libc::EPERM | libc::EACCES) => Self::Denied,
            Some(libc::EMFILE | libc::ENFILE) => Self::Files,
            _ => Self::Other(error),
        }
    }
}

impl NetNs {
    /// The namespace of this process.
    ///
    /// # Errors
    ///
    /// `/proc` is not mounted.
    pub fn own() -> anyhow::Result<Self> {
        Self::at(Path::new(OWN), None)
            .map_err(|error| anyhow!("cannot open {OWN}: is /proc mounted? ({error})"))?
            .ok_or_else(|| anyhow!("{OWN} is not a network namespace"))
    }

    /// A namespace by name, as `ip netns` knows it, or by path.
    ///
    /// # Errors
    ///
    /// There is none, or the path is something else.
    pub fn named(name: &str) -> anyhow::Result<Self> {
        let path = if name.contains('/') {
            PathBuf::from(name)
        } else {
            Path::new(NAMED[0]).join(name)
        };
        match Self::at(&path, Some(name.to_owned())) {
            Ok(Some(netns)) => Ok(netns),
            Ok(None) => bail!("{} is not a network namespace", path.display()),
            Err(error) => bail!(
                "no network namespace {name:?} ({}: {error}); `ip netns list` shows those there are",
                path.display()
            ),
        }
    }

    /// The one at a path; `None` where that is something else.
    fn at(path: &Path, name: Option<String>) -> io::Result<Option<Self>> {
        let inum = number(&File::open(path)?)?;
        Ok(inum.map(|inum| Self {
            inum,
            name,
            path: path.to_owned(),
        }))
    }

    /// The one that is there now: under its name another one may have come.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn again(&self) -> Result<Self, EnterError> {
        let found = Self::at(&self.path, self.name.clone());
        found
            .map_err(|error| EnterError::of(error, &self.path))?
            .ok_or_else(|| EnterError::Gone(self.path.clone()))
    }

    /// Runs `work` on a thread of its own inside the namespace, which is open until
    /// then.
    ///
    /// # Errors
    ///
    /// It is gone, or cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, EnterError> {
        let error = |error| EnterError::of(error, &self.path);
        let file = File::open(&self.path).map_err(error)?;
        if number(&file).map_err(error)? != Some(self.inum) {
            return Err(EnterError::Gone(self.path.clone()));
        }
        std::thread::scope(|scope| {
            let enter = move || {
                // Only this thread moves, and it ends with the work.
                setns(&file, CloneFlags::CLONE_NEWNET)?;
                drop(file);
                Ok::<_, Errno>(work())
            };
            let thread = std::thread::Builder::new()
                .spawn_scoped(scope, enter)
                .map_err(error)?;
            match thread.join() {
                Ok(result) => result.map_err(|errno| error(errno.into())),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

/// The number of an open namespace; `None` for a file that is none of the network.
fn number(file: &File) -> io::Result<Option<u32>> {
    // SAFETY: this request takes no third argument, so that the kernel reads and writes
    // no memory of this process; `file` owns the descriptor and outlives the call. What
    // is no namespace is refused with -1.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), libc::NS_GET_NSTYPE) };
    if kind != libc::CLONE_NEWNET {
        return Ok(None);
    }
    Ok(Some(file.metadata()?.ino() as u32))
}

/// Tells the network namespace of the calling thread from all others that were ever
/// there (`SO_NETNS_COOKIE`).
///
/// # Errors
///
/// No socket can be made here.
pub fn cookie() -> io::Result<u64> {
    let socket: OwnedFd = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut cookie = 0_u64;
    let mut length = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `cookie`, which is as long and
    // takes any; both outlive the call, and `socket` owns the descriptor.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}

/// The names of network namespaces below `/run/netns` by number, and `host`, that
/// of the first process or, where that cannot be seen, of this one.
pub fn names() -> HashMap<u32, String> {
    let entries = std::fs::read_dir(NAMED[0]).into_iter().flatten().flatten();
    let mut named: Vec<(String, u32)> = entries
        .filter_map(|entry| {
            let inum = std::fs::metadata(entry.path()).ok()?.ino() as u32;
            Some((entry.file_name().to_string_lossy().into_owned(), inum))
        })
        .collect();
    // Of several names of one the first stays.
    named.sort_by(|a, b| b.cmp(a));
    let mut names: HashMap<u32, String> =
        named.into_iter().map(|(name, inum)| (inum, name)).collect();
    let host = linked(Path::new("/proc/1/ns/net")).or_else(|| linked(Path::new(OWN)));
    names.extend(host.map(|inum| (inum, "host".to_owned())));
    names
}

/// The number in a link below `/proc`.
fn linked(path: &Path) -> Option<u32> {
    let link = std::fs::read_link(path).ok()?;
    let number = link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?;
    number.parse().ok()
}

/// What was found.
#[derive(Debug, Default)]
pub struct FoundNamespaces {
    /// By their numbers.
    pub namespaces: HashMap<u32, NetNs>,
    /// Names below `/run/netns` and its like that are no network namespaces.
    pub others: Vec<String>,
}

/// All namespaces that a process runs in or that have a name.
///
/// # Errors
///
/// The processes cannot be listed.
pub fn all() -> io::Result<FoundNamespaces> {
    let mut found = FoundNamespaces::default();
    for folder in NAMED {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            match NetNs::at(&path, Some(name.clone().into_owned())) {
                // Of several names of one the first stays.
                Ok(Some(netns)) => drop(found.namespaces.entry(netns.inum).or_insert(netns)),
                Ok(None) => found.others.push(name.into_owned()),
                Err(error) => match EnterError::of(error, &path) {
                    EnterError::Gone(_) => {}
                    EnterError::Files => return Err(io::Error::from_raw_os_error(libc::EMFILE)),
                    _ => found.others.push(name.into_owned()),
                },
            }
        }
    }
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        if !(name.as_encoded_bytes().first()).is_some_and(u8::is_ascii_digit) {
            continue;
        }
        let path = entry.path().join("ns/net");
        // The number is in the link, and most processes share few namespaces.
        if let Some(inum) = linked(&path) {
            (found.namespaces.entry(inum)).or_insert_with(|| NetNs {
                inum,
                name: None,
                path,
            });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_network_namespace_is_taken_by_its_path() {
        let own = NetNs::own().unwrap();
        let again = NetNs::named("/proc/self/ns/net").unwrap();
        assert_eq!(again.inum, own.inum);
        for other in ["/proc/self/ns/uts", "/proc/self/stat"] {
            assert_eq!(
                NetNs::named(other).unwrap_err().to_string(),
                format!("{other} is not a network namespace")
            );
        }
        let error = NetNs::named("ep-none").unwrap_err().to_string();
        assert!(error.contains("/run/netns/ep-none"), "{error}");
    }

    #[test]
    fn the_namespace_of_this_process_is_among_all() {
        let own = NetNs::own().unwrap();
        assert_eq!(linked(Path::new("/proc/self/ns/net")), Some(own.inum));
        assert!(all().unwrap().namespaces.contains_key(&own.inum));
    }

    #[test]
    fn a_visit_is_to_the_namespace_that_was_found() {
        let own = NetNs::own().unwrap();
        // Entering one's own asks for the same privilege as entering another.
        match own.run(cookie) {
            Ok(inside) => assert_eq!(inside.unwrap(), cookie().unwrap()),
            Err(error) => assert!(matches!(error, EnterError::Denied), "{error}"),
        }
        let another = NetNs {
            inum: own.inum + 1,
            ..own.clone()
        };
        assert!(matches!(another.run(|| ()), Err(EnterError::Gone(_))));
        assert_eq!(another.again().unwrap(), own);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        let none = NetNs { path: file, ..own };
        assert!(matches!(none.run(|| ()), Err(EnterError::Gone(_))));
        assert!(matches!(none.again(), Err(EnterError::Gone(_))));
    }
}
