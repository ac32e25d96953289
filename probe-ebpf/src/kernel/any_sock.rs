//! A socket of a packet, read with the helper.
//!
//! The receiving socket is an argument of the tracepoint and the sending one a member
//! of the packet. To the verifier these pointers have different types, and one load
//! takes one type only (`verifier.c:reg_type_mismatch`). The helper takes either, so
//! that what is rare needs its code once.

use core::{ffi::c_void, ptr::NonNull};

use aya_ebpf::helpers::bpf_probe_read_kernel;
use probe_common::layout::ABSENT;

use super::{
    addr::{Address, mapped},
    number,
    skb::Skb,
    sock::{AF_INET, AF_INET6, Sock, state},
};
use crate::globals::global;

/// A `struct sock *`, or one of the smaller ones that begin as it does: a request or
/// a TIME_WAIT socket.
#[derive(Clone, Copy)]
pub struct AnySock(NonNull<c_void>);

impl AnySock {
    /// The receiving socket, else the sending one.
    #[inline(always)]
    pub fn of(receiver: Option<Sock>, skb: Skb) -> Option<Self> {
        let receiver = receiver.map_or(core::ptr::null(), Sock::as_ptr);
        let sender = skb.sk().map_or(core::ptr::null(), Sock::as_ptr);
        NonNull::new(if receiver.is_null() { sender } else { receiver }.cast_mut()).map(Self)
    }

    /// As [`Sock::id`].
    #[inline(always)]
    pub fn id(self) -> u64 {
        number(self.0.as_ptr())
    }

    /// A member; zeros where it cannot be read.
    #[inline(always)]
    fn member<T: Copy + Default>(self, offset: u32) -> T {
        read(self.0, offset)
    }

    /// A constant of [`state`].
    #[inline(always)]
    pub fn state(self) -> u8 {
        self.member(global!(LAYOUT.skc_state))
    }

    /// Whether it is a request or a TIME_WAIT socket, which have the first members
    /// only.
    #[inline(always)]
    pub fn is_small(self) -> bool {
        matches!(self.state(), state::TIME_WAIT | state::NEW_SYN_RECV)
    }

    /// IP protocol; 0 of a small socket.
    #[inline(always)]
    pub fn protocol(self) -> u16 {
        if self.is_small() {
            return 0;
        }
        self.member(global!(LAYOUT.sk_protocol))
    }

    /// As [`TcpSock::backlog`](super::sock::TcpSock::backlog), of a full socket.
    #[inline(always)]
    pub fn backlog(self) -> u32 {
        self.member(global!(LAYOUT.sk_max_ack_backlog))
    }

    /// Local port.
    #[inline(always)]
    pub fn local_port(self) -> u16 {
        self.member(global!(LAYOUT.skc_num))
    }

    /// Remote port.
    #[inline(always)]
    pub fn remote_port(self) -> u16 {
        u16::from_be(self.member(global!(LAYOUT.skc_dport)))
    }

    /// Local address.
    #[inline(always)]
    pub fn local(self) -> Address {
        self.address(
            global!(LAYOUT.skc_rcv_saddr),
            global!(LAYOUT.skc_v6_rcv_saddr),
        )
    }

    /// Remote address.
    #[inline(always)]
    pub fn remote(self) -> Address {
        self.address(global!(LAYOUT.skc_daddr), global!(LAYOUT.skc_v6_daddr))
    }

    #[inline(always)]
    fn address(self, v4: u32, v6: u32) -> Address {
        match self.member(global!(LAYOUT.skc_family)) {
            AF_INET => mapped(self.member(v4)),
            AF_INET6 => self.member(v6),
            _ => [0; 2],
        }
    }

    /// Number of the network namespace.
    #[inline(always)]
    pub fn netns(self) -> u32 {
        follow(self.0, global!(LAYOUT.skc_net)).map_or(0, |net| read(net, global!(LAYOUT.net_inum)))
    }

    /// As [`Sock::cgroup`].
    #[inline(always)]
    pub fn cgroup(self) -> u64 {
        let offset = global!(LAYOUT.sk_cgroup);
        if offset == ABSENT || self.is_small() {
            return 0;
        }
        let folder =
            follow(self.0, offset).and_then(|cgroup| follow(cgroup, global!(LAYOUT.cgroup_kn)));
        folder.map_or(0, |folder| read(folder, global!(LAYOUT.kn_id)))
    }
}

#[inline(always)]
fn read<T: Copy + Default>(base: NonNull<c_void>, offset: u32) -> T {
    let at = base.cast::<u8>().as_ptr().wrapping_add(offset as usize);
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(at.cast::<T>()) }.unwrap_or_default()
}

#[inline(always)]
fn follow(base: NonNull<c_void>, offset: u32) -> Option<NonNull<c_void>> {
    NonNull::new(read::<usize>(base, offset) as *mut c_void)
}
