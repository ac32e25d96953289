//! Labels whose values are known when the programs are compiled: a program
//! writes a number, user space shows the name.

/// A label with a fixed list of values.
pub trait Label: Copy {
    /// Its values, in the order of the numbers.
    const NAMES: &'static [&'static str];
    /// The number of a value, a position in [`Self::NAMES`].
    fn index(self) -> usize;
}

// A new value is an error to a program that reads JSON and does not know it: it
// raises the version of the JSON form (`SCHEMA` of the model).
macro_rules! labels {
    ($(
        $(#[$doc:meta])*
        $label:ident { $($(#[$value_doc:meta])* $value:ident = $name:literal,)* }
    )*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum $label {
            $($(#[$value_doc])* $value,)*
        }

        impl $label {
            /// Label values, in the order of the discriminants.
            pub const NAMES: [&'static str; [$($name),*].len()] = [$($name),*];
        }

        impl Label for $label {
            const NAMES: &'static [&'static str] = &Self::NAMES;

            #[inline(always)]
            fn index(self) -> usize {
                self as usize
            }
        }
    )*};
}

labels! {
    /// Role of the local end of a connection.
    Side {
        /// The local port is a listener's.
        Server = "server",
        /// The connection was opened from here.
        Client = "client",
        /// The connection was open before the start and its listener is gone.
        Unknown = "unknown",
        /// There is no socket.
        None = "none",
    }

    /// How a connection ended.
    Closed {
        /// Both directions were closed in order.
        Fin = "fin",
        /// This end aborted it.
        ResetSent = "reset_sent",
        /// The peer aborted it.
        ResetReceived = "reset_received",
        /// The peer stopped answering.
        Timeout = "timeout",
        /// Anything else.
        Other = "other",
    }

    /// Why a connection was never established.
    ConnectFailure {
        /// ECONNREFUSED.
        Refused = "refused",
        /// ETIMEDOUT.
        Timeout = "timeout",
        /// What ICMP says but for a refused port: EHOSTUNREACH, ENETUNREACH, EACCES and
        /// their kin.
        Unreachable = "unreachable",
        /// A reset during the handshake; on the server a half-open connection reset.
        Reset = "reset",
        /// The program gave up after a SYN had been sent again.
        NoAnswer = "no_answer",
        /// The program gave up before that.
        Cancelled = "cancelled",
        /// No SYN left this host, or a child socket could not be kept.
        Local = "local",
        /// Any other error.
        Other = "other",
    }

    /// Cause of a retransmission.
    Retransmit {
        /// A SYN.
        Syn = "syn",
        /// A SYN-ACK.
        SynAck = "synack",
        /// Fast retransmit: recovery without a timeout.
        Fast = "fast",
        /// The head of the queue after a retransmission timeout.
        Timeout = "timeout",
        /// A tail loss probe that repeats data.
        TailLossProbe = "tail_loss_probe",
        /// Anything else, slow start after a timeout included.
        Other = "other",
    }

    /// Why a TLS handshake was not completed.
    TlsFailed {
        /// The peer sent an alert.
        Alert = "alert",
        /// Either end reset the connection.
        Reset = "reset",
        /// The peer stopped answering.
        Timeout = "timeout",
        /// The connection was closed in order.
        Closed = "closed",
    }

    /// Which end sent a reset.
    Direction {
        /// This host.
        Sent = "sent",
        /// The peer.
        Received = "received",
    }

    /// What a packet is; [`crate::packet::classify`] decides.
    Protocol {
        /// TCP over IPv4 or IPv6.
        Tcp = "tcp",
        /// UDP over IPv4 or IPv6.
        Udp = "udp",
        /// ICMP.
        Icmp = "icmp",
        /// ICMPv6.
        Icmp6 = "icmp6",
        /// Another protocol over IPv4.
        Ipv4 = "ipv4",
        /// Another protocol over IPv6.
        Ipv6 = "ipv6",
        /// ARP.
        Arp = "arp",
        /// Anything else.
        Other = "other",
    }

    /// Why a program lost an event. User space adds `recursion`: those at which the
    /// kernel skipped it, and `shielded`: those that it hid.
    Cause {
        /// An insert into a full map failed.
        MapFull = "map_full",
        /// The event's data could not be read as what it claims to be.
        Parse = "parse",
        /// A fixed limit of the tool was reached.
        Limit = "limit",
    }
}
