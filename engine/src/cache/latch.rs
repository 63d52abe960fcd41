//! A reader-writer latch of one word in shared memory.
//!
//! Engine threads cannot take Postgres' lightweight locks, so processes and threads meet here. Latches are held for
//! microseconds; a waiter spins a little, then sleeps on the word for at most 100 ms at a time and lets its [`Wait`] look
//! at interrupts in between.

use std::hint;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::futex;
use crate::error::Result;

const WRITER: u32 = 1 << 31;
const SLEEPERS: u32 = 1 << 30;
const WRITER_WAITS: u32 = 1 << 29;
const READERS: u32 = WRITER_WAITS - 1;

const SPINS: u32 = 60;

/// What a waiter does between two sleeps.
pub trait Wait {
    /// Called at least every 100 ms of a wait; an error ends the wait.
    ///
    /// # Errors
    /// Whatever shall end the wait: a cancelled query, an engine that is gone.
    fn pause(&self) -> Result<()>;
}

/// Waits without an end: for engine threads, whose latch holders always go on.
pub struct WaitForever;

impl Wait for WaitForever {
    fn pause(&self) -> Result<()> {
        Ok(())
    }
}

type Hooks = (fn(), fn());

static HOOKS: OnceLock<Hooks> = OnceLock::new();

/// Registers two functions for this process: one before a latch is taken, one after it is given back.
///
/// A backend holds off interrupts between them, so that it cannot leave with a latch held.
pub fn set_latch_hooks(acquire: fn(), release: fn()) {
    // A second registration in one process is the same pair.
    let _ = HOOKS.set((acquire, release));
}

#[inline]
fn before_acquire() {
    if let Some((acquire, _)) = HOOKS.get() {
        acquire();
    }
}

#[inline]
fn after_release() {
    if let Some((_, release)) = HOOKS.get() {
        release();
    }
}

/// The latch word.
#[repr(transparent)]
#[derive(Default)]
pub struct Latch(AtomicU32);

impl Latch {
    /// Forgets every holder: only for memory that nobody uses yet.
    pub(super) fn reset(&self) {
        self.0.store(0, Ordering::Release);
    }

    /// Takes the latch for reading.
    #[inline]
    pub(super) fn lock_shared(&self, wait: &dyn Wait) -> Result<()> {
        before_acquire();
        let word = self.0.load(Ordering::Relaxed);
        if word & (WRITER | WRITER_WAITS) == 0
            && self.0.compare_exchange_weak(word, word + 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
        {
            return Ok(());
        }
        // A wait serves interrupts, as nothing is held yet.
        after_release();
        self.lock_shared_slow(wait).inspect(|()| before_acquire())
    }

    #[cold]
    fn lock_shared_slow(&self, wait: &dyn Wait) -> Result<()> {
        let mut spins = 0;
        loop {
            let word = self.0.load(Ordering::Relaxed);
            // After the spinning a reader passes a waiting writer that cannot run: a stale mark must not stop everybody.
            let barrier = if spins < 2 * SPINS { WRITER | WRITER_WAITS } else { WRITER };
            if word & barrier == 0 {
                if self.0.compare_exchange_weak(word, word + 1, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    return Ok(());
                }
                continue;
            }
            if spins < SPINS {
                spins += 1;
                hint::spin_loop();
                continue;
            }
            self.sleep(word, SLEEPERS, wait)?;
            spins += 1;
        }
    }

    /// Takes the latch for writing.
    #[inline]
    pub(super) fn lock_exclusive(&self, wait: &dyn Wait) -> Result<()> {
        before_acquire();
        if self.0.compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            return Ok(());
        }
        after_release();
        self.lock_exclusive_slow(wait).inspect(|()| before_acquire())
    }

    #[cold]
    fn lock_exclusive_slow(&self, wait: &dyn Wait) -> Result<()> {
        let mut spins = 0;
        loop {
            let word = self.0.load(Ordering::Relaxed);
            if word & (WRITER | READERS) == 0 {
                let taken = (word & SLEEPERS) | WRITER;
                if self.0.compare_exchange_weak(word, taken, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    return Ok(());
                }
                continue;
            }
            if spins < SPINS {
                spins += 1;
                hint::spin_loop();
                continue;
            }
            if let Err(error) = self.sleep(word, SLEEPERS | WRITER_WAITS, wait) {
                self.0.fetch_and(!WRITER_WAITS, Ordering::Relaxed);
                futex::wake_all(&self.0);
                return Err(error);
            }
        }
    }

    /// Takes the latch for writing if nobody holds it.
    #[inline]
    pub(super) fn try_lock_exclusive(&self) -> bool {
        before_acquire();
        let word = self.0.load(Ordering::Relaxed);
        let free = word & (WRITER | READERS) == 0
            && self.0.compare_exchange(word, (word & SLEEPERS) | WRITER, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if !free {
            after_release();
        }
        free
    }

    fn sleep(&self, word: u32, marks: u32, wait: &dyn Wait) -> Result<()> {
        let marked = word | marks;
        if word != marked && self.0.compare_exchange_weak(word, marked, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return Ok(());
        }
        futex::wait(&self.0, marked);
        wait.pause()
    }

    /// Gives back a latch taken for reading.
    #[inline]
    pub(super) fn unlock_shared(&self) {
        let word = self.0.fetch_sub(1, Ordering::Release) - 1;
        if word & READERS == 0 && word & SLEEPERS != 0 {
            self.wake();
        }
        after_release();
    }

    /// Gives back a latch taken for writing.
    #[inline]
    pub(super) fn unlock_exclusive(&self) {
        let word = self.0.fetch_and(!WRITER, Ordering::Release);
        if word & SLEEPERS != 0 {
            self.wake();
        }
        after_release();
    }

    #[cold]
    fn wake(&self) {
        self.0.fetch_and(!(SLEEPERS | WRITER_WAITS), Ordering::Relaxed);
        futex::wake_all(&self.0);
    }

    /// Whether somebody holds the latch for writing.
    pub fn is_exclusive(&self) -> bool {
        self.0.load(Ordering::Relaxed) & WRITER != 0
    }
}
