//! `cargo xtask picture`: `docs/top.svg`, the screen of `edgeprobe top` in a real
//! run.
//!
//! nginx and its clients run in two network namespaces of their own, with a
//! little loss between them. The program draws on a pseudo-terminal, a terminal
//! emulator reads what it draws, and each cell becomes text of the picture.

mod pty;
mod stage;
mod svg;

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use self::{pty::Pty, stage::Stage};
use crate::{build, cmd, packages, workspace::Workspace};

/// Where the picture goes, below the root of the repository.
const PICTURE: &str = "docs/top.svg";
/// What the README can show at its usual width.
const ROWS: u16 = 20;
const COLUMNS: u16 = 110;
/// Largest picture, in bytes.
const MOST: usize = 60 << 10;
/// How long the load runs before the screen is read.
const RUN: Duration = Duration::from_secs(20);
/// A screen is whole when nothing has been drawn for so long.
const QUIET: Duration = Duration::from_millis(60);
/// How long the program may take to leave.
const LEAVE: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(20);
const PACKAGES: &[&str] = &[
    "iproute2",
    "nftables",
    "nginx-light",
    "openssl",
    "util-linux",
    "wrk",
];
/// Names for the picture: addresses of the documentation, so that nobody's own
/// are in it.
const CONFIG: &str = r#"
[[service]]
name = "nginx"
side = "server"
ports = [80, 443]

[[service]]
name = "app"
ports = [8080]

[[service]]
name = "redis"
ports = [6379]

[[peer]]
name = "pop-ams"
cidrs = ["203.0.113.0/24"]
"#;

/// Makes the picture, and says where it is.
///
/// # Errors
///
/// This is not root, a package or a program is missing, or `edgeprobe top` does
/// not run. Nothing is left behind then either.
pub fn run(workspace: &Workspace) -> Result<()> {
    ensure!(
        cmd::is_root(),
        "the picture is of programs in the kernel: run `sudo -E env \"PATH=$PATH\" cargo xtask picture`"
    );
    packages::ensure("the picture", PACKAGES, &workspace.logs())?;
    // Without optimisation: what it shows is the same, and sooner there.
    let edgeprobe = build::edgeprobe(workspace, false)?;
    let folder = workspace.target.join("picture");
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let result = photograph(&edgeprobe, &folder);
    let removed = fs::remove_dir_all(&folder);
    let picture = result?;
    removed.with_context(|| format!("{} cannot be removed", folder.display()))?;
    ensure!(
        picture.len() <= MOST,
        "the picture has {} bytes, more than {MOST}: are there new colours or characters?",
        picture.len()
    );
    let file = workspace.root.join(PICTURE);
    fs::write(&file, &picture).with_context(|| format!("{} cannot be written", file.display()))?;
    cmd::say(&format!("{PICTURE}: {} KiB", picture.len().div_ceil(1024)));
    Ok(())
}

/// Sets the stage, runs `edgeprobe top` on it and draws what its screen shows.
fn photograph(edgeprobe: &Path, folder: &Path) -> Result<String> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .context("signals cannot be watched")?;
    }
    let config = folder.join("config.toml");
    fs::write(&config, CONFIG).with_context(|| format!("{}", config.display()))?;
    let mut stage = Stage::new(folder)?;
    cmd::say("nginx runs in a network namespace of its own");

    // A daemon of this host is not what is shown.
    let mut top = Pty::command();
    top.arg(edgeprobe)
        .args(["top", "--alone", "--netns", stage.server(), "--config"])
        .arg(&config);
    let mut pty = Pty::spawn(top, ROWS, COLUMNS)?;
    let ready = |pty: &mut Pty| pty.text().contains("standing alone");
    wait(&mut pty, &interrupted, Duration::from_secs(30), ready)
        .context("`edgeprobe top` shows nothing")?;
    cmd::say(&format!("load for {} s", RUN.as_secs()));
    stage.load(RUN)?;
    let begin = Instant::now();
    wait(&mut pty, &interrupted, RUN * 2, |pty| {
        begin.elapsed() >= RUN && pty.is_quiet(QUIET)
    })?;
    let picture = svg::draw(pty.screen(), "edgeprobe top");
    pty.leave(LEAVE)?;
    Ok(picture)
}

/// Reads what the program draws until `is_done`.
fn wait(
    pty: &mut Pty,
    interrupted: &AtomicBool,
    patience: Duration,
    mut is_done: impl FnMut(&mut Pty) -> bool,
) -> Result<()> {
    let begin = Instant::now();
    loop {
        if interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        if let Some(status) = pty.ended()? {
            bail!("it ended ({status}): {}", pty.text().trim());
        }
        if is_done(pty) {
            return Ok(());
        }
        ensure!(
            begin.elapsed() < patience,
            "not within {} s; its screen: {}",
            patience.as_secs(),
            pty.text().trim()
        );
        thread::sleep(TICK);
    }
}
