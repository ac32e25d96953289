//! `cargo xtask setup`: a compiler that can build for the BPF target, and a
//! `bpf-linker` for the LLVM of that compiler.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    cmd,
    ebpf::{self, Toolchain},
    packages,
    workspace::Workspace,
};

const BPF_LINKER: &str = "0.13.0";
/// The major versions of LLVM that this `bpf-linker` can be built for.
const LLVM_MAJORS: std::ops::RangeInclusive<u32> = 21..=23;
/// Debian 12 backports this compiler for its browsers. It comes with the
/// source of the standard library where `-Z build-std` looks for it.
const DEBIAN_COMPILER: &[&str] = &["cargo-web", "rust-web-clippy", "rust-web-src", "rustc-web"];

/// A compiler, and the LLVM that it is built on.
struct Compiler {
    origin: String,
    bin: PathBuf,
    version: String,
    llvm_major: u32,
}

/// Returns the toolchain that was chosen before if it is still there, else
/// finds or installs one and writes the choice down.
pub fn ensure(workspace: &Workspace) -> Result<Toolchain> {
    let choice = workspace.target.join(ebpf::CHOICE);
    if let Ok(toolchain) = Toolchain::read(&choice)
        && is_current(&toolchain)
    {
        return Ok(toolchain);
    }
    let toolchain = choose(workspace)?;
    let text = serde_json::to_string_pretty(&toolchain)?;
    fs::write(&choice, text + "\n")
        .with_context(|| format!("{} cannot be written", choice.display()))?;
    Ok(toolchain)
}

/// One line that says which way was taken.
pub fn describe(toolchain: &Toolchain) -> String {
    format!(
        "eBPF toolchain: {}, bpf-linker {}",
        toolchain.origin, toolchain.bpf_linker_version
    )
}

fn is_current(toolchain: &Toolchain) -> bool {
    toolchain.bpf_linker_version == BPF_LINKER
        && toolchain.bpf_linker.is_file()
        && toolchain.cargo.is_file()
        && toolchain.llvm_strip.is_file()
        && toolchain.cargo_clippy.as_deref().is_none_or(Path::is_file)
        && version(&toolchain.rustc).is_ok_and(|version| version == toolchain.rustc_version)
}

fn choose(workspace: &Workspace) -> Result<Toolchain> {
    let logs = workspace.logs();
    let rustup = rustup_nightly().and_then(|compiler| complete(workspace, &logs, compiler));
    let why_not_rustup = match rustup {
        Ok(toolchain) => return Ok(toolchain),
        Err(error) => format!("{error:#}"),
    };
    cmd::say(&format!(
        "rustup's nightly cannot be used ({why_not_rustup}): taking Debian's compiler"
    ));
    debian(&logs)
        .and_then(|compiler| complete(workspace, &logs, compiler))
        .with_context(|| {
            format!(
                "no eBPF toolchain. Either run `rustup toolchain install nightly --component \
                 rust-src --component clippy` ({why_not_rustup}) or use Debian 12's packages {}",
                DEBIAN_COMPILER.join(" ")
            )
        })
}

/// rustup's nightly, where it has the source of the standard library.
fn rustup_nightly() -> Result<Compiler> {
    ensure!(cmd::on_path("rustup"), "there is no rustup");
    let mut command = Command::new("rustup");
    command
        .env("RUSTUP_AUTO_INSTALL", "0")
        .args(["which", "--toolchain", "nightly", "rustc"]);
    let rustc = cmd::output(&mut command).context("rustup has no nightly")?;
    let bin = Path::new(rustc.trim())
        .parent()
        .context("rustup names no folder")?;
    Compiler::new("rustup's nightly", bin)
}

/// Debian's compiler, which is installed where it is missing.
fn debian(logs: &Path) -> Result<Compiler> {
    let why = "the eBPF compiler";
    let installed = || Compiler::new("Debian's rustc-web", Path::new("/usr/bin"));
    packages::ensure(why, DEBIAN_COMPILER, logs)?;
    match installed() {
        // An older one was there; the updates of Debian 12 have newer ones.
        Ok(compiler) if compiler.llvm_major < *LLVM_MAJORS.start() => {
            packages::newest(why, DEBIAN_COMPILER, logs)?;
            installed()
        }
        result => result,
    }
}

impl Compiler {
    fn new(name: &str, bin: &Path) -> Result<Self> {
        let rustc = bin.join("rustc");
        let version = version(&rustc)?;
        let field = |name: &str| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .with_context(|| format!("`{} -vV` has no line `{name}:`", rustc.display()))
        };
        let llvm = field("LLVM version")?;
        let llvm_major = llvm
            .split('.')
            .next()
            .and_then(|major| major.parse().ok())
            .with_context(|| format!("LLVM version {llvm:?} is not a version"))?;
        let sysroot = cmd::output(Command::new(&rustc).args(["--print", "sysroot"]))?;
        let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs");
        ensure!(core.is_file(), "it has no rust-src");
        Ok(Self {
            origin: format!("{name} {} (LLVM {llvm})", field("release")?),
            bin: bin.to_owned(),
            llvm_major,
            version,
        })
    }
}

fn version(rustc: &Path) -> Result<String> {
    cmd::output(Command::new(rustc).arg("-vV"))
}

/// Adds a linker to a compiler. The linker's LLVM must not be older than that
/// of the compiler, whose bitcode it reads; it is built for the same one.
fn complete(workspace: &Workspace, logs: &Path, compiler: Compiler) -> Result<Toolchain> {
    let major = compiler.llvm_major;
    if !LLVM_MAJORS.contains(&major) {
        bail!(
            "{} needs a linker for LLVM {major}, bpf-linker {BPF_LINKER} knows {} to {}",
            compiler.origin,
            LLVM_MAJORS.start(),
            LLVM_MAJORS.end()
        );
    }
    let bpf_linker = install_bpf_linker(workspace, logs, &compiler)?;
    let clippy = compiler.bin.join("cargo-clippy");
    Ok(Toolchain {
        origin: compiler.origin,
        rustc: compiler.bin.join("rustc"),
        cargo: compiler.bin.join("cargo"),
        cargo_clippy: clippy.is_file().then_some(clippy),
        llvm_strip: llvm_prefix(major).join("bin/llvm-strip"),
        bpf_linker,
        bpf_linker_version: BPF_LINKER.to_owned(),
        rustc_version: compiler.version,
    })
}

/// Where LLVM is: `LLVM_PREFIX` if that is set, else where Debian's packages
/// put this version.
fn llvm_prefix(major: u32) -> PathBuf {
    env::var_os("LLVM_PREFIX").map_or_else(
        || PathBuf::from(format!("/usr/lib/llvm-{major}")),
        PathBuf::from,
    )
}

fn install_bpf_linker(workspace: &Workspace, logs: &Path, compiler: &Compiler) -> Result<PathBuf> {
    let major = compiler.llvm_major;
    if env::var_os("LLVM_PREFIX").is_none() {
        // A C++ compiler's library and what LLVM itself depends on.
        let needed = [
            format!("llvm-{major}-dev"),
            format!("libpolly-{major}-dev"),
            "g++".to_owned(),
            "libzstd-dev".to_owned(),
            "zlib1g-dev".to_owned(),
        ];
        packages::ensure("bpf-linker", &needed, logs)?;
    }
    let feature = format!("llvm-{major}");
    let step = format!("building bpf-linker {BPF_LINKER} for {}", compiler.origin);
    workspace.install_tool("bpf-linker", BPF_LINKER, &step, |command| {
        // Such a build takes half as long. LLVM, which does the work, is as it was.
        command
            .env("LLVM_PREFIX", llvm_prefix(major))
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .args(["--debug", "--no-default-features", "--features", &feature]);
    })
}
