//! The exporter: an ordinary user that serves what the daemon counted, and
//! Prometheus as its client.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use probe_tests::{
    daemon::{Daemon, Running, binary},
    http,
    load::{self, Clients, Server, on_port},
    netns::Pair,
    poll, skip, truth,
};

const GROUP: &str = "nogroup";
const NOBODY: &str = "65534";
const TEXT: &str = "text/plain";

/// An exporter as `nobody` in the socket's group, without any capability.
struct Exporter {
    running: Running,
    address: SocketAddr,
}

impl Exporter {
    #[track_caller]
    fn start(daemon: &Daemon) -> Self {
        // A port that is free now; the daemon's folder stays closed to others.
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = free.local_addr().expect("its address");
        drop(free);
        let folder = daemon.folder();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o711)).expect("permissions");
        let copy = folder.join("exporter");
        fs::copy(binary(), &copy).expect("a copy of the binary");
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("permissions");
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
            .args([
                "--bounding-set=-all",
                "--inh-caps=-all",
                "--no-new-privs",
                "--",
            ])
            .arg(copy)
            .args(["exporter", "--listen", &address.to_string(), "--socket"])
            .arg(daemon.socket())
            .stdin(Stdio::null());
        let running = Running::start(command, folder.join("exporter-messages"));
        let mut exporter = Self { running, address };
        poll::until("the exporter is ready", || {
            exporter.running.assert_alive();
            (http::get(address, "/readyz", "*/*").ok()?.status == 200).then_some(())
        });
        exporter
    }

    #[track_caller]
    fn metrics(&self) -> String {
        let page = http::get(self.address, "/metrics", TEXT).expect("the page");
        assert_eq!(page.status, 200, "{}", page.body);
        page.body
    }
}

/// Sum of the samples of a metric.
fn total(text: &str, metric: &str, labels: &[&str]) -> f64 {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter(|line| {
            let rest = line.strip_prefix(metric).unwrap_or("-");
            rest.starts_with(['{', ' ']) && labels.iter().all(|label| line.contains(label))
        })
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

fn some_load(pair: &Pair) -> (Server, load::Totals) {
    let server = Server::start(&pair.server, &on_port(&Pair::SERVERS, 8080), &[]);
    let clients = Clients {
        connections: 300,
        threads: 8,
        targets: on_port(&Pair::SERVERS, 8080),
    };
    (server, clients.run(&pair.client))
}

#[test]
fn an_ordinary_user_serves_the_same_numbers_and_says_when_they_end() {
    const TEST: &str = "an_ordinary_user_serves_the_same_numbers_and_says_when_they_end";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let Some(_) = skip::tool(TEST, "setpriv") else {
        return;
    };
    let pair = Pair::new();
    let daemon = Daemon::start(&pair.both(), &["--socket-group", GROUP]);
    let socket = fs::metadata(daemon.socket()).expect("the socket");
    assert_eq!(socket.mode() & 0o777, 0o660, "the group, and nobody else");
    assert_eq!(socket.gid(), 65534);
    let exporter = Exporter::start(&daemon);
    let status = fs::read_to_string(format!("/proc/{}/status", exporter.running.pid()));
    let status = status.expect("the state of the exporter");
    let line = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"))
    };
    assert_eq!(line("CapEff"), Some("0000000000000000"), "no capability");
    assert_eq!(line("Uid").map(|uids| uids.starts_with(NOBODY)), Some(true));

    let (server, totals) = some_load(&pair);
    load::quiet(&pair.both(), 0);
    let snapshot = daemon.snapshot();
    let text = exporter.metrics();
    assert_eq!(http::sample(&text, "edgeprobe_daemon_up"), Some(1.0));
    let opened = total(&text, "edgeprobe_tcp_connections_opened_total", &[]);
    assert_eq!(opened, 2.0 * totals.connections as f64);
    for (metric, label, ours) in [
        (
            "edgeprobe_tcp_sent_bytes_total",
            "side=\"client\"",
            totals.sent,
        ),
        (
            "edgeprobe_tcp_received_bytes_total",
            "side=\"client\"",
            totals.received,
        ),
        (
            "edgeprobe_tcp_handshake_duration_seconds_count",
            "side=\"server\"",
            truth::sum(&snapshot, "server", |one| one.handshake.count()),
        ),
    ] {
        let served = total(&text, metric, &[label, "svc=\"8080\"", "peer=\"private\""]);
        assert_eq!(served, ours as f64, "{metric}");
    }
    // What a shielded process 1 hides is of the whole machine.
    let lost = |labels: &[&str]| total(&text, "edgeprobe_events_lost_total", labels);
    assert_eq!(lost(&[]) - lost(&["cause=\"shielded\""]), 0.0);
    server.stop();

    let killed = daemon.kill();
    poll::until("the exporter says that the daemon is gone", || {
        let text = exporter.metrics();
        let gone = http::sample(&text, "edgeprobe_daemon_up") == Some(0.0);
        // What it knew must not pass for fresh.
        assert!(
            !gone || !text.contains("edgeprobe_tcp_"),
            "an old snapshot: {text}"
        );
        gone.then_some(())
    });
    let page = |path| {
        http::get(exporter.address, path, "*/*")
            .expect("the page")
            .status
    };
    assert_eq!(page("/readyz"), 503);
    assert_eq!(page("/healthz"), 200, "the exporter itself is well");
    let daemon = killed.restart();
    poll::until("the exporter has found the daemon again", || {
        let up = http::sample(&exporter.metrics(), "edgeprobe_daemon_up");
        (up == Some(1.0)).then_some(())
    });
    assert_eq!(page("/readyz"), 200);
    exporter.running.stop(libc::SIGTERM);
    daemon.stop();
}

/// The series and comments of a page in text form, without values.
fn series(text: &str) -> Vec<&str> {
    let name = |line| str::rsplit_once(line, ' ').map_or(line, |(name, _)| name);
    text.lines().map(name).collect()
}

#[test]
fn what_gzip_unpacks_is_the_plain_page() {
    const TEST: &str = "what_gzip_unpacks_is_the_plain_page";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let Some(_) = skip::tool(TEST, "setpriv") else {
        return;
    };
    let pair = Pair::new();
    let daemon = Daemon::start(&pair.both(), &["--socket-group", GROUP]);
    let exporter = Exporter::start(&daemon);
    let (server, totals) = some_load(&pair);
    load::quiet(&pair.both(), 0);
    daemon.snapshot();
    let plain = exporter.metrics();
    let unpacked = http::get_compressed(exporter.address, "/metrics", TEXT);
    let unpacked = String::from_utf8(unpacked.expect("a page")).expect("text");
    assert_eq!(series(&unpacked), series(&plain));
    for text in [&plain, &unpacked] {
        let opened = total(text, "edgeprobe_tcp_connections_opened_total", &[]);
        assert_eq!(opened, 2.0 * totals.connections as f64);
    }
    server.stop();
    daemon.stop();
}

#[test]
fn promtool_has_nothing_to_say_about_the_text() {
    const TEST: &str = "promtool_has_nothing_to_say_about_the_text";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let Some(promtool) = skip::tool(TEST, "promtool") else {
        return;
    };
    let pair = Pair::new();
    let daemon = Daemon::start(&pair.both(), &["--socket-group", GROUP]);
    let exporter = Exporter::start(&daemon);
    let (server, _) = some_load(&pair);
    load::quiet(&pair.both(), 0);
    daemon.snapshot();
    let page = daemon.folder().join("metrics.txt");
    fs::write(&page, exporter.metrics()).expect("a file");
    let output = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(fs::File::open(&page).expect("the file"))
        .output()
        .expect("promtool runs");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
    let open_metrics = http::get(
        exporter.address,
        "/metrics",
        "application/openmetrics-text;version=1.0.0",
    );
    let body = open_metrics.expect("the page").body;
    assert!(body.ends_with("# EOF\n"), "OpenMetrics has an end");
    exporter.running.stop(libc::SIGTERM);
    daemon.stop();
    server.stop();
}

/// A Prometheus with its data in a folder of the test.
struct Prometheus {
    running: Running,
    address: SocketAddr,
}

impl Prometheus {
    #[track_caller]
    fn start(program: &Path, folder: &Path, target: SocketAddr) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = free.local_addr().expect("its address");
        drop(free);
        let config: PathBuf = folder.join("prometheus.yml");
        fs::write(
            &config,
            format!(
                "global: {{ scrape_interval: 1s }}\n\
                 scrape_configs: [{{ job_name: edgeprobe, static_configs: [{{ targets: [\"{target}\"] }}] }}]\n"
            ),
        )
        .expect("a file");
        let mut command = Command::new(program);
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .arg("--enable-feature=native-histograms")
            .stdin(Stdio::null());
        let running = Running::start(command, folder.join("prometheus-messages"));
        Self { running, address }
    }

    /// The value of a query that has one.
    fn value(&mut self, query: &str) -> Option<f64> {
        self.running.assert_alive();
        let escaped: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let path = format!("/api/v1/query?query={escaped}");
        let page = http::get(self.address, &path, "application/json").ok()?;
        let answer: serde_json::Value = serde_json::from_str(&page.body).ok()?;
        let value = answer["data"]["result"][0]["value"][1].as_str()?.parse();
        value.ok().filter(|value: &f64| value.is_finite())
    }
}

#[test]
fn prometheus_computes_the_known_round_trip_time() {
    const TEST: &str = "prometheus_computes_the_known_round_trip_time";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let Some(program) = skip::tool(TEST, "prometheus") else {
        return;
    };
    let line = probe_tests::delay::DelayLine::new(probe_tests::delay::ONE_WAY);
    let known = 2.0 * probe_tests::delay::ONE_WAY.as_secs_f64();
    let daemon = Daemon::start(&line.both(), &["--socket-group", GROUP]);
    let exporter = Exporter::start(&daemon);
    let mut prometheus = Prometheus::start(&program, daemon.folder(), exporter.address);
    // The classic form needs a first scrape to tell growth from.
    let up = "edgeprobe_daemon_up";
    poll::until("Prometheus scrapes", || {
        prometheus.value(up).filter(|up| *up == 1.0)
    });
    let rtts = line.talk(200);
    let middle = rtts[rtts.len() / 2];
    assert!(
        (middle / known - 1.0).abs() < 0.05,
        "TCP_INFO says {middle} s for {known} s"
    );
    daemon.snapshot();
    let query = "histogram_quantile(0.5, sum(edgeprobe_tcp_rtt_seconds{side=\"client\"}))";
    let median = poll::until("a quantile of Prometheus", || prometheus.value(query));
    println!("known {known} s, TCP_INFO {middle} s, Prometheus {median} s");
    assert!(
        (median / known - 1.0).abs() < 0.05,
        "{median} s for {known} s"
    );
    exporter.running.stop(libc::SIGTERM);
    drop(prometheus);
    daemon.stop();
}
