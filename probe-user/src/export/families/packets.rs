//! Families of packets: dropped by the kernel, and seen at an interface.

use super::{
    Builder,
    SampleValue::Count,
    declared::{SKB_DROPS, XDP_BYTES, XDP_PACKETS},
};
use crate::model::{DeviceTraffic, Snapshot};

impl<'a> Builder<'a> {
    pub(super) fn packets(&mut self, snapshot: &'a Snapshot) {
        let drops = snapshot.drops.iter().map(|drop| {
            let labels = vec![
                ("class", drop.class.as_str()),
                ("subsystem", drop.subsystem.as_str()),
                ("reason", drop.reason.as_str()),
                ("protocol", drop.protocol.as_str()),
                ("side", drop.side.as_str()),
                ("svc", drop.svc.as_str()),
            ];
            (labels, Count(drop.count))
        });
        self.family(&SKB_DROPS, drops);
        let traffic = |value: fn(&DeviceTraffic) -> u64| {
            snapshot.devices.iter().flat_map(move |device| {
                device.traffic.iter().map(move |traffic| {
                    let labels = vec![
                        ("device", device.device.as_str()),
                        ("protocol", traffic.protocol.as_str()),
                        ("action", traffic.action.as_str()),
                    ];
                    (labels, Count(value(traffic)))
                })
            })
        };
        self.family(&XDP_PACKETS, traffic(|traffic| traffic.packets));
        self.family(&XDP_BYTES, traffic(|traffic| traffic.bytes));
    }
}
