//! The table of TCP counters and histograms by side, service and peer. Each
//! stands here once.
//!
//! From [`tcp_metrics!`](crate::tcp_metrics) follow the counters of a row and how
//! the programs add to them, what is flushed from a socket, the series of a
//! snapshot with their differences and their JSON, the families of `/metrics`, and
//! `docs/metrics.md`.

use core::{marker::PhantomData, ops::Index};

use crate::labels::Label;

/// Calls a macro with the table.
///
/// A counter has the name of its field in JSON, too. Its comment is the help text.
///
/// | key | what it says |
/// |---|---|
/// | `name` | of the family in `/metrics`, a counter without `_total` |
/// | `type` | `counter` only grows; `gauge` is a difference that goes both ways |
/// | `unit` | what is counted |
/// | `by` | the label that splits it, and the label's name |
/// | `from` | `event`: a program adds to it. `socket(getter: width)`: it follows a counter of the socket that wraps at that width; `, state` hands the getter the state before the present transition |
/// | `kernel` | where the kernel keeps it, or what tells of it |
///
/// A histogram also says which of its bounds the text formats show (`buckets`), and
/// whether a series without observations is shown there.
///
/// Counters from 64-bit ones of a socket stand before those from 32-bit ones: so
/// [`Flushed`](crate::abi::conn::Flushed) has no gaps.
#[macro_export]
macro_rules! tcp_metrics {
    ($with:ident) => {
        $with! {
            counters {
                /// Connections that reached ESTABLISHED since the start.
                opened {
                    name: "edgeprobe_tcp_connections_opened", type: counter, unit: connections,
                    from: event,
                    kernel: "`inet_sock_set_state` to ESTABLISHED",
                }
                /// Connections in ESTABLISHED or CLOSE_WAIT now.
                open {
                    name: "edgeprobe_tcp_connections_open", type: gauge, unit: connections,
                    from: event,
                    kernel: "`inet_sock_set_state`; equals `CurrEstab`",
                }
                /// Connections closed, by how they ended.
                closed {
                    name: "edgeprobe_tcp_connections_closed", type: counter, unit: connections,
                    by: Closed as "reason", from: event,
                    kernel: "`inet_sock_set_state` to CLOSE, `sock.sk_err`",
                }
                /// Connections closed straight from ESTABLISHED or CLOSE_WAIT: reset, timed out, or closed with data unread.
                aborted {
                    name: "edgeprobe_tcp_connections_aborted", type: counter, unit: connections,
                    from: event,
                    kernel: "`inet_sock_set_state`; equals `EstabResets`",
                }
                /// Connections never established, by why.
                connect_failures {
                    name: "edgeprobe_tcp_connect_failures", type: counter, unit: connections,
                    by: ConnectFailure as "reason", from: event,
                    kernel: "`inet_sock_set_state` from SYN_SENT or SYN_RECV to CLOSE, `sock.sk_err`",
                }
                /// Payload bytes sent, first transmissions only.
                sent_bytes {
                    name: "edgeprobe_tcp_sent_bytes", type: counter, unit: bytes,
                    from: socket(sent: u64, state),
                    kernel: "`tcp_sock.bytes_acked`, `snd_nxt`, `snd_una`",
                }
                /// Payload bytes that arrived in order.
                received_bytes {
                    name: "edgeprobe_tcp_received_bytes", type: counter, unit: bytes,
                    from: socket(received: u64),
                    kernel: "`tcp_sock.bytes_received`",
                }
                /// Payload bytes sent again.
                retransmitted_bytes {
                    name: "edgeprobe_tcp_retransmitted_bytes", type: counter, unit: bytes,
                    from: socket(bytes_retrans: u64),
                    kernel: "`tcp_sock.bytes_retrans`",
                }
                /// Segments sent.
                sent_segments {
                    name: "edgeprobe_tcp_sent_segments", type: counter, unit: segments,
                    from: socket(segs_out: u32),
                    kernel: "`tcp_sock.segs_out`",
                }
                /// Segments received.
                received_segments {
                    name: "edgeprobe_tcp_received_segments", type: counter, unit: segments,
                    from: socket(segs_in: u32),
                    kernel: "`tcp_sock.segs_in`",
                }
                /// Segments received in ESTABLISHED with the ECN mark CE (congestion experienced).
                received_ce_segments {
                    name: "edgeprobe_tcp_received_ce_segments", type: counter, unit: segments,
                    from: event,
                    kernel: "`tcp_probe`, `tcp_skb_cb.ip_dsfield`",
                }
                /// Segments acknowledged while the peer echoed the ECN mark CE; with classic ECN these are more than were marked.
                delivered_ce_segments {
                    name: "edgeprobe_tcp_delivered_ce_segments", type: counter, unit: segments,
                    from: socket(delivered_ce: u32),
                    kernel: "`tcp_sock.delivered_ce`; equals `TCPDeliveredCE`",
                }
                /// Segments retransmitted, by cause.
                retransmits {
                    name: "edgeprobe_tcp_retransmits", type: counter, unit: segments,
                    by: Retransmit as "type", from: event,
                    kernel: "`tcp_retransmit_skb`, `tcp_retransmit_synack`, `tcp_sock.total_retrans`; equals `RetransSegs`",
                }
                /// Retransmitted segments that the peer already had, as it reported with DSACK.
                spurious_retransmits {
                    name: "edgeprobe_tcp_spurious_retransmits", type: counter, unit: segments,
                    from: socket(dsack_dups: u32),
                    kernel: "`tcp_sock.dsack_dups`",
                }
                /// Segments received out of order.
                out_of_order {
                    name: "edgeprobe_tcp_out_of_order", type: counter, unit: segments,
                    from: socket(out_of_order: u32),
                    kernel: "`tcp_sock.rcv_ooopack`",
                }
                /// Times that the receive window of a connection was found closed when a segment arrived or the program read.
                zero_window {
                    name: "edgeprobe_tcp_zero_window", type: counter, unit: times,
                    from: event,
                    kernel: "`tcp_probe`, `tcp_rcv_space_adjust`, `tcp_sock.rcv_wnd`",
                }
                /// Connections opened with a SYN cookie, which have no handshake duration.
                syn_cookies {
                    name: "edgeprobe_tcp_syn_cookie_connections", type: counter, unit: connections,
                    from: event,
                    kernel: "`inet_sock_set_state` to ESTABLISHED, `tcp_sock.rx_opt.ts_recent_stamp` of the listener",
                }
                /// TLS handshakes that were begun and not completed, by why.
                tls_failures {
                    name: "edgeprobe_tls_handshake_failures", type: counter, unit: handshakes,
                    by: TlsFailed as "reason", from: event,
                    kernel: "`tcp_probe`, the types of TLS records",
                }
            }
            histograms {
                /// Round-trip time, the peer's delayed acknowledgments included: each new sample of the kernel that arrives in ESTABLISHED, and from then on the newest one each time the sockets are iterated over and at the end.
                rtt {
                    id: Rtt, name: "edgeprobe_tcp_rtt_seconds", labels: [side, svc, peer], buckets: latency,
                    without_observations: shown,
                    kernel: "`tcp_probe`, `tcp_sock.srtt_us`, `mdev_us`",
                }
                /// Least round-trip time of a connection in the last minutes, which is the network's without delayed acknowledgments: when it closes, and of an open one every 30 seconds at most.
                min_rtt {
                    id: MinRtt, name: "edgeprobe_tcp_min_rtt_seconds", labels: [side, svc, peer], buckets: latency,
                    without_observations: shown,
                    kernel: "`tcp_sock.rtt_min`",
                }
                /// First SYN sent (client) or received (server) to ESTABLISHED, retransmits included.
                handshake {
                    id: Handshake, name: "edgeprobe_tcp_handshake_duration_seconds", labels: [side, svc, peer], buckets: latency,
                    without_observations: shown,
                    kernel: "`inet_sock_set_state`, `tcp_sock.srtt_us`, `tcp_request_sock.snt_synack`",
                }
                /// ESTABLISHED to closed.
                duration {
                    id: Duration, name: "edgeprobe_tcp_connection_duration_seconds", labels: [side, svc, peer], buckets: lifetime,
                    without_observations: shown,
                    kernel: "`inet_sock_set_state`",
                }
                /// ESTABLISHED to the first use of the socket by the program that accepted it, an upper bound of the time in the accept queue; to the return of accept() where accept_queue_exact is set.
                accept_queue {
                    id: AcceptQueue, name: "edgeprobe_tcp_accept_queue_duration_seconds", labels: [svc], buckets: latency,
                    without_observations: hidden,
                    kernel: "`inet_sock_set_state`, `tcp_probe`, `tcp_rcv_space_adjust`, `sys_exit`",
                }
                /// Last byte of a request received to first byte of its answer sent (server), or last byte sent to first byte received (client).
                first_byte {
                    id: FirstByte, name: "edgeprobe_tcp_first_byte_duration_seconds", labels: [side, svc, peer], buckets: latency,
                    without_observations: hidden,
                    kernel: "`tcp_probe`, `tcp_sendmsg_locked` or `sock_send_length`",
                }
                /// TLS ClientHello to the first application data of the client.
                tls_handshake {
                    id: TlsHandshake, name: "edgeprobe_tls_handshake_duration_seconds", labels: [side, svc, peer], buckets: latency,
                    without_observations: hidden,
                    kernel: "`tcp_probe`, `tcp_sendmsg_locked` or `sock_send_length`, the types of TLS records",
                }
            }
        }
    };
}

/// A counter split by a label, one number for each of its values.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct By<L, const N: usize> {
    counts: [u64; N],
    label: PhantomData<L>,
}

impl<L: Label, const N: usize> Default for By<L, N> {
    fn default() -> Self {
        const { assert!(N == L::NAMES.len()) };
        Self {
            counts: [0; N],
            label: PhantomData,
        }
    }
}

impl<L: Label, const N: usize> By<L, N> {
    /// The counts, in the order of the label's values.
    pub const fn as_slice(&self) -> &[u64] {
        &self.counts
    }

    /// The same, to be changed.
    pub const fn as_mut_slice(&mut self) -> &mut [u64] {
        &mut self.counts
    }

    /// The label's values with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        L::NAMES.iter().copied().zip(self.counts)
    }

    /// The sum over the label's values.
    pub fn sum(&self) -> u64 {
        self.counts.iter().sum()
    }
}

impl<L: Label, const N: usize> Index<L> for By<L, N> {
    type Output = u64;

    fn index(&self, value: L) -> &u64 {
        &self.counts[value.index()]
    }
}

/// Type of a metric, in the words of Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes both ways.
    Gauge,
    /// A distribution.
    Histogram,
}

/// What is known of a counter.
#[derive(Clone, Copy, Debug)]
pub struct CounterInfo {
    /// Name of the field, in JSON too.
    pub field: &'static str,
    /// Name of its family in `/metrics`, a counter without `_total`.
    pub name: &'static str,
    /// Help text, one sentence.
    pub help: &'static str,
    /// Its type.
    pub kind: MetricKind,
    /// What is counted.
    pub unit: &'static str,
    /// Name and values of the label that splits it.
    pub by: Option<(&'static str, &'static [&'static str])>,
    /// Where the kernel keeps it.
    pub kernel: &'static str,
}

/// Which bounds the text formats show of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buckets {
    /// From microseconds to seconds.
    Latency,
    /// From milliseconds to a minute.
    Lifetime,
}

impl Buckets {
    /// In how many nanoseconds the kernel's programs sum up the observations.
    ///
    /// Latencies are summed up exactly. Ages of connections are rounded to the nearest
    /// microsecond: when a hundred thousand connections that are days old end at once, a
    /// sum of nanoseconds would wrap (after 584 years) between two looks.
    pub const fn sum_unit_ns(self) -> u64 {
        match self {
            Self::Latency => 1,
            Self::Lifetime => 1000,
        }
    }
}

/// What is known of a histogram.
#[derive(Clone, Copy, Debug)]
pub struct HistogramInfo {
    /// Name of the field, in JSON too.
    pub field: &'static str,
    /// Name of its family in `/metrics`.
    pub name: &'static str,
    /// Help text, one sentence.
    pub help: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// The bounds that the text formats show.
    pub buckets: Buckets,
    /// Whether a series without observations is shown.
    pub is_shown_empty: bool,
    /// Where the kernel keeps the times, or what tells of them.
    pub kernel: &'static str,
}

macro_rules! define {
    (
        counters {$(
            $(#[doc = $help:literal])+
            $field:ident {
                name: $name:literal, type: $type:ident, unit: $unit:ident, $(by: $label:ident as $key:literal,)?
                from: $from:ident $(($($source:tt)*))?, kernel: $kernel:literal,
            }
        )*}
        histograms {$(
            $(#[doc = $h_help:literal])+
            $h_field:ident {
                id: $h_id:ident, name: $h_name:literal, labels: [$($h_label:ident),*],
                buckets: $buckets:ident, without_observations: $empty:ident,
                kernel: $h_kernel:literal,
            }
        )*}
    ) => {
        /// Counters of a row. Each is raised with an atomic add, since a program can
        /// be interrupted by another one on the same CPU.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $(
                $(#[doc = $help])+
                pub $field: define!(@type $($label)?),
            )*
        }

        crate::abi::pod! {
            Counters { $($field),* }
        }

        /// What is known of the members of [`Counters`], in their order.
        pub const COUNTERS: &[CounterInfo] = &[$(
            CounterInfo {
                field: stringify!($field),
                name: $name,
                help: concat!($($help),+).trim_ascii(),
                kind: define!(@kind $type),
                unit: stringify!($unit),
                by: define!(@by $($label $key)?),
                kernel: $kernel,
            },
        )*];

        /// Which histogram of a row: positions in [`HISTOGRAMS`].
        #[expect(clippy::doc_markdown, reason = "a help text has no markup")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum HistogramId {
            $($(#[doc = $h_help])+ $h_id,)*
        }

        impl HistogramId {
            /// What the sum of this histogram is kept in, see [`Buckets::sum_unit_ns`].
            #[inline(always)]
            pub const fn sum_unit_ns(self) -> u64 {
                match self {
                    $(Self::$h_id => define!(@buckets $buckets).sum_unit_ns(),)*
                }
            }
        }

        /// What is known of the histograms of a row, in their order there.
        pub const HISTOGRAMS: &[HistogramInfo] = &[$(
            HistogramInfo {
                field: stringify!($h_field),
                name: $h_name,
                help: concat!($($h_help),+).trim_ascii(),
                labels: &[$(stringify!($h_label)),*],
                buckets: define!(@buckets $buckets),
                is_shown_empty: define!(@empty $empty),
                kernel: $h_kernel,
            },
        )*];
    };
    (@type) => { u64 };
    (@type $label:ident) => { By<$crate::labels::$label, { $crate::labels::$label::NAMES.len() }> };
    (@kind counter) => { MetricKind::Counter };
    (@kind gauge) => { MetricKind::Gauge };
    (@by) => { None };
    (@by $label:ident $key:literal) => { Some(($key, &$crate::labels::$label::NAMES)) };
    (@buckets latency) => { Buckets::Latency };
    (@buckets lifetime) => { Buckets::Lifetime };
    (@empty shown) => { true };
    (@empty hidden) => { false };
}
tcp_metrics!(define);

/// Numbers in [`Counters`], those of each label's value counted.
pub const COUNTER_WORDS: usize = {
    let (mut words, mut n) = (0, 0);
    while n < COUNTERS.len() {
        words += match COUNTERS[n].by {
            Some((_, values)) => values.len(),
            None => 1,
        };
        n += 1;
    }
    words
};

const _: () = assert!(size_of::<Counters>() == 8 * COUNTER_WORDS);

#[cfg(feature = "user")]
mod user;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_is_one_sentence_and_a_name_ends_in_its_unit() {
        let texts = COUNTERS.iter().map(|one| (one.name, one.help));
        for (name, help) in texts.chain(HISTOGRAMS.iter().map(|one| (one.name, one.help))) {
            assert!(
                help.ends_with('.') && !help.starts_with(' '),
                "{name}: {help:?}"
            );
            assert!(!name.ends_with("_total"), "{name}");
        }
        assert!(HISTOGRAMS.iter().all(|one| one.name.ends_with("_seconds")));
    }

    #[test]
    fn no_name_is_there_twice() {
        for (n, one) in COUNTERS.iter().enumerate() {
            for other in &COUNTERS[..n] {
                assert!(
                    one.name != other.name && one.field != other.field,
                    "{}",
                    one.name
                );
            }
        }
    }
}
