//! The thread that talks to object stores: one for a process, whoever asks.
//!
//! Callers wait outside of it, so that they go on serving interrupts. All connections live on this one thread; a connection that moved
//! between runtimes would stand still whenever the runtime that opened it does.

use std::future::Future;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle};
use tokio::task::AbortHandle;

use crate::cache::Wait;
use crate::error::{Error, ErrorKind, Result};

/// How often a waiter looks at what may end its wait.
const LOOK: Duration = Duration::from_millis(50);
/// How much longer than the task itself a waiter waits: the thread may be busy.
const GRACE: Duration = Duration::from_secs(5);

static RUNTIME: Mutex<Option<Handle>> = Mutex::new(None);

/// Starts the thread unless it runs. It inherits the caller's signal mask: a process whose main thread is Postgres' calls this with all
/// signals blocked before anything else here.
///
/// # Errors
/// `OutOfMemory` when the thread cannot be started.
pub fn start() -> Result<()> {
    handle().map(|_| ())
}

fn handle() -> Result<Handle> {
    let mut runtime = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = &*runtime {
        return Ok(handle.clone());
    }
    let refused = |error| Error::new(ErrorKind::OutOfMemory, "could not start the thread for object stores").with_source(error);
    let current = Builder::new_current_thread().enable_all().max_blocking_threads(4).build().map_err(refused)?;
    let handle = current.handle().clone();
    std::thread::Builder::new()
        .name("kalam objects".to_owned())
        .spawn(move || current.block_on(std::future::pending::<()>()))
        .map_err(refused)?;
    *runtime = Some(handle.clone());
    Ok(handle)
}

/// What a task did not get done.
#[derive(Debug)]
pub enum Unfinished {
    /// It took longer than its limit.
    TimedOut(Duration),
    /// The waiter's own reason.
    Ended(Error),
}

/// A task under way; dropped, it is given up.
pub struct Pending<T> {
    task: AbortHandle,
    answer: Receiver<T>,
    started: Instant,
    limit: Duration,
}

/// Begins a task that may last until `limit`.
///
/// # Errors
/// As [`start`].
pub fn begin<T: Send + 'static>(limit: Duration, task: impl Future<Output = T> + Send + 'static) -> Result<Pending<T>> {
    let handle = handle()?;
    let (sender, answer) = sync_channel(1);
    let task = handle.spawn(async move {
        if let Ok(done) = tokio::time::timeout(limit, task).await {
            // Nobody may wait any more.
            let _ = sender.send(done);
        }
    });
    Ok(Pending { task: task.abort_handle(), answer, started: Instant::now(), limit })
}

impl<T> Pending<T> {
    /// Waits for the end.
    ///
    /// # Errors
    /// What ended the wait instead.
    pub fn finish(&self, wait: &dyn Wait) -> std::result::Result<T, Unfinished> {
        loop {
            match self.answer.recv_timeout(LOOK) {
                Ok(done) => return Ok(done),
                Err(RecvTimeoutError::Timeout) if self.started.elapsed() > self.limit + GRACE => {
                    return Err(Unfinished::TimedOut(self.limit));
                }
                Err(RecvTimeoutError::Timeout) => wait.pause().map_err(Unfinished::Ended)?,
                Err(RecvTimeoutError::Disconnected) if self.started.elapsed() >= self.limit => {
                    return Err(Unfinished::TimedOut(self.limit));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Unfinished::Ended(Error::internal("the thread for object stores dropped a task")));
                }
            }
        }
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}
