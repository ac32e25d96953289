//! What a shielded process 1 hides from every program is counted as lost: as many
//! events as the kernel's trace has of it, and as many as the kernel's counters have
//! more than ours.

use std::collections::BTreeMap;

use probe_tests::{
    daemon::{Daemon, edgeprobe},
    load::{self, Clients, Server, on_port},
    netns::Pair,
    skip::{self, scaled},
    truth::{self, Table},
    witness::{Witness, is_shielded, perf_events},
};
use probe_user::model::Snapshot;

const PORT: u16 = 8080;
/// Rounds of the load in which nothing was hidden; then there is nothing to compare.
const MOST_ROUNDS: usize = 60;

/// One packet of 25 is lost: timers send it again, in an interrupt on the time of
/// whatever thread is current.
const RULES: &str = "table inet ep {
    chain pre {
        type filter hook prerouting priority raw;
        meta l4proto tcp numgen random mod 25 == 0 drop
    }
}";

/// What is lost for that cause, by hook; all hooks that are counted.
fn shielded(snapshot: &Snapshot) -> BTreeMap<String, u64> {
    (snapshot.lost.iter())
        .filter(|lost| lost.cause == "shielded")
        .map(|lost| (lost.hook.clone(), lost.count))
        .collect()
}

/// What `edgeprobe doctor` says of process 1: the status and what was found.
fn doctor() -> (String, String) {
    let output = edgeprobe(["doctor", "--json"]).output().expect("it runs");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut checks = report["checks"].as_array().expect("checks").iter();
    let check = checks.find(|one| one["name"] == "process 1");
    let check = check.expect("process 1 is looked at");
    let text = |field: &str| check[field].as_str().expect("a text").to_owned();
    (text("status"), text("found"))
}

#[test]
fn a_host_that_shields_nothing_opens_nothing() {
    let Some(_turn) = skip::turn("a_host_that_shields_nothing_opens_nothing") else {
        return;
    };
    let pair = Pair::new();
    let daemon = Daemon::start(&pair.both(), &[]);
    let snapshot = daemon.snapshot();
    let counters = perf_events(daemon.process().pid());
    let (status, found) = doctor();
    if is_shielded() {
        assert_eq!(snapshot.shield.state, "counted", "{}", snapshot.shield.note);
        let hooks = shielded(&snapshot);
        assert_eq!(hooks.len(), 6, "{hooks:?}");
        // A counter for each hook and thread; threads come and go.
        assert_eq!(counters % hooks.len(), 0, "{counters} counters");
        assert!(counters > 0);
        assert_eq!(status, "missing");
        for hook in hooks.keys() {
            assert!(found.contains(&**hook), "{hook}: {found}");
        }
    } else {
        assert_eq!(snapshot.shield.state, "absent", "{}", snapshot.shield.note);
        assert_eq!(shielded(&snapshot), BTreeMap::new());
        assert_eq!(counters, 0);
        assert_eq!((&*status, &*found), ("ok", "not shielded"));
    }
    daemon.stop();
}

#[test]
fn what_process_1_hides_is_counted_by_hook() {
    const TEST: &str = "what_process_1_hides_is_counted_by_hook";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    if !is_shielded() {
        skip::impossible(TEST, "this kernel does not shield process 1");
        return;
    }
    let pair = Pair::new();
    let targets = on_port(&Pair::SERVERS, PORT);
    let server = Server::start(&pair.server, &targets, &[]);
    for netns in pair.both() {
        netns.nft(RULES);
    }
    let daemon = Daemon::start(&pair.both(), &[]);
    let counters = pair.counters();

    let before = shielded(&daemon.snapshot());
    let witness = Witness::start();
    let begun = shielded(&daemon.snapshot());
    let clients = Clients {
        connections: scaled(2_000),
        threads: 16,
        targets,
    };
    let mut rounds = 0;
    while witness.hidden_by_event().is_empty() && rounds < MOST_ROUNDS {
        clients.run(&pair.client);
        rounds += 1;
    }
    let after = load::quiet(&pair.both(), 0);

    // Each snapshot reads the counters while it is taken, and the trace is read
    // between two of them.
    let still = shielded(&daemon.snapshot());
    let traced = witness.hidden_by_event();
    let last = daemon.snapshot();
    let ended = shielded(&last);
    println!("{rounds} rounds; hidden, by the trace {traced:?}; by the daemon {ended:?}");
    for event in traced.keys() {
        assert!(ended.contains_key(event), "{event} is not counted");
    }
    for hook in ended.keys() {
        let traced = traced.get(hook).copied().unwrap_or(0);
        let (least, most) = (still[hook] - begun[hook], ended[hook] - before[hook]);
        assert!(
            (least..=most).contains(&traced),
            "{hook}: {traced} in the trace, {least} to {most} counted"
        );
    }
    // What the kernel has more than the programs is no more than that.
    let mut table = Table::default();
    truth::against_kernel(&mut table, &last, &(&after - &counters), 0);
    let hidden = ended.iter().map(|(hook, count)| count - before[hook]);
    table.allow(i64::try_from(hidden.sum::<u64>()).expect("few events"));
    table.check();
    if traced.is_empty() {
        skip::impossible(TEST, "nothing was hidden: none was compared with none");
    }
    daemon.stop();
    server.stop();
}
