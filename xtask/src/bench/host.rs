//! What edgeprobe costs on this machine, in nanoseconds and requests a second.
//!
//! The load is short HTTP connections with both ends on this machine: nginx
//! and wrk with `Connection: close`, over the loopback of a network namespace
//! of their own. Everything is measured by others: requests by wrk, the time in
//! programs by the kernel, processor time and memory by `/proc`.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    Options,
    arena::{self, Arena, Load},
    daemon::{self, Daemon, Programs, Statistics, Work},
    figures::{median, ratios},
};
use crate::{build, cmd, packages, workspace::Workspace};

/// What must be there beside the tools of the kernel tests.
const PACKAGES: &[&str] = &[
    "bpftool",
    "iproute2",
    "nftables",
    "nginx-light",
    "procps",
    "util-linux",
    "wrk",
];
/// Runs of the XDP program for one figure.
const XDP_REPEAT: &str = "5000000";

/// Measures, and prints one table.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    packages::ensure("the benchmark", PACKAGES, &workspace.logs())?;
    let edgeprobe = build::edgeprobe(workspace, true)?;
    let folder = workspace.target.join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let arena = Arena::new(&folder, &edgeprobe)?;

    let speed = speed(&arena, options)?;
    let [whole, lossy] = programs(&arena, options)?;
    let xdp = xdp(&arena, &folder)?;
    print(options, &speed, &whole, &lossy, &xdp);
    Ok(())
}

/// Requests a second, and what the daemon took of the machine meanwhile.
struct Speed {
    /// In the order of [`KINDS`], a figure for each round.
    rates: [Vec<f64>; 3],
    /// Parts of a processor.
    processor: Vec<f64>,
    /// Bytes.
    resident: u64,
    /// Bytes.
    maps: u64,
}

/// What is attached: nothing, empty programs, edgeprobe.
const KINDS: [Option<Programs>; 3] = [None, Some(Programs::Empty), Some(Programs::All)];

fn speed(arena: &Arena, options: &Options) -> Result<Speed> {
    let mut speed = Speed {
        rates: Default::default(),
        processor: Vec::new(),
        resident: 0,
        maps: 0,
    };
    let time = Duration::from_secs(options.seconds);
    arena.load(Duration::from_secs(2)).context("warming up")?;
    for round in 0..options.rounds {
        for turn in 0..KINDS.len() {
            // Each kind comes first, second and last equally often.
            let kind = (round + turn) % KINDS.len();
            let daemon = KINDS[kind]
                .map(|programs| arena.daemon(programs, &[]))
                .transpose()?;
            let before = daemon.as_ref().map(Daemon::processor_time).transpose()?;
            let load = arena.load(time)?;
            speed.rates[kind].push(load.rate);
            if let (Some(daemon), Some(before)) = (&daemon, before)
                && KINDS[kind] == Some(Programs::All)
            {
                let used = daemon.processor_time()?.saturating_sub(before);
                speed.processor.push(used.as_secs_f64() / load.seconds);
                speed.resident = speed.resident.max(daemon.resident_bytes()?);
                speed.maps = daemon.map_bytes()?;
            }
        }
        let last = speed
            .rates
            .each_ref()
            .map(|rates| rates.last().copied().unwrap_or_default());
        cmd::say(&format!(
            "round {} of {}: {:.0} requests/s without, {:.0} with empty programs, {:.0} with edgeprobe",
            round + 1,
            options.rounds,
            last[0],
            last[1],
            last[2]
        ));
    }
    Ok(speed)
}

/// Cost of one program under the load.
struct Cost {
    program: String,
    runs: f64,
    nanoseconds: f64,
}

/// The programs under the load, and while segments are lost.
fn programs(arena: &Arena, options: &Options) -> Result<[Vec<Cost>; 2]> {
    cmd::say("time in the programs, with kernel.bpf_stats_enabled");
    let _stats = Statistics::on()?;
    let daemon = arena.daemon(Programs::All, &[])?;
    let time = Duration::from_secs(options.seconds);
    let whole = costs(&daemon, || arena.load(time))?;
    let lossy = costs(&daemon, || arena.lossy_load(time))?;
    Ok([whole, lossy])
}

fn costs(daemon: &Daemon, load: impl FnOnce() -> Result<Load>) -> Result<Vec<Cost>> {
    let (work, load) = daemon.work(|| {
        let load = load()?;
        // A connection that wrk left open ends a moment later.
        thread::sleep(Duration::from_millis(300));
        Ok(load)
    })?;
    let cost = |work: Work| Cost {
        program: work.program,
        runs: work.runs as f64 / load.requests as f64,
        nanoseconds: work.nanoseconds as f64 / work.runs as f64,
    };
    Ok(work.into_iter().map(cost).collect())
}

/// Nanoseconds for a packet: program, figure.
fn xdp(arena: &Arena, folder: &Path) -> Result<Vec<(&'static str, f64)>> {
    cmd::say("nanoseconds a packet in XDP");
    let device = arena.device()?;
    let mut figures = Vec::new();
    for (name, programs) in [("pass only", Programs::Empty), ("edgeprobe", Programs::All)] {
        let daemon = arena.daemon(programs, &["--interface", &device])?;
        let program = daemon
            .programs()?
            .into_iter()
            .find(|(_, program)| program.kind == "xdp")
            .map(|(id, _)| id)
            .context("the daemon has no XDP program")?;
        let packet = folder.join("packet");
        fs::write(&packet, PACKET).context("the packet cannot be written")?;
        let times = (0..5)
            .map(|_| daemon::run_program(program, &packet, XDP_REPEAT))
            .collect::<Result<Vec<_>>>()?;
        figures.push((name, median(&times)));
    }
    Ok(figures)
}

/// An Ethernet frame with an IPv4 packet of 46 bytes: TCP, port 40000 to 80.
const PACKET: [u8; 60] = {
    let head = [
        2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00, // Ethernet
        0x45, 0, 0, 46, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 77, 0, 2, 10, 77, 0, 1, // IPv4
        0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0, // TCP
    ];
    let mut packet = [0; 60];
    let mut at = 0;
    while at < head.len() {
        packet[at] = head[at];
        at += 1;
    }
    packet
};

fn print(options: &Options, speed: &Speed, whole: &[Cost], lossy: &[Cost], xdp: &[(&str, f64)]) {
    let Options {
        rounds, seconds, ..
    } = options;
    let [without, empty, all] = &speed.rates;
    let line =
        |name: &str, value: String, remark: String| println!("  {name:<24}{value:>12}  {remark}");
    println!(
        "(a) requests a second, one connection each; median of {rounds} rounds of {seconds} s"
    );
    line(
        "nothing attached",
        format!("{:.0}", median(without)),
        String::new(),
    );
    for (name, rates, against, aim) in [
        (
            "empty programs",
            empty,
            [("nothing", without)].as_slice(),
            "",
        ),
        (
            "edgeprobe",
            all,
            &[("nothing", without), ("empty", empty)],
            "; aim 0.970",
        ),
    ] {
        let of = against.iter().map(|(what, base)| {
            let ratios = ratios(rates, base);
            format!(
                "{:.3} of {what} (rounds {:.3} to {:.3})",
                median(&ratios),
                ratios[0],
                ratios[ratios.len() - 1]
            )
        });
        let remark = of.collect::<Vec<_>>().join(", ") + aim;
        line(name, format!("{:.0}", median(rates)), remark);
    }
    println!("(b) time in programs for a connection, both ends; 70 ns of measurement in each run");
    print_costs(whole, "  aim 3000");
    println!(
        "    the same where one segment in {} is lost",
        arena::LOST_OF
    );
    print_costs(lossy, "");
    println!("(c) XDP, a packet of a known flow");
    let base = xdp.first().map_or(1.0, |(_, time)| *time);
    for (name, time) in xdp {
        line(
            name,
            format!("{time:.0} ns"),
            format!("{:.2} times pass only; aim 2.50", time / base),
        );
    }
    println!("(d) the daemon under the load of (a)");
    let percent = median(&speed.processor) * 100.0;
    line(
        "processor",
        format!("{percent:.2} %"),
        "of a core; aim 2".to_owned(),
    );
    line(
        "resident memory",
        mebibytes(speed.resident),
        "aim 32 MiB".to_owned(),
    );
    line("maps", mebibytes(speed.maps), "kernel memory".to_owned());
}

fn print_costs(costs: &[Cost], aim: &str) {
    println!(
        "  {:<24}{:>12}{:>12}{:>12}",
        "program", "runs", "ns/run", "ns"
    );
    let (mut runs, mut time) = (0.0, 0.0);
    for cost in costs {
        let total = cost.runs * cost.nanoseconds;
        println!(
            "  {:<24}{:>12.2}{:>12.0}{:>12.0}",
            cost.program, cost.runs, cost.nanoseconds, total
        );
        runs += cost.runs;
        time += total;
    }
    println!("  {:<24}{runs:>12.2}{:>12}{time:>12.0}{aim}", "all", "");
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
