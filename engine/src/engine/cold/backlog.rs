//! The cold pages that wait for a thread: in the order in which they came, but no location gets all threads.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::cache::Load;
use crate::engine::shared::{Shared, lock};
use crate::error::Error;

/// Time between two lines of the server's log about pages that cannot be built; whoever wants one of them gets his own error.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Waiting {
    loads: VecDeque<(Load, String)>,
    /// How many threads are busy with each location.
    busy: HashMap<String, usize>,
    /// No thread takes a load any more.
    stopped: bool,
}

/// The loads and their threads.
#[derive(Default)]
pub(in crate::engine) struct Backlog {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    complained: Mutex<Option<Instant>>,
}

impl Backlog {
    /// Leaves a load to the threads that build pages.
    pub(in crate::engine) fn hand_over(&self, load: Load, location: String) {
        let mut waiting = lock(&self.waiting);
        if waiting.stopped {
            drop(waiting);
            return load.give_back();
        }
        waiting.loads.push_back((load, location));
        self.changed.notify_one();
    }

    /// The next load, with its location; nothing when the engine stops.
    pub(super) fn next(&self, shared: &Shared) -> Option<(Load, String)> {
        // A location that does not answer must leave threads for the others.
        let most = (shared.config.cold_loaders * 3 / 4).max(1);
        let mut waiting = lock(&self.waiting);
        while !shared.is_stopping() {
            let Waiting { loads, busy, .. } = &mut *waiting;
            let next = loads.iter().position(|(_, location)| busy.get(location).is_none_or(|threads| *threads < most));
            if let Some((load, location)) = next.and_then(|at| loads.remove(at)) {
                *busy.entry(location.clone()).or_default() += 1;
                return Some((load, location));
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    /// A thread is through with a load.
    pub(super) fn done(&self, location: &str) {
        let mut waiting = lock(&self.waiting);
        if let Some(threads) = waiting.busy.get_mut(location) {
            *threads -= 1;
            if *threads == 0 {
                waiting.busy.remove(location);
            }
        }
        self.changed.notify_one();
    }

    /// Ends the waits of the threads; what nobody has begun is asked of the next worker.
    pub(super) fn stop(&self) {
        let loads = {
            let mut waiting = lock(&self.waiting);
            waiting.stopped = true;
            std::mem::take(&mut waiting.loads)
        };
        self.changed.notify_all();
        loads.into_iter().for_each(|(load, _)| load.give_back());
    }

    /// Puts a failure into the server's log, unless another one has just been put there.
    pub(super) fn complain(&self, shared: &Shared, error: &Error) {
        let mut complained = lock(&self.complained);
        if complained.is_none_or(|when| when.elapsed() >= COMPLAINT_INTERVAL) {
            *complained = Some(Instant::now());
            shared.say(error.for_log().to_string());
        }
    }
}
