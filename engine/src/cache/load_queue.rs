//! The queue of frames that the worker is to fill: bounded, many writers, many readers, in shared memory.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Most frames that can wait to be filled; a requester beyond it waits.
pub const LOAD_QUEUE: usize = 1024;

#[repr(C)]
struct Slot {
    /// Equals the ticket of the writer that may fill the slot; one more once it is filled.
    sequence: AtomicU64,
    frame: AtomicU32,
    padding: AtomicU32,
}

/// The queue. A slot's sequence tells whose turn it is, so neither side takes a lock.
#[repr(C, align(64))]
pub(super) struct LoadQueue {
    head: AtomicU64,
    tail: AtomicU64,
    slots: [Slot; LOAD_QUEUE],
}

impl LoadQueue {
    /// Empties the queue: only while nobody uses it.
    pub(super) fn format(&self) {
        self.head.store(0, Ordering::Relaxed);
        self.tail.store(0, Ordering::Relaxed);
        for (number, slot) in self.slots.iter().enumerate() {
            slot.sequence.store(number as u64, Ordering::Relaxed);
        }
    }

    /// Adds a frame; false when the queue is full.
    pub(super) fn push(&self, frame: u32) -> bool {
        let mut ticket = self.tail.load(Ordering::Relaxed);
        loop {
            let slot = &self.slots[ticket as usize % LOAD_QUEUE];
            let sequence = slot.sequence.load(Ordering::Acquire);
            if sequence < ticket {
                return false;
            }
            if sequence > ticket {
                ticket = self.tail.load(Ordering::Relaxed);
                continue;
            }
            match self.tail.compare_exchange_weak(ticket, ticket + 1, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    slot.frame.store(frame, Ordering::Relaxed);
                    slot.sequence.store(ticket + 1, Ordering::Release);
                    return true;
                }
                Err(seen) => ticket = seen,
            }
        }
    }

    /// Takes the oldest frame.
    pub(super) fn pop(&self) -> Option<u32> {
        let mut ticket = self.head.load(Ordering::Relaxed);
        loop {
            let slot = &self.slots[ticket as usize % LOAD_QUEUE];
            let sequence = slot.sequence.load(Ordering::Acquire);
            if sequence < ticket + 1 {
                return None;
            }
            if sequence > ticket + 1 {
                ticket = self.head.load(Ordering::Relaxed);
                continue;
            }
            match self.head.compare_exchange_weak(ticket, ticket + 1, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    let frame = slot.frame.load(Ordering::Relaxed);
                    slot.sequence.store(ticket + LOAD_QUEUE as u64, Ordering::Release);
                    return Some(frame);
                }
                Err(seen) => ticket = seen,
            }
        }
    }
}
