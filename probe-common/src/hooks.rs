//! The table of kernel programs. Each stands here once, under the name that
//! `bpftool` shows.
//!
//! From [`programs!`](crate::programs) follow the entry points of the kernel object
//! with their replicas and their empty twins, what the loader attaches, what
//! `edgeprobe doctor` says is lost without a hook, the slots of the `LOST` map, and
//! `/status`.

use crate::labels::Cause;

/// Replicas of a program where the kernel preempts programs. Their names are its own
/// with 2, 3, … after it.
pub const REPLICAS: u32 = 2;

/// Elements of the `MARKS` map, a power of two.
pub const MARK_SLOTS: u32 = 1 << 16;

/// Target of a message of the programs about a lost event, whose text is the slot
/// of the `LOST` map and a number that tells which event.
pub const LOSS_TARGET: &str = "edgeprobe::lost";

/// Calls a macro with the table.
///
/// Their order is that in which they are attached: `tcp_destroy` first, which frees what
/// the others remember, and last what opens a connection's entry, `tcp_retransmit` and
/// `sock_set_state`. A connection that opens between two attachments would have half of
/// its events: so it has none, and is met as one from before the start.
///
/// A program's name has at most 15 characters, or the kernel cuts it. Its body is
/// the function of that name in a module of `probe-ebpf/src/probes`.
///
/// | key | what it says |
/// |---|---|
/// | `hook` | `tp_btf`, `iter` or `xdp`, and the hook's name |
/// | `body` | the module of its body |
/// | `replicas` | the map in which its replicas find it, and what numbers its events; `none` where the kernel does not preempt it, or where that does little harm |
/// | `twin` | the empty program on the same hook, for the benchmark; `none` for an iterator |
/// | `used` | when it is attached, a value of [`Use`] |
/// | `required` | whether the tool is of no use without it |
/// | `since` | the first kernel with the hook, 6.1 being the oldest supported one |
/// | `loses` | why it may lose an event: the slots of `LOST` |
/// | `skipped` | `reconciled` where a later event tells what one that the kernel skipped would have; else `lost` |
/// | `shielded` | the group of the tracepoint's trace event, where what a shielded process 1 hides of it is counted; else `none` |
/// | `without` | what is missing without it |
#[macro_export]
macro_rules! programs {
    ($with:ident) => {
        $with! {
            tcp_destroy {
                hook: tp_btf "tcp_destroy_sock", body: tcp_state,
                replicas: DESTROY by preempt::of_socket, twin: noop_destroy,
                used: Always, required: true, since: "6.1",
                loses: [Limit], skipped: reconciled, shielded: "tcp",
                without: "when a connection can be forgotten",
            }
            tcp_probe {
                hook: tp_btf "tcp_probe", body: tcp_probe,
                replicas: PROBE by preempt::of_socket, twin: noop_tcp_probe,
                used: Always, required: true, since: "6.1",
                loses: [Parse, Limit], skipped: lost, shielded: none,
                without: "the RTT during connections",
            }
            retrans_synack {
                hook: tp_btf "tcp_retransmit_synack", body: tcp_retransmit,
                replicas: none, twin: noop_synack,
                used: Always, required: false, since: "6.1",
                loses: [MapFull, Limit], skipped: lost, shielded: "tcp",
                without: "retransmitted SYN-ACKs",
            }
            tcp_send_reset {
                hook: tp_btf "tcp_send_reset", body: tcp_reset,
                replicas: SEND_RESET by probes::tcp_reset::answered, twin: noop_send_reset,
                used: Always, required: false, since: "6.1",
                loses: [MapFull, Limit], skipped: lost, shielded: "tcp",
                without: "resets sent",
            }
            tcp_recv_reset {
                hook: tp_btf "tcp_receive_reset", body: tcp_reset,
                replicas: RECEIVE_RESET by preempt::of_socket, twin: noop_recv_reset,
                used: Always, required: false, since: "6.1",
                loses: [MapFull, Limit], skipped: lost, shielded: "tcp",
                without: "resets received",
            }
            kfree_skb {
                hook: tp_btf "kfree_skb", body: skb_drop,
                replicas: KFREE_SKB by preempt::of_packet, twin: noop_kfree_skb,
                used: Always, required: true, since: "6.1",
                loses: [MapFull, Limit], skipped: lost, shielded: none,
                without: "packets dropped, by reason",
            }
            tcp_read {
                hook: tp_btf "tcp_rcv_space_adjust", body: tcp_io,
                replicas: READ by preempt::of_socket, twin: noop_tcp_read,
                used: Always, required: false, since: "6.1",
                loses: [Limit], skipped: lost, shielded: none,
                without: "the time in the accept queue up to the first read",
            }
            tcp_send {
                hook: tp_btf "tcp_sendmsg_locked", body: tcp_io,
                replicas: SEND by preempt::of_socket, twin: noop_tcp_send,
                used: SendsBegun, required: false, since: "6.16",
                loses: [Limit], skipped: lost, shielded: none,
                without: "the time to the first byte",
            }
            sock_send {
                hook: tp_btf "sock_send_length", body: tcp_io,
                replicas: none, twin: noop_sock_send,
                used: SendsReturned, required: false, since: "6.3",
                loses: [], skipped: lost, shielded: none,
                without: "the time to the first byte",
            }
            cgroup_mkdir {
                hook: tp_btf "cgroup_mkdir", body: cgroup,
                replicas: none, twin: noop_cgroup_new,
                used: Owners, required: false, since: "6.1",
                loses: [MapFull], skipped: lost, shielded: none,
                without: "a service's name, by \"cgroup\" or \"unit\", for units that are started later; rows that owners of one name share",
            }
            cgroup_release {
                hook: tp_btf "cgroup_release", body: cgroup,
                replicas: none, twin: noop_cgroup_end,
                used: Owners, required: false, since: "6.1",
                loses: [], skipped: lost, shielded: none,
                without: "free elements for new control groups once many have come and gone",
            }
            accept_exit {
                hook: tp_btf "sys_exit", body: accept,
                replicas: none, twin: noop_accept,
                used: AcceptExit, required: false, since: "6.1",
                loses: [], skipped: lost, shielded: none,
                without: "the return of accept() as the end of the time in the accept queue",
            }
            tcp_retransmit {
                hook: tp_btf "tcp_retransmit_skb", body: tcp_retransmit,
                replicas: RETRANSMIT by preempt::of_socket, twin: noop_retransmit,
                used: Always, required: false, since: "6.1",
                loses: [MapFull, Limit], skipped: reconciled, shielded: "tcp",
                without: "why segments were retransmitted",
            }
            sock_set_state {
                hook: tp_btf "inet_sock_set_state", body: tcp_state,
                replicas: SET_STATE by probes::tcp_state::transition, twin: noop_set_state,
                used: Always, required: true, since: "6.1",
                loses: [MapFull, Limit], skipped: reconciled, shielded: "sock",
                without: "connections opened, open, closed and failed",
            }
            iter_tcp {
                hook: iter "tcp", body: iter_tcp,
                replicas: none, twin: none,
                used: OnDemand, required: true, since: "6.1",
                loses: [MapFull], skipped: lost, shielded: none,
                without: "connections that are open at the start, and the bytes of open ones",
            }
            iter_task_file {
                hook: iter "task_file", body: iter_task_file,
                replicas: none, twin: none,
                used: OnDemand, required: false, since: "6.1",
                loses: [], skipped: lost, shielded: none,
                without: "the processes of listeners and of accepted connections",
            }
            xdp_packets {
                hook: xdp "", body: xdp,
                replicas: none, twin: noop_xdp,
                used: Device, required: false, since: "6.1",
                loses: [MapFull, Limit], skipped: lost, shielded: none,
                without: "packets and flows of interfaces",
            }
        }
    };
}

/// Type of a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookType {
    /// A BTF-typed tracepoint (`BPF_TRACE_RAW_TP`).
    Tracepoint,
    /// A BPF iterator (`BPF_TRACE_ITER`).
    Iterator,
    /// The receive path of an interface.
    Xdp,
}

impl HookType {
    /// What stands before the name of such a hook, as in `tp_btf/tcp_probe`.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Tracepoint => "tp_btf",
            Self::Iterator => "iter",
            Self::Xdp => "xdp",
        }
    }
}

/// When a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Always.
    Always,
    /// Where the kernel tells of sends when they begin.
    SendsBegun,
    /// Where it tells of them only when they have returned.
    SendsReturned,
    /// Where owners are tracked separately.
    Owners,
    /// Where `metrics.accept_queue_exact` asks for it: any program on system calls
    /// slows each of them.
    AcceptExit,
    /// Loaded, and run when somebody reads.
    OnDemand,
    /// At each interface that is named.
    Device,
}

/// What is known of a program.
#[derive(Clone, Copy, Debug)]
pub struct ProgramInfo {
    /// Its name, as the kernel shows it.
    pub name: &'static str,
    /// Type of its hook.
    pub hook_type: HookType,
    /// Name of its hook: the tracepoint, the iterator's target, or empty.
    pub hook: &'static str,
    /// The map in which its replicas find it, where it has any.
    pub replicas: Option<&'static str>,
    /// The empty program on the same hook.
    pub twin: Option<&'static str>,
    /// When it is attached.
    pub used: Use,
    /// Whether the tool is of no use without it.
    pub required: bool,
    /// The first kernel with the hook.
    pub since: &'static str,
    /// Why it may lose an event.
    pub loses: &'static [Cause],
    /// Whether a later event tells what a skipped one would have.
    pub is_reconciled: bool,
    /// Group of the trace event by which what a shielded process 1 hides is counted.
    pub shielded: Option<&'static str>,
    /// What is missing without it.
    pub without: &'static str,
}

impl ProgramInfo {
    /// Value of the label `hook` of what it lost.
    pub const fn lost_hook(&self) -> &'static str {
        match self.hook_type {
            HookType::Tracepoint => self.hook,
            HookType::Iterator => self.name,
            HookType::Xdp => "xdp",
        }
    }
}

macro_rules! define {
    ($(
        $name:ident {
            hook: $hook_type:ident $hook:literal, body: $body:ident,
            replicas: $replicas:ident $(by $($event:ident)::+)?, twin: $twin:ident,
            used: $used:ident, required: $required:literal, since: $since:literal,
            loses: [$($cause:ident),*], skipped: $skipped:ident, shielded: $shielded:tt,
            without: $without:literal,
        }
    )*) => {
        /// The programs, in the order in which they are attached.
        pub const PROGRAMS: &[ProgramInfo] = &[$(
            ProgramInfo {
                name: stringify!($name),
                hook_type: define!(@hook $hook_type),
                hook: $hook,
                replicas: define!(@optional $replicas),
                twin: define!(@optional $twin),
                used: Use::$used,
                required: $required,
                since: $since,
                loses: &[$(Cause::$cause),*],
                is_reconciled: define!(@skipped $skipped),
                shielded: define!(@group $shielded),
                without: $without,
            },
        )*];
    };
    (@hook tp_btf) => { HookType::Tracepoint };
    (@hook iter) => { HookType::Iterator };
    (@hook xdp) => { HookType::Xdp };
    (@optional none) => { None };
    (@optional $name:ident) => { Some(stringify!($name)) };
    (@group none) => { None };
    (@group $group:literal) => { Some($group) };
    (@skipped reconciled) => { true };
    (@skipped lost) => { false };
}
programs!(define);

/// The slot of a program and a cause: `loss!(tcp_probe, Parse)`. What the table does
/// not declare does not compile.
#[macro_export]
macro_rules! loss {
    ($program:ident, $cause:ident) => {
        const { $crate::hooks::Loss::of(stringify!($program), $crate::labels::Cause::$cause) }
    };
}

/// A slot of the `LOST` map: a program and why it lost an event. [`loss!`](crate::loss)
/// makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss(u32);

impl Loss {
    /// The slot of a program and a cause, for use in constants.
    ///
    /// # Panics
    ///
    /// Where the table has no such program, or it does not lose events for that.
    pub const fn of(program: &str, cause: Cause) -> Self {
        let mut slot = 0;
        let mut n = 0;
        while n < PROGRAMS.len() {
            let is_it = is_equal(PROGRAMS[n].name, program);
            let mut k = 0;
            while k < PROGRAMS[n].loses.len() {
                if is_it && PROGRAMS[n].loses[k] as u32 == cause as u32 {
                    return Self(slot);
                }
                slot += 1;
                k += 1;
            }
            n += 1;
        }
        panic!("the table of programs does not declare this loss")
    }

    /// Its index in the map.
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        self.0
    }
}

/// Position of a program in the table, for use in constants.
///
/// # Panics
///
/// Where there is none of that name.
pub const fn position(program: &str) -> usize {
    let mut n = 0;
    while n < PROGRAMS.len() {
        if is_equal(PROGRAMS[n].name, program) {
            return n;
        }
        n += 1;
    }
    panic!("the table has no such program")
}

const fn is_equal(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut n = 0;
    while n < a.len() && n < b.len() && a[n] == b[n] {
        n += 1;
    }
    n == a.len() && n == b.len()
}

/// Number of slots of the `LOST` map.
pub const LOSSES: u32 = {
    let (mut slots, mut n) = (0, 0);
    while n < PROGRAMS.len() {
        slots += PROGRAMS[n].loses.len();
        n += 1;
    }
    slots as u32
};

/// The program and the cause of each slot of the `LOST` map, in their order.
pub fn losses() -> impl Iterator<Item = (&'static ProgramInfo, Cause)> {
    PROGRAMS
        .iter()
        .flat_map(|program| program.loses.iter().map(move |&cause| (program, cause)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_cuts_no_name() {
        for program in PROGRAMS {
            let replica = usize::from(program.replicas.is_some());
            for name in [Some(program.name), program.twin].into_iter().flatten() {
                assert!(name.len() <= 15, "{name}");
            }
            assert!(program.name.len() + replica <= 15, "{}", program.name);
        }
    }

    #[test]
    fn each_slot_is_found_by_its_program_and_cause() {
        assert_eq!(losses().count(), LOSSES as usize);
        for (slot, (program, cause)) in losses().enumerate() {
            assert_eq!(Loss::of(program.name, cause).slot() as usize, slot);
            assert!(PROGRAMS[position(program.name)].name == program.name);
        }
    }
}
