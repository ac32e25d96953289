//! The clients that are served at a time: bounded in number, in open files and in the
//! bytes that are on their way to them.
//!
//! Where a bound is reached a client is evicted: the one that has been silent for
//! longest, or the one that has not taken anything for longest. So no client that is
//! silent or slow keeps another one waiting.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::Notify, task::AbortHandle};

use crate::{
    kernel::{memory, process},
    logging::Limit,
};

/// Descriptors that are left to the rest of the process.
const FILES_KEPT: u64 = 16;
/// One part in so many of the clients may always be silent.
const SILENT_SHARE: usize = 4;
/// Different bodies that may be on their way at a time, in bytes; the newest may be
/// larger. Two of the usual number of rows as text.
const BODIES: usize = 24 << 20;
/// After a failure to accept where nobody can be evicted.
const PAUSE: Duration = Duration::from_millis(100);
/// From so many clients at a time on, memory is given back after the last of them.
const MANY: usize = 16;
/// How long after it.
const REST: Duration = Duration::from_secs(1);

/// Those that are served, in the order in which they came.
#[derive(Debug)]
pub struct Clients {
    /// What they are to a reader of the log.
    name: &'static str,
    most: usize,
    served: Mutex<Vec<Served>>,
    /// Most of them at a time since memory was last given back.
    peak: AtomicUsize,
    left: Notify,
    accept_failures: Limit,
}

#[derive(Debug)]
struct Served {
    activity: Arc<Activity>,
    task: AbortHandle,
}

/// What a client is doing.
#[derive(Debug)]
pub struct Activity(Mutex<Doing>);

/// Address and length of a body.
type Body = (usize, usize);

#[derive(Debug)]
struct Doing {
    /// Whether there is no request yet.
    is_silent: bool,
    /// When it last moved on.
    moved: Instant,
    /// Whether it has taken nothing of its answer since.
    is_stuck: bool,
    /// The body that is on its way to it, one that it shares, and since when.
    body: Option<(Body, Instant)>,
}

impl Activity {
    fn new() -> Self {
        Self(Mutex::new(Doing {
            is_silent: true,
            moved: Instant::now(),
            is_stuck: false,
            body: None,
        }))
    }

    /// Its request was read, or it took a part of the answer.
    pub fn moves(&self) {
        let mut doing = self.doing();
        doing.is_silent = false;
        doing.moved = Instant::now();
        doing.is_stuck = false;
    }

    /// There is a part of the answer that it does not take: it is waited for, and not
    /// this process.
    pub fn takes_nothing(&self) {
        self.doing().is_stuck = true;
    }

    fn doing(&self) -> MutexGuard<'_, Doing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clients {
    /// At most `most` of them.
    pub fn new(name: &'static str, most: usize) -> Arc<Self> {
        Arc::new(Self {
            name,
            most,
            served: Mutex::default(),
            peak: AtomicUsize::new(0),
            left: Notify::new(),
            accept_failures: Limit::new(),
        })
    }

    /// Serves all that `accept` gives, each with `serve`, until it is dropped.
    pub async fn serve_all<S: AsRawFd, A, F>(
        self: &Arc<Self>,
        accept: impl Fn() -> A,
        serve: impl Fn(S, Arc<Activity>) -> F,
    ) where
        A: Future<Output = io::Result<S>>,
        F: Future<Output = ()> + Send + 'static,
    {
        let accepting = async {
            loop {
                match accept().await {
                    Ok(stream) => {
                        if self.serve(stream, &serve) {
                            // Its file is closed when its task has had a turn. The next
                            // client would be taken for one too many till then.
                            tokio::task::yield_now().await;
                        }
                    }
                    Err(error) => self.accept_failed(&error).await,
                }
            }
        };
        tokio::join!(accepting, self.give_memory_back());
    }

    /// Serves one more, whose connection is `stream`; evicts another one if need be, and
    /// says whether it did.
    fn serve<S: AsRawFd, F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        stream: S,
        serve: impl FnOnce(S, Arc<Activity>) -> F,
    ) -> bool {
        let mut served = self.served();
        served.retain(|one| !one.task.is_finished());
        let mut has_evicted = false;
        for _ in 0..files_short(stream.as_raw_fd()) {
            has_evicted |= evict(&mut served, oldest_silent);
        }
        if served.len() >= self.most {
            has_evicted |= evict(&mut served, |served| {
                let silent = served.iter().filter(|one| one.is_silent()).count();
                let first = if silent > self.most / SILENT_SHARE {
                    oldest_silent
                } else {
                    stuck
                };
                first(served).or_else(|| oldest_silent(served))
            });
        }
        let activity = Arc::new(Activity::new());
        let future = serve(stream, Arc::clone(&activity));
        let clients = Arc::clone(self);
        let task = tokio::spawn(async move {
            let _left = Left(clients);
            future.await;
        });
        let task = task.abort_handle();
        served.push(Served { activity, task });
        self.peak.fetch_max(served.len(), Ordering::Relaxed);
        has_evicted
    }

    /// After a failure to accept: evicts somebody where files are short, and waits
    /// for it.
    async fn accept_failed(&self, error: &io::Error) {
        if let Some(left_out) = self.accept_failures.pass() {
            let name = self.name;
            tracing::warn!("cannot accept a client ({name}): {error}{left_out}");
        }
        let is_short = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
        let has_evicted = is_short && {
            let mut served = self.served();
            served.retain(|one| !one.task.is_finished());
            let choose = |served: &[Served]| oldest_silent(served).or_else(|| stuck(served));
            (0..FILES_KEPT)
                .filter(|_| evict(&mut served, choose))
                .count()
                > 0
        };
        if has_evicted {
            // Their files are closed when their tasks have had a turn.
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// A client gets this body, which others may share. Where all of them together are
    /// too large, those who still take the oldest ones are evicted.
    pub fn sends(&self, activity: &Activity, body: &[u8]) {
        activity.moves();
        let this = (body.as_ptr() as usize, body.len());
        activity.doing().body = Some((this, Instant::now()));
        let mut served = self.served();
        served.retain(|one| !one.task.is_finished());
        let mut bodies: HashMap<_, Instant> = HashMap::new();
        for (body, since) in served.iter().filter_map(Served::body) {
            let first = bodies.entry(body).or_insert(since);
            *first = since.min(*first);
        }
        let mut bytes: usize = bodies.keys().map(|(_, length)| length).sum();
        bodies.remove(&this);
        let mut older: Vec<_> = bodies.into_iter().collect();
        older.sort_unstable_by_key(|&(_, first)| first);
        for (body, _) in older {
            if bytes <= BODIES {
                return;
            }
            bytes -= body.1;
            let takes = |one: &mut Served| one.body().is_some_and(|(its, _)| its == body);
            for one in served.extract_if(.., takes) {
                one.task.abort();
            }
        }
    }

    /// Gives memory back after many clients; runs beside accepting.
    async fn give_memory_back(&self) {
        loop {
            self.left.notified().await;
            tokio::time::sleep(REST).await;
            self.served().retain(|one| !one.task.is_finished());
            let still = self.served().len();
            let peak = self.peak.swap(still, Ordering::Relaxed);
            if peak >= MANY && still < MANY {
                memory::trim();
            } else {
                self.peak.fetch_max(peak, Ordering::Relaxed);
            }
        }
    }

    fn served(&self) -> MutexGuard<'_, Vec<Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells that a client has left, whichever way it did.
struct Left(Arc<Clients>);

impl Drop for Left {
    fn drop(&mut self) {
        self.0.left.notify_one();
    }
}

impl Served {
    fn is_silent(&self) -> bool {
        self.activity.doing().is_silent
    }

    fn body(&self) -> Option<(Body, Instant)> {
        self.activity.doing().body
    }
}

/// Ends the one that is chosen; whether there is one.
fn evict(served: &mut Vec<Served>, choose: impl Fn(&[Served]) -> Option<usize>) -> bool {
    let chosen = choose(served);
    if let Some(chosen) = chosen {
        served.remove(chosen).task.abort();
    }
    chosen.is_some()
}

/// The one that has been silent for longest.
fn oldest_silent(served: &[Served]) -> Option<usize> {
    served.iter().position(Served::is_silent)
}

/// Of those that have asked the one that has not moved on for longest; rather one that
/// takes nothing than one that waits for this process.
fn stuck(served: &[Served]) -> Option<usize> {
    let asked = served
        .iter()
        .enumerate()
        .filter(|(_, one)| !one.is_silent());
    asked
        .min_by_key(|(_, one)| {
            let doing = one.activity.doing();
            (!doing.is_stuck, doing.moved)
        })
        .map(|(index, _)| index)
}

/// By how many the free descriptors fall short of those that are kept, where `newest`
/// was just opened: the kernel gives the least number that is free.
fn files_short(newest: RawFd) -> u64 {
    match process::max_fds() {
        Ok(Some(most)) => (newest as u64 + 1 + FILES_KEPT).saturating_sub(most),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::sampler::fake::block;

    /// A client that lasts until it is evicted.
    fn serve(clients: &Arc<Clients>) -> Arc<Activity> {
        let file = File::open("/dev/null").unwrap();
        let mut activity = None;
        clients.serve(file, |file, its| {
            activity = Some(its);
            async move {
                let _file = file;
                std::future::pending::<()>().await;
            }
        });
        activity.unwrap()
    }

    fn is_served(clients: &Clients, activity: &Arc<Activity>) -> bool {
        let served = clients.served();
        served
            .iter()
            .any(|one| Arc::ptr_eq(&one.activity, activity))
    }

    #[test]
    fn the_oldest_silent_one_is_evicted_first() {
        block(async {
            let clients = Clients::new("test", 8);
            let asking = serve(&clients);
            asking.moves();
            let silent: Vec<_> = (0..7).map(|_| serve(&clients)).collect();
            let newest = serve(&clients);
            assert!(is_served(&clients, &asking));
            assert!(!is_served(&clients, &silent[0]));
            assert!(is_served(&clients, &silent[1]));
            assert!(is_served(&clients, &newest));
        });
    }

    #[test]
    fn who_asked_and_takes_nothing_leaves_room_to_the_silent_that_may_still_ask() {
        block(async {
            let clients = Clients::new("test", 8);
            let asked: Vec<_> = (0..8).map(|_| serve(&clients)).collect();
            for one in &asked {
                one.moves();
            }
            asked[0].moves();
            let new = [serve(&clients), serve(&clients)];
            assert!(new.iter().all(|one| is_served(&clients, one)));
            assert!(is_served(&clients, &asked[0]), "it moved on");
            assert!(!is_served(&clients, &asked[1]));
            assert!(!is_served(&clients, &asked[2]));
            assert!(is_served(&clients, &asked[3]));
        });
    }

    #[test]
    fn the_oldest_bodies_go_where_all_are_too_large() {
        block(async {
            let clients = Clients::new("test", 8);
            let bodies: Vec<Vec<u8>> = (0..3).map(|_| vec![0; BODIES / 2]).collect();
            let takers: Vec<_> = (0..5).map(|_| serve(&clients)).collect();
            let there = || -> Vec<_> {
                let is_there = |one| is_served(&clients, one);
                takers.iter().map(is_there).collect()
            };
            clients.sends(&takers[0], &bodies[0]);
            clients.sends(&takers[1], &bodies[1]);
            clients.sends(&takers[2], &bodies[1]);
            // The first body is still the oldest.
            clients.sends(&takers[3], &bodies[0]);
            assert_eq!(there(), [true; 5]);
            clients.sends(&takers[4], &bodies[2]);
            assert_eq!(there(), [false, true, true, false, true]);
            // However large it is, the newest goes out.
            let larger = vec![0; 2 * BODIES];
            let taker = serve(&clients);
            clients.sends(&taker, &larger);
            assert!(is_served(&clients, &taker));
            assert_eq!(there(), [false; 5]);
        });
    }

    #[test]
    fn who_takes_nothing_goes_before_who_waits_for_an_answer() {
        block(async {
            let clients = Clients::new("test", 2);
            let waits = serve(&clients);
            waits.moves();
            let deaf = serve(&clients);
            deaf.moves();
            deaf.takes_nothing();
            let _newest = serve(&clients);
            assert!(is_served(&clients, &waits));
            assert!(!is_served(&clients, &deaf));
            // It moves on: it is no longer the one.
            waits.takes_nothing();
            waits.moves();
            assert!(!waits.doing().is_stuck);
        });
    }

    #[test]
    fn descriptors_are_left_to_the_rest_of_the_process() {
        let most = process::max_fds().unwrap().unwrap();
        let last = RawFd::try_from(most).unwrap() - 1;
        assert_eq!(files_short(3), 0);
        assert_eq!(files_short(last - FILES_KEPT as RawFd), 0);
        assert_eq!(files_short(last), FILES_KEPT);
    }

    #[test]
    fn where_files_are_short_somebody_is_evicted_at_once() {
        block(async {
            let clients = Clients::new("test", 100);
            let silent: Vec<_> = (0..20).map(|_| serve(&clients)).collect();
            let error = io::Error::from_raw_os_error(libc::EMFILE);
            clients.accept_failed(&error).await;
            let left = silent.iter().filter(|one| is_served(&clients, one)).count();
            assert_eq!(left, 4);
            assert!(is_served(&clients, &silent[19]));
        });
    }
}
