//! The interfaces of this network namespace and what the kernel says of their
//! XDP, without attaching anything.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use nix::sys::socket::SockProtocol;

use super::netlink::{Netlink, attribute, attributes, text_of, u16_of, u32_of, u64_of};

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// The driver's name, or the kind of a virtual device.
    pub driver: Option<String>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The XDP program that is attached now.
    pub attached: Option<AttachedXdp>,
    /// `NETDEV_XDP_ACT_*` bits; `None` before Linux 6.3.
    pub xdp_features: Option<u64>,
}

/// An XDP program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedXdp {
    /// `native`, `generic`, `offload` or `multiple`.
    pub mode: &'static str,
    /// Its number, where there is one program.
    pub program: Option<u32>,
}

/// Reads the interfaces of this network namespace, in the kernel's order.
pub fn read() -> io::Result<Vec<Link>> {
    const GETLINK: u16 = 18;
    const IFINFOMSG: usize = 16;
    let features = xdp_features();
    let messages =
        Netlink::open(SockProtocol::NetlinkRoute)?.ask(GETLINK, true, &[0; IFINFOMSG])?;
    Ok(messages
        .iter()
        .filter_map(|message| {
            let index = u32_of(message.get(4..8)?)?;
            let mut link = parse(message.get(IFINFOMSG..)?)?;
            link.driver = driver(&link.name).or(link.driver);
            link.xdp_features = features.as_ref().and_then(|f| f.get(&index).copied());
            Some(link)
        })
        .collect())
}

/// The attributes of one interface.
fn parse(data: &[u8]) -> Option<Link> {
    const IFNAME: u16 = 3;
    const MTU: u16 = 4;
    const LINKINFO: u16 = 18;
    const INFO_KIND: u16 = 1;
    const XDP: u16 = 43;
    let mut link = Link::default();
    for (kind, value) in attributes(data) {
        match kind {
            IFNAME => link.name = text_of(value),
            MTU => link.mtu = u32_of(value)?,
            LINKINFO => {
                link.driver = attributes(value)
                    .find(|&(kind, _)| kind == INFO_KIND)
                    .map(|(_, value)| text_of(value));
            }
            XDP => link.attached = parse_xdp(value),
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

fn parse_xdp(data: &[u8]) -> Option<AttachedXdp> {
    const ATTACHED: u16 = 2;
    const PROG_ID: u16 = 4;
    let mut mode = None;
    let mut program = None;
    for (kind, value) in attributes(data) {
        match kind {
            ATTACHED => {
                mode = match value.first()? {
                    0 => None,
                    1 => Some("native"),
                    2 => Some("generic"),
                    3 => Some("offload"),
                    _ => Some("multiple"),
                }
            }
            PROG_ID => program = u32_of(value),
            _ => {}
        }
    }
    Some(AttachedXdp {
        mode: mode?,
        program,
    })
}

/// The driver of a device that is more than software.
fn driver(name: &str) -> Option<String> {
    let link = Path::new("/sys/class/net").join(name).join("device/driver");
    let target = std::fs::read_link(link).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// XDP features by interface number; `None` where the kernel does not tell
/// (`netdev` generic netlink family, Linux 6.3).
fn xdp_features() -> Option<HashMap<u32, u64>> {
    const CTRL: u16 = 16;
    const GETFAMILY: u8 = 3;
    const FAMILY_ID: u16 = 1;
    const FAMILY_NAME: u16 = 2;
    const DEV_GET: u8 = 1;
    const IFINDEX: u16 = 1;
    const XDP_FEATURES: u16 = 3;
    const GENLMSGHDR: usize = 4;

    let netlink = Netlink::open(SockProtocol::NetlinkGeneric).ok()?;
    let mut body = vec![GETFAMILY, 1, 0, 0];
    body.extend(attribute(FAMILY_NAME, b"netdev\0"));
    let family = netlink.ask(CTRL, false, &body).ok()?;
    let family = attributes(family.first()?.get(GENLMSGHDR..)?)
        .find(|&(kind, _)| kind == FAMILY_ID)
        .and_then(|(_, value)| u16_of(value))?;
    let devices = netlink.ask(family, true, &[DEV_GET, 1, 0, 0]).ok()?;
    Some(
        devices
            .iter()
            .filter_map(|message| {
                let (mut index, mut features) = (None, None);
                for (kind, value) in attributes(message.get(GENLMSGHDR..)?) {
                    match kind {
                        IFINDEX => index = u32_of(value),
                        XDP_FEATURES => features = u64_of(value),
                        _ => {}
                    }
                }
                Some((index?, features?))
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_read_from_its_attributes() {
        let mut data = attribute(3, b"veth0\0");
        data.extend(attribute(4, &1500u32.to_ne_bytes()));
        data.extend(attribute(18, &attribute(1, b"veth\0")));
        let mut xdp = attribute(2, &[1]);
        xdp.extend(attribute(4, &77u32.to_ne_bytes()));
        data.extend(attribute(43, &xdp));
        assert_eq!(
            parse(&data),
            Some(Link {
                name: "veth0".to_owned(),
                driver: Some("veth".to_owned()),
                mtu: 1500,
                attached: Some(AttachedXdp {
                    mode: "native",
                    program: Some(77)
                }),
                xdp_features: None,
            })
        );
    }

    #[test]
    fn no_program_and_no_name_are_not_made_up() {
        assert_eq!(parse_xdp(&attribute(2, &[0])), None);
        assert_eq!(parse(&attribute(4, &1500u32.to_ne_bytes())), None);
        assert_eq!(parse(&[]), None);
    }

    #[test]
    fn this_host_has_a_loopback_interface() {
        let links = read().unwrap();
        let lo = links.iter().find(|link| link.name == "lo").unwrap();
        assert!(lo.mtu > 0);
        assert_eq!(lo.attached, None);
    }
}
