//! The initramfs of a guest.

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{BEGIN, BROKEN, DONE, Options, Programs, kernels};
use crate::cmd;

/// Programs that the tests call.
const TOOLS: &[&str] = &[
    "bpftool", "ip", "nft", "nginx", "openssl", "setpriv", "ss", "tc", "wrk",
];

/// Files that these read. `openssl req` does not work without its own.
const FILES: &[&str] = &["/usr/lib/ssl/openssl.cnf"];

/// Modules that the tests need, where they are not built in.
const MODULES: &[&str] = &[
    "8021q",
    "af_packet",
    "dummy",
    "nf_tables",
    "nft_numgen",
    "sch_netem",
    "tcp_diag",
    "tun",
    "veth",
];

/// Makes the initramfs of a kernel with the programs in it.
pub fn make(
    place: &Path,
    unpacked: &Path,
    release: &str,
    programs: &Programs,
    options: &Options,
) -> Result<PathBuf> {
    let root = place.join("root");
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
    for tool in TOOLS {
        let path = find(tool)?;
        copy(&path, &root.join("bin").join(tool))?;
        libraries.extend(libraries_of(&path)?);
    }
    let tests =
        (programs.tests.iter()).map(|path| (path, root.join("tests").join(plain_name(path))));
    let edgeprobe = (&programs.edgeprobe, root.join("bin/edgeprobe"));
    for (path, to) in tests.chain([edgeprobe]) {
        libraries.extend(libraries_of(path)?);
        let mut strip = Command::new("strip");
        cmd::output(strip.arg("-o").arg(&to).arg(path))?;
    }
    for library in &libraries {
        let to = root.join(library.strip_prefix("/").unwrap_or(library));
        copy(library, &to)?;
    }
    for file in FILES {
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
    modules(&root, unpacked, release)?;
    let init = root.join("init");
    // A test for which something is missing fails, unless the image was never
    // meant to have it.
    let is_complete = (!options.every).to_string();
    let script = include_str!("init.sh")
        .replace("@RUNS@", &runs(programs, options))
        .replace("@COMPLETE@", &is_complete)
        .replace("@BEGIN@", BEGIN)
        .replace("@BROKEN@", BROKEN)
        .replace("@DONE@", DONE);
    fs::write(&init, script).context("the guest's init cannot be written")?;
    fs::set_permissions(&init, Permissions::from_mode(0o755)).context("the guest's init")?;

    let initramfs = place.join("initramfs.gz");
    let mut pack = Command::new("sh");
    pack.args([
        "-ec",
        "find . | cpio --quiet -o -H newc -R 0:0 | gzip -1 >\"$0\"",
    ])
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

/// Lines of the guest's init, one for each test program.
fn runs(programs: &Programs, options: &Options) -> String {
    let run = |name: String| {
        let left_out = options.left_out(&name);
        let skips = left_out.flat_map(|tests| ["--skip".to_owned(), quoted(tests)]);
        let words = ["run".to_owned(), name.clone()].into_iter().chain(skips);
        let words = words.chain(options.args.iter().map(|arg| quoted(arg)));
        words.collect::<Vec<_>>().join(" ")
    };
    let lines: Vec<_> = programs.names().into_iter().map(run).collect();
    lines.join("\n")
}

fn quoted(arg: &str) -> String {
    format!("'{}'", arg.replace('\'', "'\\''"))
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
fn modules(root: &Path, unpacked: &Path, release: &str) -> Result<()> {
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
    for module in MODULES {
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
