//! The socket's file: who may use it, and that only one daemon does.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{
    DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown,
};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::Group;

use crate::config::{DEFAULT_GROUP, Daemon};

const HINT: &str = "run as root, or choose another place with --socket";

/// The right to be the one daemon on a socket; given back on drop.
#[derive(Debug)]
pub struct Endpoint {
    socket: PathBuf,
    group: Access,
    lock: PathBuf,
    /// Holds the lock.
    _held: File,
    /// Device and inode of the socket that was bound.
    bound: Option<(u64, u64)>,
    /// See [`Self::advice`].
    advice: Option<String>,
}

/// Who may use the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// The user that runs the daemon.
    OwnerOnly,
    /// A group that was asked for.
    Named(u32),
    /// The group that is used where none is asked for.
    Default(u32),
}

impl Endpoint {
    /// Takes the lock beside the socket. The directory is made if need be.
    pub fn lock(config: &Daemon) -> anyhow::Result<Self> {
        let socket = &config.socket;
        let group = access(config.socket_group.as_deref())?;
        if let Some(directory) = socket.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .with_context(|| format!("cannot create {}; {HINT}", directory.display()))?;
        }
        let mut lock = socket.clone().into_os_string();
        lock.push(".lock");
        let lock = PathBuf::from(lock);
        let held = take(&lock).with_context(|| format!("socket {}", socket.display()))?;
        Ok(Self {
            socket: socket.clone(),
            group,
            lock,
            _held: held,
            bound: None,
            advice: None,
        })
    }

    /// Binds the socket; one that nobody listens on any more is replaced.
    pub fn bind(&mut self) -> anyhow::Result<UnixListener> {
        let socket = &self.socket;
        let failed = || format!("cannot listen on {}", socket.display());
        match fs::symlink_metadata(socket) {
            Ok(found) if found.file_type().is_socket() => {
                fs::remove_file(socket).with_context(failed)?;
            }
            Ok(_) => bail!(
                "{} exists and is not a socket: remove it, or choose another path with --socket",
                socket.display()
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(failed),
        }
        let listener = bind_private(socket).with_context(failed)?;
        let bound = fs::symlink_metadata(socket).with_context(failed)?;
        self.bound = Some((bound.dev(), bound.ino()));
        self.advice = self.admit().with_context(failed)?;
        Ok(listener)
    }

    /// What to know of a socket that is bound: who cannot use it, and why.
    pub fn advice(&self) -> Option<&str> {
        self.advice.as_deref()
    }

    /// Lets the group in, or says why only the owner can use the socket.
    fn admit(&self) -> anyhow::Result<Option<String>> {
        let (Access::Named(gid) | Access::Default(gid)) = self.group else {
            return Ok(Some(format!(
                "only this user and root can use {}: there is no group {DEFAULT_GROUP:?} and no --socket-group",
                self.socket.display()
            )));
        };
        let result = chown(&self.socket, None, Some(gid))
            .and_then(|()| fs::set_permissions(&self.socket, Permissions::from_mode(0o660)));
        match (result, self.group) {
            (Err(error), Access::Default(_)) => Ok(Some(format!(
                "only this user and root can use {}: cannot give it to the group {DEFAULT_GROUP:?}: {error}",
                self.socket.display()
            ))),
            (result, _) => result
                .map(|()| None)
                .with_context(|| format!("cannot give it to group {gid}")),
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if let Ok(found) = fs::symlink_metadata(&self.socket)
            && self.bound == Some((found.dev(), found.ino()))
        {
            let _ = fs::remove_file(&self.socket);
        }
        // Removed while still locked; see `take`.
        let _ = fs::remove_file(&self.lock);
    }
}

/// Binds a socket that only its owner can connect to, from the start on: Linux
/// gives the file the mode that the socket had before.
fn bind_private(path: &Path) -> anyhow::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    socket::listen(&socket, Backlog::MAXCONN)?;
    Ok(socket.into())
}

fn access(group: Option<&str>) -> anyhow::Result<Access> {
    let name = group.unwrap_or(DEFAULT_GROUP);
    let found = Group::from_name(name).with_context(|| format!("cannot look up group {name:?}"))?;
    match (found, group) {
        (Some(found), Some(_)) => Ok(Access::Named(found.gid.as_raw())),
        (Some(found), None) => Ok(Access::Default(found.gid.as_raw())),
        (None, None) => Ok(Access::OwnerOnly),
        (None, Some(_)) => bail!(
            "the socket's group {name:?} does not exist: create it with `groupadd --system {name}`, or name another"
        ),
    }
}

/// Locks a file that its last owner removes: one that was removed between
/// opening and locking is not the lock any more.
///
/// Nothing but a lock is ever written to: no file that a link leads to, and none that
/// holds something else.
fn take(path: &Path) -> anyhow::Result<File> {
    let failed = || format!("cannot lock {}; {HINT}", path.display());
    loop {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::ELOOP) => foreign(path, "a symbolic link"),
                _ => anyhow!(error).context(failed()),
            })?;
        let ours = file.metadata().with_context(failed)?;
        if !ours.is_file() || ours.nlink() > 1 {
            return Err(foreign(path, "no file of its own"));
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                bail!(
                    "another daemon uses it (process {}): stop that one, or give this one another --socket",
                    holder(&file).unwrap_or_default()
                );
            }
            Err(fs::TryLockError::Error(error)) => return Err(error).with_context(failed),
        }
        if fs::symlink_metadata(path)
            .is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()))
        {
            if ours.len() > 0 && holder(&file).is_none() {
                return Err(foreign(path, "no lock of a daemon"));
            }
            file.set_len(0).with_context(failed)?;
            file.rewind().with_context(failed)?;
            write!(file, "{}", std::process::id()).with_context(failed)?;
            return Ok(file);
        }
    }
}

/// The process whose number a lock holds; `None` where it holds anything else.
fn holder(mut file: &File) -> Option<String> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(20).read_to_string(&mut text).ok()?;
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some(text)
}

/// What stands where the lock should be.
fn foreign(path: &Path, what: &str) -> anyhow::Error {
    anyhow!(
        "{} is {what}: remove it, or choose another path with --socket",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn config(directory: &Path, group: Option<&str>) -> Daemon {
        Daemon {
            socket: directory.join("deep/er/x.sock"),
            socket_group: group.map(str::to_owned),
            ..Daemon::default()
        }
    }

    fn own_group() -> String {
        let gid = nix::unistd::getegid();
        Group::from_gid(gid).unwrap().unwrap().name
    }

    #[test]
    fn one_daemon_for_each_socket_and_nothing_left_behind() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path(), Some(&own_group()));
        let mut first = Endpoint::lock(&config).unwrap();
        let listener = first.bind().unwrap();
        UnixStream::connect(&config.socket).unwrap();

        let error = format!("{:#}", Endpoint::lock(&config).unwrap_err());
        let me = std::process::id();
        assert!(
            error.contains(&format!("another daemon uses it (process {me})")),
            "{error}"
        );

        drop((first, listener));
        let left: Vec<_> = fs::read_dir(config.socket.parent().unwrap())
            .unwrap()
            .collect();
        assert!(left.is_empty(), "{left:?}");
        Endpoint::lock(&config).unwrap().bind().unwrap();
    }

    #[test]
    fn group_members_may_write_and_nobody_else() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path(), Some(&own_group()));
        let mut endpoint = Endpoint::lock(&config).unwrap();
        let _listener = endpoint.bind().unwrap();
        let found = fs::metadata(&config.socket).unwrap();
        assert_eq!(found.mode() & 0o777, 0o660);
        assert_eq!(found.gid(), nix::unistd::getegid().as_raw());
        let parent = fs::metadata(config.socket.parent().unwrap()).unwrap();
        assert_eq!(parent.mode() & 0o777, 0o755);
    }

    #[test]
    fn without_a_group_it_is_the_owners() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path(), None);
        let mut endpoint = Endpoint::lock(&config).unwrap();
        endpoint.group = Access::OwnerOnly;
        let _listener = endpoint.bind().unwrap();
        let found = fs::metadata(&config.socket).unwrap();
        assert_eq!(found.mode() & 0o777, 0o600);
    }

    #[test]
    fn a_group_that_is_named_must_exist() {
        let error = access(Some("no-such-group")).unwrap_err().to_string();
        assert!(
            error.contains("\"no-such-group\" does not exist"),
            "{error}"
        );
    }

    #[test]
    fn a_stale_socket_is_replaced_and_any_other_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path(), Some(&own_group()));
        let parent = config.socket.parent().unwrap();
        fs::create_dir_all(parent).unwrap();
        drop(UnixListener::bind(&config.socket).unwrap());
        assert!(UnixStream::connect(&config.socket).is_err(), "stale");
        let mut endpoint = Endpoint::lock(&config).unwrap();
        let _listener = endpoint.bind().unwrap();
        UnixStream::connect(&config.socket).unwrap();
        drop(endpoint);

        fs::write(&config.socket, "precious").unwrap();
        let mut endpoint = Endpoint::lock(&config).unwrap();
        let error = endpoint.bind().unwrap_err().to_string();
        assert!(error.contains("exists and is not a socket"), "{error}");
        drop(endpoint);
        assert_eq!(fs::read_to_string(&config.socket).unwrap(), "precious");
    }

    #[test]
    fn nothing_but_a_lock_is_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let precious = directory.path().join("precious");
        let path = directory.path().join("lock");
        let refused = |text: &str| {
            fs::write(&precious, "precious").unwrap();
            let error = format!("{:#}", take(&path).unwrap_err());
            assert!(error.contains(text), "{error}");
            assert!(error.contains("remove it"), "{error}");
            assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
        };
        fs::write(&precious, "").unwrap();
        std::os::unix::fs::symlink(&precious, &path).unwrap();
        refused("a symbolic link");
        fs::remove_file(&path).unwrap();
        fs::hard_link(&precious, &path).unwrap();
        refused("no file of its own");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "some text").unwrap();
        refused("no lock of a daemon");
        assert_eq!(fs::read_to_string(&path).unwrap(), "some text");
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        refused("no file of its own");
        // What a daemon that was killed has left is a lock.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "4711").unwrap();
        drop(take(&path).unwrap());
        let me = std::process::id().to_string();
        assert_eq!(fs::read_to_string(&path).unwrap(), me);
    }

    #[test]
    fn a_lock_that_was_removed_while_waiting_is_not_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let first = take(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = take(&path).unwrap();
        assert_ne!(
            first.metadata().unwrap().ino(),
            second.metadata().unwrap().ino()
        );
    }
}
