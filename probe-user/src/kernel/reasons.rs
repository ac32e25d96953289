//! Names of drop and reset reasons, from the running kernel's BTF: the numbers
//! differ from one kernel to the next.

use std::{collections::HashMap, path::Path};

use probe_common::abi::series::{REASON_OTHER, REASON_UNAVAILABLE};

use super::btf::Btf;

/// Bits of a drop reason below the subsystem
/// (`SKB_DROP_REASON_SUBSYS_SHIFT`, `include/net/dropreason.h`).
const SUBSYS_SHIFT: u32 = 16;

/// The names of this kernel.
#[derive(Debug, Default)]
pub struct Reasons {
    drops: HashMap<u32, String>,
    subsystems: HashMap<u32, String>,
    resets: HashMap<u32, String>,
}

impl Reasons {
    /// Reads the names. Subsystems keep theirs in modules; `modules` is the
    /// folder with their BTF.
    pub fn read(btf: &Btf, modules: &Path) -> Self {
        let mut reasons = Self {
            drops: names(btf, "skb_drop_reason", &["SKB_DROP_REASON_", "SKB_"]),
            subsystems: names(btf, "skb_drop_reason_subsys", &["SKB_DROP_REASON_SUBSYS_"]),
            resets: names(btf, "sk_rst_reason", &["SK_RST_REASON_"]),
        };
        for (module, type_name, prefix) in [
            ("mac80211", "mac80211_drop_reason", "RX_DROP_"),
            ("openvswitch", "ovs_drop_reason", "OVS_DROP_"),
        ] {
            let found = if btf.enum_variants(type_name).is_some() {
                names(btf, type_name, &[prefix])
            } else {
                Btf::from_file(&modules.join(module), Some(btf))
                    .map(|btf| names(&btf, type_name, &[prefix]))
                    .unwrap_or_default()
            };
            // These enumerations hold the subsystem in their values.
            reasons.drops.extend(
                found
                    .into_iter()
                    .filter(|&(value, _)| value >> SUBSYS_SHIFT != 0),
            );
        }
        reasons
    }

    /// Subsystem and name of a drop reason; `None` if it is not a drop.
    pub fn of_drop(&self, reason: u32) -> Option<(String, String)> {
        let subsystem = match reason >> SUBSYS_SHIFT {
            0 => "core".to_owned(),
            number => self
                .subsystems
                .get(&number)
                .map_or_else(|| format!("subsystem_{number}"), |name| name.to_lowercase()),
        };
        let name = match self.drops.get(&reason) {
            Some(name) if matches!(name.as_str(), "NOT_DROPPED_YET" | "CONSUMED") => return None,
            Some(name) => name.clone(),
            None => format!("UNKNOWN_{}", reason & ((1 << SUBSYS_SHIFT) - 1)),
        };
        Some((subsystem, name))
    }

    /// Name of a reset reason.
    pub fn of_reset(&self, reason: u32) -> String {
        match reason {
            REASON_UNAVAILABLE => "unavailable".to_owned(),
            REASON_OTHER => "other".to_owned(),
            reason => {
                (self.resets.get(&reason).cloned()).unwrap_or_else(|| format!("UNKNOWN_{reason}"))
            }
        }
    }

    /// Number of `SKB_DROP_REASON_NOT_SPECIFIED` here.
    pub fn not_specified(&self) -> u32 {
        let found = self.drops.iter().find(|(_, name)| *name == "NOT_SPECIFIED");
        found.map_or(u32::MAX, |(&value, _)| value)
    }
}

fn names(btf: &Btf, type_name: &str, prefixes: &[&str]) -> HashMap<u32, String> {
    let variants = btf.enum_variants(type_name).unwrap_or_default();
    variants
        .into_iter()
        .map(|(name, value)| {
            let short = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix));
            (value, short.unwrap_or(&name).to_owned())
        })
        .collect()
}
