//! What `cargo xtask` starts: builds xtask and becomes it.
//!
//! An alias can only be quiet or not. Quiet, half a minute of the first run would
//! pass without a word; else each later run would begin with two lines of cargo.
//! This has no dependency, so that it is there at once, and shows what cargo says
//! only where there is something to build.

use std::{
    env,
    ffi::OsString,
    io::{self, IsTerminal as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

mod forward;

/// What is done until xtask is there.
const BUILDING: &str = "xtask: building xtask itself";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns only where xtask could not be built.
fn run() -> io::Result<ExitCode> {
    let package = package()?;
    let mut build = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os().filter(|(name, _)| is_of_this_package(name)) {
        build.env_remove(name);
    }
    build
        .current_dir(&package)
        .args(["build", "--package", "xtask", "--color"])
        .arg(if io::stderr().is_terminal() {
            "always"
        } else {
            "never"
        })
        .stderr(Stdio::piped());
    let mut child = build.spawn()?;
    if let Some(stderr) = child.stderr.take() {
        let mut is_first = true;
        let each = |line: &str| {
            if is_end(line) {
                return;
            }
            if is_first {
                eprintln!("{BUILDING}");
                is_first = false;
            }
            eprintln!("{line}");
        };
        forward::lines(stderr, each, |seconds| {
            eprintln!("{BUILDING}: {seconds} s so far");
        })?;
    }
    if !child.wait()?.success() {
        return Ok(ExitCode::FAILURE);
    }
    // Cargo puts the programs of a workspace beside each other.
    let xtask = env::current_exe()?.with_file_name("xtask");
    let mut command = Command::new(&xtask);
    // By this it finds its workspace, as if cargo had run it.
    command
        .args(env::args_os().skip(1))
        .env("CARGO_MANIFEST_DIR", &package);
    Err(command.exec())
}

/// The folder of xtask, in which this package's own is.
fn package() -> io::Result<PathBuf> {
    let own = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let package = own.as_deref().and_then(Path::parent).map(Path::to_owned);
    package.ok_or_else(|| io::Error::other("run it as `cargo xtask`"))
}

/// What cargo sets for the program that it runs would have the build scripts of
/// other packages run again.
fn is_of_this_package(name: &OsString) -> bool {
    name.to_str()
        .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
}

/// Whether this is the line with which cargo ends, built or not.
fn is_end(line: &str) -> bool {
    line.contains("Finished") && line.contains("target(s) in ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_known_in_colour_and_without() {
        let plain = "    Finished `dev` profile [unoptimized + debuginfo] target(s) in 0.05s";
        let coloured = "\u{1b}[1m\u{1b}[92m    Finished\u{1b}[0m `dev` profile [unoptimized \
                        + debuginfo] target(s) in 0.05s";
        assert!(is_end(plain) && is_end(coloured));
        assert!(!is_end("   Compiling clap v4.6.9"));
        assert!(!is_end(
            "    Blocking waiting for file lock on build directory"
        ));
    }
}
