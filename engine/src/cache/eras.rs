//! Which rows of a stream have vanished, for transactions that began before and after a moment.
//!
//! A transaction sees the same rows of a stream from its first look to its last, while rows are taken away for good beside it. So
//! time has eras: rows that vanish do so for the transactions of the next era alone, and are taken away once every transaction
//! that has looked is in it. A transaction that began in an earlier era and has not looked yet sees what the eldest era that is left
//! sees. Looks and changes of eras exclude each other: whoever has looked is among the readers of which the next change asks.

use std::sync::atomic::{AtomicI64, Ordering};

use super::latch::{Latch, Wait};
use crate::error::Result;

/// When transactions that read now began, in microseconds since 2000.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Readers {
    /// The one that began first; the present when there is none.
    pub oldest: i64,
    /// The one that began last; the present when there is none.
    pub newest: i64,
}

/// The eras of one stream. Rows that were inserted at a time or before it, in milliseconds since 2000, have vanished.
#[derive(Default)]
pub struct Eras {
    latch: Latch,
    /// The start of the present era, in microseconds since 2000.
    since: AtomicI64,
    vanished: AtomicI64,
    /// What has vanished for transactions that began before the present era.
    vanished_before: AtomicI64,
}

impl Eras {
    /// Nothing has vanished: only for storages that nobody uses yet.
    pub(super) fn reset(&self) {
        self.latch.reset();
        for time in [&self.since, &self.vanished, &self.vanished_before] {
            time.store(i64::MIN, Ordering::Relaxed);
        }
    }

    /// What has vanished for a transaction that began at `start`, in microseconds since 2000. It has a snapshot that others know of, and is
    /// told the same until it gives its last one up.
    ///
    /// # Errors
    /// What ends the wait for a change of eras.
    #[inline]
    pub fn vanished_for(&self, start: i64, wait: &dyn Wait) -> Result<i64> {
        self.latch.lock_shared(wait)?;
        let time = if start >= self.since.load(Ordering::Relaxed) { &self.vanished } else { &self.vanished_before };
        let time = time.load(Ordering::Relaxed);
        self.latch.unlock_shared();
        Ok(time)
    }

    /// What has vanished for everybody: such rows may be taken away.
    pub fn vanished_for_all(&self) -> i64 {
        self.vanished_before.load(Ordering::Acquire)
    }

    /// Makes rows of `until` and before vanish for everybody at once, if the eldest reader sees none of them: `sees_until` is what has vanished
    /// for a transaction of this start by its start alone. Whether they have.
    ///
    /// # Errors
    /// What ends the wait for those who look.
    pub fn vanish_at_once(
        &self,
        until: i64,
        wait: &dyn Wait,
        readers: impl FnOnce() -> Readers,
        sees_until: impl FnOnce(i64) -> i64,
    ) -> Result<bool> {
        if self.vanished_for_all() >= until {
            return Ok(true);
        }
        self.latch.lock_exclusive(wait)?;
        let _unlock = Unlock(&self.latch);
        let oldest = readers().oldest;
        let of_era = if oldest >= self.since.load(Ordering::Relaxed) { &self.vanished } else { &self.vanished_before };
        if sees_until(oldest).max(of_era.load(Ordering::Relaxed)) < until {
            return Ok(false);
        }
        // Who has begun and has not looked yet finds them gone too.
        self.vanished.fetch_max(until, Ordering::Relaxed);
        self.vanished_before.fetch_max(until, Ordering::Release);
        Ok(true)
    }

    /// Begins an era in which rows of `until` and before have vanished, at the latest. `readers` tells of all transactions with snapshots; when
    /// one of them belongs to an earlier era than the present, everything stays as it is. Whether there is a new era.
    ///
    /// # Errors
    /// What ends the wait for those who look.
    pub fn begin_era(&self, until: i64, wait: &dyn Wait, readers: impl FnOnce() -> Readers) -> Result<bool> {
        self.latch.lock_exclusive(wait)?;
        let _unlock = Unlock(&self.latch);
        let readers = readers();
        if readers.oldest < self.since.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let vanished = self.vanished.load(Ordering::Relaxed);
        self.vanished_before.store(vanished, Ordering::Release);
        // Rows inserted from now on are younger than everything that has vanished.
        let since = readers.newest.saturating_add(1);
        let youngest = since.div_euclid(1000).saturating_sub(1);
        self.vanished.store(vanished.max(until.min(youngest)), Ordering::Relaxed);
        self.since.store(since, Ordering::Relaxed);
        Ok(true)
    }
}

struct Unlock<'a>(&'a Latch);

impl Drop for Unlock<'_> {
    fn drop(&mut self) {
        self.0.unlock_exclusive();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::WaitForever;

    fn eras() -> Eras {
        let eras = Eras::default();
        eras.reset();
        eras
    }

    fn begin(eras: &Eras, until: i64, oldest: i64, newest: i64) -> bool {
        eras.begin_era(until, &WaitForever, || Readers { oldest, newest }).unwrap()
    }

    fn look(eras: &Eras, start: i64) -> i64 {
        eras.vanished_for(start, &WaitForever).unwrap()
    }

    #[test]
    fn rows_go_after_everybody_sees_them_gone() {
        let eras = eras();
        assert_eq!(look(&eras, 5_000_000), i64::MIN);
        assert!(begin(&eras, 4_000, 5_000_000, 6_000_000));
        assert_eq!(eras.vanished_for_all(), i64::MIN, "a transaction from before the era sees the rows");
        assert_eq!(look(&eras, 5_000_000), i64::MIN);
        assert_eq!(look(&eras, 6_000_001), 4_000);
        assert!(!begin(&eras, 5_000, 6_000_000, 7_000_000), "a transaction from before the era still reads");
        assert!(begin(&eras, 5_000, 6_000_001, 7_000_000));
        assert_eq!(eras.vanished_for_all(), 4_000);
        assert_eq!(look(&eras, 6_000_001), 4_000, "it has not changed for who has looked");
        assert_eq!(look(&eras, 5_000_000), 4_000, "who comes late sees what is left");
        assert_eq!(look(&eras, 7_000_001), 5_000);
    }

    #[test]
    fn rows_that_nobody_sees_vanish_at_once() {
        let eras = eras();
        // A lifetime of one second.
        let vanish = |until, oldest: i64| {
            let readers = || Readers { oldest, newest: oldest };
            eras.vanish_at_once(until, &WaitForever, readers, |start| start / 1000 - 1000).unwrap()
        };
        assert!(!vanish(4_000, 4_999_000), "the reader sees rows of that time");
        assert_eq!(look(&eras, 4_000_000), i64::MIN);
        assert!(vanish(4_000, 5_000_000));
        assert_eq!(look(&eras, 4_000_000), 4_000, "one that has not looked finds them gone");
        assert!(vanish(3_000, 1_000_000), "they are gone already");
        assert!(begin(&eras, 4_500, 5_000_000, 5_500_000));
        assert!(!vanish(4_500, 5_400_000), "a reader of before the era sees them");
        assert!(vanish(4_500, 5_500_001));
        assert_eq!(eras.vanished_for_all(), 4_500);
    }

    #[test]
    fn new_rows_have_not_vanished() {
        let eras = eras();
        assert!(begin(&eras, i64::MAX, 1_000_000, 1_000_000));
        assert_eq!(look(&eras, 1_000_001), 999);
        assert!(begin(&eras, 10, 1_000_001, 1_000_001));
        assert_eq!(look(&eras, 2_000_000), 999, "what has vanished does not come back");
    }
}
