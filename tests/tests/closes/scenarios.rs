//! The scenarios in which a connection ends, each done by its two ends.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use probe_tests::{options::set_tcp, poll, tcp_info::tcp_info};
use socket2::SockRef;

use crate::{
    connection::TestedConnection,
    counts::{ABORTED, Ending, FIN, ON_DATA, RECEIVED, RECEIVED_LATE, unread_data},
};

/// What the two ends do, the first one first.
pub type Scenario = fn(&TestedConnection<'_>, TcpStream, TcpStream);

/// The scenarios, each with how it ends for the end that is first and for the other.
pub const SCENARIOS: [(&str, Scenario, Ending, Ending); 16] = [
    ("in order", in_order, FIN, FIN),
    ("at once", at_once, FIN, FIN),
    ("aborted", aborted, ABORTED, RECEIVED),
    ("unread", unread, unread_data(true), RECEIVED),
    (
        "unread in FIN_WAIT2",
        unread_in_fin_wait,
        unread_data(false),
        RECEIVED,
    ),
    (
        "data before the FIN arrives",
        data_before_the_fin_arrives,
        ON_DATA,
        RECEIVED,
    ),
    (
        "data with the acknowledgment",
        data_with_the_acknowledgment,
        ON_DATA,
        RECEIVED,
    ),
    ("data in FIN_WAIT2", data_in_fin_wait2, ON_DATA, RECEIVED),
    (
        "data after shutdown()",
        data_after_shutdown,
        ON_DATA,
        RECEIVED,
    ),
    (
        "data and FIN after shutdown()",
        data_and_fin_after_shutdown,
        ON_DATA,
        RECEIVED_LATE,
    ),
    (
        "reset in FIN_WAIT2",
        reset_in_fin_wait,
        RECEIVED_LATE,
        ABORTED,
    ),
    (
        "reset after shutdown()",
        reset_after_shutdown,
        RECEIVED_LATE,
        ABORTED,
    ),
    (
        "timed out",
        timed_out,
        Ending("timeout", None, true),
        ABORTED,
    ),
    (
        "timed out in FIN_WAIT1",
        timed_out_in_fin_wait,
        Ending("timeout", None, false),
        ABORTED,
    ),
    (
        "timed out behind a router that says why",
        timed_out_with_a_word,
        Ending("timeout", None, true),
        ABORTED,
    ),
    (
        "aborted in spite of an old error",
        aborted_with_an_old_error,
        ABORTED,
        RECEIVED,
    ),
];

/// Scenarios of an administrator's abort, likewise.
pub const KILLED: [(&str, Scenario, Ending, Ending); 1] = [("killed", killed, ABORTED, RECEIVED)];

/// Scenarios of a reset after a FIN, likewise.
pub const IN_FIN_WAIT: [(&str, Scenario, Ending, Ending); 3] = [
    ("no FIN_WAIT2", no_fin_wait2, ON_DATA, RECEIVED),
    (
        "half read in FIN_WAIT2",
        half_read_in_fin_wait,
        unread_data(false),
        RECEIVED,
    ),
    (
        "reset after unread data",
        reset_after_unread_data,
        RECEIVED_LATE,
        ABORTED,
    ),
];

/// Reads until the other end has closed or reset, then closes.
fn wait_for_end(mut stream: TcpStream) {
    let _ = stream.read_to_end(&mut Vec::new());
    drop(stream);
}

/// Waits until there is something to read, without a look at it.
fn wait_for_data(stream: &TcpStream) {
    poll::readable(stream, "data comes");
}

pub fn wait_for_fin(mut stream: &TcpStream) {
    assert_eq!(stream.read(&mut [0]).expect("a FIN"), 0);
}

/// Waits for it, then closes.
fn wait_for_reset(mut stream: TcpStream) {
    let error = stream.read(&mut [0]).expect_err("a reset");
    drop(stream);
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

pub fn send(mut stream: &TcpStream) {
    stream.write_all(&[7; 200]).expect("it is sent");
}

fn receive(mut stream: &TcpStream) {
    stream.read_exact(&mut [0; 200]).expect("the data");
}

fn abort(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .expect("no linger");
    drop(stream);
}

/// The first closes, then the other end.
fn in_order(_: &TestedConnection<'_>, first: TcpStream, second: TcpStream) {
    drop(first);
    wait_for_end(second);
}

/// Both close before they know of each other's FIN.
fn at_once(connection: &TestedConnection<'_>, first: TcpStream, second: TcpStream) {
    connection.lose(connection.first, "tcp flags & fin == fin");
    drop(first);
    drop(second);
    poll::until("both FINs cross", || {
        connection
            .shown(connection.first)
            .contains("CLOSING")
            .then_some(())
    });
    connection.lose_no_more(connection.first);
}

/// The first closes with `SO_LINGER` 0.
fn aborted(_: &TestedConnection<'_>, first: TcpStream, second: TcpStream) {
    abort(first);
    wait_for_end(second);
}

/// The first closes with data that it has not read.
fn unread(_: &TestedConnection<'_>, first: TcpStream, second: TcpStream) {
    send(&second);
    wait_for_data(&first);
    drop(first);
    wait_for_end(second);
}

/// The same in FIN_WAIT2: it has shut its own direction down before.
fn unread_in_fin_wait(connection: &TestedConnection<'_>, first: TcpStream, second: TcpStream) {
    first.shutdown(Shutdown::Write).expect("a FIN is sent");
    wait_for_fin(&second);
    connection.wait_for_fin_wait2();
    send(&second);
    wait_for_data(&first);
    drop(first);
    connection.wait_for_reset_of(second);
}

/// The first closes, its FIN is lost, and the other end sends.
fn data_before_the_fin_arrives(
    connection: &TestedConnection<'_>,
    first: TcpStream,
    second: TcpStream,
) {
    connection.lose(connection.first, "tcp flags & fin == fin");
    drop(first);
    send(&second);
    wait_for_end(second);
}

/// The first closes and gets the acknowledgment of its FIN with data in the same
/// segment: those without are lost.
fn data_with_the_acknowledgment(
    connection: &TestedConnection<'_>,
    first: TcpStream,
    second: TcpStream,
) {
    connection.lose(connection.other(), "meta length < 120");
    drop(first);
    wait_for_fin(&second);
    send(&second);
    connection.wait_for_reset_of(second);
}

/// The first closes and gets data in FIN_WAIT2. The kernel replaces a socket that
/// is to be there for a minute at most by one of TIME_WAIT, so it is told more.
fn data_in_fin_wait2(connection: &TestedConnection<'_>, first: TcpStream, second: TcpStream) {
    const TIME: &str = "ipv4/tcp_fin_timeout";
    let netns = connection.netns(connection.first);
    netns.sysctl(TIME, 120);
    drop(first);
    wait_for_fin(&second);
    connection.wait_for_fin_wait2();
    send(&second);
    connection.wait_for_reset_of(second);
    netns.sysctl(TIME, 60);
}

/// The first shuts both directions down, keeps the socket, and gets data.
fn data_after_shutdown(connection: &TestedConnection<'_>, first: TcpStream, second: TcpStream) {
    first.shutdown(Shutdown::Both).expect("a FIN is sent");
    wait_for_fin(&second);
    connection.wait_for_fin_wait2();
    send(&second);
    connection.wait_for_reset_of(second);
    drop(first);
}

/// The same, and the FIN of the other end comes with the data.
fn data_and_fin_after_shutdown(
    connection: &TestedConnection<'_>,
    first: TcpStream,
    second: TcpStream,
) {
    first.shutdown(Shutdown::Both).expect("a FIN is sent");
    wait_for_fin(&second);
    connection.wait_for_fin_wait2();
    let sent = SockRef::from(&second).send_with_flags(&[7; 200], libc::MSG_MORE);
    assert_eq!(sent.expect("it waits for more"), 200);
    second.shutdown(Shutdown::Write).expect("a FIN is sent");
    connection.wait_for_reset_of(second);
    drop(first);
}

/// The first shuts one direction down, gets data and reads it, and then the other
/// end aborts.
fn reset_in_fin_wait(_: &TestedConnection<'_>, first: TcpStream, second: TcpStream) {
    first.shutdown(Shutdown::Write).expect("a FIN is sent");
    wait_for_fin(&second);
    send(&second);
    receive(&first);
    abort(second);
    wait_for_reset(first);
}

/// The first shuts both directions down, and then the other end aborts.
fn reset_after_shutdown(connection: &TestedConnection<'_>, first: TcpStream, second: TcpStream) {
    send(&second);
    receive(&first);
    first.shutdown(Shutdown::Both).expect("a FIN is sent");
    wait_for_fin(&second);
    connection.wait_for_fin_wait2();
    abort(second);
    connection.wait_for_none(connection.first);
    drop(first);
}

/// What the first sends is lost, until it gives up.
fn timed_out(connection: &TestedConnection<'_>, first: TcpStream, second: TcpStream) {
    connection.lose(connection.first, "");
    SockRef::from(&first)
        .set_tcp_user_timeout(Some(Duration::from_millis(500)))
        .expect("a timeout");
    send(&first);
    let error = (&first).read(&mut [0]).expect_err("nothing is answered");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    drop(first);
    abort(second);
}

/// What the first sends is answered with an ICMP error, until it gives up: then its
/// error is not that of a timeout.
fn timed_out_with_a_word(connection: &TestedConnection<'_>, first: TcpStream, second: TcpStream) {
    connection.reject(connection.first);
    SockRef::from(&first)
        .set_tcp_user_timeout(Some(Duration::from_millis(1500)))
        .expect("a timeout");
    send(&first);
    let error = (&first)
        .read(&mut [0])
        .expect_err("nothing is acknowledged");
    assert_eq!(error.raw_os_error(), Some(libc::EHOSTUNREACH));
    drop(first);
    connection.reject_no_more(connection.first);
    abort(second);
}

/// The first has asked for ICMP errors, gets one, does not look at it, and aborts when
/// the other end is there again.
fn aborted_with_an_old_error(
    connection: &TestedConnection<'_>,
    first: TcpStream,
    second: TcpStream,
) {
    connection.ask_for_errors(&first);
    connection.reject(connection.first);
    send(&first);
    poll::until("the error is there", || {
        let polled = poll::has_error(&first);
        polled.then_some(())
    });
    connection.reject_no_more(connection.first);
    wait_for_data(&second);
    receive(&second);
    poll::until("it is acknowledged", || {
        let info = tcp_info(&first).expect("TCP_INFO");
        (info.tcpi_unacked == 0 && info.tcpi_retransmits == 0).then_some(())
    });
    abort(first);
    wait_for_end(second);
}

/// An administrator closes the socket of the first (`ss -K`).
fn killed(connection: &TestedConnection<'_>, first: TcpStream, second: TcpStream) {
    connection.kill(connection.first);
    drop(first);
    wait_for_end(second);
}

/// The first closes and its FIN is lost, until the kernel gives up.
fn timed_out_in_fin_wait(connection: &TestedConnection<'_>, first: TcpStream, second: TcpStream) {
    const RETRIES: &str = "ipv4/tcp_orphan_retries";
    let netns = connection.netns(connection.first);
    netns.sysctl(RETRIES, 1);
    connection.lose(connection.first, "");
    drop(first);
    connection.wait_for_none(connection.first);
    netns.sysctl(RETRIES, 0);
    abort(second);
}

/// The first shuts its own direction down, gets data, and shuts the other one down
/// without having read. Then the other end aborts.
fn reset_after_unread_data(connection: &TestedConnection<'_>, first: TcpStream, second: TcpStream) {
    first.shutdown(Shutdown::Write).expect("a FIN is sent");
    wait_for_fin(&second);
    connection.wait_for_fin_wait2();
    send(&second);
    wait_for_data(&first);
    first.shutdown(Shutdown::Read).expect("it is open");
    abort(second);
    connection.wait_for_none(connection.first);
    drop(first);
}

/// The first closes and has asked not to wait in FIN_WAIT2 (`TCP_LINGER2`).
fn no_fin_wait2(connection: &TestedConnection<'_>, first: TcpStream, second: TcpStream) {
    set_tcp(&first, libc::TCP_LINGER2, -1);
    // An acknowledgment that meets the program in `close()` ends the connection there,
    // for another reason: the FIN arrives when it has returned.
    connection.lose(connection.first, "tcp flags & fin == fin");
    drop(first);
    connection.lose_no_more(connection.first);
    connection.wait_for_reset_of(second);
}

/// The first shuts its own direction down, reads a part of what comes, and closes
/// with the rest unread.
fn half_read_in_fin_wait(connection: &TestedConnection<'_>, first: TcpStream, second: TcpStream) {
    first.shutdown(Shutdown::Write).expect("a FIN is sent");
    wait_for_fin(&second);
    connection.wait_for_fin_wait2();
    send(&second);
    (&first).read_exact(&mut [0; 100]).expect("the data");
    drop(first);
    connection.wait_for_reset_of(second);
}
