//! A program on a terminal of its own.

use std::{
    fs::File,
    io::Read,
    os::fd::AsFd,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    pty::{Winsize, openpty},
};

use crate::{daemon::slowness, poll};

/// For a program to end once it was told to. Two seconds are promised.
const END: Duration = Duration::from_secs(4);

/// The program and the other end of its terminal.
pub struct Pty {
    child: Child,
    /// `None` once the terminal is gone.
    master: Option<File>,
    /// All that it has drawn and that was read.
    drawn: Vec<u8>,
}

impl Pty {
    /// Runs a command as the first process of a new terminal. Needs `setsid`.
    ///
    /// # Panics
    ///
    /// Where it cannot run.
    #[track_caller]
    pub fn spawn(command: &Command) -> Self {
        let mut leader = Command::new("setsid");
        leader.arg("--ctty").arg(command.get_program());
        Self::run(leader.args(command.get_args()))
    }

    /// Runs a command on a new terminal that is not its controlling one: no signal
    /// tells it of the end.
    ///
    /// # Panics
    ///
    /// Where it cannot run.
    #[track_caller]
    pub fn run(command: &mut Command) -> Self {
        let size = Winsize {
            ws_row: 40,
            ws_col: 160,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pair = openpty(&size, None).expect("a terminal");
        let master = File::from(pair.master);
        fcntl(master.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a flag of a file");
        fcntl(
            master.as_fd(),
            FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC),
        )
        .expect("a flag of a file");
        let slave = File::from(pair.slave);
        let end = || Stdio::from(slave.try_clone().expect("the terminal again"));
        let child = command
            .env("TERM", "xterm-256color")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("it runs, by setsid where it leads");
        Self {
            child,
            master: Some(master),
            drawn: Vec::new(),
        }
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reads what it draws until a text is among it.
    ///
    /// # Panics
    ///
    /// Where it never is, or the program ends.
    #[track_caller]
    pub fn read_until(&mut self, text: &str) {
        poll::until(&format!("{text:?} on the terminal"), || {
            self.read();
            let status = self.child.try_wait().expect("the state of a child");
            let drawn = String::from_utf8_lossy(&self.drawn);
            assert!(status.is_none(), "it ended: {status:?}\n{drawn}");
            drawn.contains(text).then_some(())
        });
    }

    fn read(&mut self) {
        let mut some = [0; 4096];
        while let Some(master) = &mut self.master
            && let Ok(count @ 1..) = master.read(&mut some)
        {
            self.drawn.extend_from_slice(&some[..count]);
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: the child is not reaped yet, so the number is its own.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// Presses keys.
    ///
    /// # Panics
    ///
    /// Where the terminal is gone.
    #[track_caller]
    pub fn press(&mut self, keys: &str) {
        let master = self.master.as_mut().expect("a terminal");
        std::io::Write::write_all(master, keys.as_bytes()).expect("the terminal takes keys");
    }

    /// Takes the terminal away, as a window that is closed does.
    pub fn hang_up(&mut self) {
        self.master = None;
    }

    /// Waits until it has ended; reads what it draws meanwhile if `reads`.
    ///
    /// # Panics
    ///
    /// Where it does not end in time.
    #[track_caller]
    pub fn ended(&mut self, reads: bool) -> ExitStatus {
        let asked = Instant::now();
        loop {
            if reads {
                self.read();
            }
            if let Some(status) = self.child.try_wait().expect("the state of a child") {
                println!("ended after {:?}: {status}", asked.elapsed());
                return status;
            }
            assert!(asked.elapsed() < END * slowness(), "it is still there");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
