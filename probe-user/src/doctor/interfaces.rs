//! Which XDP mode an interface can have, as far as it can be known without
//! attaching a program: attaching can reset a network card.

use serde::Serialize;

use super::links::Link;

/// `NETDEV_XDP_ACT_BASIC`: the driver runs XDP programs.
const BASIC: u64 = 1;
/// `NETDEV_XDP_ACT_RX_SG`: also on packets in several buffers.
const FRAGMENTS: u64 = 1 << 5;
/// From this MTU on a packet no longer fits one page with its headroom.
const ONE_PAGE_MTU: u32 = 3500;

/// Drivers and kinds of devices that run XDP programs in Linux 6.1, for kernels
/// that do not tell.
const NATIVE: &[&str] = &[
    "bnxt_en",
    "bond",
    "cpsw",
    "ena",
    "fsl_dpaa2_eth",
    "fsl_enetc",
    "funeth",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "mlx4_core",
    "mlx5_core",
    "mtk_soc_eth",
    "mvneta",
    "mvpp2",
    "nfp",
    "nicvf",
    "qede",
    "sfc",
    "stmmac",
    "tun",
    "veth",
    "vif",
    "virtio_net",
];
/// Kinds of devices that never do.
const GENERIC: &[&str] = &[
    "bridge",
    "dummy",
    "erspan",
    "geneve",
    "gre",
    "gretap",
    "ifb",
    "ip6gre",
    "ip6tnl",
    "ipip",
    "ipvlan",
    "macvlan",
    "nlmon",
    "sit",
    "vcan",
    "vlan",
    "vrf",
    "vxlan",
    "wireguard",
    "xfrm",
];

/// An interface and its XDP mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The driver's name, or the kind of a virtual device.
    pub driver: Option<String>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The mode that can be had.
    pub xdp: XdpSupport,
    /// Why, or what else to know.
    pub note: String,
    /// Mode of the program that is attached already: `native`, `generic`,
    /// `offload` or `multiple`.
    pub attached_mode: Option<&'static str>,
    /// Its number.
    pub attached_program: Option<u32>,
}

/// The XDP mode that an interface can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum XdpSupport {
    /// In the driver, unless the driver has a reason of its own against it.
    NativeLikely,
    /// Only in the network stack.
    GenericOnly,
    /// Cannot be told.
    Unknown,
}

impl XdpSupport {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::NativeLikely => "native likely",
            Self::GenericOnly => "generic only",
            Self::Unknown => "unknown",
        }
    }
}

impl From<&Link> for Interface {
    fn from(link: &Link) -> Self {
        let (xdp, mut note) = mode(link);
        if let Some(attached) = &link.attached {
            let program = attached
                .program
                .map_or_else(String::new, |id| format!(" (program {id})"));
            note = format!(
                "an XDP program is attached already, {}{program}: it stays, edgeprobe goes without",
                attached.mode
            );
        }
        Self {
            name: link.name.clone(),
            driver: link.driver.clone(),
            mtu: link.mtu,
            xdp,
            note,
            attached_mode: link.attached.as_ref().map(|attached| attached.mode),
            attached_program: link.attached.as_ref().and_then(|a| a.program),
        }
    }
}

fn mode(link: &Link) -> (XdpSupport, String) {
    let driver = link.driver.as_deref().unwrap_or_default();
    let large = link.mtu > ONE_PAGE_MTU;
    match link.xdp_features {
        Some(features) if features & BASIC == 0 => (
            XdpSupport::GenericOnly,
            "its driver runs no XDP programs now".to_owned(),
        ),
        Some(features) if large && features & FRAGMENTS == 0 => (
            XdpSupport::GenericOnly,
            format!(
                "its driver runs XDP programs, but not with an MTU of {}",
                link.mtu
            ),
        ),
        Some(_) => (XdpSupport::NativeLikely, "the kernel says so".to_owned()),
        None if NATIVE.contains(&driver) && large => (
            XdpSupport::Unknown,
            format!(
                "depends on whether its driver takes an MTU of {} with XDP",
                link.mtu
            ),
        ),
        None if NATIVE.contains(&driver) => (
            XdpSupport::NativeLikely,
            "by the name of its driver".to_owned(),
        ),
        None if GENERIC.contains(&driver) || link.name == "lo" => {
            (XdpSupport::GenericOnly, "by its kind".to_owned())
        }
        None => (
            XdpSupport::Unknown,
            "this kernel does not tell (Linux 6.3 does)".to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::links::AttachedXdp;
    use super::*;

    fn xdp(driver: &str, mtu: u32, xdp_features: Option<u64>) -> XdpSupport {
        let link = Link {
            name: "eth1".to_owned(),
            driver: Some(driver.to_owned()).filter(|driver| !driver.is_empty()),
            mtu,
            xdp_features,
            ..Link::default()
        };
        Interface::from(&link).xdp
    }

    #[test]
    fn what_the_kernel_says_goes_before_the_driver_name() {
        assert_eq!(xdp("new_nic", 1500, Some(BASIC)), XdpSupport::NativeLikely);
        assert_eq!(xdp("ixgbe", 1500, Some(0)), XdpSupport::GenericOnly);
        assert_eq!(xdp("ixgbe", 9000, Some(BASIC)), XdpSupport::GenericOnly);
        assert_eq!(
            xdp("mlx5_core", 9000, Some(BASIC | FRAGMENTS)),
            XdpSupport::NativeLikely
        );
    }

    #[test]
    fn older_kernels_are_judged_by_the_driver() {
        assert_eq!(xdp("virtio_net", 1500, None), XdpSupport::NativeLikely);
        assert_eq!(xdp("virtio_net", 9000, None), XdpSupport::Unknown);
        assert_eq!(xdp("bridge", 1500, None), XdpSupport::GenericOnly);
        assert_eq!(xdp("e1000e", 1500, None), XdpSupport::Unknown);
        assert_eq!(xdp("", 1500, None), XdpSupport::Unknown);
    }

    #[test]
    fn a_program_that_is_attached_is_named() {
        let link = Link {
            name: "eth0".to_owned(),
            xdp_features: Some(BASIC),
            attached: Some(AttachedXdp {
                mode: "native",
                program: Some(7),
            }),
            ..Link::default()
        };
        let interface = Interface::from(&link);
        assert_eq!(
            interface.note,
            "an XDP program is attached already, native (program 7): \
             it stays, edgeprobe goes without"
        );
        assert_eq!(
            (interface.attached_mode, interface.attached_program),
            (Some("native"), Some(7))
        );
    }
}
