//! Interfaces with XDP: attached, and read.

use aya::maps::{Array, MapData};
use probe_common::{abi::flow::Traffic, labels::Protocol};

mod attachment;
mod flows;

use self::{
    attachment::Attachment,
    flows::{FlowReading, FlowTable},
};
use super::namespaces::Namespaces;
use crate::{
    config::Config,
    kernel::netns::NetNs,
    loader::{DeviceProgram, Globals, Loaded, maps},
    model::{self, MapUse},
};

/// Flows of a device in a snapshot.
const TOP_FLOWS: usize = 100;

/// A device whose packets are counted, or that could not be had.
#[derive(Debug)]
pub struct XdpDevice {
    /// Its name in the numbers.
    pub name: String,
    attachment: Attachment,
    flows: FlowTable,
}

impl XdpDevice {
    /// The program and its maps.
    pub fn loaded(&self) -> &Loaded {
        &self.attachment.program.loaded
    }

    /// Follows the interface, which may have gone, or gone and come again.
    pub fn follow(&mut self) {
        self.attachment.follow();
    }

    /// Packets that an interface had received before it was found to have come again.
    pub fn lost(&self) -> u64 {
        self.attachment.lost
    }

    /// Reads its maps once.
    pub fn read(&mut self) -> anyhow::Result<model::Device> {
        let mut device = model::Device {
            device: self.name.clone(),
            xdp_mode: self.attachment.mode().to_owned(),
            ..model::Device::default()
        };
        // The flows first and the totals after them: what arrives in between is
        // in the totals and not yet in the flows, never the other way round.
        let FlowReading {
            mut flows,
            sum,
            evicted,
        } = self.flows.read(&self.attachment.program.loaded)?;
        device.flows = flows.len() as u64;
        flows.sort_by_key(|(_, traffic)| std::cmp::Reverse(traffic.bytes));
        flows.truncate(TOP_FLOWS);
        device.top_flows = flows
            .iter()
            .map(|(key, traffic)| flows::packet_flow(key, *traffic))
            .collect();
        device.past_flows = evicted.flows;
        device.past_packets = evicted.traffic.packets;
        device.past_bytes = evicted.traffic.bytes;
        let overflow: Array<&MapData, Traffic> = self.loaded().map("OVERFLOW")?;
        let overflow = overflow.get(&0, 0)?;
        device.overflow_packets = overflow.packets;
        device.overflow_bytes = overflow.bytes;
        device.flow_packets = sum.packets + evicted.traffic.packets + overflow.packets;
        device.flow_bytes = sum.bytes + evicted.traffic.bytes + overflow.bytes;
        let totals: Array<&MapData, Traffic> = self.loaded().map("DEVICE")?;
        let protocols = Protocol::NAMES.len() as u32;
        for (n, protocol) in Protocol::NAMES.into_iter().enumerate() {
            let mut sum = Traffic::default();
            for cpu in 0..totals.len() / protocols {
                let part = totals.get(&(cpu * protocols + n as u32), 0)?;
                sum.packets += part.packets;
                sum.bytes += part.bytes;
            }
            if sum.packets != 0 {
                device.traffic.push(model::DeviceTraffic {
                    protocol: protocol.to_owned(),
                    action: "pass".to_owned(),
                    packets: sum.packets,
                    bytes: sum.bytes,
                });
            }
        }
        Ok(device)
    }

    /// Its name in the numbers.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Fill of its table of flows.
    pub fn usage(&self, flows: u64) -> MapUse {
        MapUse {
            map: maps::of_device(maps::FLOWS, &self.name),
            capacity: self.flows.most().into(),
            ..maps::usage(self.loaded(), maps::FLOWS, flows)
        }
    }
}

/// An interface of the configuration, and where it is.
#[derive(Debug)]
pub struct FoundInterface {
    interface: String,
    netns: NetNs,
    /// Name of the device in the numbers.
    name: String,
}

/// Finds the interfaces of the configuration: in the watched namespaces or,
/// without any named, in this process's own. Where several have one of that name
/// it is told by its namespace too, `NETNS/INTERFACE`. One that is not there yet is
/// waited for, where there is one place to wait.
///
/// # Errors
///
/// There is no such interface in any of several namespaces.
pub fn find(config: &Config, namespaces: &Namespaces) -> anyhow::Result<Vec<FoundInterface>> {
    let own = NetNs::own()?;
    let mut found = Vec::new();
    for interface in &config.packets.interfaces {
        let candidates: Vec<&NetNs> = if namespaces.are_named() {
            namespaces.known().collect()
        } else {
            vec![&own]
        };
        let mut having = Vec::new();
        for &netns in &candidates {
            if attachment::find(netns, interface)?.is_some() {
                having.push(netns);
            }
        }
        if having.is_empty() {
            let [only] = candidates[..] else {
                anyhow::bail!(
                    "no interface {interface:?} in the watched network namespaces, and several \
                     where it could come; `ip link` shows those there are"
                );
            };
            tracing::warn!("no XDP on {interface}: the interface is not there; waiting for it");
            having.push(only);
        }
        let is_one = having.len() == 1;
        found.extend(having.into_iter().map(|netns| FoundInterface {
            interface: interface.clone(),
            netns: netns.clone(),
            name: match &netns.name {
                Some(name) if !is_one => format!("{name}/{interface}"),
                _ => interface.clone(),
            },
        }));
    }
    Ok(found)
}

/// Attaches the program to interfaces.
///
/// # Errors
///
/// The kernel refuses the object.
pub fn attach(
    config: &Config,
    btf: &aya::Btf,
    globals: &Globals,
    found: Vec<FoundInterface>,
) -> anyhow::Result<Vec<XdpDevice>> {
    let mut devices = Vec::new();
    for one in found {
        let program = DeviceProgram::load(
            btf,
            globals,
            &one.interface,
            config.packets.xdp_mode,
            config.packets.flows,
            config.noop_programs,
        )?;
        devices.push(XdpDevice {
            name: one.name,
            attachment: Attachment::new(program, one.netns, one.interface),
            flows: FlowTable::new(config.packets.flows, config.packets.flow_idle),
        });
    }
    Ok(devices)
}
