//! A connection under test, and what is done to its segments on the way.

use std::net::{SocketAddr, TcpStream};

use probe_tests::{
    netns::{Netns, Pair},
    options, poll,
};

/// Which end it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Client,
    Server,
}

impl End {
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// A connection under test, and which end is the first to do something.
pub struct TestedConnection<'a> {
    pair: &'a Pair,
    /// The server's end.
    at: SocketAddr,
    pub first: End,
}

impl<'a> TestedConnection<'a> {
    /// Opens a connection: its ends, the first one first.
    pub fn open(pair: &'a Pair, at: SocketAddr, first: End) -> (Self, TcpStream, TcpStream) {
        let (_, client, server) = pair.connect(at);
        let connection = Self { pair, at, first };
        match first {
            End::Client => (connection, client, server),
            End::Server => (connection, server, client),
        }
    }

    pub fn other(&self) -> End {
        self.first.other()
    }

    pub fn netns(&self, end: End) -> &'a Netns {
        match end {
            End::Client => &self.pair.client,
            End::Server => &self.pair.server,
        }
    }

    /// The table with the rules of this connection.
    fn table(&self) -> String {
        let (family, number) = match self.at {
            SocketAddr::V4(_) => ("ip", 4),
            SocketAddr::V6(_) => ("ip6", 6),
        };
        format!("{family} ep{}v{number}", self.at.port())
    }

    /// Drops segments that `from` sends, where they arrive.
    pub fn lose(&self, from: End, which: &str) {
        let port = match from {
            End::Client => "dport",
            End::Server => "sport",
        };
        self.netns(from.other()).nft(&format!(
            "table {} {{ chain pre {{ type filter hook prerouting priority raw; \
             tcp {port} {} {which} drop; }}; }}",
            self.table(),
            self.at.port()
        ));
    }

    /// Ends that.
    pub fn lose_no_more(&self, from: End) {
        let rules = format!("delete table {}\n", self.table());
        self.netns(from.other()).nft(&rules);
    }

    /// Answers segments that `from` sends with an ICMP error, where they arrive.
    pub fn reject(&self, from: End) {
        let port = match from {
            End::Client => "dport",
            End::Server => "sport",
        };
        let (chain, says) = match self.at {
            SocketAddr::V4(_) => ("ip", "icmp type host-unreachable"),
            SocketAddr::V6(_) => ("ip6", "icmpv6 type addr-unreachable"),
        };
        let netns = self.netns(from.other());
        for key in ["ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit"] {
            netns.sysctl(key, 0);
        }
        netns.nft(&format!(
            "table {chain} reject{} {{ chain in {{ type filter hook input priority 0; \
             tcp {port} {} reject with {says}; }}; }}",
            self.at.port(),
            self.at.port()
        ));
    }

    /// Ends that.
    pub fn reject_no_more(&self, from: End) {
        let chain = match self.at {
            SocketAddr::V4(_) => "ip",
            SocketAddr::V6(_) => "ip6",
        };
        let rules = format!("delete table {chain} reject{}\n", self.at.port());
        self.netns(from.other()).nft(&rules);
    }

    /// Lets ICMP errors reach the program at once (`IP_RECVERR`).
    pub fn ask_for_errors(&self, stream: &TcpStream) {
        let (level, option) = match self.at {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVERR),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
        };
        options::set(stream, level, option, 1);
    }

    /// Has the kernel close the socket of one end.
    pub fn kill(&self, end: End) {
        let port = match end {
            End::Client => "dport",
            End::Server => "sport",
        };
        let family = if self.at.is_ipv4() { "-4" } else { "-6" };
        let filter = format!("{port} = :{}", self.at.port());
        self.netns(end)
            .command("ss", &["-K", "-Htn", family, "state", "connected", &filter]);
        self.wait_for_none(end);
    }

    /// What `ss` shows of one end.
    pub fn shown(&self, end: End) -> String {
        let port = match end {
            End::Client => "dport",
            End::Server => "sport",
        };
        let family = if self.at.is_ipv4() { "-4" } else { "-6" };
        let filter = format!("{port} = :{}", self.at.port());
        // The listener is not an end.
        let arguments = ["-Hno", family, "state", "connected", &filter];
        self.netns(end)
            .command("ss", &[&["-t"][..], &arguments].concat())
    }

    /// Waits until the first end has its FIN acknowledged.
    pub fn wait_for_fin_wait2(&self) {
        // Without its own module in the kernel `ss` shows TIME_WAIT as such, not as
        // the state that it stands for.
        let states = ["FIN-WAIT-2", "TIME-WAIT"];
        poll::until("the FIN is acknowledged", || {
            let shown = self.shown(self.first);
            states
                .iter()
                .any(|state| shown.contains(state))
                .then_some(())
        });
    }

    /// Waits until one end is no more.
    pub fn wait_for_none(&self, end: End) {
        poll::until("it is gone", || self.shown(end).is_empty().then_some(()));
    }

    /// Waits until the other end is no more, then closes it. It has had a FIN: a
    /// read does not wait for what comes after that.
    pub fn wait_for_reset_of(&self, second: TcpStream) {
        self.wait_for_none(self.other());
        drop(second);
    }
}
