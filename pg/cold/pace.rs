//! Keeps a run from taking more of the machine than it should.

use std::time::{Duration, Instant};

use pgrx::pg_sys;

use crate::ffi::interrupts::check_for_interrupts;
use crate::settings;

/// The longest sleep without a look at interrupts.
const SLICE: Duration = Duration::from_millis(100);

/// Shorter debts are not worth a sleep.
const LEAST: Duration = Duration::from_millis(10);

/// Sleeps for a while, serving interrupts.
pub fn sleep(time: Duration) {
    let end = Instant::now() + time;
    loop {
        check_for_interrupts();
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
        let milliseconds = (left.min(SLICE).as_millis() as std::ffi::c_long).max(1);
        // SAFETY: the latch is this process' own.
        unsafe {
            let woken = pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, milliseconds, pg_sys::PG_WAIT_EXTENSION);
            if woken as u32 & pg_sys::WL_LATCH_SET != 0 {
                pg_sys::ResetLatch(pg_sys::MyLatch);
            }
        }
    }
}

/// Spreads work over time, by the setting `kalam.flush_io_limit`.
pub struct Pace {
    since: Instant,
    bytes: u64,
}

impl Pace {
    /// Begins now.
    pub fn new() -> Pace {
        Pace { since: Instant::now(), bytes: 0 }
    }

    /// Serves interrupts, and sleeps if so many bytes more are ahead of their time.
    pub fn work(&mut self, bytes: usize) {
        check_for_interrupts();
        // What was looked up in the catalogs leaves a snapshot behind, which holds VACUUM back like any other.
        // SAFETY: gives up what nobody has registered.
        unsafe { pg_sys::InvalidateCatalogSnapshotConditionally() };
        self.bytes += bytes as u64;
        let Some(limit) = settings::flush_bytes_per_second() else { return };
        let due = Duration::from_micros(self.bytes.saturating_mul(1_000_000) / limit);
        let ahead = due.saturating_sub(self.since.elapsed());
        if ahead >= LEAST {
            sleep(ahead);
        } else if ahead.is_zero() && self.since.elapsed() > SLICE * 10 {
            // What was not used up in time is not saved for later.
            *self = Pace::new();
        }
    }
}
