//! What a program says, handed on, and a sign of life where it says nothing.

use std::{
    io::{self, BufRead as _, BufReader, Read},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

/// How long nobody waits without a word.
const SILENCE: Duration = Duration::from_secs(4);

/// Hands each line of `from` to `each`. Where there is none for a while, `still` gets the
/// seconds since the beginning, again and again.
///
/// # Errors
///
/// `from` cannot be read.
pub fn lines(
    from: impl Read + Send,
    each: impl FnMut(&str),
    still: impl FnMut(u64),
) -> io::Result<()> {
    lines_within(SILENCE, from, each, still)
}

fn lines_within(
    silence: Duration,
    from: impl Read + Send,
    mut each: impl FnMut(&str),
    mut still: impl FnMut(u64),
) -> io::Result<()> {
    let begin = Instant::now();
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            for line in BufReader::new(from).split(b'\n') {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        loop {
            match receiver.recv_timeout(silence) {
                Ok(line) => each(&String::from_utf8_lossy(&line?)),
                Err(RecvTimeoutError::Timeout) => still(begin.elapsed().as_secs()),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two lines, and a silence before each that ends when it has been told of.
    struct Slow(mpsc::Receiver<()>, Vec<&'static str>);

    impl Read for Slow {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let Some(line) = self.1.pop() else {
                return Ok(0);
            };
            self.0.recv().map_err(io::Error::other)?;
            into[..line.len()].copy_from_slice(line.as_bytes());
            Ok(line.len())
        }
    }

    #[test]
    fn each_silence_is_told_of_and_each_line_handed_on() {
        let (go, gone) = mpsc::channel();
        let from = Slow(gone, vec!["second\n", "first\n"]);
        let said = std::cell::RefCell::new(Vec::new());
        let each = |line: &str| said.borrow_mut().push(line.to_owned());
        let still = |_| {
            said.borrow_mut().push("…".to_owned());
            // The program may be gone meanwhile.
            let _ = go.send(());
        };
        lines_within(Duration::from_millis(1), from, each, still).unwrap();
        let mut said = said.into_inner();
        said.dedup();
        while said.last().is_some_and(|last| last == "…") {
            said.pop();
        }
        assert_eq!(said, ["…", "first", "…", "second"]);
    }
}
