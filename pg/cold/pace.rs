//! Keeps a run from taking more of the machine than it should.

use std::time::{Duration, Instant};

use pgrx::pg_sys;

use crate::ffi::interrupts::{check_for_interrupts, sleep};
use crate::settings;

/// Time without a debt after which what was saved is forgotten.
const MEMORY: Duration = Duration::from_secs(1);

/// Shorter debts are not worth a sleep.
const LEAST: Duration = Duration::from_millis(10);

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
        } else if ahead.is_zero() && self.since.elapsed() > MEMORY {
            // What was not used up in time is not saved for later.
            *self = Pace::new();
        }
    }
}
