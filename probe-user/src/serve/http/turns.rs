//! In which order large answers are written: piece by piece, one piece at a time.
//!
//! A small answer is written at once. Whoever writes a large one waits for its turn
//! before each piece, and while it does everybody else is served. Only a connection
//! whose client has room for a piece is in the queue, so a client that is slow or deaf
//! holds nobody up.
//!
//! Each address gets its share of the pieces, however many connections it has. Of an
//! address, every other turn goes to the answer that has least left, so that answers
//! end one after the other and compressed ones soon, and the rest to the newest
//! connection: who comes while a hundred others are served gets half of the bandwidth.

use std::{
    collections::HashMap,
    io::{self, IoSlice},
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::serve::clients::Activity;

/// Largest piece that is written at a time, and largest answer that waits for no turn.
const PIECE: usize = 64 << 10;
/// Buffers of one write: head and body are two.
const BUFFERS: usize = 4;

/// Whose turn it is.
#[derive(Debug, Default)]
pub struct Turns(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Number of the connection that came last.
    last: u64,
    /// The connection that may write a piece now.
    turn: Option<u64>,
    waiting: Vec<Waiting>,
    addresses: HashMap<IpAddr, Address>,
    /// What the address had been sent whose turn was last.
    floor: u64,
    /// Whether the next turn is the newest connection's.
    prefers_newest: bool,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    address: IpAddr,
    left: usize,
    waker: Waker,
}

#[derive(Debug, Default)]
struct Address {
    connections: usize,
    /// Bytes in pieces, and what it missed while it did not want any.
    sent: u64,
}

impl State {
    /// Waits, or goes on doing so. It is the other way round from a lock: even who
    /// is alone waits until the rest of the runtime had its turn.
    fn wait(&mut self, one: Waiting) {
        if let Some(known) = (self.waiting.iter_mut()).find(|known| known.number == one.number) {
            known.waker = one.waker;
        } else {
            // No credit is saved up for later.
            let address = self.addresses.entry(one.address).or_default();
            address.sent = address.sent.max(self.floor);
            self.waiting.push(one);
        }
        self.pass_on();
    }

    /// Gives the turn to the next one, if nobody has it.
    fn pass_on(&mut self) {
        if self.turn.is_some() {
            return;
        }
        let sent = |one: &Waiting| self.addresses.get(&one.address).map_or(0, |it| it.sent);
        let Some(least) = self.waiting.iter().map(sent).min() else {
            return;
        };
        let candidates = (self.waiting.iter().enumerate()).filter(|(_, one)| sent(one) == least);
        let chosen = if self.prefers_newest {
            candidates.max_by_key(|(_, one)| one.number)
        } else {
            candidates.min_by_key(|(_, one)| (one.left, one.number))
        };
        if let Some((index, _)) = chosen {
            let chosen = self.waiting.swap_remove(index);
            self.floor = least;
            self.prefers_newest = !self.prefers_newest;
            self.turn = Some(chosen.number);
            chosen.waker.wake();
        }
    }

    /// Takes one out of the queue, or its turn from it.
    fn leave(&mut self, number: u64) {
        self.waiting.retain(|one| one.number != number);
        if self.turn == Some(number) {
            self.turn = None;
            self.pass_on();
        }
    }
}

impl Turns {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that takes its turns.
#[derive(Debug)]
pub struct Paced {
    stream: TcpStream,
    turns: Arc<Turns>,
    activity: Arc<Activity>,
    number: u64,
    address: IpAddr,
    left: Left,
}

/// Bytes of an answer that are not written yet; whoever answers says how many there are.
#[derive(Clone, Debug, Default)]
pub struct Left(Arc<AtomicUsize>);

impl Left {
    /// An answer has this length.
    pub fn set(&self, length: usize) {
        self.0.store(length, Ordering::Relaxed);
    }

    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Paced {
    /// `activity` is told what its client does.
    pub fn new(stream: TcpStream, turns: &Arc<Turns>, activity: Arc<Activity>) -> io::Result<Self> {
        // IPv4 is the same address through a socket of IPv6.
        let address = stream.peer_addr()?.ip().to_canonical();
        let mut state = turns.state();
        state.last += 1;
        let number = state.last;
        state.addresses.entry(address).or_default().connections += 1;
        drop(state);
        Ok(Self {
            stream,
            turns: Arc::clone(turns),
            activity,
            number,
            address,
            left: Left::default(),
        })
    }

    /// Where the length of an answer is to be told.
    pub fn left(&self) -> Left {
        self.left.clone()
    }
}

impl Drop for Paced {
    fn drop(&mut self) {
        let mut state = self.turns.state();
        state.leave(self.number);
        if let Some(address) = state.addresses.get_mut(&self.address) {
            address.connections -= 1;
            if address.connections == 0 {
                state.addresses.remove(&self.address);
            }
        }
    }
}

impl AsyncRead for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Paced {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let left = this.left.get();
        let is_large = left > PIECE;
        if is_large {
            match this.stream.poll_write_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    this.activity.takes_nothing();
                    this.turns.state().leave(this.number);
                    return Poll::Pending;
                }
            }
            let mut state = this.turns.state();
            if state.turn != Some(this.number) {
                state.wait(Waiting {
                    number: this.number,
                    address: this.address,
                    left,
                    waker: cx.waker().clone(),
                });
                return Poll::Pending;
            }
        }
        let mut piece = [IoSlice::new(&[]); BUFFERS];
        let piece = cut(buffers, &mut piece);
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, piece);
        if is_large {
            let mut state = this.turns.state();
            if let (Poll::Ready(Ok(bytes)), Some(address)) =
                (&written, state.addresses.get_mut(&this.address))
            {
                address.sent += *bytes as u64;
            }
            state.leave(this.number);
        }
        match &written {
            Poll::Ready(Ok(bytes)) => {
                this.left.set(left.saturating_sub(*bytes));
                this.activity.moves();
            }
            Poll::Pending => this.activity.takes_nothing(),
            Poll::Ready(Err(_)) => {}
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The first [`PIECE`] bytes of some buffers.
fn cut<'a, 'b>(
    buffers: &'a [IoSlice<'_>],
    piece: &'b mut [IoSlice<'a>; BUFFERS],
) -> &'b [IoSlice<'a>] {
    let mut room = PIECE;
    let mut used = 0;
    for buffer in buffers.iter().filter(|buffer| !buffer.is_empty()) {
        if room == 0 || used == BUFFERS {
            break;
        }
        let length = buffer.len().min(room);
        piece[used] = IoSlice::new(&buffer[..length]);
        room -= length;
        used += 1;
    }
    &piece[..used]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    impl State {
        fn wants(&mut self, number: u64, address: IpAddr, left: usize) {
            self.wait(Waiting {
                number,
                address,
                left,
                waker: Waker::noop().clone(),
            });
        }

        /// Who has the turn; it writes its piece.
        fn piece(&mut self, address: IpAddr) -> Option<u64> {
            let number = self.turn?;
            self.addresses.get_mut(&address).unwrap().sent += PIECE as u64;
            self.leave(number);
            Some(number)
        }
    }

    #[test]
    fn every_other_turn_is_the_newest_and_the_rest_have_least_left() {
        let mut state = State::default();
        // Who comes first is alone.
        for (number, left) in [(1, 900), (2, 500), (3, 300), (4, 800)] {
            state.wants(number, ONE, left);
        }
        let turns: Vec<_> = (0..4).map(|_| state.piece(ONE).unwrap()).collect();
        assert_eq!(turns, [1, 4, 3, 2]);
        assert_eq!(state.piece(ONE), None);
    }

    #[test]
    fn an_address_has_its_share_however_many_connections_another_has() {
        let mut state = State::default();
        let mut of_other = 0;
        for number in 1..=100 {
            state.wants(number, ONE, 1000);
        }
        for _ in 0..50 {
            let number = state.piece(ONE).unwrap();
            state.wants(number, ONE, 1000);
        }
        state.wants(200, OTHER, 1000);
        for _ in 0..100 {
            let (number, address) = match state.turn {
                Some(200) => (200, OTHER),
                number => (number.unwrap(), ONE),
            };
            of_other += u32::from(address == OTHER);
            assert_eq!(state.piece(address), Some(number));
            state.wants(number, address, 1000);
        }
        assert!((49..=51).contains(&of_other), "{of_other} of 100");
    }

    #[test]
    fn who_leaves_passes_its_turn_on() {
        let mut state = State::default();
        for number in 1..=3 {
            state.wants(number, ONE, 1000);
        }
        state.leave(2);
        assert_eq!(state.turn, Some(1));
        state.leave(1);
        assert_eq!(state.turn, Some(3));
        state.leave(3);
        assert_eq!((state.turn, state.waiting.len()), (None, 0));
    }

    #[test]
    fn a_piece_is_cut_from_several_buffers() {
        let (head, body) = (vec![1; 100], vec![2; 3 * PIECE]);
        let buffers = [&head[..], &[], &body].map(IoSlice::new);
        let mut piece = [IoSlice::new(&[]); BUFFERS];
        let lengths: Vec<_> = cut(&buffers, &mut piece).iter().map(|b| b.len()).collect();
        assert_eq!(lengths, [100, PIECE - 100]);
        let many = [IoSlice::new(&head); 9];
        let mut piece = [IoSlice::new(&[]); BUFFERS];
        assert_eq!(cut(&many, &mut piece).len(), BUFFERS);
    }
}
