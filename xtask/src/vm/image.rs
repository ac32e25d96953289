//! The initramfs of a guest.

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{Guest, kernels};
use crate::cmd;

/// What a guest prints when its task has ended.
pub const DONE: &str = "EDGEPROBE-GUEST-DONE";
/// What it prints before something that the image promises and that failed.
pub const BROKEN: &str = "EDGEPROBE-GUEST-BROKEN ";

/// What an initramfs has beside busybox.
pub struct Contents<'a> {
    /// Programs of this machine, by their name on the path; they go to `/bin`.
    pub tools: &'a [&'a str],
    /// Files of this machine, which keep their path.
    pub files: &'a [&'a str],
    /// Modules that are loaded at the start, where they are not built in.
    pub modules: &'a [&'a str],
    /// Programs that were built, and the path of each in the guest.
    pub programs: Vec<(PathBuf, String)>,
    /// Shell commands: what the guest is booted for.
    pub task: String,
}

/// Makes the initramfs of a guest in `folder`, where it keeps its files too.
pub fn make(guest: &Guest, folder: &Path, contents: &Contents<'_>) -> Result<PathBuf> {
    let root = folder.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("{} stays", root.display()))?;
    }
    for folder in [
        "bin",
        "dev",
        "etc",
        "modules",
        "proc",
        "run/netns",
        "sys",
        "tests",
        "tmp",
        "var",
    ] {
        fs::create_dir_all(root.join(folder)).context("a folder of the initramfs")?;
    }
    std::os::unix::fs::symlink("/run", root.join("var/run")).context("a link")?;

    let mut libraries = BTreeSet::new();
    let busybox = find("busybox")?;
    copy(&busybox, &root.join("bin/busybox"))?;
    for tool in contents.tools {
        let path = find(tool)?;
        copy(&path, &root.join("bin").join(tool))?;
        libraries.extend(libraries_of(&path)?);
    }
    for (path, to) in &contents.programs {
        libraries.extend(libraries_of(path)?);
        let mut strip = Command::new("strip");
        cmd::output(strip.arg("-o").arg(root.join(to)).arg(path))?;
    }
    for library in &libraries {
        let to = root.join(library.strip_prefix("/").unwrap_or(library));
        copy(library, &to)?;
    }
    for file in contents.files {
        copy(Path::new(file), &root.join(file.trim_start_matches('/')))?;
    }
    // nginx looks for the user that Debian gives it.
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/:/bin/sh\nwww-data:x:33:33::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    )?;
    fs::write(
        root.join("etc/group"),
        "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n",
    )?;
    modules(&root, guest, contents.modules)?;
    let init = root.join("init");
    let script = include_str!("init.sh")
        .replace("@TASK@", &contents.task)
        .replace("@BROKEN@", BROKEN)
        .replace("@DONE@", DONE);
    fs::write(&init, script).context("the guest's init cannot be written")?;
    fs::set_permissions(&init, Permissions::from_mode(0o755)).context("the guest's init")?;

    let initramfs = folder.join("initramfs.gz");
    // The same files make the same image, byte for byte.
    let script = r#"find . -exec touch --no-dereference --date=@0 {} +
        find . | LC_ALL=C sort | cpio --quiet --reproducible -o -H newc -R 0:0 |
            gzip -1 --no-name >"$0""#;
    let mut pack = Command::new("sh");
    pack.args(["-ec", script])
        .arg(&initramfs)
        .current_dir(&root);
    cmd::output(&mut pack)?;
    Ok(initramfs)
}

/// `drops-0123456789abcdef` is `drops`.
pub fn plain_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.rsplit_once('-')
        .map_or(name.as_ref(), |(name, _)| name)
        .to_owned()
}

fn find(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
        .with_context(|| format!("{program} is not on the path"))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("a file without a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    fs::copy(from, to)
        .map(|_| ())
        .with_context(|| format!("{} cannot be copied to {}", from.display(), to.display()))
}

/// Shared libraries and the loader of a program, by `ldd`.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let list = cmd::output(Command::new("ldd").arg(program))?;
    let path = |line: &str| {
        let path = line.split_whitespace().find(|word| word.starts_with('/'))?;
        Some(PathBuf::from(path))
    };
    Ok(list.lines().filter_map(path).collect())
}

/// Puts the modules and what they depend on into the image, unpacked, with a
/// list in the order in which they must be loaded.
fn modules(root: &Path, guest: &Guest, modules: &[&str]) -> Result<()> {
    let (unpacked, release) = (&guest.unpacked, &guest.release);
    let folder = kernels::modules_folder(unpacked)?;
    let folder = folder.join(release);
    // depmod wants <base>/lib/modules: newer packages have it below /usr.
    let usr = unpacked.join("usr");
    let base = if usr.join("lib/modules").is_dir() {
        usr
    } else {
        unpacked.to_owned()
    };
    cmd::output(Command::new("depmod").arg("-b").arg(base).arg(release))?;
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))
    };
    let dependencies = read("modules.dep")?;
    let built_in = read("modules.builtin")?;
    let is = |path: &str, module: &str| {
        let file = path.rsplit('/').next().unwrap_or(path);
        file.split(".ko").next().unwrap_or(file).replace('-', "_") == module
    };
    let mut order: Vec<&str> = Vec::new();
    for module in modules {
        if built_in.lines().any(|path| is(path, module)) {
            continue;
        }
        let line = dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(path, _)| is(path, module));
        let Some((path, needs)) = line else {
            bail!("kernel {release} has no module {module}");
        };
        // The list names the direct need first, the deepest one last.
        for path in needs.split_whitespace().rev().chain([path]) {
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    let mut list = String::new();
    for path in order {
        let file = path.rsplit('/').next().unwrap_or(path);
        let name = file.trim_end_matches(".xz").trim_end_matches(".zst");
        let (from, to) = (folder.join(path), root.join("modules").join(name));
        let unpack = match file.rsplit('.').next() {
            Some("xz") => Some("xz"),
            Some("zst") => Some("zstd"),
            _ => None,
        };
        match unpack {
            None => copy(&from, &to)?,
            Some(program) => {
                let mut command = Command::new("sh");
                command
                    .args(["-ec", "\"$0\" -dc \"$1\" >\"$2\"", program])
                    .arg(&from)
                    .arg(&to);
                cmd::output(&mut command)?;
            }
        }
        list.push_str(name);
        list.push('\n');
    }
    fs::write(root.join("modules/list"), list).context("the list of modules cannot be written")
}
