//! How the daemon ends, and how it refuses to begin.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, Output},
    thread,
};

use probe_tests::{
    daemon::{Daemon, edgeprobe, readable_binary},
    netns::{DEVICE, Netns, Pair},
    objects::{is_listed, listed},
    poll, skip,
};

#[test]
fn nothing_is_left_in_the_kernel_after_sigterm_and_sigint() {
    const TEST: &str = "nothing_is_left_in_the_kernel_after_sigterm_and_sigint";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let Some(_) = skip::tool(TEST, "bpftool") else {
        return;
    };
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let pair = Pair::new();
        let daemon = Daemon::start_inside(&pair.server, &["--interface", DEVICE]);
        let objects = daemon.kernel_objects();
        for kind in ["prog_id", "link_id", "map_id"] {
            let of_kind = objects.iter().find(|(one, _)| *one == kind);
            let one = of_kind.unwrap_or_else(|| panic!("the daemon holds no {kind}"));
            assert!(is_listed(*one), "{one:?} is there while the daemon is");
        }
        if signal == libc::SIGTERM {
            daemon.stop();
        } else {
            daemon.interrupt();
        }
        // The kernel frees them a moment after their last user has gone.
        poll::until("all objects are gone", || {
            objects
                .iter()
                .all(|object| !is_listed(*object))
                .then_some(())
        });
        let link = pair
            .server
            .ip(&format!("-json -details link show dev {DEVICE}"));
        assert!(!link.contains("\"xdp\""), "{link}");
    }
}

/// Runs a command that must refuse: one line on stderr, exit code 1.
#[track_caller]
fn refusal(mut command: Command, words: &[&str]) -> String {
    let output: Output = command.output().expect("edgeprobe runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{command:?}: {text}");
    assert_eq!(text.trim_end().lines().count(), 1, "one line: {text}");
    for word in words {
        assert!(text.contains(word), "no word of {word:?}: {text}");
    }
    text
}

fn daemon_on(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = edgeprobe(["daemon", "--socket"]);
    command.arg(socket).args(arguments);
    command
}

#[test]
fn what_cannot_work_is_refused_in_one_line() {
    const TEST: &str = "what_cannot_work_is_refused_in_one_line";
    let Some(_turn) = skip::turn(TEST) else {
        return;
    };
    let Some(_) = skip::tool(TEST, "bpftool") else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("edgeprobe.sock");
    let netns = Netns::new();
    let name = netns.name();

    let kinds = ["prog", "link", "map"];
    let before: BTreeSet<_> = kinds
        .iter()
        .flat_map(|kind| listed(kind).into_iter().map(|id| (*kind, id)))
        .collect();
    let gone = ["--netns", "ep-is-not-there"];
    refusal(
        daemon_on(&socket, &gone),
        &["ep-is-not-there", "ip netns list"],
    );
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    let listen = ["--netns", name, "--listen", &address];
    refusal(daemon_on(&socket, &listen), &[&address]);

    let config = folder.path().join("config.toml");
    let at = config.to_str().expect("a path of plain letters");
    for (text, words) in [
        (
            "[daemon]\nsnapshot_intervall = \"1s\"\n",
            &["snapshot_intervall", "2"][..],
        ),
        ("[metrics\n", &["config.toml", "1"]),
        (
            "[[service]]\nname = \"x\"\nside = \"middle\"\n",
            &["middle"],
        ),
    ] {
        fs::write(&config, text).expect("a file");
        refusal(
            daemon_on(&socket, &["--config", at, "--netns", name]),
            words,
        );
        refusal(
            daemon_on(&socket, &["--config", at, "--check-config"]),
            words,
        );
    }
    refusal(
        daemon_on(
            &socket,
            &["--config", "/nonexistent/config.toml", "--netns", name],
        ),
        &["/nonexistent/config.toml"],
    );

    // The lock beside the socket is no file of somebody else.
    let (lock, precious) = (
        folder.path().join("edgeprobe.sock.lock"),
        folder.path().join("precious"),
    );
    fs::write(&precious, "precious").expect("a file");
    std::os::unix::fs::symlink(&precious, &lock).expect("a link");
    refusal(daemon_on(&socket, &["--netns", name]), &["symbolic link"]);
    assert_eq!(fs::read_to_string(&precious).expect("a file"), "precious");
    fs::remove_file(&lock).expect("the link goes");

    let mut misspelt = daemon_on(&socket, &["--netns", name]);
    misspelt.env("EDGEPROBE_METRIC_LISTEN", ":9978");
    refusal(misspelt, &["EDGEPROBE_METRIC_LISTEN"]);

    let mut ordinary = Command::new("setpriv");
    ordinary
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(readable_binary(folder.path()))
        .args(["daemon", "--socket", "/tmp/edgeprobe-not-root.sock"]);
    refusal(ordinary, &["root"]);
    assert!(!socket.exists(), "a refusal leaves no socket");
    // The kernel frees them a moment after their last user has gone.
    for kind in kinds {
        poll::until("nothing new is in the kernel", || {
            let is_old = |id: u32| before.contains(&(kind, id));
            listed(kind).into_iter().all(is_old).then_some(())
        });
    }
}

#[test]
fn a_second_daemon_on_the_same_socket_is_refused_and_the_first_goes_on() {
    let Some(_turn) =
        skip::turn("a_second_daemon_on_the_same_socket_is_refused_and_the_first_goes_on")
    else {
        return;
    };
    let netns = Netns::new();
    let first = Daemon::start(&[&netns], &[]);
    let socket = first.socket();
    let text = socket.to_str().expect("a path of plain letters");
    refusal(daemon_on(&socket, &["--netns", netns.name()]), &[text]);
    first.snapshot();
    // Two daemons with two sockets live side by side.
    let second = Daemon::start(&[&netns], &[]);
    second.snapshot();
    first.snapshot();
    second.stop();
    first.snapshot();
    // SIGHUP means nothing yet, and ends nothing.
    first.process().signal(libc::SIGHUP);
    poll::until("a message about SIGHUP", || {
        first.process().messages().contains("SIGHUP").then_some(())
    });
    first.snapshot();
    first.stop();
    assert!(!socket.exists(), "the socket goes with its daemon");
}

#[test]
fn a_socket_left_by_a_killed_daemon_is_taken_over() {
    let Some(_turn) = skip::turn("a_socket_left_by_a_killed_daemon_is_taken_over") else {
        return;
    };
    let netns = Netns::new();
    let daemon = Daemon::start(&[&netns], &[]);
    let daemon = daemon.kill().restart();
    daemon.snapshot();
    daemon.stop();
}

#[test]
fn a_peer_of_another_version_gets_a_clear_error() {
    use std::io::{Read, Write};
    let Some(_turn) = skip::turn("a_peer_of_another_version_gets_a_clear_error") else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("edgeprobe.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    // The frame of a daemon of version 99: see `socket::protocol`.
    let other = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut header = [0; 16];
        stream
            .read_exact(&mut header)
            .expect("the head of a request");
        let length = u32::from_be_bytes([header[12], header[13], header[14], header[15]]);
        let mut body = vec![0; length as usize];
        stream.read_exact(&mut body).expect("a request");
        header[4..6].copy_from_slice(&99u16.to_be_bytes());
        stream.write_all(&header).expect("the client reads");
    });
    let mut top = edgeprobe(["top", "--once", "--socket"]);
    top.arg(&socket);
    refusal(top, &["version", "99"]);
    other.join().expect("the other version");
}
