//! Every map. Sizes that depend on the host or the configuration are set by
//! user space before loading; those here are the defaults.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap},
    macros::btf_map,
};
use probe_common::{
    abi::{
        config::MAX_NETNS,
        conn::Conn,
        drop::{self, CORE_REASONS, DropKey, DropSample, SampleGroup},
        flow::{Flow, Traffic},
        listener::ListenerKey,
        owner::{self, Name},
        series::{self, ResetKey, Row, SeriesKey, SpareRows},
        status,
    },
    hooks,
    labels::Protocol,
};

const MMAPABLE: usize = aya_ebpf::bindings::BPF_F_MMAPABLE as usize;
const NO_PREALLOC: usize = aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize;

/// Row number of each combination of labels. Written by the TCP programs, read
/// by the collector. Full: the combination counts in the overflow row.
#[btf_map]
pub static ROW_OF: HashMap<SeriesKey, u32, 1024, 0> = HashMap::new();

/// Owners by the number of their control group. Written by the collector for
/// groups that are there, by the control group programs for those that come and
/// go; read by the TCP programs. Full: counted; a service does not get its name,
/// or an owner has rows for each of its groups.
#[btf_map]
pub static OWNER_OF: HashMap<u64, u64, { owner::CGROUPS }, NO_PREALLOC> = HashMap::new();

/// Paths of control groups that have come, by their number, where owners go by
/// name. Written when a group comes, read by the collector where it has gone
/// already. Least recently used ones are evicted: such an owner is `unknown`.
#[btf_map]
pub static PATH_OF: LruHashMap<u64, Name, 1, 0> = LruHashMap::new();

/// Owners by the path of a control group or the name of its folder. Written by
/// the collector, read when a group comes. Full: as above.
#[btf_map]
pub static OWNER_BY: HashMap<Name, u64, { owner::NAMES }, NO_PREALLOC> = HashMap::new();

/// Counters and histograms; the index is `row * shards + shard`. Written by the
/// TCP programs with atomic adds, read by the collector through a mapping.
#[btf_map]
pub static ROWS: Array<Row, 1, MMAPABLE> = Array::new();

/// 1 for a row whose client connections have been seen to speak TLS. Written by
/// the TCP programs, all of which write the same, and read by them.
#[btf_map]
pub static SPEAKS_TLS: Array<u64, 1, 0> = Array::new();

/// The next free row number. Written by the TCP programs, read by the collector.
#[btf_map]
pub static NEXT_ROW: Array<u64, 1, 0> = Array::new();

/// Rows that were taken and not needed, for the next keys, see [`SpareRows`]. Written by
/// the TCP programs, read by the collector. Full: the row is lost and counted.
#[btf_map]
pub static SPARE_ROWS: Array<SpareRows, 1, 0> = Array::new();

/// Connections, a hash table of the sockets, see [`Conn`]. Written by the TCP
/// programs under the socket's lock, from the SYN on until the socket goes.
/// Full: the connection is counted when it closes. Can be mapped, though nobody does:
/// its elements then begin at cache lines.
#[btf_map]
pub static CONNS: Array<Conn, 1, MMAPABLE> = Array::new();

/// Single words, see [`status`]. Written by the TCP programs and by the collector,
/// read by the TCP programs.
#[btf_map]
pub static STATUS: Array<u64, { status::LEN }, 0> = Array::new();

/// Connections that the socket iterator has met, to tell the fill of `CONNS`.
/// Written by the iterator, read by the collector.
#[btf_map]
pub static VISITED: Array<u64, 1, 0> = Array::new();

/// Sockets by row and state; the index is `row * states + state`, see
/// [`SOCKET_STATES`](probe_common::abi::iter::SOCKET_STATES). The upper half of a word
/// is the iteration that counted them, the lower how many. Written by the iterator, read
/// by the collector through a mapping: words of other iterations are of the past.
#[btf_map]
pub static SOCKETS: Array<u64, 1, MMAPABLE> = Array::new();

/// Local ports of listeners, `netns << 16 | port`: as programs begin to listen, and as
/// the socket iterator meets them. Tells the side where the backlog does not. The
/// collector removes those that the iterator meets no more. Full: such a server is taken
/// for a client.
#[btf_map]
pub static LISTENERS: HashMap<u64, u8, 4096, NO_PREALLOC> = HashMap::new();

/// What listeners that have closed had dropped (`sk_drops`), by where they
/// listened. Written when one closes, read by the collector, which removes those
/// of namespaces that are gone. Full: counted; those drops are nobody's.
#[btf_map]
pub static LISTENER_DROPS: HashMap<ListenerKey, u64, 1024, NO_PREALLOC> = HashMap::new();

/// Numbers of the network namespaces that are watched, where not all are. Written by
/// user space whenever one comes or goes under its name, read by the TCP and drop
/// programs.
#[btf_map]
pub static WATCHED: HashMap<u32, u8, { 2 * MAX_NETNS }, NO_PREALLOC> = HashMap::new();

/// Ports of the configured services, which get a row in any case. Written by the
/// collector at the start.
#[btf_map]
pub static NAMED_PORTS: HashMap<u32, u8, { series::NAMED_PORTS }, NO_PREALLOC> = HashMap::new();

/// When the first SYN-ACK of a handshake was sent, in microseconds, for those
/// whose SYN-ACK was sent again. Least recently used ones are evicted: the time of
/// that handshake is then lost and counted.
#[btf_map]
pub static SYNACKS: LruHashMap<HandshakeKey, u64, 4096, 0> = LruHashMap::new();

/// When the handshake's last ACK came, in nanoseconds of CLOCK_MONOTONIC, where the
/// listener waits for data. Written by the drop program, read and removed when the
/// connection opens. Least recently used ones are evicted: such a handshake lasts until
/// its data came.
#[btf_map]
pub static DEFERRED: LruHashMap<HandshakeKey, u64, 4096, 0> = LruHashMap::new();

/// Sequence numbers of resets with which clients aborted half-open connections.
/// Written and read by the drop program. Least recently used ones are evicted: the
/// reset that such a client is asked to send again counts too.
#[btf_map]
pub static RESET_SEQS: LruHashMap<HandshakeKey, u32, 4096, 0> = LruHashMap::new();

/// Peer numbers by prefix; IPv4 is mapped into `::ffff:0:0/96`. Written by the
/// collector at the start.
#[btf_map]
pub static PEERS: LpmTrie<[u8; 16], u32, { series::PEER_NETWORKS }> = LpmTrie::new();

/// Service address groups by prefix, likewise.
#[btf_map]
pub static GROUPS: LpmTrie<[u8; 16], u32, { series::GROUP_NETWORKS }> = LpmTrie::new();

/// Resets by row, direction and reason. Full: the reset is counted as lost, and
/// counts in the overflow row, without its reason.
#[btf_map]
pub static RESETS: HashMap<ResetKey, u64, 4096, NO_PREALLOC> = HashMap::new();

/// Dropped packets by the core's reasons and by protocol, see [`CORE_REASONS`].
/// Written by the drop program, read by the collector through a mapping.
#[btf_map]
pub static CORE_DROPS: Array<u64, { CORE_REASONS as usize * Protocol::NAMES.len() }, MMAPABLE> =
    Array::new();

/// Dropped packets by other reasons, nobody's and folded ones, of which there is room
/// for 256 with every protocol: more than all subsystems have. Written and read
/// likewise. Full: the drop is lost and counted.
#[btf_map]
pub static DROPS: HashMap<DropKey, u64, 4096, NO_PREALLOC> = HashMap::new();

/// Dropped packets that are somebody's, by row, reason and protocol. Written and read
/// likewise. Full: the drop counts as a folded one in one of the two maps above.
#[btf_map]
pub static SERVICE_DROPS: HashMap<DropKey, u64, 8192, NO_PREALLOC> = HashMap::new();

/// How many samples of dropped packets were taken, by the group of the reason. Written by
/// the drop program, read by the collector through a mapping.
#[btf_map]
pub static SAMPLE_GROUPS: Array<SampleGroup, { drop::SAMPLE_GROUPS as usize }, MMAPABLE> =
    Array::new();

/// The newest samples of dropped packets, see [`DropSample`]. Written and read likewise.
/// A sample replaces the oldest of its group.
#[btf_map]
pub static DROP_SAMPLES: Array<
    DropSample,
    { (drop::SAMPLE_GROUPS * drop::GROUP_SAMPLES) as usize },
    MMAPABLE,
> = Array::new();

/// Marks of events that a program or one of its replicas has taken, see
/// [`preempt`](crate::preempt). Written and read by these; a mark that another one
/// replaces too early lets an event be taken twice.
#[btf_map]
pub static MARKS: Array<u64, { hooks::MARK_SLOTS as usize }, 0> = Array::new();

/// Events that replicas have taken, by the position of their program in the table of
/// programs. Written by the replicas with atomic adds, read by the collector.
#[btf_map]
pub static TAKEN: Array<u64, { hooks::PROGRAMS.len() }, 0> = Array::new();

/// What was lost, by [`Loss`](hooks::Loss). Written by all programs, read by the
/// collector.
#[btf_map]
pub static LOST: Array<u64, { hooks::LOSSES as usize }, 0> = Array::new();

/// Traffic of the device by protocol; one shard for each possible CPU, the
/// index is `cpu * protocols + protocol`. Written by the XDP program.
#[btf_map]
pub static DEVICE: Array<Traffic, { Protocol::NAMES.len() }, 0> = Array::new();

/// Traffic of the device by flow, a hash table, see
/// [`flow_table`](crate::packet::flow_table). Written by the XDP program, and through
/// a mapping by the collector, which reads it and evicts flows that have ended. Full,
/// or two CPUs want a slot at the same moment: the packet counts in `OVERFLOW`.
#[btf_map]
pub static FLOWS: Array<Flow, 1, MMAPABLE> = Array::new();

/// Slots of `FLOWS` that are taken. Written likewise.
#[btf_map]
pub static FLOW_COUNT: Array<u64, 1, MMAPABLE> = Array::new();

/// Traffic that found no slot in `FLOWS`. Written by the XDP program, read by the
/// collector.
#[btf_map]
pub static OVERFLOW: Array<Traffic, 1, 0> = Array::new();

/// The value of a key in a map of counters, made if it is not there. `None` where
/// the map is full.
#[inline(always)]
pub fn counter<K, const N: usize>(
    map: &HashMap<K, u64, N, NO_PREALLOC>,
    key: &K,
) -> Option<*mut u64> {
    map.get_ptr_mut(key).or_else(|| {
        // Somebody else may insert it first; then that entry is found.
        let _ = map.insert(key, &0, u64::from(BPF_NOEXIST));
        map.get_ptr_mut(key)
    })
}

/// Key of `SYNACKS`, `DEFERRED` and `RESET_SEQS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct HandshakeKey {
    /// Remote address.
    pub remote: [u64; 2],
    /// Number of the network namespace.
    pub netns: u32,
    /// Local port.
    pub local_port: u16,
    /// Remote port.
    pub remote_port: u16,
}
