//! Requests to the worker: each is answered once, whoever goes away leaves no slot behind, and a new worker answers what the last one had
//! begun.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use kalamdb_engine::cache::{Cache, REQUEST_BYTES, REQUEST_SLOTS, RequestClass, Wait};
use kalamdb_engine::{Error, ErrorKind, Result};
use support::*;

/// Ends a wait as soon as it is asked.
struct Impatient;

impl Wait for Impatient {
    fn pause(&self) -> Result<()> {
        Err(Error::new(ErrorKind::Cancelled, "no patience"))
    }
}

fn next(cache: &Cache, class: RequestClass) -> kalamdb_engine::cache::Request {
    loop {
        if let Some(request) = cache.next_request(class, Duration::from_millis(50)) {
            return request;
        }
    }
}

#[test]
fn each_request_gets_its_own_answer() {
    let directory = scratch();
    let memory = Memory::create(&directory.path().join("memory"), 64);
    let cache = memory.cache;
    let done = AtomicBool::new(false);
    let answered = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for class in [RequestClass::Quick, RequestClass::Long] {
            let (done, answered) = (&done, &answered);
            scope.spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    let Some(request) = cache.next_request(class, Duration::from_millis(5)) else { continue };
                    let answer: Vec<u8> = request.payload().iter().rev().copied().collect();
                    request.answer(&answer);
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let askers: Vec<_> = (0..2 * REQUEST_SLOTS as u64)
            .map(|lane| {
                scope.spawn(move || {
                    let mut random = Random::new(lane + 1);
                    for _ in 0..50 {
                        let length = 1 + random.below(REQUEST_BYTES as u64) as usize;
                        let payload: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
                        let class = if random.below(2) == 0 { RequestClass::Quick } else { RequestClass::Long };
                        let answer = cache.ask(class, &payload, &Patience::new()).unwrap();
                        assert!(answer.iter().eq(payload.iter().rev()));
                    }
                })
            })
            .collect();
        askers.into_iter().for_each(|asker| asker.join().unwrap());
        done.store(true, Ordering::SeqCst);
    });
    assert_eq!(answered.load(Ordering::SeqCst), 2 * REQUEST_SLOTS as u32 * 50);
}

#[test]
fn whoever_goes_away_leaves_no_slot_behind() {
    let directory = scratch();
    let memory = Memory::create(&directory.path().join("memory"), 64);
    let cache = memory.cache;
    // Nobody has begun to answer.
    for _ in 0..REQUEST_SLOTS + 2 {
        assert_eq!(cache.ask(RequestClass::Quick, b"nobody", &Impatient).unwrap_err().kind(), ErrorKind::Cancelled);
    }
    assert!(cache.next_request(RequestClass::Quick, Duration::ZERO).is_none());
    // The worker is at it.
    for _ in 0..REQUEST_SLOTS + 2 {
        let asker = std::thread::spawn(move || cache.ask(RequestClass::Quick, b"soon gone", &Impatient).map(drop).is_err());
        let mut begun = None;
        while !asker.is_finished() {
            begun = begun.or_else(|| cache.next_request(RequestClass::Quick, Duration::ZERO));
        }
        let gone = asker.join().unwrap();
        if let Some(request) = begun {
            request.answer(b"too late");
        }
        assert!(gone);
    }
    // All slots are there.
    let askers: Vec<_> = (0..REQUEST_SLOTS)
        .map(|_| std::thread::spawn(move || cache.ask(RequestClass::Long, b"wait", &Patience::new()).unwrap()))
        .collect();
    let requests: Vec<_> = (0..REQUEST_SLOTS).map(|_| next(&cache, RequestClass::Long)).collect();
    requests.into_iter().for_each(|request| request.answer(b"all"));
    askers.into_iter().for_each(|asker| assert_eq!(asker.join().unwrap(), b"all"));
}

#[test]
fn the_next_worker_answers_what_the_last_one_began() {
    let directory = scratch();
    let memory = Memory::create(&directory.path().join("memory"), 64);
    let cache = memory.cache;
    let asker = std::thread::spawn(move || cache.ask(RequestClass::Long, b"twice", &Patience::new()).unwrap());
    let lost = next(&cache, RequestClass::Long);
    cache.begin_generation();
    let again = next(&cache, RequestClass::Long);
    assert_eq!(again.payload(), b"twice");
    again.answer(b"second");
    assert_eq!(asker.join().unwrap(), b"second");
    std::mem::forget(lost);
}

#[test]
fn a_request_without_an_answer_ends() {
    let directory = scratch();
    let memory = Memory::create(&directory.path().join("memory"), 64);
    let cache = memory.cache;
    let asker = std::thread::spawn(move || cache.ask(RequestClass::Quick, b"?", &Patience::new()).unwrap());
    drop(next(&cache, RequestClass::Quick));
    assert_eq!(asker.join().unwrap(), b"");
    let long = vec![0; REQUEST_BYTES + 1];
    let refused = cache.ask(RequestClass::Quick, &long, &Patience::new()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::LimitExceeded);
}
