//! Network namespaces: finding them, and running something inside one.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, anyhow, bail};
use nix::sched::{CloneFlags, setns};

/// Where `ip netns` and container engines keep them by name.
const NAMED: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// An open network namespace.
#[derive(Clone, Debug)]
pub struct NetNs {
    /// Its number: the inode, which is also `net.ns.inum` in the kernel.
    pub inum: u32,
    /// Its name, if it has one.
    pub name: Option<String>,
    file: Arc<File>,
}

impl NetNs {
    fn open(path: &Path, name: Option<String>) -> io::Result<Self> {
        let file = File::open(path)?;
        let inum = file.metadata()?.ino() as u32;
        Ok(Self {
            inum,
            name,
            file: Arc::new(file),
        })
    }

    /// The namespace of this process.
    ///
    /// # Errors
    ///
    /// `/proc` is not mounted.
    pub fn own() -> anyhow::Result<Self> {
        Self::open(Path::new("/proc/self/ns/net"), None)
            .context("cannot open /proc/self/ns/net: is /proc mounted?")
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
        let netns = Self::open(&path, Some(name.to_owned())).map_err(|error| {
            anyhow!("no network namespace {name:?} ({}: {error}); `ip netns list` shows those there are", path.display())
        })?;
        // SAFETY: this request takes no third argument, so that the kernel reads
        // and writes no memory of this process; `netns.file` owns the descriptor
        // and outlives the call. One of another kind is refused with -1.
        let kind = unsafe { libc::ioctl(netns.file.as_raw_fd(), libc::NS_GET_NSTYPE) };
        if kind != libc::CLONE_NEWNET {
            bail!("{} is not a network namespace", path.display());
        }
        Ok(netns)
    }

    /// Runs `work` on a thread of its own inside the namespace.
    ///
    /// # Errors
    ///
    /// The namespace cannot be entered (`CAP_SYS_ADMIN` is needed).
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // Only this thread moves, and it ends with the work.
                setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
                Ok::<_, io::Error>(work())
            });
            match thread.join() {
                Ok(result) => result.with_context(|| {
                    format!(
                        "cannot enter network namespace {} (CAP_SYS_ADMIN is needed)",
                        self.inum
                    )
                }),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
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
    let host =
        linked(Path::new("/proc/1/ns/net")).or_else(|| linked(Path::new("/proc/self/ns/net")));
    names.extend(host.map(|inum| (inum, "host".to_owned())));
    names
}

/// The number in a link below `/proc`.
fn linked(path: &Path) -> Option<u32> {
    let link = std::fs::read_link(path).ok()?;
    let number = link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?;
    number.parse().ok()
}

/// All namespaces that a process runs in or that have a name, by number.
pub fn all() -> HashMap<u32, NetNs> {
    let mut found = HashMap::new();
    for folder in NAMED {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Ok(netns) = NetNs::open(&entry.path(), Some(name)) {
                found.insert(netns.inum, netns);
            }
        }
    }
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        if !entry
            .file_name()
            .as_encoded_bytes()
            .first()
            .is_some_and(u8::is_ascii_digit)
        {
            continue;
        }
        let path = entry.path().join("ns/net");
        // The number is in the link: most processes share few namespaces, and
        // opening each one would cost more.
        if let Some(inum) = linked(&path)
            && !found.contains_key(&inum)
            && let Ok(netns) = NetNs::open(&path, None)
        {
            found.insert(netns.inum, netns);
        }
    }
    found
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
        assert!(all().contains_key(&own.inum));
    }
}
