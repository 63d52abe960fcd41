//! The board of jobs: a request is answered, given up or given back, and its place is always free in the end.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kalamdb_engine::cache::{Duty, JOB_REQUESTS, JobBoard, wanted};
use support::*;

const DATABASE: u32 = 5;

/// As many requests as there are places can be posted: none is lost to what came before.
fn require_all_free(board: &JobBoard) {
    let posted: Vec<_> = (0..JOB_REQUESTS).map(|_| board.post(DATABASE, "fill").unwrap()).collect();
    assert!(board.post(DATABASE, "one too many").is_none());
    drop(posted);
    assert!(board.take_request(DATABASE, 0).is_none());
}

#[test]
fn a_request_is_for_one_database_and_gets_its_answer() {
    let directory = scratch();
    let memory = Memory::create(&directory.path().join("memory"), 64);
    let board = memory.cache.jobs();
    let posted = board.post(DATABASE, "question").unwrap();
    assert!(board.take_request(DATABASE + 1, 0).is_none());
    let taken = board.take_request(DATABASE, 0).unwrap();
    assert_eq!(taken.text, "question");
    assert!(board.take_request(DATABASE, 1).is_none());
    assert_eq!(posted.answer(), None);
    taken.answer("answer");
    assert_eq!(posted.answer().as_deref(), Some("answer"));
    drop(posted);
    require_all_free(board);
}

#[test]
fn a_request_is_given_up_before_and_after_it_is_taken() {
    let directory = scratch();
    let memory = Memory::create(&directory.path().join("memory"), 64);
    let board = memory.cache.jobs();
    drop(board.post(DATABASE, "not taken").unwrap());
    assert!(board.take_request(DATABASE, 0).is_none());
    let posted = board.post(DATABASE, "taken").unwrap();
    let taken = board.take_request(DATABASE, 0).unwrap();
    drop(posted);
    // Its place is in use until whoever has it is done.
    let others: Vec<_> = (1..JOB_REQUESTS).map(|_| board.post(DATABASE, "other").unwrap()).collect();
    assert!(board.post(DATABASE, "no place").is_none());
    taken.answer("to nobody");
    drop(others);
    require_all_free(board);
}

#[test]
fn the_next_process_takes_what_one_left_unanswered() {
    let directory = scratch();
    let memory = Memory::create(&directory.path().join("memory"), 64);
    let board = memory.cache.jobs();
    let place = board.reserve_process(DATABASE, Duty::Keeper).unwrap();
    assert_eq!(board.process_began(place, DATABASE, 77), Some(Duty::Keeper));
    let (kept, given_up) = (board.post(DATABASE, "kept").unwrap(), board.post(DATABASE, "given up").unwrap());
    let taken = [board.take_request(DATABASE, place).unwrap(), board.take_request(DATABASE, place).unwrap()];
    drop(given_up);
    std::mem::forget(taken);
    board.take_wanted(DATABASE, u32::MAX);
    board.process_ended(place);
    assert_eq!(board.take_wanted(DATABASE, u32::MAX), wanted::REQUESTS);
    let again = board.take_request(DATABASE, place + 1).unwrap();
    assert_eq!(again.text, "kept");
    assert!(board.take_request(DATABASE, place + 1).is_none());
    again.answer("answer");
    // The end of another process changes nothing for it.
    board.process_ended(place + 1);
    assert_eq!(kept.answer().as_deref(), Some("answer"));
    drop(kept);
    require_all_free(board);
}

#[test]
fn requests_are_lost_to_nobody_when_many_give_up() {
    let directory = scratch();
    let memory = Memory::create(&directory.path().join("memory"), 64);
    let board = memory.cache.jobs();
    std::thread::scope(|scope| {
        for database in [DATABASE, DATABASE + 1] {
            let asked = Arc::new(AtomicBool::new(true));
            let serving = asked.clone();
            scope.spawn(move || {
                while serving.load(Ordering::Acquire) {
                    let Some(request) = board.take_request(database, database as usize) else {
                        std::thread::yield_now();
                        continue;
                    };
                    let text = request.text.clone();
                    request.answer(&text);
                }
            });
            scope.spawn(move || {
                for number in 0..5_000 {
                    let text = format!("{database}:{number}");
                    let Some(posted) = board.post(database, &text) else { continue };
                    // Every other one is given up at a moment of its own.
                    let mut patience = if number % 2 == 0 { number % 64 } else { u32::MAX };
                    let answer = loop {
                        match posted.answer() {
                            None if patience > 0 => patience -= 1,
                            answer => break answer,
                        }
                        std::thread::yield_now();
                    };
                    assert!(answer.is_none_or(|answer| answer == text));
                }
                asked.store(false, Ordering::Release);
            });
        }
    });
    require_all_free(board);
}
