//! The commands beside the daemon, on a real kernel: `top`, `doctor`, the
//! daemon's own HTTP, and an interface that somebody else uses.

use std::{
    net::TcpListener,
    process::{Command, Output, Stdio},
    thread,
};

use probe_tests::{
    daemon::{Daemon, edgeprobe, readable_binary, slowness},
    http,
    load::{self, Clients, Server, on_port},
    netns::{DEVICE, Pair},
    poll, skip, truth,
};
use probe_user::model::{Snapshot, TcpSeries};

const PORT: u16 = 8080;

fn clients(connections: u32) -> Clients {
    Clients {
        connections,
        threads: 4,
        targets: on_port(&Pair::SERVERS, PORT),
    }
}

fn opened(snapshot: &Snapshot) -> u64 {
    truth::sum(snapshot, "", |one: &TcpSeries| one.opened)
}

/// Output of a command that must succeed.
#[track_caller]
fn output(mut command: Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the command runs");
    let errors = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {status}: {errors}");
    String::from_utf8(stdout).expect("text")
}

#[test]
fn top_once_shows_the_numbers_of_the_daemon() {
    let Some(_turn) = skip::turn("top_once_shows_the_numbers_of_the_daemon") else {
        return;
    };
    let pair = Pair::new();
    let server = Server::start(&pair.server, &on_port(&Pair::SERVERS, PORT), &[]);
    let daemon = Daemon::start(&pair.both(), &[]);
    let totals = clients(100).run(&pair.client);
    load::quiet(&pair.both(), 0);
    let theirs = daemon.snapshot();

    let socket = daemon.socket();
    let top = |more: &[&str]| {
        let mut command = edgeprobe(["top", "--once"]);
        output({
            command.arg("--socket").arg(&socket).args(more);
            command
        })
    };
    let ours: Snapshot = serde_json::from_str(&top(&["--json"])).expect("the documented form");
    assert_eq!(opened(&ours), 2 * totals.connections);
    assert_eq!(ours.tcp, theirs.tcp, "at rest both are the same");
    let text = top(&[]);
    assert!(
        !text.contains('\u{1b}'),
        "no colour where it is not read by a terminal"
    );
    let line = text
        .lines()
        .find(|line| line.contains("server") && line.contains("8080"));
    assert!(line.is_some(), "the service is in the table:\n{text}");

    let (held, _) = load::hold(&pair.client, &on_port(&Pair::SERVERS, PORT), 10);
    let listed = |limit: &str| {
        let text = top(&["--json", "--limit", limit]);
        let snapshot: Snapshot = serde_json::from_str(&text).expect("the documented form");
        snapshot.connections.len()
    };
    // An answer may be given again for a moment.
    poll::until("all are listed", || {
        (listed("100000") == 2 * held.len()).then_some(())
    });
    assert_eq!(listed("5"), 5);
    let number = held.len();
    drop(held);
    server.release(number);
    daemon.stop();
    server.stop();
}

#[test]
fn top_stands_alone_and_leaves_nothing() {
    let Some(_turn) = skip::turn("top_stands_alone_and_leaves_nothing") else {
        return;
    };
    let pair = Pair::new();
    let server = Server::start(&pair.server, &on_port(&Pair::SERVERS, PORT), &[]);
    // It counts from when its programs are attached, which nothing tells: there
    // are connections all the time until it has printed.
    let interval = format!("{}s", 4 * slowness());
    let mut command = edgeprobe([
        "top",
        "--alone",
        "--once",
        "--json",
        "--interval",
        &interval,
    ]);
    for netns in pair.both() {
        command.args(["--netns", netns.name()]);
    }
    let child = command
        .stdout(Stdio::piped())
        .spawn()
        .expect("edgeprobe runs");
    let waiting = thread::spawn(move || child.wait_with_output().expect("its output"));
    let mut made = 0;
    while !waiting.is_finished() {
        made += clients(10).run(&pair.client).connections;
    }
    let output = waiting.join().expect("it has ended");
    assert!(output.status.success(), "{}", output.status);
    let snapshot: Snapshot = serde_json::from_slice(&output.stdout).expect("the documented form");
    let (here, there) = (opened(&snapshot), 2 * made);
    assert!(
        here > 0 && here <= there,
        "{here} of {there} ends were opened meanwhile"
    );
    assert!(snapshot.programs.iter().any(|program| program.attached));
    server.stop();
}

#[test]
fn doctor_finds_this_kernel_fit_for_the_daemon_that_runs_here() {
    const TEST: &str = "doctor_finds_this_kernel_fit_for_the_daemon_that_runs_here";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let Some(_) = skip::tool(TEST, "setpriv") else {
        return;
    };
    let pair = Pair::new();
    let daemon = Daemon::start(&pair.both(), &[]);
    let report = output(edgeprobe(["doctor", "--json"]));
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!(report["usable"], true, "{report}");
    // Each tracepoint that it finds has the daemon's program.
    let checks = report["checks"].as_array().expect("a list of checks");
    let is_there = |hook: &str| {
        let check = checks.iter().find(|check| check["name"] == hook);
        check.is_some_and(|check| check["status"] == "ok")
    };
    let snapshot = daemon.latest();
    let mut compared = 0;
    for program in &snapshot.programs {
        if let Some(hook) = program.hook.strip_prefix("tp_btf/")
            && is_there(hook)
        {
            assert!(program.attached, "{program:?}");
            compared += 1;
        }
    }
    assert!(compared >= 8, "{compared} hooks in {report}");
    // Anyone may ask; what only root can see is then unknown, not missing.
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    let folder = tempfile::tempdir().expect("a folder");
    command.arg(readable_binary(folder.path())).arg("doctor");
    let text = output(command);
    assert!(text.contains("CAP_BPF"), "{text}");
    daemon.stop();
}

#[test]
fn the_daemon_serves_http_and_the_time_of_its_programs() {
    let Some(_turn) = skip::turn("the_daemon_serves_http_and_the_time_of_its_programs") else {
        return;
    };
    let pair = Pair::new();
    let server = Server::start(&pair.server, &on_port(&Pair::SERVERS, PORT), &[]);
    // A port that is free now.
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = free.local_addr().expect("its address");
    drop(free);
    let daemon = Daemon::start(
        &pair.both(),
        &["--listen", &address.to_string(), "--bpf-stats"],
    );
    let totals = clients(100).run(&pair.client);
    load::quiet(&pair.both(), 0);
    daemon.snapshot();
    let page = |path: &str| {
        let page = http::get(address, path, "text/plain").expect("a page");
        assert_eq!(page.status, 200, "{path}: {}", page.body);
        page.body
    };
    let text = page("/metrics");
    let sample = |wanted: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(wanted));
        let number = line.and_then(|rest| rest.trim().parse::<f64>().ok());
        number.unwrap_or_else(|| panic!("no {wanted} in\n{text}"))
    };
    // At least SYN_SENT, SYN_RECV, twice ESTABLISHED and twice CLOSE of each.
    let runs = sample("edgeprobe_program_runs_total{program=\"sock_set_state\"}");
    assert!(runs >= 6.0 * totals.connections as f64, "{runs}");
    let seconds = sample("edgeprobe_program_run_seconds_total{program=\"sock_set_state\"}");
    assert!(seconds > 0.0);
    assert_eq!(sample("edgeprobe_daemon_up"), 1.0);
    page("/healthz");
    page("/readyz");
    let status: serde_json::Value = serde_json::from_str(&page("/status")).expect("JSON");
    assert!(status.to_string().contains("sock_set_state"), "{status}");
    let missing = http::get(address, "/nothing", "text/plain").expect("an answer");
    assert_eq!(missing.status, 404);
    daemon.stop();
    server.stop();
}

#[test]
fn an_interface_that_is_taken_is_left_alone() {
    let Some(_turn) = skip::turn("an_interface_that_is_taken_is_left_alone") else {
        return;
    };
    let pair = Pair::new();
    let on_device = ["--interface", DEVICE];
    let first = Daemon::start_inside(&pair.server, &on_device);
    let program = || {
        let link = pair.server.ip(&format!("-json link show dev {DEVICE}"));
        let link: serde_json::Value = serde_json::from_str(&link).expect("JSON of ip");
        link[0]["xdp"]["prog"]["id"].as_u64().expect("a program")
    };
    let before = program();
    let second = Daemon::start_inside(&pair.server, &on_device);
    assert_eq!(program(), before, "the program of the first stays");
    let snapshot = second.snapshot();
    let xdp = snapshot
        .programs
        .iter()
        .find(|program| program.hook.starts_with("xdp"));
    let xdp = xdp.expect("it tells of the program");
    assert!(!xdp.attached && !xdp.note.is_empty(), "{xdp:?}");
    // All else works.
    let server = Server::start(&pair.server, &on_port(&Pair::SERVERS, PORT), &[]);
    let totals = clients(20).run(&pair.client);
    let all = poll::until("the connections are counted", || {
        Some(opened(&second.snapshot())).filter(|opened| *opened >= totals.connections)
    });
    assert_eq!(all, totals.connections);
    second.stop();
    first.stop();
    server.stop();
}
