use super::fake::{Fake, block};
use super::*;

const TICK: Duration = Duration::from_millis(10);

#[test]
fn snapshots_follow_each_other_and_stop_drops_the_source() {
    let fake = Fake::default();
    let (sampler, mut thread) = fake.spawn(TICK);
    block(async {
        assert!(sampler.first().await);
        let first = sampler.latest().unwrap().snapshot.tcp[0].opened;
        tokio::time::sleep(TICK * 20).await;
        assert!(sampler.latest().unwrap().snapshot.tcp[0].opened > first);
        assert!(!fake.dropped.load(Ordering::Acquire));
        thread.stop();
        thread.ended().await.unwrap();
        assert!(fake.dropped.load(Ordering::Acquire));
        assert_eq!(sampler.list(1).await, Err(Unavailable::Busy));
    });
}

#[test]
fn the_thread_stops_at_once_even_with_a_long_interval() {
    let (sampler, mut thread) = Fake::default().spawn(Duration::from_secs(60));
    block(async {
        assert!(sampler.first().await);
        thread.stop();
        let ended = tokio::time::timeout(Duration::from_secs(5), thread.ended());
        ended.await.unwrap().unwrap();
    });
}

#[test]
fn a_start_that_fails_is_the_error_of_the_thread() {
    let (sampler, mut thread) = spawn(TICK, || {
        anyhow::bail!("no BTF") as anyhow::Result<fake::Running>
    })
    .unwrap();
    block(async {
        assert!(!sampler.first().await);
        assert_eq!(thread.ended().await.unwrap_err().to_string(), "no BTF");
    });
    assert_eq!(sampler.latest().unwrap_err(), Unavailable::Starting);
    assert_eq!(sampler.health(), Ok(()));
}

#[test]
fn a_source_that_fails_makes_the_snapshot_stale_and_recovers() {
    let fake = Fake::default();
    let (mut sampler, _thread) = fake.spawn(TICK);
    sampler.stale_after = TICK * 5;
    block(async {
        assert!(sampler.first().await);
        fake.failing.store(true, Ordering::Relaxed);
        tokio::time::sleep(TICK * 20).await;
        assert!(matches!(sampler.latest(), Err(Unavailable::Stale(_))));
        assert!(matches!(sampler.health(), Err(Unavailable::Stale(_))));
        fake.failing.store(false, Ordering::Relaxed);
        sampler.stale_after = Duration::from_secs(5);
        tokio::time::sleep(TICK * 20).await;
        assert!(sampler.latest().is_ok());
    });
}

#[test]
fn a_question_for_more_than_was_read_is_a_read() {
    let fake = Fake::default();
    let (sampler, _thread) = fake.spawn(Duration::from_secs(60));
    block(async {
        for limit in [1, 2, 3] {
            let listed = sampler.list(limit).await.unwrap();
            assert_eq!(listed.len(), limit);
        }
    });
    assert_eq!(fake.reads.load(Ordering::Relaxed), 3);
}

#[test]
fn many_questions_are_one_read() {
    let fake = Fake::default();
    let (sampler, _thread) = fake.spawn(Duration::from_secs(60));
    block(async {
        for _ in 0..20 {
            let listed = sampler.list(2).await.unwrap();
            let connections = sampler.describe(&listed, 1..2).await.unwrap();
            assert_eq!(connections.len(), 1);
            assert_eq!(connections[0].sent_bytes, 1);
            assert_eq!(connections[0].local, "192.0.2.1:80");
        }
    });
    let reads = fake.reads.load(Ordering::Relaxed);
    assert!((1..=3).contains(&reads), "{reads} reads");
}

#[test]
fn a_list_that_nobody_asks_for_again_takes_no_memory() {
    let (sampler, _thread) = Fake::default().spawn(Duration::from_secs(60));
    block(async {
        let listed = sampler.list(3).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while Arc::strong_count(&listed) > 1 {
            assert!(Instant::now() < deadline, "it is still held");
            tokio::time::sleep(TICK).await;
        }
    });
}

/// A snapshot that takes longer than the interval.
#[test]
fn slow_snapshots_and_questions_have_a_fair_share_each() {
    const SLOW: Duration = Duration::from_millis(50);
    let fake = Fake {
        delay: SLOW,
        ..Fake::default()
    };
    let (sampler, mut thread) = fake.spawn(TICK);
    block(async {
        assert!(sampler.first().await);
        let begin = Instant::now();
        let before = fake.snapshots.load(Ordering::Relaxed);
        // Each of these takes as long as a snapshot.
        for limit in 1..=10 {
            let answer = tokio::time::timeout(Duration::from_secs(20), sampler.list(limit));
            answer.await.expect("questions are answered").unwrap();
            tokio::time::sleep(REUSE / 2).await;
        }
        let snapshots = fake.snapshots.load(Ordering::Relaxed) - before;
        assert!(snapshots >= 5, "{snapshots} snapshots beside questions");
        // Half of the time is the most that they take, however few questions there are.
        let most = begin.elapsed().as_secs_f64() / (2.0 * SLOW.as_secs_f64());
        assert!((snapshots as f64) < most + 2.0, "{snapshots} of {most}");
        thread.stop();
        thread.ended().await.unwrap();
    });
}

#[test]
fn questions_without_end_hold_no_snapshot_up() {
    let fake = Fake {
        delay: Duration::from_millis(20),
        ..Fake::default()
    };
    let (sampler, _thread) = fake.spawn(TICK);
    block(async {
        assert!(sampler.first().await);
        let before = fake.snapshots.load(Ordering::Relaxed);
        let asking = async {
            loop {
                let _ = sampler.list(MAX_LISTED_CONNECTIONS).await;
            }
        };
        let asked = futures_of(MAX_WAITING / 2, || async {
            loop {
                let _ = sampler.list(1).await;
                tokio::task::yield_now().await;
            }
        });
        let enough = async {
            while fake.snapshots.load(Ordering::Relaxed) < before + 5 {
                tokio::time::sleep(TICK).await;
            }
        };
        tokio::select! {
            () = asking => {}
            () = asked => {}
            done = tokio::time::timeout(Duration::from_secs(20), enough) => done.unwrap(),
        }
    });
}

#[test]
fn a_full_channel_is_refused_and_holds_nobody_up() {
    let fake = Fake {
        delay: Duration::from_millis(500),
        ..Fake::default()
    };
    let (sampler, _thread) = fake.spawn(Duration::from_secs(60));
    let mut waiting = Vec::new();
    let refused = (0..MAX_WAITING + 5)
        .filter(|_| {
            let (answer, wait) = oneshot::channel();
            waiting.push(wait);
            let question = Question::List { limit: 1, answer };
            sampler.questions.try_send(question).is_err()
        })
        .count();
    assert!(refused >= 4, "{refused}");
}

/// So many futures at once, for as long as one of them lasts.
async fn futures_of<F: Future<Output = ()>>(number: usize, make: impl Fn() -> F) {
    let mut futures: Vec<_> = (0..number).map(|_| Box::pin(make())).collect();
    std::future::poll_fn(|context| {
        for future in &mut futures {
            if future.as_mut().poll(context).is_ready() {
                return std::task::Poll::Ready(());
            }
        }
        std::task::Poll::Pending
    })
    .await;
}
