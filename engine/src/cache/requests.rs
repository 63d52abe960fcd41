//! Messages from any process to the worker and its answers: for what is asked now and then, not for pages.
//!
//! A requester takes a slot, fills it and waits; a thread of the worker answers in the same place. Whoever goes away while he waits
//! leaves the slot to the worker, which frees it with the answer; a slot of a process that died is taken over by the next requester.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::header::raise;
use super::latch::Wait;
use super::{Cache, futex};
use crate::error::{Error, ErrorKind, Result};

/// Requests that can be under way at a time; one more waits.
pub const REQUEST_SLOTS: usize = 16;
/// The longest request and the longest answer, in bytes.
pub const REQUEST_BYTES: usize = 16 << 10;

const FREE: u32 = 0;
/// Its requester fills it or reads the answer.
const TAKEN: u32 = 1;
/// It waits for the worker.
const POSTED: u32 = 2;
/// A thread of the worker is at it.
const WORKING: u32 = 3;
/// The answer is there.
const ANSWERED: u32 = 4;
/// A thread of the worker is at it and nobody waits for the answer.
const ABANDONED: u32 = 5;

/// Which of the worker's threads answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum RequestClass {
    /// Answered from what is at hand.
    Quick = 1,
    /// Writes and waits for devices; one at a time.
    Long = 2,
    /// Takes minutes; one at a time, beside the others.
    Lasting = 3,
}

#[repr(C, align(64))]
struct Slot {
    state: AtomicU32,
    /// The process whose slot it is; 0 for nobody's.
    owner: AtomicU32,
    class: AtomicU32,
    length: AtomicU32,
    /// Raised with the answer.
    answered: AtomicU32,
    bytes: [AtomicU32; REQUEST_BYTES / 4],
}

impl Slot {
    fn put(&self, payload: &[u8]) {
        for (word, chunk) in self.bytes.iter().zip(payload.chunks(4)) {
            let mut bytes = [0; 4];
            bytes[..chunk.len()].copy_from_slice(chunk);
            word.store(u32::from_le_bytes(bytes), Ordering::Relaxed);
        }
        self.length.store(payload.len() as u32, Ordering::Relaxed);
    }

    fn take(&self) -> Vec<u8> {
        let length = (self.length.load(Ordering::Relaxed) as usize).min(REQUEST_BYTES);
        let words = self.bytes[..length.div_ceil(4)].iter();
        let mut payload: Vec<u8> = words.flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
        payload.truncate(length);
        payload
    }

    fn change(&self, from: u32, to: u32) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// The slots.
#[repr(C, align(64))]
pub(super) struct RequestBoard {
    /// Raised with every request.
    posted: AtomicU32,
    /// Raised when a slot comes free.
    freed: AtomicU32,
    slots: [Slot; REQUEST_SLOTS],
}

impl RequestBoard {
    /// Frees all slots: only while nobody uses them.
    pub(super) fn format(&self) {
        for slot in &self.slots {
            slot.state.store(FREE, Ordering::Relaxed);
            slot.owner.store(0, Ordering::Relaxed);
        }
    }

    /// Takes a free slot, or one whose owner is dead.
    fn claim(&self) -> Option<&Slot> {
        let me = std::process::id();
        // Whose slot it is, is decided by the owner's word: the state may be the one that the last owner left.
        let take = |slot: &Slot, owner| slot.owner.compare_exchange(owner, me, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let free = self.slots.iter().find(|slot| slot.state.load(Ordering::Acquire) == FREE && take(slot, 0));
        let taken = free.or_else(|| {
            self.slots.iter().find(|slot| {
                let (state, owner) = (slot.state.load(Ordering::Acquire), slot.owner.load(Ordering::Acquire));
                [FREE, TAKEN, ANSWERED].contains(&state) && is_dead(owner) && take(slot, owner)
            })
        })?;
        taken.state.store(TAKEN, Ordering::Release);
        Some(taken)
    }

    /// Gives back to the next worker what the last one had begun.
    pub(super) fn begin_generation(&self) {
        for slot in &self.slots {
            if !slot.change(WORKING, POSTED) {
                slot.change(ABANDONED, FREE);
            }
        }
        raise(&self.freed);
    }
}

fn is_dead(process: u32) -> bool {
    // SAFETY: signal 0 only asks whether the process exists.
    process != 0
        && unsafe { libc::kill(process as i32, 0) } != 0
        && std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
}

/// A slot from its claim to the end of the answer; dropped, it is free or the worker's.
struct Asking<'a> {
    board: &'a RequestBoard,
    slot: &'a Slot,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        loop {
            let state = self.slot.state.load(Ordering::Acquire);
            let next = if state == WORKING { ABANDONED } else { FREE };
            if self.slot.change(state, next) {
                break;
            }
        }
        // From here on somebody else may take it, once it is free.
        self.slot.owner.store(0, Ordering::Release);
        raise(&self.board.freed);
    }
}

/// A request that a thread of the worker answers; dropped without an answer, it gets an empty one, and by a panic none: the next
/// worker answers it.
pub struct Request {
    cache: Cache,
    slot: usize,
    payload: Vec<u8>,
    answered: bool,
}

impl Request {
    /// What is asked.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Whether nobody waits for the answer any more.
    pub fn is_abandoned(&self) -> bool {
        self.cache.requests().slots[self.slot].state.load(Ordering::Acquire) == ABANDONED
    }

    /// Gives the answer, which has at most [`REQUEST_BYTES`].
    pub fn answer(mut self, answer: &[u8]) {
        self.end(answer);
    }

    /// Leaves the request to the next worker.
    pub fn leave(mut self) {
        self.answered = true;
    }

    fn end(&mut self, answer: &[u8]) {
        self.answered = true;
        let board = self.cache.requests();
        let slot = &board.slots[self.slot];
        slot.put(&answer[..answer.len().min(REQUEST_BYTES)]);
        if slot.change(WORKING, ANSWERED) {
            raise(&slot.answered);
        } else if slot.change(ABANDONED, FREE) {
            raise(&board.freed);
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if !self.answered && !std::thread::panicking() {
            self.end(&[]);
        }
    }
}

impl Cache {
    /// Asks the worker and waits for its answer, which is empty when it could not give one.
    ///
    /// # Errors
    /// What `wait` answers; `LimitExceeded` when the payload is longer than [`REQUEST_BYTES`].
    pub fn ask(&self, class: RequestClass, payload: &[u8], wait: &dyn Wait) -> Result<Vec<u8>> {
        if payload.len() > REQUEST_BYTES {
            return Err(Error::new(ErrorKind::LimitExceeded, "request to the KalamDB engine is too long"));
        }
        let board = self.requests();
        let slot = loop {
            let seen = board.freed.load(Ordering::Acquire);
            if let Some(slot) = board.claim() {
                break slot;
            }
            futex::wait(&board.freed, seen);
            wait.pause()?;
        };
        let asking = Asking { board, slot };
        slot.put(payload);
        slot.class.store(class as u32, Ordering::Relaxed);
        slot.state.store(POSTED, Ordering::Release);
        raise(&board.posted);
        loop {
            let seen = slot.answered.load(Ordering::Acquire);
            if slot.state.load(Ordering::Acquire) == ANSWERED {
                return Ok(asking.slot.take());
            }
            futex::wait(&slot.answered, seen);
            if slot.state.load(Ordering::Acquire) != ANSWERED {
                wait.pause()?;
            }
        }
    }

    /// The next request of a class; nothing when none comes within `timeout` (at most 100 ms).
    pub fn next_request(&self, class: RequestClass, timeout: Duration) -> Option<Request> {
        let board = self.requests();
        let seen = board.posted.load(Ordering::Acquire);
        self.take_request(class).or_else(|| {
            futex::wait_for(&board.posted, seen, timeout);
            self.take_request(class)
        })
    }

    fn take_request(&self, class: RequestClass) -> Option<Request> {
        let slots = &self.requests().slots;
        let number = slots.iter().position(|slot| {
            slot.state.load(Ordering::Acquire) == POSTED
                && slot.class.load(Ordering::Relaxed) == class as u32
                && slot.change(POSTED, WORKING)
        })?;
        Some(Request { cache: *self, slot: number, payload: slots[number].take(), answered: false })
    }

    /// Ends the waits in [`Cache::next_request`].
    pub fn wake_answerers(&self) {
        raise(&self.requests().posted);
    }
}
