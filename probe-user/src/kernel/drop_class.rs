//! Which dropped packets somebody lacks.

/// The packet was on its way to somebody who did not get it, or nothing tells
/// otherwise.
pub const LOSS: &str = "loss";

/// The kernel freed a packet that nobody lacks.
pub const HOUSEKEEPING: &str = "housekeeping";

/// Reasons that are housekeeping, and why. All others are loss: a packet that is
/// taken for lost and was not costs a look, the reverse hides a fault.
///
/// The names are those of `enum skb_drop_reason` (`include/net/dropreason-core.h`).
const NOBODY_LACKS: &[(&str, &str)] = &[
    ("DUP_FRAG", "another copy of the fragment was there"),
    (
        "IPV6_NDISC_NS_OTHERHOST",
        "it asked for the address of another host",
    ),
    ("OTHERHOST", "it went to the MAC address of another host"),
    ("QUEUE_PURGE", "it was queued when its socket was closed"),
    ("SOCKET_CLOSE", "it was queued when its socket was closed"),
    ("TCP_OFOMERGE", "its data were in the out-of-order queue"),
    ("TCP_OFO_DROP", "its data were in the receive queue"),
    ("TCP_OLD_ACK", "a later ACK had arrived"),
    ("TCP_OLD_DATA", "its data had arrived"),
    ("TCP_OLD_SEQUENCE", "its data had arrived"),
    (
        "UNIX_DISCONNECT",
        "it was queued when its socket was connected anew",
    ),
];

/// [`LOSS`] or [`HOUSEKEEPING`], by the names of subsystem and reason.
pub fn class(subsystem: &str, reason: &str) -> &'static str {
    if subsystem == "core" && NOBODY_LACKS.iter().any(|(name, _)| *name == reason) {
        HOUSEKEEPING
    } else {
        LOSS
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::kernel::btf::Btf;

    #[test]
    fn no_name_is_mistyped() {
        let path = Path::new("/sys/kernel/btf/vmlinux");
        let Ok(btf) = Btf::from_file(path, None) else {
            let is_ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
            assert!(!is_ci, "no BTF of the kernel");
            eprintln!("SKIPPED: no_name_is_mistyped: this kernel has no BTF");
            return;
        };
        let known = btf.enum_variants("skb_drop_reason").expect("drop reasons");
        let known = |name: &str| (known.iter()).any(|(known, _)| known.ends_with(name));
        if !known("_UNIX_DISCONNECT") {
            eprintln!("SKIPPED: no_name_is_mistyped: this kernel is older than 6.14");
            return;
        }
        for (name, _) in NOBODY_LACKS {
            assert!(known(&format!("SKB_DROP_REASON_{name}")), "{name}");
        }
    }

    #[test]
    fn a_subsystem_of_its_own_has_no_housekeeping() {
        assert_eq!(class("core", "QUEUE_PURGE"), HOUSEKEEPING);
        assert_eq!(class("core", "NETFILTER_DROP"), LOSS);
        assert_eq!(class("core", "UNKNOWN_99"), LOSS);
        assert_eq!(class("openvswitch", "QUEUE_PURGE"), LOSS);
    }
}
