//! Kernels of Debian releases, fetched with apt from the mirror that this
//! machine uses, with lists and a state of their own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::cmd;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A kernel that guests boot.
pub struct Kernel {
    /// Its version, as far as it is fixed.
    pub version: &'static str,
    /// The Debian release that has it.
    suite: &'static str,
    /// Its packages: the newest that begin and end so.
    packages: &'static [(&'static str, &'static str)],
    /// Why a run of all tests leaves it out, if it does.
    pub left_out: Option<&'static str>,
}

/// All of them.
pub const KERNELS: &[Kernel] = &[
    Kernel {
        version: "6.1",
        suite: "bookworm",
        packages: &[("linux-image-6.1.", "-cloud-amd64-unsigned")],
        left_out: None,
    },
    Kernel {
        version: "6.12",
        suite: "trixie",
        packages: &[("linux-image-6.12.", "-cloud-amd64-unsigned")],
        left_out: None,
    },
    Kernel {
        version: "7.2",
        suite: "sid",
        packages: &[
            ("linux-base-7.2.", "-cloud-amd64"),
            ("linux-binary-7.2.", "-cloud-amd64"),
            ("linux-modules-7.2.", "-cloud-amd64"),
        ],
        left_out: None,
    },
];

impl Kernel {
    /// The folder of its unpacked packages; fetches them the first time.
    pub fn unpacked(&self, folder: &Path) -> Result<PathBuf> {
        let unpacked = folder.join(self.version).join("packages");
        let done = unpacked.join(".complete");
        if done.exists() {
            return Ok(unpacked);
        }
        let apt = Apt::new(folder, self.suite)?;
        let names = apt.newest(self.packages)?;
        let files = apt.download(&names)?;
        fs::create_dir_all(&unpacked)
            .with_context(|| format!("{} cannot be made", unpacked.display()))?;
        for file in files {
            let mut unpack = Command::new("dpkg");
            unpack.arg("--extract").arg(&file).arg(&unpacked);
            cmd::output(&mut unpack)?;
            // Unpacked it is of no more use.
            fs::remove_file(&file).with_context(|| format!("{} stays", file.display()))?;
        }
        fs::write(&done, names.join("\n")).context("a marker cannot be written")?;
        Ok(unpacked)
    }
}

/// apt with one release in its lists.
struct Apt {
    config: PathBuf,
    folder: PathBuf,
}

impl Apt {
    fn new(folder: &Path, suite: &str) -> Result<Self> {
        let mirror = mirror()?;
        let folder = folder.join("apt").join(suite);
        for part in ["lists/partial", "cache/archives/partial", "packages"] {
            let path = folder.join(part);
            fs::create_dir_all(&path)
                .with_context(|| format!("{} cannot be made", path.display()))?;
        }
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            fs::write(&path, text)
                .with_context(|| format!("{} cannot be written", path.display()))?;
            Ok::<_, anyhow::Error>(path)
        };
        let sources = write(
            "sources.list",
            format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n"),
        )?;
        let config = write(
            "apt.conf",
            format!(
                "Dir::Etc::SourceList \"{}\";\nDir::Etc::SourceParts \"/dev/null\";\n\
                 Dir::State::Lists \"{at}/lists\";\nDir::Cache \"{at}/cache\";\n\
                 Acquire::Languages \"none\";\nAcquire::Retries \"2\";\n\
                 Acquire::http::Timeout \"30\";\nAcquire::https::Timeout \"30\";\n\
                 Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
                 APT::Sandbox::User \"root\";\nAPT::Update::Error-Mode \"any\";\n",
                sources.display(),
                at = folder.display()
            ),
        )?;
        let apt = Self { config, folder };
        cmd::logged(
            &format!("reading the package list of Debian {suite}"),
            apt.command("apt-get").arg("update"),
            &apt.folder.join("update.log"),
        )?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", &self.config)
            .current_dir(self.folder.join("packages"));
        command
    }

    /// The newest package for each pair of beginning and end.
    fn newest(&self, patterns: &[(&str, &str)]) -> Result<Vec<String>> {
        let list = cmd::output(self.command("apt-cache").args(["pkgnames", "linux-"]))?;
        let newest = |(begin, end): &(&str, &str)| {
            let version = |name: &str| -> Vec<u64> {
                name.split(|c: char| !c.is_ascii_digit())
                    .filter_map(|number| number.parse().ok())
                    .collect()
            };
            list.lines()
                .filter(|name| name.starts_with(begin) && name.ends_with(end))
                .max_by_key(|name| version(name))
                .map(str::to_owned)
                .with_context(|| format!("the release has no package {begin}*{end}"))
        };
        patterns.iter().map(newest).collect()
    }

    /// Downloads packages; returns the files.
    fn download(&self, names: &[String]) -> Result<Vec<PathBuf>> {
        cmd::logged(
            &format!("fetching {}", names.join(", ")),
            self.command("apt-get").arg("download").args(names),
            &self.folder.join("download.log"),
        )?;
        let entries = fs::read_dir(self.folder.join("packages")).context("no packages")?;
        let files: Vec<_> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|end| end == "deb"))
            .collect();
        if files.len() < names.len() {
            bail!(
                "apt-get fetched {} of {} packages",
                files.len(),
                names.len()
            );
        }
        Ok(files)
    }
}

/// The Debian mirror that this machine uses for its own packages.
fn mirror() -> Result<String> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)"]);
    let targets = cmd::output(&mut command)?;
    targets
        .lines()
        .find_map(|line| line.strip_prefix("Debian Debian "))
        .map(str::to_owned)
        .context("apt knows no Debian mirror: is this Debian, and did `apt-get update` run?")
}

/// The kernel image among unpacked packages, and its release.
pub fn image_of(unpacked: &Path) -> Result<(PathBuf, String)> {
    let modules = modules_folder(unpacked)?;
    let entries =
        fs::read_dir(&modules).with_context(|| format!("{} cannot be read", modules.display()))?;
    for entry in entries.filter_map(Result::ok) {
        let release = entry.file_name().to_string_lossy().into_owned();
        let candidates = [
            entry.path().join("vmlinuz"),
            unpacked.join("boot").join(format!("vmlinuz-{release}")),
        ];
        if let Some(image) = candidates.into_iter().find(|path| path.exists()) {
            return Ok((image, release));
        }
    }
    bail!("there is no kernel image below {}", unpacked.display())
}

/// Where its modules lie: older packages have `/lib`, newer ones `/usr/lib`.
pub fn modules_folder(unpacked: &Path) -> Result<PathBuf> {
    ["usr/lib/modules", "lib/modules"]
        .into_iter()
        .map(|path| unpacked.join(path))
        .find(|path| path.is_dir())
        .with_context(|| format!("there are no modules below {}", unpacked.display()))
}
