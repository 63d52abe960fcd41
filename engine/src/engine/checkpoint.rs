//! Checkpoints: who asked for one, and the flusher thread that makes what the writer wrote durable.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, PoisonError};

use super::shared::{Backoff, Shared, lock};
use super::stop_point;
use crate::cache::raise;
use crate::ids::{Lsn, StorageId};

/// Number of storages up to which every checkpoint asks for the size of each.
const FEW_STORAGES: usize = 1000;

/// What the writer shall make a checkpoint of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Everything before it shall be durable.
    pub(super) position: Lsn,
    /// The ticket that is complete then.
    pub(super) ticket: u64,
    /// The number of asked-for checkpoints in the header that is reached then.
    pub(super) wanted: u64,
}

/// A checkpoint whose pages and mark are written and not flushed.
#[derive(Debug)]
pub(super) struct Flush {
    pub(super) request: Request,
    /// What the mark says.
    pub(super) durable: Lsn,
    /// Storages whose removal the checkpoint makes durable.
    pub(super) purged: Vec<StorageId>,
    /// Storages whose pages the checkpoint makes durable.
    pub(super) written: HashSet<StorageId>,
}

#[derive(Default)]
struct State {
    tickets: u64,
    completed: u64,
    asked: Option<Request>,
    flush: Option<Flush>,
    flushing: bool,
}

/// The checkpoints that were asked for, are on their way, or are complete.
#[derive(Default)]
pub(super) struct Checkpoints {
    state: Mutex<State>,
    changed: Condvar,
}

impl Checkpoints {
    /// Notes that a checkpoint is wanted; returns its ticket.
    pub(super) fn ask(&self, position: Lsn, wanted: u64) -> u64 {
        let mut state = lock(&self.state);
        state.tickets += 1;
        let ticket = state.tickets;
        let (position, wanted) = match state.asked {
            Some(asked) => (position.max(asked.position), wanted.max(asked.wanted)),
            None => (position, wanted),
        };
        state.asked = Some(Request { position, ticket, wanted });
        ticket
    }

    /// The checkpoint to make next, if one was asked for and none is on its way.
    pub(super) fn take_request(&self) -> Option<Request> {
        let mut state = lock(&self.state);
        if state.flushing { None } else { state.asked.take() }
    }

    /// Puts a request back that could not be served.
    pub(super) fn put_back(&self, request: Request) {
        lock(&self.state).asked.get_or_insert(request);
    }

    /// A request that nobody waits for, if no checkpoint is asked for or on its way.
    pub(super) fn unasked(&self, position: Lsn) -> Option<Request> {
        let state = lock(&self.state);
        (!state.flushing && state.asked.is_none()).then_some(Request { position, ticket: state.completed, wanted: 0 })
    }

    /// Hands a written checkpoint to the flusher.
    pub(super) fn hand_over(&self, flush: Flush) {
        let mut state = lock(&self.state);
        state.flush = Some(flush);
        state.flushing = true;
        self.changed.notify_all();
    }

    pub(super) fn completed(&self) -> u64 {
        lock(&self.state).completed
    }

    pub(super) fn wake(&self) {
        // Under the lock, so that a flusher about to sleep does not miss it.
        let _state = lock(&self.state);
        self.changed.notify_all();
    }

    fn next_flush(&self, shared: &Shared) -> Option<Flush> {
        let mut state = lock(&self.state);
        while !shared.is_stopping() {
            if let Some(flush) = state.flush.take() {
                return Some(flush);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    fn complete(&self, ticket: u64) {
        let mut state = lock(&self.state);
        state.flushing = false;
        state.completed = state.completed.max(ticket);
    }
}

/// The flusher thread: the writer goes on while a flush takes its time.
pub(super) fn run(shared: &Shared) {
    let mut backoff = Backoff::new();
    while let Some(flush) = shared.checkpoints.next_flush(shared) {
        while let Err(error) = shared.store.flush() {
            backoff.failed(shared, &error);
            if shared.is_stopping() {
                return;
            }
        }
        backoff.succeeded(shared);
        stop_point::reached("checkpoint flushed");
        publish(shared, &flush);
        stop_point::reached("checkpoint published");
    }
}

fn publish(shared: &Shared, flush: &Flush) {
    let header = shared.cache.header();
    // Before anybody who waits for the checkpoint goes on, so that he sees the sizes after it.
    publish_sizes(shared, &flush.written);
    header.durable_lsn.fetch_max(flush.durable.0, Ordering::SeqCst);
    header.counters.checkpoints.fetch_add(1, Ordering::Relaxed);
    header.checkpoints_done.fetch_max(flush.request.wanted, Ordering::SeqCst);
    shared.checkpoints.complete(flush.request.ticket);
    raise(&header.state_changed);
    raise(&header.main_wake);
    raise(&header.writer_wake);
    // The removal is durable, so the files can go at once; a failure leaves them to compaction.
    for storage in &flush.purged {
        if let Err(error) = shared.store.reclaim(*storage) {
            shared.say(error.to_string());
        }
    }
}

/// Publishes how much the storages take in the store: of few storages all, as compaction changes those nobody writes to.
fn publish_sizes(shared: &Shared, written: &HashSet<StorageId>) {
    let storages = shared.cache.storages();
    let few = storages.in_use().count() <= FEW_STORAGES;
    for storage in storages.in_use().filter(|storage| few || written.contains(&storage.id())) {
        storage.stored_bytes.store(shared.store.storage_bytes(storage.id()), Ordering::Relaxed);
    }
}
