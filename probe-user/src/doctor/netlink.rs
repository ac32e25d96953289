//! The little of netlink that listing interfaces takes: building a dump request
//! and walking through messages and attributes.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};

const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;

/// A socket that answers requests of one protocol.
pub struct Netlink(OwnedFd);

impl Netlink {
    /// Opens one.
    pub fn open(protocol: SockProtocol) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        setsockopt(&fd, ReceiveTimeout, &TimeVal::seconds(2))?;
        Ok(Self(fd))
    }

    /// Sends a request and returns the bodies of the answers: one, or those of
    /// a dump.
    pub fn ask(&self, kind: u16, dump: bool, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        send(
            self.0.as_raw_fd(),
            &request(kind, dump, body),
            MsgFlags::empty(),
        )?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut any = false;
            for (kind, body) in messages(&buffer[..length]) {
                any = true;
                match kind {
                    DONE => return Ok(answers),
                    ERROR => return Err(error(body)),
                    _ => answers.push(body.to_vec()),
                }
            }
            if !dump || !any {
                return Ok(answers);
            }
        }
    }
}

fn request(kind: u16, dump: bool, body: &[u8]) -> Vec<u8> {
    let flags = if dump { REQUEST | DUMP } else { REQUEST };
    let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn error(body: &[u8]) -> io::Error {
    let code = u32_of(body.get(..4).unwrap_or_default()).unwrap_or(0) as i32;
    io::Error::from_raw_os_error(code.wrapping_neg())
}

/// An attribute of a request.
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Kinds and bodies of the messages in a datagram; stops at one that is cut off.
fn messages(mut data: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32_of(data.get(..4)?)? as usize;
        let kind = u16_of(data.get(4..6)?)?;
        let body = data.get(HEADER..length)?;
        data = data.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// Kinds and values of attributes; stops at one that is cut off.
pub fn attributes(mut data: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// The upper bits say that it is nested, or in network order.
    const KIND: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let length = usize::from(u16_of(data.get(..2)?)?);
        let kind = u16_of(data.get(2..4)?)? & KIND;
        let value = data.get(4..length)?;
        data = data.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value as a number of 16 bits.
pub fn u16_of(value: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(value.try_into().ok()?))
}

/// The value as a number of 32 bits.
pub fn u32_of(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

/// The value as a number of 64 bits.
pub fn u64_of(value: &[u8]) -> Option<u64> {
    Some(u64::from_ne_bytes(value.try_into().ok()?))
}

/// The value as text up to the first zero.
pub fn text_of(value: &[u8]) -> String {
    let text = value.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_can_be_walked_through() {
        let mut body = attribute(3, b"eth0\0");
        body.extend(attribute(0x8000 | 43, &7u32.to_ne_bytes()));
        let mut data = request(16, true, &body);
        data.extend(request(DONE, false, &[]));
        let found: Vec<_> = messages(&data).collect();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].0, found[1].0), (16, DONE));
        let found: Vec<_> = attributes(found[0].1).collect();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].0, text_of(found[0].1).as_str()), (3, "eth0"));
        assert_eq!((found[1].0, u32_of(found[1].1)), (43, Some(7)));
    }

    #[test]
    fn what_is_cut_off_or_impossible_ends_the_walk() {
        let data = request(16, true, &attribute(3, b"eth0"));
        for length in 0..data.len() {
            assert_eq!(messages(&data[..length]).count(), 0);
        }
        assert_eq!(messages(&[0; 64]).count(), 0, "length 0");
        assert_eq!(attributes(&[0; 64]).count(), 0, "length 0");
        assert_eq!(attributes(&[255; 7]).count(), 0);
    }

    #[test]
    fn errors_carry_the_number_of_the_kernel() {
        let refused = error(&(-libc::EPERM).to_ne_bytes());
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
    }
}
