//! Sockets by their state.

use std::net::{SocketAddr, TcpListener, TcpStream};

use probe_tests::{daemon::Daemon, netns::Pair, poll, skip};
use probe_user::model::Snapshot;

/// A program that does not close.
#[test]
fn sockets_are_counted_by_their_state() {
    const FORGOTTEN: usize = 30;
    const FINE: usize = 10;
    let Some(_turn) = skip::turn("sockets_are_counted_by_their_state") else {
        return;
    };
    let pair = Pair::new();
    let at = SocketAddr::new(Pair::SERVER_V4, 9000);
    let listener = pair.server.run(|| TcpListener::bind(at)).expect("a port");
    let open = || {
        let client = pair
            .client
            .run(|| TcpStream::connect(at))
            .expect("it is open");
        let (server, _) = listener.accept().expect("it is open");
        (client, server)
    };
    // Some from before the start, too.
    let mut forgotten: Vec<_> = (0..FORGOTTEN / 2).map(|_| open().1).collect();
    let daemon = Daemon::start(&pair.both(), &[]);
    forgotten.extend((0..FORGOTTEN / 2).map(|_| open().1));
    let fine: Vec<_> = (0..FINE).map(|_| open()).collect();
    let count = |snapshot: &Snapshot, state: &str| {
        let of_state = snapshot.sockets.iter().filter(|one| one.state == state);
        let of_server = of_state.filter(|one| one.side == "server" && one.svc == "9000");
        of_server.map(|one| one.count).sum::<u64>()
    };
    let shown = || {
        pair.server
            .command("ss", &["-Htn", "state", "close-wait"])
            .lines()
            .count()
    };
    poll::until("all have had a FIN", || {
        (shown() == FORGOTTEN).then_some(())
    });
    let snapshot = daemon.visited(|snapshot| count(snapshot, "close_wait") == FORGOTTEN as u64);
    assert_eq!(count(&snapshot, "established"), FINE as u64);
    let states = |state: &str| {
        let all = daemon.fresh_connections().connections;
        all.iter().filter(|one| one.state == state).count()
    };
    assert_eq!(states("CLOSE_WAIT"), FORGOTTEN);
    drop((forgotten, fine));
    daemon.visited(|snapshot| {
        ["close_wait", "established"]
            .iter()
            .all(|state| count(snapshot, state) == 0)
    });
    daemon.stop();
}
