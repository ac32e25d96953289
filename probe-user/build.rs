//! Compiles the kernel programs for the BPF target and hands the object to the
//! library as `$OUT_DIR/edgeprobe.o`.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail};

#[path = "../xtask/src/ebpf.rs"]
mod ebpf;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = manifest_dir
        .parent()
        .context("probe-user is not inside its workspace")?;
    if variable("CARGO_CFG_TARGET_ENDIAN")? != "little" {
        bail!("edgeprobe's kernel programs are built for little-endian machines only");
    }
    let watched = ["Cargo.lock", "Cargo.toml", "probe-common", "probe-ebpf"];
    for path in watched.into_iter().chain(["xtask/src/ebpf.rs"]) {
        watch(workspace, &workspace.join(path));
    }
    set_revision(workspace);

    let target_dir = target_dir(&out_dir, workspace);
    let choice = target_dir.join(ebpf::CHOICE);
    watch(workspace, &choice);
    let toolchain = ebpf::Toolchain::read(&choice)
        .context("the kernel programs cannot be built yet: run `cargo xtask setup` first")?;

    let built = target_dir.join(ebpf::BUILT);
    let arch = variable("CARGO_CFG_TARGET_ARCH")?;
    let mut command = toolchain.command(&toolchain.cargo, "build", workspace, &built, &arch);
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| again(&toolchain.cargo))?;
    if !status.success() {
        bail!("the kernel programs do not compile ({status}); the compiler's words are below");
    }
    let object = built.join(ebpf::TARGET).join("release").join(ebpf::PROGRAM);
    // BTF has been made: the debug information would only make the binary larger.
    let status = Command::new(&toolchain.llvm_strip)
        .arg("--strip-debug")
        .arg("-o")
        .arg(out_dir.join("edgeprobe.o"))
        .arg(&object)
        .status()
        .with_context(|| again(&toolchain.llvm_strip))?;
    if !status.success() {
        bail!("{} cannot be stripped ({status})", object.display());
    }
    Ok(())
}

/// Has cargo run this again when `path` changes. What is in the workspace is named
/// from this package's folder: cargo keeps the names in the target folder, and in
/// a copied checkout a full path would still be that of the first one.
fn watch(workspace: &Path, path: &Path) {
    let inside = path
        .strip_prefix(workspace)
        .map(|path| Path::new("..").join(path));
    let path = inside.as_deref().unwrap_or(path);
    println!("cargo::rerun-if-changed={}", path.display());
}

fn again(program: &Path) -> String {
    format!(
        "{} cannot be run: run `cargo xtask setup` again",
        program.display()
    )
}

fn variable(name: &str) -> Result<String> {
    env::var(name).with_context(|| format!("cargo did not set {name}"))
}

/// The target folder that set-up wrote its choice into: the one that holds
/// `OUT_DIR`, else (an editor may use one of its own) the default one.
fn target_dir(out_dir: &Path, workspace: &Path) -> PathBuf {
    out_dir
        .ancestors()
        .find(|folder| folder.join(ebpf::CHOICE).is_file())
        .map_or_else(|| workspace.join("target"), Path::to_owned)
}

/// Tells the library which commit it is built from, as far as git can say.
fn set_revision(workspace: &Path) {
    const REVISION: &str = "EDGEPROBE_REVISION";
    println!("cargo::rerun-if-env-changed={REVISION}");
    let git = |args: &[&str]| {
        let output = Command::new("git")
            .current_dir(workspace)
            .args(args)
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    // The log of HEAD changes with every commit and every checkout.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        let log = workspace.join(log);
        if log.is_file() {
            watch(workspace, &log);
        }
    }
    let revision = env::var_os(REVISION)
        .as_deref()
        .and_then(OsStr::to_str)
        .map(ToOwned::to_owned)
        .or_else(|| git(&["rev-parse", "--short=12", "HEAD"]))
        .unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env={REVISION}={revision}");
}
