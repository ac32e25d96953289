//! The program at an interface, which may go and come again under its name, as that of
//! a VPN does.

use std::time::{Duration, Instant};

use crate::{
    kernel::netns::{self, EnterError, NetNs},
    loader::DeviceProgram,
};

/// How often the interface is looked for.
const INTERVAL: Duration = Duration::from_secs(1);

/// A program and the interface that it is for.
#[derive(Debug)]
pub struct Attachment {
    /// The program.
    pub program: DeviceProgram,
    /// Packets that the interface had received before it was found to have come again.
    pub lost: u64,
    netns: NetNs,
    interface: String,
    /// Where the program is attached, or was refused.
    at: Option<FoundDevice>,
    /// What an interface had received when the program was attached to it last.
    received: Option<(FoundDevice, u64)>,
    mode: Option<&'static str>,
    looked: Instant,
}

/// An interface that was found. No two that were ever there are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundDevice {
    /// As [`netns::cookie`].
    netns: u64,
    index: u32,
}

impl Attachment {
    /// Attaches a program to an interface.
    pub fn new(program: DeviceProgram, netns: NetNs, interface: String) -> Self {
        let mut attachment = Self {
            program,
            lost: 0,
            netns,
            interface,
            at: None,
            received: None,
            mode: None,
            looked: Instant::now(),
        };
        attachment.received = attachment.look();
        attachment
    }

    /// The mode that it is attached in; empty where it is not.
    pub fn mode(&self) -> &'static str {
        self.mode.unwrap_or_default()
    }

    /// Looks where the interface is now, if that is due.
    pub fn follow(&mut self) {
        if self.looked.elapsed() < INTERVAL {
            return;
        }
        self.looked = Instant::now();
        if let Some((found, received)) = self.look() {
            // One that had only another name meanwhile counts on.
            let before = self.received.filter(|(device, _)| *device == found);
            let before = before.map_or(0, |(_, received)| received);
            self.lost += received.saturating_sub(before);
            self.received = Some((found, received));
        }
    }

    /// Attaches the program if the interface is not the one that it was; returns it then,
    /// and how many packets it had received by then.
    fn look(&mut self) -> Option<(FoundDevice, u64)> {
        let found = self.netns.again().and_then(|netns| {
            self.netns = netns;
            find(&self.netns, &self.interface)
        });
        let found = match found {
            Ok(Some(found)) => found,
            Ok(None) => return self.gone("the interface is not there"),
            Err(EnterError::Gone(_)) => return self.gone("its network namespace is not there"),
            // It is where it was, as far as can be told.
            Err(error) => {
                tracing::debug!("cannot look for {}: {error}", self.interface);
                return None;
            }
        };
        if self.at == Some(found) {
            return None;
        }
        self.gone::<()>("another interface has its name");
        let interface = &self.interface;
        let program = &mut self.program;
        let attached = self.netns.run(|| {
            let attached = program.attach(found.index);
            (attached, received(interface))
        });
        // Where it could not even be tried it is tried again.
        let (attached, received) = attached.ok()?;
        self.at = Some(found);
        match attached {
            Ok(mode) => {
                tracing::info!("XDP on {interface}: {mode} mode");
                self.mode = Some(mode);
            }
            Err(why) => tracing::warn!("no XDP on {interface}, going on without: {why}"),
        }
        Some((found, received))
    }

    fn gone<T>(&mut self, why: &str) -> Option<T> {
        if self.at.take().is_some() {
            tracing::warn!("no XDP on {}: {why}; waiting for it", self.interface);
        }
        self.mode = None;
        self.program.detach(why);
        None
    }
}

/// The interface of that name in a namespace.
///
/// # Errors
///
/// The namespace is gone, or cannot be entered.
pub fn find(netns: &NetNs, interface: &str) -> Result<Option<FoundDevice>, EnterError> {
    netns.run(|| {
        let index = nix::net::if_::if_nametoindex(interface).ok()?;
        let netns = netns::cookie().unwrap_or_default();
        Some(FoundDevice { netns, index })
    })
}

/// Packets that an interface of the namespace of the calling thread has received.
fn received(interface: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    received_in(&text, interface).unwrap_or_default()
}

fn received_in(text: &str, interface: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, counts) = lines.find(|(name, _)| name.trim() == interface)?;
    counts.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn received_packets_are_in_the_second_column() {
        let text = "Inter-|   Receive  | Transmit\n face |bytes packets errs|bytes\n    \
                    lo: 10 2 0\n  va: 500 7 0 0\n";
        assert_eq!(received_in(text, "va"), Some(7));
        assert_eq!(received_in(text, "a"), None);
        assert_eq!(received_in("", "va"), None);
    }
}
