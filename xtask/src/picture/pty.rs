//! A program on a pseudo-terminal, and what its screen shows.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    num::NonZeroU16,
    process::{Child, Command, ExitStatus},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::pty::{Winsize, openpty};

/// Name of the host on the screen.
const HOST: &str = "edge1";

/// A running program, killed with its owner.
pub struct Pty {
    child: Child,
    keyboard: File,
    drawn: Receiver<Vec<u8>>,
    drawn_at: Instant,
    emulator: vt100::Parser,
}

impl Pty {
    /// A command that runs its arguments as the first process of a terminal, on
    /// a host of a name that is nobody's.
    pub fn command() -> Command {
        let mut command = Command::new("setsid");
        command
            .args(["--ctty", "unshare", "--uts", "sh", "-c"])
            .args(["hostname \"$0\" && exec \"$@\"", HOST])
            .env("TERM", "xterm-256color")
            .env("LC_ALL", "C.UTF-8")
            .env_remove("NO_COLOR");
        command
    }

    /// Runs it on a terminal of that size.
    ///
    /// # Errors
    ///
    /// There is no pseudo-terminal, or no such program.
    pub fn spawn(mut command: Command, rows: u16, columns: u16) -> Result<Self> {
        let cells = |count| NonZeroU16::new(count).context("a terminal has rows and columns");
        let emulator = vt100::Parser::new(cells(rows)?, cells(columns)?, 0);
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pair = openpty(&size, None).context("there is no pseudo-terminal")?;
        let far = File::from(pair.slave);
        let near = File::from(pair.master);
        let mut screen = near.try_clone().context("a descriptor")?;
        let child = command
            .stdin(far.try_clone().context("a descriptor")?)
            .stdout(far.try_clone().context("a descriptor")?)
            .stderr(far)
            .spawn()
            .context("setsid cannot be run")?;
        let (sender, drawn) = channel();
        // It keeps its ends of the terminal.
        drop(command);
        // Ends with the program: reading fails once nobody has the far end.
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            child,
            keyboard: near,
            drawn,
            drawn_at: Instant::now(),
            emulator,
        })
    }

    /// The screen as it is now.
    pub fn screen(&mut self) -> &vt100::Screen {
        while let Ok(bytes) = self.drawn.try_recv() {
            self.emulator.process(&bytes);
            self.drawn_at = Instant::now();
        }
        self.emulator.screen()
    }

    /// Its text.
    pub fn text(&mut self) -> String {
        self.screen().contents()
    }

    /// Whether nothing has been drawn for that long.
    pub fn is_quiet(&mut self, time: Duration) -> bool {
        self.screen();
        self.drawn_at.elapsed() >= time
    }

    /// How the program ended, if it has.
    ///
    /// # Errors
    ///
    /// It cannot be waited for.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .context("a child cannot be waited for")
    }

    /// Presses `q` and waits for the end.
    ///
    /// # Errors
    ///
    /// The program does not leave in time, or fails.
    pub fn leave(mut self, patience: Duration) -> Result<()> {
        self.keyboard
            .write_all(b"q")
            .context("the terminal takes no key")?;
        let begin = Instant::now();
        while begin.elapsed() < patience {
            // It may wait for room on the terminal.
            self.screen();
            match self.ended()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("`edgeprobe top` failed ({status})"),
                None => thread::sleep(Duration::from_millis(20)),
            }
        }
        bail!("`edgeprobe top` does not leave");
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        // An error on the way must not leave it running.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
