//! The connections that are open now.

use probe_common::abi::{
    drop::unpacked_reason,
    iter::{ConnectionRecord, Endpoint, state},
    status,
};

use super::Collector;
use crate::{
    attribution::owners::{Owner, Processes},
    kernel::{address::endpoint, clocks, reasons::Reasons},
    model::{Connection, TcpLabels},
};

impl Collector {
    /// The connections that are open now, those with most bytes first.
    ///
    /// # Errors
    ///
    /// The kernel refuses to list sockets.
    pub fn list_connections(&mut self, limit: usize) -> anyhow::Result<Vec<ConnectionRecord>> {
        let listeners: Vec<Endpoint> = self.listeners.sockets().map(|one| one.socket).collect();
        self.attribution
            .owners
            .socket_pids
            .walk(&mut self.host, &listeners);
        self.set_status(status::REPORT, 1)?;
        let iterated = self.iterate_sockets();
        self.set_status(status::REPORT, 0)?;
        let mut records = iterated?;
        records.sort_by_key(|record| std::cmp::Reverse(record.sent_bytes + record.received_bytes));
        records.truncate(limit);
        records.shrink_to_fit();
        self.read_rows()?;
        Ok(records)
    }

    /// Some of those that were listed, with names.
    ///
    /// # Errors
    ///
    /// None yet.
    pub fn describe_connections(
        &mut self,
        records: &[ConnectionRecord],
    ) -> anyhow::Result<Vec<Connection>> {
        let now_ns = clocks::monotonic_ns();
        let mut processes = Processes::new();
        let connections = records.iter().map(|record| {
            let listener = self.listeners.of(&record.socket);
            let socket_pids = &self.attribution.owners.socket_pids;
            // The last is of use while it waits for `accept()`.
            let pids = [
                socket_pids.of_connection(record),
                Some(record.pid),
                listener.and_then(|listener| socket_pids.of_listener(listener)),
            ];
            let pids = pids.into_iter().flatten();
            let owner = self
                .attribution
                .owners
                .of_socket(&record.socket, pids, &mut processes);
            let labels = self.rows.labels(record.row, &self.attribution);
            let labels = labels.unwrap_or_else(|| self.attribution.folded());
            let drop_reason = drop_reason(record, &self.reasons);
            Connection {
                drop_reason,
                ..connection(record, labels, owner, now_ns)
            }
        });
        Ok(connections.collect())
    }
}

/// A connection for people.
fn connection(
    record: &ConnectionRecord,
    labels: TcpLabels,
    owner: Owner,
    now_ns: u64,
) -> Connection {
    let seconds = |us: u32| f64::from(us) / 1e6;
    Connection {
        // The connection has these itself.
        labels: TcpLabels {
            owner: None,
            netns: None,
            ..labels
        },
        owner: owner.name,
        pid: owner.pid,
        process: owner.process,
        cgroup: owner.cgroup,
        local: endpoint(record.socket.local, record.socket.local_port),
        remote: endpoint(record.remote, record.remote_port),
        state: state_name(record.state).to_owned(),
        netns: record.socket.netns,
        age_seconds: (record.since_ns != 0)
            .then(|| now_ns.saturating_sub(record.since_ns) as f64 / 1e9),
        srtt_seconds: seconds(record.srtt_us),
        min_rtt_seconds: (record.min_rtt_us != u32::MAX).then(|| seconds(record.min_rtt_us)),
        cwnd_segments: record.snd_cwnd,
        congestion: congestion(record.ca_state).to_owned(),
        sent_bytes: record.sent_bytes,
        received_bytes: record.received_bytes,
        retransmits: u64::from(record.retransmits),
        drops: u64::from(record.drops),
        drop_reason: None,
    }
}

/// Why the last packet of a connection was dropped, if one was and its reason is known.
fn drop_reason(record: &ConnectionRecord, reasons: &Reasons) -> Option<String> {
    let reason = Some(record.drop_reason).filter(|_| record.drops != 0)?;
    let (_, name) = reasons.of_drop(unpacked_reason(reason))?;
    Some(name)
}

/// Name of a state of congestion control (`enum tcp_ca_state`).
fn congestion(number: u8) -> &'static str {
    const NAMES: [&str; 5] = ["open", "disorder", "cwr", "recovery", "loss"];
    NAMES.get(usize::from(number)).unwrap_or(&"other")
}

/// Name of a state in which a socket has a record.
fn state_name(number: u8) -> &'static str {
    match number {
        state::ESTABLISHED => "ESTABLISHED",
        state::FIN_WAIT1 => "FIN_WAIT1",
        state::FIN_WAIT2 => "FIN_WAIT2",
        state::CLOSE_WAIT => "CLOSE_WAIT",
        state::LAST_ACK => "LAST_ACK",
        state::CLOSING => "CLOSING",
        _ => "UNKNOWN",
    }
}
