//! `cargo xtask test vm`: the kernel tests on the kernels of other Debian releases.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use super::{
    Guest, Guests,
    image::{self, BROKEN, Contents, DONE},
    machine::{Clock, Machine},
    selection::{LEFT_OUT, Options, Programs},
    skipped,
};
use crate::{cmd, tally::Tally};

/// What the guest prints before each test program.
const BEGIN: &str = "EDGEPROBE-GUEST-BEGIN ";

/// Programs that the tests call.
const TOOLS: &[&str] = &[
    "bpftool", "ip", "nft", "nginx", "openssl", "setpriv", "ss", "tc", "wrk",
];

/// Files that these read. `openssl req` does not work without its own.
const FILES: &[&str] = &["/usr/lib/ssl/openssl.cnf"];

/// Modules that the tests need, where they are not built in.
const MODULES: &[&str] = &[
    "8021q",
    "af_packet",
    "dummy",
    "nf_tables",
    "nft_numgen",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "sch_netem",
    "tcp_diag",
    "tun",
    "veth",
];

/// How long all tests may take on one kernel.
const PATIENCE: Duration = Duration::from_secs(3000);

/// Boots each kernel and runs the tests in it.
pub fn run(guests: &Guests, programs: &Programs, options: &Options) -> Tally {
    let mut tally = guests.missing;
    // A filter leaves out more than this, and whoever gave it knows.
    for (program, tests) in LEFT_OUT.iter().filter(|_| options.args.is_empty()) {
        if programs.names().iter().any(|name| name == program) {
            let why = format!("{program}: {tests}: its server is not in the guests");
            tally += skipped(guests.ready.len(), &why);
        }
    }
    // A guest keeps little more than one processor busy.
    let results = thread::scope(|scope| {
        let threads: Vec<_> = guests
            .ready
            .iter()
            .map(|guest| scope.spawn(move || test_on(guest, programs, options)))
            .collect();
        threads
            .into_iter()
            .map(|guest| guest.join().unwrap_or_else(|_| bail!("its thread ended")))
            .collect::<Vec<_>>()
    });
    for (guest, result) in guests.ready.iter().zip(results) {
        tally += result.unwrap_or_else(|error| {
            cmd::say(&format!("error: {}: {error:#}", guest.name()));
            Tally::FAILURE
        });
    }
    tally
}

fn test_on(guest: &Guest, programs: &Programs, options: &Options) -> Result<Tally> {
    let name = guest.name();
    cmd::say(&format!("{name}: making its initramfs"));
    let tests = programs.tests.iter();
    let tests = tests.map(|path| (path.clone(), format!("tests/{}", image::plain_name(path))));
    let edgeprobe = (programs.edgeprobe.clone(), "bin/edgeprobe".to_owned());
    // A test for which something is missing fails, unless the image was never
    // meant to have it.
    let is_complete = (!options.every).to_string();
    let contents = Contents {
        tools: TOOLS,
        files: FILES,
        modules: MODULES,
        programs: tests.chain([edgeprobe]).collect(),
        task: include_str!("suites.sh")
            .replace("@RUNS@", &runs(programs, options))
            .replace("@COMPLETE@", &is_complete)
            .replace("@BEGIN@", BEGIN),
    };
    let initramfs = image::make(guest, &guest.folder, &contents)?;
    let log = guest.folder.join("console.log");
    let started = Instant::now();
    let machine = Machine {
        cpus: options.cpus,
        clock: Clock::Host,
        patience: PATIENCE,
    };
    let console = machine.boot(guest, &initramfs, &log)?;
    let tally = judge(&name, &console, programs.tests.len());
    for line in console.lines() {
        let of_interest = line.starts_with("test ")
            || line.starts_with("SKIPPED:")
            || line.contains("panicked at")
            || line.starts_with("! ");
        if of_interest {
            println!("{}: {line}", guest.version());
        }
    }
    cmd::say(&format!(
        "{name}: {tally}, {:.0} s; all it said is in {}",
        started.elapsed().as_secs_f64(),
        log.display()
    ));
    Ok(tally)
}

/// Lines of the guest's init, one for each test program.
fn runs(programs: &Programs, options: &Options) -> String {
    let run = |name: String| {
        let left_out = options.left_out(&name);
        let skips = left_out.flat_map(|tests| ["--skip".to_owned(), quoted(tests)]);
        let words = ["run".to_owned(), name.clone()].into_iter().chain(skips);
        let words = words.chain(options.args.iter().map(|arg| quoted(arg)));
        words.collect::<Vec<_>>().join(" ")
    };
    let lines: Vec<_> = programs.names().into_iter().map(run).collect();
    lines.join("\n")
}

fn quoted(arg: &str) -> String {
    format!("'{}'", arg.replace('\'', "'\\''"))
}

/// Counts what a guest printed; what did not end counts as failed.
fn judge(name: &str, console: &str, programs: usize) -> Tally {
    let mut tally = Tally::default();
    for (_, what) in console.lines().filter_map(|line| line.split_once(BROKEN)) {
        cmd::say(&format!("error: {name}: {what}"));
        tally.failed += 1;
    }
    let mut begun = 0;
    for part in console.split(BEGIN).skip(1) {
        begun += 1;
        let program = part.lines().next().unwrap_or_default();
        if part.contains("test result: ") {
            tally += Tally::from_libtest(part);
        } else {
            cmd::say(&format!("error: {name}: {program} did not end"));
            tally.failed += 1;
        }
    }
    if begun < programs || !console.contains(DONE) {
        cmd::say(&format!(
            "error: {name}: only {begun} of {programs} test programs were run"
        ));
        tally.failed += 1;
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_did_not_end_has_failed() {
        let console = format!(
            "boot\n{BEGIN}a\ntest result: ok. 2 passed; 0 failed; 1 ignored; 0 m\n{BEGIN}b\npanic\n"
        );
        let tally = judge("k", &console, 2);
        assert_eq!((tally.passed, tally.failed, tally.skipped), (2, 2, 1));
        let whole =
            format!("{BEGIN}a\ntest result: ok. 2 passed; 0 failed; 0 ignored; 0 m\n{DONE}\n");
        assert_eq!(judge("k", &whole, 1).failed, 0);
        assert_eq!(judge("k", &whole, 2).failed, 1);
        let broken = format!("{BROKEN}insmod x failed\n{whole}");
        assert_eq!(judge("k", &broken, 1).failed, 1);
    }
}
