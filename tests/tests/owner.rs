//! Who a socket belongs to: what the processes themselves know, and what the
//! kernel counts for their namespaces.

use std::{collections::BTreeSet, net::SocketAddr};

use probe_tests::{
    actor::{self, Actor, Cgroup, expect},
    daemon::Daemon,
    load,
    netns::{Netns, Pair},
    skip, truth,
};
use probe_user::model::{Connection, ListenSocket, Snapshot, TcpSeries};
use socket2::Protocol;

/// The process of [`Actor`].
#[test]
#[ignore = "a part of the other tests"]
fn actor() {
    actor::perform();
}

fn at(port: u16) -> [SocketAddr; 2] {
    Pair::SERVERS.map(|address| SocketAddr::new(address, port))
}

/// Local address (of a listener) or port of the server, owner, process, group.
type Owned = (
    String,
    Option<String>,
    Option<u32>,
    Option<String>,
    Option<String>,
);

fn owned(endpoint: &str, actor: &Actor, cgroup: &Cgroup) -> Owned {
    (
        endpoint.to_owned(),
        Some(cgroup.name().to_owned()),
        Some(actor.pid()),
        Some(actor.process()),
        Some(cgroup.path().to_owned()),
    )
}

fn of_listener(one: ListenSocket) -> Owned {
    (one.local, one.owner, one.pid, one.process, one.cgroup)
}

/// The end at the server's address, whichever side it is.
fn of_connection(one: Connection) -> Owned {
    let is_server = Pair::SERVERS
        .iter()
        .any(|server| one.local.contains(&server.to_string()));
    let (end, address) = if is_server {
        ("server", one.local)
    } else {
        ("client", one.remote)
    };
    (
        format!("{end} {address}"),
        one.owner,
        one.pid,
        one.process,
        one.cgroup,
    )
}

fn sockets(snapshot: Snapshot) -> BTreeSet<Owned> {
    let all = snapshot.listeners.into_iter().flat_map(|one| one.sockets);
    all.map(of_listener).collect()
}

#[test]
fn sockets_from_before_and_after_the_start_have_their_owners() {
    const TEST: &str = "sockets_from_before_and_after_the_start_have_their_owners";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    if !actor::possible(TEST) {
        return;
    }
    let pair = Pair::new();
    let (serving, calling) = (Cgroup::new("a.service"), Cgroup::new("b"));
    let mut server = Actor::start(&pair.server, &serving);
    let mut client = Actor::start(&pair.client, &calling);
    for address in at(8080) {
        server.listen(address, Protocol::TCP);
        client.connect(address);
    }
    let daemon = Daemon::start(&pair.both(), &[]);
    for (port, protocol) in [(8081, Protocol::TCP), (8082, Protocol::MPTCP)] {
        for address in at(port) {
            server.listen(address, protocol);
            client.connect(address);
        }
    }
    for address in at(8080) {
        client.connect(address);
    }
    let addresses: Vec<String> = [8080, 8081, 8082]
        .into_iter()
        .flat_map(at)
        .map(|address| address.to_string())
        .collect();
    let listeners = (addresses
        .iter()
        .map(|endpoint| owned(endpoint, &server, &serving)))
    .collect();
    expect("listeners", &listeners, || sockets(daemon.snapshot()));
    let connections: BTreeSet<Owned> = (addresses.iter())
        .flat_map(|endpoint| {
            [
                owned(&format!("server {endpoint}"), &server, &serving),
                owned(&format!("client {endpoint}"), &client, &calling),
            ]
        })
        .collect();
    let seen = || daemon.connections().connections;
    expect("number of ends", &16, || seen().len());
    expect("owners of connections", &connections, || {
        seen().into_iter().map(of_connection).collect()
    });
    // What the kernel itself shows, by another program.
    if skip::tool(TEST, "ss").is_some() {
        let shown = pair.client.command("ss", &["-tnH", "--cgroup"]);
        let group = format!("cgroup:{}", calling.path());
        assert_eq!(shown.matches(&group).count(), 8, "{shown}");
    }
    drop(client);
    drop(server);
    expect("all is closed", &0, || seen().len());
    daemon.stop();
}

#[test]
fn a_connection_that_waits_for_accept_is_its_listeners() {
    const TEST: &str = "a_connection_that_waits_for_accept_is_its_listeners";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    if !actor::possible(TEST) {
        return;
    }
    let pair = Pair::new();
    let cgroup = Cgroup::new("b");
    let address = at(8080)[0];
    // Nobody accepts.
    let listener = pair.server.run(|| load::listen(address, Protocol::TCP, 8));
    let listener = listener.expect("a listener");
    let mut client = Actor::start(&pair.client, &cgroup);
    let daemon = Daemon::start(&pair.both(), &[]);
    client.connect(address);
    let me = Some(std::process::id());
    expect("the process", &vec![me], || {
        let all = daemon.connections().connections.into_iter();
        all.filter(|one| one.labels.side == "server")
            .map(|one| one.pid)
            .collect()
    });
    drop(listener);
    daemon.stop();
}

fn opened(snapshot: &Snapshot, is: impl Fn(&TcpSeries) -> bool) -> u64 {
    let series = snapshot.tcp.iter().filter(|one| is(one));
    series.map(|one| one.opened).sum()
}

#[test]
fn series_are_told_apart_by_owner_and_add_up() {
    const TEST: &str = "series_are_told_apart_by_owner_and_add_up";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    if !actor::possible(TEST) {
        return;
    }
    let pair = Pair::new();
    let serving = Cgroup::new("a.service");
    let mut server = Actor::start(&pair.server, &serving);
    let daemon = Daemon::configured(&pair.both(), "[metrics]\nowner_label = true\n", &[]);
    let before = pair.counters();
    for address in at(8080) {
        server.listen(address, Protocol::TCP);
    }
    // Each comes, goes, and comes again as another control group of that name.
    let each = skip::scaled(200);
    for _ in 0..2 {
        for (name, count) in [("b.service", each), ("c.scope", 2 * each)] {
            let cgroup = Cgroup::new(name);
            let mut client = Actor::start(&pair.client, &cgroup);
            for address in at(8080) {
                client.churn(address, count);
            }
        }
        // Names are given when the rows are read.
        daemon.snapshot();
    }
    let counters = load::quiet(&pair.both(), 0);
    let theirs = &counters - &before;
    let snapshot = daemon.snapshot();
    let mut table = truth::Table::default();
    truth::against_kernel(&mut table, &snapshot, &theirs, 0);
    table.check();
    let by = |side: &str, name: &str| {
        let owner = format!("ep-{}-{name}", std::process::id());
        opened(&snapshot, |one| {
            one.labels.side == side && one.labels.owner.as_deref() == Some(owner.as_str())
        })
    };
    let each = u64::from(each);
    assert_eq!(by("client", "b.service"), 4 * each);
    assert_eq!(by("client", "c.scope"), 8 * each);
    assert_eq!(by("server", "a.service"), 12 * each);
    assert_eq!(opened(&snapshot, |_| true), 24 * each);
    daemon.stop();
}

#[test]
fn a_service_is_found_by_its_control_group_and_by_its_unit() {
    const TEST: &str = "a_service_is_found_by_its_control_group_and_by_its_unit";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    if !actor::possible(TEST) {
        return;
    }
    let pair = Pair::new();
    let slice = Cgroup::new("x.slice");
    let serving = slice.below("web.service");
    let text = format!(
        "[[service]]\nname = \"by-path\"\nside = \"server\"\ncgroup = \"{}\"\n\
         [[service]]\nname = \"by-unit\"\nunit = \"job.service\"\n",
        serving.path()
    );
    let daemon = Daemon::configured(&pair.both(), &text, &[]);
    let before = pair.counters();
    // One that was there, one that comes below it.
    let worker = serving.below("worker");
    let mut server = Actor::start(&pair.server, &worker);
    let [address, other] = at(8080);
    server.listen(address, Protocol::TCP);
    let plain = Cgroup::new("plain");
    let mut neighbour = Actor::start(&pair.server, &plain);
    neighbour.listen(other, Protocol::TCP);
    for _ in 0..2 {
        // A unit that is started again is another control group.
        let unit = slice.below("job.service");
        let mut client = Actor::start(&pair.client, &unit);
        client.churn(address, 10);
        drop(client);
    }
    let mut client = Actor::start(&pair.client, &plain);
    client.churn(other, 5);
    let counters = load::quiet(&pair.both(), 0);
    let theirs = &counters - &before;
    let snapshot = daemon.snapshot();
    let by = |side: &str, svc: &str| {
        opened(&snapshot, |one| {
            one.labels.side == side && one.labels.svc == svc
        })
    };
    assert_eq!(by("server", "by-path"), 20);
    assert_eq!(by("server", "8080"), 5);
    assert_eq!(by("client", "by-unit"), 20);
    assert_eq!(by("client", "8080"), 5);
    assert!(snapshot.tcp.iter().all(|one| one.labels.owner.is_none()));
    // Listeners show when they are visited, which takes its time on a slow machine.
    let services = ["8080", "by-path"].map(str::to_owned).into();
    expect("services that listen", &services, || {
        let all = daemon.snapshot().listeners.into_iter();
        all.filter(|one| !one.sockets.is_empty())
            .map(|one| one.svc)
            .collect::<BTreeSet<_>>()
    });
    let mut table = truth::Table::default();
    truth::against_kernel(&mut table, &snapshot, &theirs, 0);
    table.check();
    daemon.stop();
}

#[test]
fn listeners_on_one_port_are_told_apart_by_their_addresses() {
    const TEST: &str = "listeners_on_one_port_are_told_apart_by_their_addresses";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    if !actor::possible(TEST) {
        return;
    }
    let pair = Pair::new();
    pair.server.ip("addr add 10.77.0.3/24 dev ep0");
    let groups = [Cgroup::new("one.service"), Cgroup::new("two.service")];
    let mut servers = groups
        .each_ref()
        .map(|cgroup| Actor::start(&pair.server, cgroup));
    let endpoints =
        ["10.77.0.1:8080", "10.77.0.3:8080"].map(|one| one.parse().expect("an address"));
    let daemon = Daemon::configured(&pair.both(), "[metrics]\nowner_label = true\n", &[]);
    let calling = Cgroup::new("caller");
    let mut client = Actor::start(&pair.client, &calling);
    for ((server, endpoint), count) in servers.iter_mut().zip(endpoints).zip([10, 30]) {
        server.listen(endpoint, Protocol::TCP);
        client.churn(endpoint, count);
    }
    load::quiet(&pair.both(), 0);
    let snapshot = daemon.snapshot();
    for (cgroup, count) in groups.iter().zip([10, 30]) {
        let ours = opened(&snapshot, |one| {
            one.labels.side == "server" && one.labels.owner.as_deref() == Some(cgroup.name())
        });
        assert_eq!(ours, count, "{}", cgroup.name());
    }
    let wanted = (servers.iter().zip(endpoints).zip(&groups))
        .map(|((server, endpoint), cgroup)| owned(&endpoint.to_string(), server, cgroup))
        .collect();
    expect("listeners", &wanted, || sockets(daemon.snapshot()));
    daemon.stop();
}

#[test]
fn namespaces_are_told_apart_by_name() {
    const TEST: &str = "namespaces_are_told_apart_by_name";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    if !actor::possible(TEST) {
        return;
    }
    let namespaces = [Netns::new(), Netns::new()];
    let watched = namespaces.each_ref();
    let daemon = Daemon::configured(&watched, "[metrics]\nnetns_label = true\n", &[]);
    let cgroup = Cgroup::new("x");
    let address = "127.0.0.1:8080".parse().expect("an address");
    for (netns, count) in namespaces.iter().zip([10, 30]) {
        let mut actor = Actor::start(netns, &cgroup);
        actor.listen(address, Protocol::TCP);
        actor.churn(address, count);
    }
    load::quiet(&watched, 0);
    let snapshot = daemon.snapshot();
    for (netns, count) in namespaces.iter().zip([10, 30]) {
        for side in ["client", "server"] {
            let labels = |one: &TcpSeries| {
                one.labels.side == side
                    && one.labels.svc == "8080"
                    && one.labels.netns.as_deref() == Some(netns.name())
            };
            assert_eq!(opened(&snapshot, labels), count, "{side} {}", netns.name());
        }
        assert_eq!(netns.counters().get("Tcp.PassiveOpens"), count as i64);
    }
    assert_eq!(opened(&snapshot, |_| true), 80, "each once");
    daemon.stop();
}
