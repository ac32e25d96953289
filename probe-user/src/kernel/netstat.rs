//! Counters of a network namespace (`/proc/net/netstat`).

/// What the kernel counts for a network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetstatCounts {
    /// `ListenDrops`.
    pub listen_drops: u64,
    /// `ListenOverflows`: those of them whose accept queue was full.
    pub listen_overflows: u64,
    /// `SyncookiesRecv`.
    pub cookies: u64,
}

impl NetstatCounts {
    /// Those of the network namespace of the calling thread.
    pub fn here() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/thread-self/net/netstat").ok()?)
    }

    /// What was counted since `before`. Less than before: another namespace has
    /// that number now.
    pub fn since(self, before: Self) -> Self {
        let since = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        Self {
            listen_drops: since(self.listen_drops, before.listen_drops),
            listen_overflows: since(self.listen_overflows, before.listen_overflows),
            cookies: since(self.cookies, before.cookies),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
        let (names, values) = (lines.next()?, lines.next()?);
        let value = |wanted: &str| {
            let column = names.split_whitespace().position(|name| name == wanted)?;
            values.split_whitespace().nth(column)?.parse().ok()
        };
        Some(Self {
            listen_drops: value("ListenDrops")?,
            listen_overflows: value("ListenOverflows")?,
            cookies: value("SyncookiesRecv")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_column_by_its_name() {
        let text = "TcpExt: SyncookiesRecv ListenOverflows ListenDrops\nTcpExt: 1 2 3\nIpExt: A\nIpExt: 9\n";
        let counted = NetstatCounts {
            listen_drops: 3,
            listen_overflows: 2,
            cookies: 1,
        };
        assert_eq!(NetstatCounts::parse(text), Some(counted));
        assert_eq!(NetstatCounts::parse("TcpExt: A\nTcpExt: 1\n"), None);
        assert_eq!(NetstatCounts::parse(""), None);
    }
}
