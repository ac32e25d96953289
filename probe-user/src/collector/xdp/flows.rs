//! The flow table of a device: read, and cleared of flows that have ended.
//!
//! A flow is evicted in two steps, since a packet may be counting in its slot just
//! then. At one reading the slot is marked, and no later packet takes it for its own.
//! At a later reading what it counted is added to the evicted flows, and the slot is
//! free. Should a packet be later still, it counts for the next owner of the slot: the
//! sum over all slots and the evicted flows stays exact. A flow that comes back just
//! then may have two slots for a while.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use probe_common::{
    abi::flow::{EMPTY, EVICTED, EVICTING, Flow, FlowKey, TAKEN, Traffic, flow_slots},
    labels::Protocol,
    packet::classify,
};

use crate::{
    collector::mmap_array::MmapArray,
    kernel::address::{address, endpoint},
    loader::Loaded,
    model::PacketFlow,
};

/// How long a slot is marked at the least: longer than a packet takes.
const GRACE: Duration = Duration::from_millis(100);

/// What is remembered from one reading to the next.
#[derive(Debug)]
pub struct FlowTable {
    /// Flows that are tracked separately.
    most: u32,
    /// How long a flow without packets keeps its slot where slots are scarce.
    idle: Duration,
    /// Packets of each slot when the slots were last looked at for that; the
    /// lower half of the number will do.
    seen: Vec<u32>,
    looked_at: Instant,
    /// Slots that are marked.
    evicting: Vec<usize>,
    evicted: EvictedFlows,
}

/// Flows that were evicted.
#[derive(Clone, Copy, Debug, Default)]
pub struct EvictedFlows {
    /// How many.
    pub flows: u64,
    /// What they counted.
    pub traffic: Traffic,
}

/// What is in the table.
#[derive(Debug)]
pub struct FlowReading {
    /// The flows.
    pub flows: Vec<(FlowKey, Traffic)>,
    /// The sum over all slots.
    pub sum: Traffic,
    /// What is in no slot any more.
    pub evicted: EvictedFlows,
}

impl FlowTable {
    /// A table for `most` flows, in which those without packets for `idle` are evicted
    /// once it is half full.
    pub fn new(most: u32, idle: Duration) -> Self {
        Self {
            most,
            idle,
            seen: vec![0; flow_slots(most) as usize],
            looked_at: Instant::now(),
            evicting: Vec::new(),
            evicted: EvictedFlows::default(),
        }
    }

    /// Flows that are tracked separately.
    pub fn most(&self) -> u32 {
        self.most
    }

    /// Reads the table of a device and evicts flows that have ended.
    ///
    /// # Errors
    ///
    /// The kernel does not map it.
    pub fn read(&mut self, loaded: &Loaded) -> anyhow::Result<FlowReading> {
        // Mapped for this moment only: all of it would count as resident memory.
        let table = MappedFlows {
            slots: MmapArray::writable(loaded, "FLOWS", self.seen.len())?,
            taken: MmapArray::writable(loaded, "FLOW_COUNT", 1)?,
        };
        if self.looked_at.elapsed() >= GRACE {
            self.free(&table);
        }
        if self.looked_at.elapsed() >= self.idle {
            self.mark(&table);
        }
        let mut reading = FlowReading {
            flows: Vec::new(),
            sum: Traffic::default(),
            evicted: self.evicted,
        };
        for n in 0..self.seen.len() {
            let traffic = table.traffic(n);
            reading.sum.packets += traffic.packets;
            reading.sum.bytes += traffic.bytes;
            // The tag is written after the key.
            if table.tag(n).load(Ordering::Acquire) >= TAKEN {
                reading.flows.push((table.key(n), traffic));
            }
        }
        Ok(reading)
    }

    /// Marks the slots of flows that have had no packet since the last time, if
    /// more than half of the flows that there may be are there.
    fn mark(&mut self, table: &MappedFlows) {
        let is_scarce = table.taken().load(Ordering::Relaxed) > u64::from(self.most) / 2;
        for (n, seen) in self.seen.iter_mut().enumerate() {
            let packets = table.traffic(n).packets as u32;
            let tag = table.tag(n);
            let held = tag.load(Ordering::Relaxed);
            if is_scarce
                && held >= TAKEN
                && packets == *seen
                && (tag.compare_exchange(held, EVICTING, Ordering::AcqRel, Ordering::Relaxed))
                    .is_ok()
            {
                self.evicting.push(n);
            }
            *seen = packets;
        }
        self.looked_at = Instant::now();
    }

    /// Frees the slots that are marked.
    fn free(&mut self, table: &MappedFlows) {
        for n in self.evicting.drain(..) {
            let [packets, bytes] = table
                .counters(n)
                .map(|count| count.swap(0, Ordering::AcqRel));
            self.evicted.traffic.packets += packets;
            self.evicted.traffic.bytes += bytes;
            self.evicted.flows += 1;
            self.seen[n] = 0;
            table.tag(n).store(EVICTED, Ordering::Release);
            table.taken().fetch_sub(1, Ordering::Relaxed);
            table.clear(n);
        }
    }
}

/// The table as it is mapped.
struct MappedFlows {
    slots: MmapArray<Flow>,
    taken: MmapArray<u64>,
}

impl MappedFlows {
    fn tag(&self, n: usize) -> &AtomicU64 {
        // SAFETY: an aligned word of the mapping, which outlives the reference; the
        // programs too write it whole.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.slots.element(n)).tag) }
    }

    fn counters(&self, n: usize) -> [&AtomicU64; 2] {
        let slot = self.slots.element(n);
        // SAFETY: aligned words of the mapping, which outlives the references; the
        // programs too write them whole.
        unsafe {
            [
                AtomicU64::from_ptr(&raw mut (*slot).traffic.packets),
                AtomicU64::from_ptr(&raw mut (*slot).traffic.bytes),
            ]
        }
    }

    fn traffic(&self, n: usize) -> Traffic {
        let [packets, bytes] = self.counters(n).map(|count| count.load(Ordering::Relaxed));
        Traffic { packets, bytes }
    }

    fn key(&self, n: usize) -> FlowKey {
        // SAFETY: an element of the mapping; any bytes are a key.
        unsafe { (&raw const (*self.slots.element(n)).key).read_volatile() }
    }

    fn taken(&self) -> &AtomicU64 {
        // SAFETY: the one word of the mapping, which outlives the reference; the
        // programs too write it whole.
        unsafe { AtomicU64::from_ptr(self.taken.element(0)) }
    }

    /// A slot that was given up is as good as one that was never taken if nothing
    /// is behind it, and so are those before it.
    fn clear(&self, mut n: usize) {
        let slots = self.slots.len();
        while self.tag((n + 1) % slots).load(Ordering::Acquire) == EMPTY
            && (self.tag(n))
                .compare_exchange(EVICTED, EMPTY, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        {
            n = (n + slots - 1) % slots;
        }
    }
}

/// A flow for people.
pub fn packet_flow(key: &FlowKey, traffic: Traffic) -> PacketFlow {
    let protocol = classify(key.ethertype, key.protocol);
    let end = |bytes, port| match (protocol, port) {
        (Protocol::Arp | Protocol::Other, _) => String::new(),
        (_, 0) => address(bytes).to_string(),
        (_, port) => endpoint(bytes, port),
    };
    PacketFlow {
        protocol: Protocol::NAMES[protocol as usize].to_owned(),
        source: end(key.source, key.source_port),
        destination: end(key.destination, key.destination_port),
        packets: traffic.packets,
        bytes: traffic.bytes,
    }
}
