//! Control groups of version 2: where they are mounted, and from the number of
//! one to its path.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _},
        unix::{
            ffi::OsStringExt as _,
            fs::{DirEntryExt as _, MetadataExt as _},
        },
    },
    path::{Path, PathBuf},
};

/// Type of a file handle that holds the number of a folder (`FILEID_KERNFS`).
const KERNFS: i32 = 0xfe;

/// The mounted hierarchy.
#[derive(Debug)]
pub struct Hierarchy {
    mount: PathBuf,
    root: File,
}

impl Hierarchy {
    /// Finds it; `None` where it is not mounted.
    pub fn find() -> Option<Self> {
        let mount = mount_point(&String::from_utf8_lossy(
            &fs::read("/proc/self/mounts").ok()?,
        ))?;
        let root = File::open(&mount).ok()?;
        Some(Self { mount, root })
    }

    /// The path of the group of a number, such as `/system.slice/nginx.service`;
    /// `None` where it is gone.
    pub fn path(&self, id: u64) -> Option<String> {
        match self.open(id) {
            Ok(folder) => {
                let link = format!("/proc/self/fd/{}", folder.as_raw_fd());
                self.inside(&fs::read_link(link).ok()?)
            }
            Err(error) if error.raw_os_error() == Some(libc::ESTALE) => None,
            // CAP_DAC_READ_SEARCH is missing: by hand, then.
            Err(_) => {
                let mut found = None;
                self.walk(|one, path| {
                    if one == id {
                        found = Some(path.to_owned());
                    }
                    found.is_none()
                });
                found
            }
        }
    }

    fn open(&self, id: u64) -> io::Result<File> {
        #[repr(C)]
        struct Handle {
            bytes: u32,
            kind: i32,
            id: [u8; 8],
        }
        let mut handle = Handle {
            bytes: 8,
            kind: KERNFS,
            id: id.to_ne_bytes(),
        };
        // SAFETY: the kernel reads the two words of `struct file_handle` and as many
        // bytes behind them as the first says: 8, which is all of `id`, without
        // padding between. The handle is not moved or read by others during the
        // call, and `self.root` owns the descriptor.
        let fd = unsafe {
            libc::open_by_handle_at(
                self.root.as_raw_fd(),
                (&raw mut handle).cast(),
                libc::O_PATH | libc::O_CLOEXEC,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is not negative, so it is a descriptor that the call above has
        // just opened and that nothing else closes.
        Ok(unsafe { File::from_raw_fd(fd) })
    }

    fn inside(&self, path: &Path) -> Option<String> {
        let rest = path.strip_prefix(&self.mount).ok()?.to_str()?;
        Some(format!("/{rest}"))
    }

    /// Calls a function with the number and the path of every group, those above
    /// first, until it returns false.
    pub fn walk(&self, mut each: impl FnMut(u64, &str) -> bool) {
        let root = self.root.metadata().map_or(0, |root| root.ino());
        let mut folders = vec![(root, self.mount.clone())];
        while let Some((id, folder)) = folders.pop() {
            if self.inside(&folder).is_some_and(|path| !each(id, &path)) {
                return;
            }
            // One that is gone has nothing below it.
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
            let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            folders.extend(below.map(|entry| (entry.ino(), entry.path())));
        }
    }
}

/// Where `/proc/self/mounts` shows the hierarchy.
pub fn mount_point(mounts: &str) -> Option<PathBuf> {
    let mut all = mounts.lines().map(|line| line.split(' '));
    let mount = all.find_map(|mut fields| {
        let mount = fields.nth(1)?;
        (fields.next()? == "cgroup2").then_some(mount)
    })?;
    Some(OsString::from_vec(unescaped(mount)).into())
}

/// Blanks and the like are there as `\040`.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = (first == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(first));
        rest = &after[if code.is_some() { 3 } else { 0 }..];
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_by_its_type() {
        let mounts = "proc /proc proc rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/uni\\040fied cgroup2 rw 0 0\n";
        assert_eq!(
            mount_point(mounts),
            Some(PathBuf::from("/sys/fs/cgroup/uni fied"))
        );
        assert_eq!(mount_point("proc /proc proc rw 0 0\n"), None);
        assert_eq!(mount_point(""), None);
        assert_eq!(unescaped("a\\0"), b"a\\0");
    }

    #[test]
    fn a_walk_and_a_handle_agree() {
        let Some(hierarchy) = Hierarchy::find() else {
            println!("SKIPPED: a_walk_and_a_handle_agree: no cgroup v2 here");
            return;
        };
        let mut seen = Vec::new();
        hierarchy.walk(|id, path| {
            seen.push((id, path.to_owned()));
            seen.len() < 20
        });
        assert_eq!(seen[0].1, "/");
        let mut checked = 0;
        for (id, path) in seen {
            let found = hierarchy.path(id);
            // Others may remove a group meanwhile, the root excepted.
            let folder = hierarchy.mount.join(path.trim_start_matches('/'));
            if fs::metadata(folder).is_ok_and(|folder| folder.ino() == id) {
                assert_eq!(found, Some(path));
                checked += 1;
            }
        }
        assert!(checked > 0, "not even the root is there");
        assert_eq!(hierarchy.path(u64::MAX >> 1), None);
    }
}
