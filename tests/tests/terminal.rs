//! The live view and what ends it.

use std::process::Command;

use probe_tests::{
    daemon::{Daemon, KernelObject, edgeprobe, kernel_objects},
    netns::Netns,
    objects::is_listed,
    poll,
    pty::Pty,
    skip,
};

/// `top` with programs of its own.
fn alone(netns: &Netns) -> Command {
    edgeprobe(["top", "--alone", "--netns", netns.name()])
}

/// Starts it, lets it go an own way, and checks that nothing is left in the kernel.
#[track_caller]
fn ends(netns: &Netns, how: impl FnOnce(&mut Pty)) {
    let mut top = Pty::spawn(&alone(netns));
    top.read_until("standing alone");
    let objects = kernel_objects(top.pid());
    assert!(objects.iter().any(|(kind, _)| *kind == "link_id"));
    how(&mut top);
    // The kernel frees maps whenever it has time; what it runs it must not run any more.
    let runs = |(kind, _): &KernelObject| *kind != "map_id";
    let mut left: Vec<_> = objects.into_iter().filter(runs).collect();
    poll::until("nothing is attached any more", || {
        left.retain(|object| is_listed(*object));
        left.is_empty().then_some(())
    });
}

#[test]
fn the_live_view_ends_with_its_terminal_and_detaches() {
    const TEST: &str = "the_live_view_ends_with_its_terminal_and_detaches";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let (Some(_), Some(_)) = (skip::tool(TEST, "bpftool"), skip::tool(TEST, "setsid")) else {
        return;
    };
    let netns = Netns::new();
    ends(&netns, |top| {
        top.hang_up();
        let status = top.ended(false);
        assert!(status.success(), "{status}");
    });
    // No signal tells it.
    let mut top = Pty::run(&mut alone(&netns));
    top.read_until("standing alone");
    top.hang_up();
    let status = top.ended(false);
    assert!(status.success(), "{status}");
}

#[test]
fn signals_end_the_live_view_and_detach() {
    const TEST: &str = "signals_end_the_live_view_and_detach";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let (Some(_), Some(_)) = (skip::tool(TEST, "bpftool"), skip::tool(TEST, "setsid")) else {
        return;
    };
    let netns = Netns::new();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        ends(&netns, |top| {
            top.signal(signal);
            let status = top.ended(true);
            assert!(status.success(), "signal {signal}: {status}");
        });
    }
    // A terminal that takes nothing more: the view stands in a write.
    ends(&netns, |top| {
        for _ in 0..2000 {
            top.press("\t");
        }
        top.signal(libc::SIGTERM);
        top.ended(false);
    });
}

#[test]
fn the_live_view_leaves_a_daemon_that_does_not_answer() {
    const TEST: &str = "the_live_view_leaves_a_daemon_that_does_not_answer";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let Some(_) = skip::tool(TEST, "setsid") else {
        return;
    };
    let netns = Netns::new();
    let daemon = Daemon::start(&[&netns], &[]);
    let mut command = edgeprobe(["top", "--interval", "100ms", "--socket"]);
    command.arg(daemon.socket());
    let mut top = Pty::spawn(&command);
    top.read_until("daemon on");
    daemon.process().signal(libc::SIGSTOP);
    top.read_until("no answer");
    top.press("q");
    let status = top.ended(true);
    assert!(status.success(), "{status}");
    daemon.process().signal(libc::SIGCONT);
    daemon.snapshot();
    daemon.stop();
}

#[test]
fn a_socket_that_was_named_must_exist() {
    let Some(_turn) = skip::turn("a_socket_that_was_named_must_exist") else {
        return;
    };
    let netns = Netns::new();
    let mut top = edgeprobe(["top", "--once", "--netns", netns.name()]);
    top.args(["--socket", "/run/ep-typo.sock"]);
    let output = top.output().expect("edgeprobe runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("no daemon on /run/ep-typo.sock"), "{text}");
    assert!(output.stdout.is_empty());
}
