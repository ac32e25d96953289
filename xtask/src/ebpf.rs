//! The eBPF toolchain that `cargo xtask setup` chose, and how it is called.
//!
//! The build script of `probe-user` includes this file too, so that a plain
//! `cargo build` and `cargo xtask lint` compile the kernel programs alike.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// The target of the kernel programs; big-endian hosts are not supported.
pub const TARGET: &str = "bpfel-unknown-none";
/// The package that holds the kernel programs.
const PACKAGE: &str = "probe-ebpf";
/// The name of its one object file.
pub const PROGRAM: &str = "edgeprobe";
/// Where the choice is kept, below the target folder.
pub const CHOICE: &str = "tools/toolchain.json";
/// Where the kernel programs are built, below the target folder. It is not the
/// outer cargo's: that one holds its lock while a build script runs.
pub const BUILT: &str = "ebpf";

/// Variables of an outer cargo that a nested one may see: they say where and
/// how to download, not what to build.
const KEPT: &[&str] = &["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR"];
/// Variables that would make the nested build use the outer compiler, its
/// wrapper (clippy), its libraries, its job server or its flags.
const DROPPED: &[&str] = &[
    "CARGO",
    "CLIPPY_",
    "LD_LIBRARY_PATH",
    "MAKEFLAGS",
    "MFLAGS",
    "RUSTC",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

/// A compiler that can build `core` for the BPF target, and the linker for it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Toolchain {
    /// Where it came from, for messages.
    pub origin: String,
    /// The compiler.
    pub rustc: PathBuf,
    /// The cargo that belongs to it.
    pub cargo: PathBuf,
    /// The `cargo-clippy` that belongs to it, where there is one.
    pub cargo_clippy: Option<PathBuf>,
    /// `llvm-strip` of the same LLVM.
    pub llvm_strip: PathBuf,
    /// `bpf-linker`, built for the LLVM of the compiler.
    pub bpf_linker: PathBuf,
    /// The version of `bpf-linker`.
    pub bpf_linker_version: String,
    /// What `rustc -vV` printed when the choice was made.
    pub rustc_version: String,
}

impl Toolchain {
    /// Reads the choice that `cargo xtask setup` wrote.
    pub fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file)
            .with_context(|| format!("{} cannot be read", file.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is not a toolchain choice", file.display()))
    }

    /// `cargo SUBCOMMAND` of the kernel programs, cut off from the cargo around
    /// it. `program` is this toolchain's cargo or one of its subcommands, `arch`
    /// is the architecture of the kernels that will run the programs.
    pub fn command(
        &self,
        program: &Path,
        subcommand: &str,
        workspace: &Path,
        target_dir: &Path,
        arch: &str,
    ) -> Command {
        let mut command = Command::new(program);
        for (name, _) in env::vars_os() {
            if is_dropped(&name) {
                command.env_remove(name);
            }
        }
        // BTF is made from the debug information. Every kernel that is
        // supported knows version 3 of the instruction set.
        let flags = [
            "-Cdebuginfo=2".to_owned(),
            "-Clink-arg=--btf".to_owned(),
            "-Ctarget-cpu=v3".to_owned(),
            format!("-Clinker={}", self.bpf_linker.display()),
            format!("--cfg=bpf_target_arch=\"{arch}\""),
            "--check-cfg=cfg(bpf_target_arch,values(any()))".to_owned(),
        ];
        command
            .current_dir(workspace)
            .arg(subcommand)
            .args([
                "--package",
                PACKAGE,
                "--bin",
                PROGRAM,
                "--release",
                "--locked",
            ])
            .args(["--target", TARGET, "-Z", "build-std=core", "--target-dir"])
            .arg(target_dir)
            .env("CARGO", &self.cargo)
            .env("RUSTC", &self.rustc)
            // `-Z build-std` is unstable; a nightly does not need to be told.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
        command
    }
}

fn is_dropped(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    DROPPED.iter().any(|prefix| name.starts_with(prefix))
        && !KEPT.iter().any(|prefix| name.starts_with(prefix))
}
