//! Running programs, with progress on the long ones.

use std::{
    fs::{self, File},
    io::{self, IsTerminal as _},
    path::Path,
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

#[path = "../launcher/src/forward.rs"]
mod forward;

/// How often a long silent step says that it is still going on.
const HEARTBEAT: Duration = Duration::from_secs(4);
/// How much of a failed step's output is shown.
const TAIL_LINES: usize = 40;

/// Prints one line of progress to stderr.
pub fn say(line: &str) {
    let bold = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if bold {
        eprintln!("\x1b[1mxtask:\x1b[0m {line}");
    } else {
        eprintln!("xtask: {line}");
    }
}

/// Runs `command` and returns what it printed to stdout.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .output()
        .with_context(|| format!("`{}` cannot be run", line(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{}` failed ({}): {}",
            line(command),
            output.status,
            stderr.trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command`, says so as `name`, and returns what it printed to stdout; its stderr
/// stays on the terminal, where cargo draws how far it is. Elsewhere a silence of some
/// seconds has a line that says so.
pub fn piped(name: &str, command: &mut Command) -> Result<String> {
    say(name);
    let draws = io::stderr().is_terminal();
    let stderr = if draws {
        Stdio::inherit()
    } else {
        Stdio::piped()
    };
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .with_context(|| format!("`{}` cannot be run", line(command)))?;
    let stderr = child.stderr.take();
    let output = thread::scope(|scope| {
        if let Some(stderr) = stderr {
            scope.spawn(move || {
                let still = |seconds| say(&format!("{name}: {seconds} s so far"));
                if let Err(error) = forward::lines(stderr, |line| eprintln!("{line}"), still) {
                    say(&format!("{name}: its messages cannot be read: {error}"));
                }
            });
        }
        child.wait_with_output()
    })
    .with_context(|| format!("`{}` cannot be waited for", line(command)))?;
    if !output.status.success() {
        bail!("`{}` failed ({})", line(command), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command` with its output on the terminal.
pub fn shown(name: &str, command: &mut Command) -> Result<()> {
    say(name);
    let started = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("`{}` cannot be run", line(command)))?;
    finished(name, started, status, command)
}

/// Runs `command` with its output in the file `log`: says every few seconds
/// that it is still going on, and shows the end of the output if it fails.
pub fn logged(name: &str, command: &mut Command, log: &Path) -> Result<()> {
    if let Some(parent) = log.parent() {
        fs::create_dir_all(parent)
            .with_context(|| format!("{} cannot be made", parent.display()))?;
    }
    let file = File::create(log).with_context(|| format!("{} cannot be made", log.display()))?;
    say(name);
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone().context("a log file cannot be shared")?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("`{}` cannot be run", line(command)))?;
    let mut next = HEARTBEAT;
    let status = loop {
        if let Some(status) = child.try_wait().context("a child cannot be waited for")? {
            break status;
        }
        if started.elapsed() >= next {
            say(&format!("{name}: {} s so far", started.elapsed().as_secs()));
            next += HEARTBEAT;
        }
        thread::sleep(Duration::from_millis(20));
    };
    if !status.success() {
        let text = fs::read(log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
            eprintln!("    {line}");
        }
    }
    finished(name, started, status, command)
}

/// Whether what is missing is a failure, and not something to go on without.
pub fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|ci| ci == "true")
}

/// Whether this process may install packages and load kernel programs.
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing, touches no memory and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Whether a program of this name is on the path.
pub fn on_path(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
    })
}

/// The command as one would type it, for messages.
pub fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

fn finished(name: &str, started: Instant, status: ExitStatus, command: &Command) -> Result<()> {
    if !status.success() {
        bail!("{name}: `{}` failed ({status})", line(command));
    }
    say(&format!(
        "{name}: done in {:.1} s",
        started.elapsed().as_secs_f64()
    ));
    Ok(())
}
