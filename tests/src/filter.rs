//! A filter of packets that counts what it drops.

use crate::{netns::Netns, poll};

/// A table of nftables whose one rule drops what it matches and counts it.
pub struct Filter<'a>(&'a Netns);

impl<'a> Filter<'a> {
    const TABLE: &'static str = "table inet ep";

    /// Makes one; `rule` is what it matches.
    ///
    /// # Panics
    ///
    /// Where nft refuses it.
    #[track_caller]
    pub fn new(netns: &'a Netns, hook: &str, rule: &str) -> Self {
        netns.nft(&format!(
            "{} {{
                chain filter {{ type filter hook {hook} priority raw; {rule} counter drop; }};
            }}",
            Self::TABLE
        ));
        Self(netns)
    }

    /// What it has dropped.
    ///
    /// # Panics
    ///
    /// Where nft does not tell.
    #[track_caller]
    pub fn dropped(&self) -> u64 {
        let listed = self.0.command("nft", &["list", "table", "inet", "ep"]);
        let mut words = listed.split_whitespace();
        words.find(|word| *word == "packets").expect("a counter");
        let packets = words.next().expect("a number");
        packets.parse().expect("a number")
    }

    /// Drops until at least so many are gone; returns how many are in the end.
    ///
    /// # Panics
    ///
    /// Where that takes too long.
    #[track_caller]
    pub fn until(self, least: u64) -> u64 {
        poll::until("packets are dropped", || {
            (self.dropped() >= least).then_some(())
        });
        self.0.nft("insert rule inet ep filter accept");
        let dropped = self.dropped();
        self.0.nft(&format!("delete {}", Self::TABLE));
        dropped
    }
}
