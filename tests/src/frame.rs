//! Packets and frames made by hand, for what no ordinary socket sends.

use std::{
    ffi::CString,
    io,
    net::{IpAddr, SocketAddr},
};

use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Time to live of an ordinary packet.
pub const TTL: u8 = 64;

/// An IP packet with a UDP datagram.
///
/// # Panics
///
/// Where the addresses are of two families.
#[track_caller]
pub fn udp(source: SocketAddr, target: SocketAddr, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(source.ip(), target.ip(), ttl)
        .udp(source.port(), target.port())
        .write(&mut bytes, payload)
        .expect("a datagram");
    bytes
}

/// An IP packet with a SYN.
///
/// # Panics
///
/// Where the addresses are of two families.
#[track_caller]
pub fn syn(source: SocketAddr, target: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(source.ip(), target.ip(), TTL)
        .tcp(source.port(), target.port(), 1_000_000, 64240)
        .syn()
        .write(&mut bytes, &[])
        .expect("a segment");
    bytes
}

#[track_caller]
fn ip(source: IpAddr, target: IpAddr, ttl: u8) -> PacketBuilderStep<IpHeaders> {
    match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            PacketBuilder::ipv4(source.octets(), target.octets(), ttl)
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            PacketBuilder::ipv6(source.octets(), target.octets(), ttl)
        }
        _ => panic!("{source} and {target} are of two families"),
    }
}

/// An Ethernet frame around an IP packet, with the VLAN tags given.
pub fn ethernet(source: [u8; 6], target: [u8; 6], vlans: &[u16], packet: &[u8]) -> Vec<u8> {
    let mut frame = [target, source].concat();
    for vlan in vlans {
        frame.extend(0x8100u16.to_be_bytes());
        frame.extend(vlan.to_be_bytes());
    }
    let version = packet.first().map_or(0, |first| first >> 4);
    let ethertype: u16 = if version == 6 { 0x86dd } else { 0x0800 };
    frame.extend(ethertype.to_be_bytes());
    frame.extend(packet);
    frame
}

/// Sends a whole IP packet from the namespace of the calling thread.
pub fn send_ip(packet: &[u8], target: IpAddr) -> io::Result<()> {
    let address = SocketAddr::new(target, 0);
    let raw = Protocol::from(libc::IPPROTO_RAW);
    let socket = Socket::new(Domain::for_address(address), Type::RAW, Some(raw))?;
    socket.send_to(packet, &address.into()).map(|_| ())
}

/// A device that takes whole frames.
pub struct Wire(Socket);

impl Wire {
    /// Opens a device of the namespace of the calling thread.
    pub fn open(device: &str) -> io::Result<Self> {
        let name = CString::new(device)?;
        // SAFETY: `name` is a string with its end, and outlives the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        // SAFETY: the storage is zeroed and large enough for a `sockaddr_ll`;
        // the length says how much of it is filled.
        let ((), address) = unsafe {
            SockAddr::try_init(|storage, length| {
                let link = storage.cast::<libc::sockaddr_ll>();
                (*link).sll_family = libc::AF_PACKET as u16;
                (*link).sll_ifindex = index as i32;
                *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
                Ok(())
            })
        }?;
        socket.bind(&address)?;
        Ok(Self(socket))
    }

    /// Sends one frame; waits where the device is busy.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        loop {
            match self.0.send(frame) {
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    std::thread::yield_now();
                }
                result => return result.map(|_| ()),
            }
        }
    }
}
