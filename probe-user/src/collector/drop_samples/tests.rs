use std::{sync::atomic::AtomicBool, thread};

use probe_common::abi::drop::PLACE_LEN;

use super::*;

#[test]
fn the_size_of_the_function_is_left_out() {
    for (written, shown) in [
        ("tcp_v4_rcv+0x1a2/0x1000\0", "tcp_v4_rcv+0x1a2"),
        (
            "nft_do_chain+0x3/0x9 [nf_tables]\0old",
            "nft_do_chain+0x3 [nf_tables]",
        ),
        ("a_name_that_was_cut\0", "a_name_that_was_cut"),
        ("0xffffffff81234567\0", UNAVAILABLE),
        ("\0", UNAVAILABLE),
        ("no end", UNAVAILABLE),
    ] {
        assert_eq!(function(written.as_bytes()), shown, "{written}");
    }
}

#[test]
fn an_end_that_could_not_be_read_is_absent() {
    let mut v4 = [0; 16];
    v4[10..].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 1]);
    let tcp = Protocol::Tcp as u32;
    assert_eq!(shown((v4, 80), tcp).as_deref(), Some("192.0.2.1:80"));
    assert_eq!(
        shown((v4, 0), Protocol::Icmp as u32).as_deref(),
        Some("192.0.2.1")
    );
    assert_eq!(shown(([0; 16], 0), tcp), None);
}

#[test]
fn many_of_one_reason_leave_the_others() {
    let drop = |reason: &str, time_seconds| LastDrop {
        reason: reason.to_owned(),
        time_seconds,
        ..LastDrop::default()
    };
    let mut all = vec![drop("RARE", 1.0)];
    all.extend((2..200).map(|n| drop("FLOOD", f64::from(n))));
    keep_newest(&mut all);
    assert_eq!(all.len(), MOST_OF_REASON + 1);
    assert_eq!(all[0].time_seconds, 199.0);
    assert_eq!(all[MOST_OF_REASON].reason, "RARE");
    let mut all: Vec<_> = (0..100)
        .map(|n| drop(&n.to_string(), f64::from(n)))
        .collect();
    keep_newest(&mut all);
    assert_eq!(all.len(), MOST);
    assert_eq!(all[MOST - 1].reason, "36");
}

fn empty() -> DropSample {
    // SAFETY: a `DropSample` is made of integers, of which zeros are a value.
    unsafe { std::mem::zeroed() }
}

#[test]
fn what_is_being_written_is_no_sample() {
    let mut slot = empty();
    for (sequence, is_whole) in [(0, false), (1, false), (2, true), (7, false), (8, true)] {
        slot.sequence = sequence;
        // SAFETY: a sample of this thread.
        let sample = unsafe { read_whole(&raw mut slot) };
        assert_eq!(sample.is_some(), is_whole, "{sequence}");
    }
}

/// A program that writes samples of which every member says the same.
fn write(slot: *mut DropSample, n: u64) {
    // SAFETY: the slot outlives its threads, and only one of them writes.
    unsafe {
        let sequence = AtomicU64::from_ptr(&raw mut (*slot).sequence);
        sequence.swap(2 * n + 1, Ordering::SeqCst);
        (&raw mut (*slot).time_ns).write_volatile(n);
        (&raw mut (*slot).destination).write_volatile([n; 2]);
        (&raw mut (*slot).place).write_volatile([n as u8; PLACE_LEN]);
        sequence.swap(2 * n + 2, Ordering::SeqCst);
    }
}

#[test]
fn no_sample_is_half_of_one_and_half_of_another() {
    struct Shared(*mut DropSample);
    // SAFETY: read and written as the programs and the collector do.
    unsafe impl Sync for Shared {}
    let mut slot = empty();
    let shared = Shared(&raw mut slot);
    let ended = AtomicBool::new(false);
    let whole = thread::scope(|scope| {
        let (shared, ended) = (&shared, &ended);
        scope.spawn(move || {
            (0..200_000).for_each(|n| write(shared.0, n));
            ended.store(true, Ordering::Release);
        });
        let mut whole = 0;
        loop {
            let is_last = ended.load(Ordering::Acquire);
            // SAFETY: the slot outlives its threads.
            if let Some(sample) = unsafe { read_whole(shared.0) } {
                let n = sample.sequence / 2 - 1;
                assert_eq!((sample.time_ns, sample.destination), (n, [n; 2]));
                assert_eq!(sample.place, [n as u8; PLACE_LEN]);
                whole += 1;
            }
            if is_last {
                return whole;
            }
        }
    });
    assert!(whole > 0);
}
