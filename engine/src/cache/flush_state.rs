//! When the changed rows of one storage are due for a flush: its limits, and how many rows transactions changed since the last one.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Nobody knows the table's options; nobody was asked.
const UNKNOWN: u32 = 0;
/// Somebody was asked for the table's options.
const ASKED: u32 = 1;
/// The limits are those of the table's options.
const PUBLISHED: u32 = 2;

/// The limits of a table: 0 stands for none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlushLimits {
    /// Changed rows at which a flush is due.
    pub rows: u32,
    /// Seconds after the first changed row at which a flush is due.
    pub seconds: u32,
}

/// What a transaction that changed rows has to tell the worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlushNews {
    /// Nothing.
    Nothing,
    /// The table's options have to be looked up.
    Unknown,
    /// Enough rows are changed.
    Due,
    /// Rows are due at this time, in milliseconds of [`super::monotonic_ms`].
    DueAt(u64),
}

/// The words in shared memory. Every transaction adds to them once, at its end.
#[repr(C, align(64))]
pub struct FlushState {
    knowledge: AtomicU32,
    rows_limit: AtomicU32,
    seconds_limit: AtomicU32,
    due: AtomicU32,
    changed: AtomicU64,
    /// When the first of the changed rows is due; 0 when there is none or no limit.
    deadline: AtomicU64,
}

impl FlushState {
    pub(super) fn reset(&self) {
        self.knowledge.store(UNKNOWN, Ordering::SeqCst);
        self.rows_limit.store(0, Ordering::Relaxed);
        self.seconds_limit.store(0, Ordering::Relaxed);
        self.due.store(0, Ordering::Relaxed);
        self.changed.store(0, Ordering::Relaxed);
        self.deadline.store(0, Ordering::Relaxed);
    }

    /// Adds rows that a transaction changed.
    pub fn add(&self, rows: u64, now: u64) -> FlushNews {
        self.changed.fetch_add(rows, Ordering::SeqCst);
        match self.knowledge.load(Ordering::SeqCst) {
            PUBLISHED => self.judge(now),
            UNKNOWN if self.knowledge.compare_exchange(UNKNOWN, ASKED, Ordering::SeqCst, Ordering::SeqCst).is_ok() => {
                FlushNews::Unknown
            }
            _ => FlushNews::Nothing,
        }
    }

    /// Sets the limits, and says what the rows that are changed already mean under them.
    pub fn publish(&self, limits: FlushLimits, now: u64) -> FlushNews {
        self.rows_limit.store(limits.rows, Ordering::SeqCst);
        self.seconds_limit.store(limits.seconds, Ordering::SeqCst);
        self.deadline.store(0, Ordering::SeqCst);
        self.due.store(0, Ordering::SeqCst);
        self.knowledge.store(PUBLISHED, Ordering::SeqCst);
        if self.changed.load(Ordering::SeqCst) == 0 { FlushNews::Nothing } else { self.judge(now) }
    }

    fn judge(&self, now: u64) -> FlushNews {
        let limit = u64::from(self.rows_limit.load(Ordering::SeqCst));
        if limit > 0 && self.changed.load(Ordering::SeqCst) >= limit {
            return if self.due.swap(1, Ordering::SeqCst) == 0 { FlushNews::Due } else { FlushNews::Nothing };
        }
        let seconds = u64::from(self.seconds_limit.load(Ordering::SeqCst));
        let at = (now + seconds * 1000).max(1);
        if seconds > 0 && self.deadline.compare_exchange(0, at, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            return FlushNews::DueAt(at);
        }
        FlushNews::Nothing
    }

    /// Forgets the limits: the table's options or the defaults changed. Whether rows wait for somebody to look them up anew.
    pub fn forget_limits(&self) -> bool {
        let waiting = self.changed.load(Ordering::SeqCst) > 0;
        self.knowledge.store(if waiting { ASKED } else { UNKNOWN }, Ordering::SeqCst);
        waiting
    }

    /// Whether somebody has to look the limits up.
    pub fn wants_limits(&self) -> bool {
        self.knowledge.load(Ordering::SeqCst) == ASKED
    }

    /// Whether the limits are known.
    pub fn is_published(&self) -> bool {
        self.knowledge.load(Ordering::SeqCst) == PUBLISHED
    }

    /// Whether a flush is due.
    pub fn is_due(&self, now: u64) -> bool {
        let deadline = self.deadline.load(Ordering::SeqCst);
        self.due.load(Ordering::SeqCst) != 0 || (deadline != 0 && deadline <= now)
    }

    /// When a flush becomes due by time; none if nothing waits.
    pub fn deadline(&self) -> Option<u64> {
        Some(self.deadline.load(Ordering::SeqCst)).filter(|deadline| *deadline != 0)
    }

    /// Rows changed since the last flush began.
    pub fn changed_rows(&self) -> u64 {
        self.changed.load(Ordering::SeqCst)
    }

    /// A flush begins: what is changed from now on is counted anew. Returns the rows counted so far.
    pub fn begin_flush(&self) -> u64 {
        self.deadline.store(0, Ordering::SeqCst);
        self.due.store(0, Ordering::SeqCst);
        self.changed.swap(0, Ordering::SeqCst)
    }

    /// A flush left rows behind: they are due again after their time, or after `rest` seconds if they have none, however many they are.
    pub fn try_again_after(&self, rest: u32, now: u64) -> FlushNews {
        let seconds = match self.seconds_limit.load(Ordering::SeqCst) {
            0 => rest,
            seconds => seconds,
        };
        let at = (now + u64::from(seconds) * 1000).max(1);
        match self.deadline.compare_exchange(0, at, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => FlushNews::DueAt(at),
            Err(_) => FlushNews::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> FlushState {
        FlushState {
            knowledge: AtomicU32::new(0),
            rows_limit: AtomicU32::new(0),
            seconds_limit: AtomicU32::new(0),
            due: AtomicU32::new(0),
            changed: AtomicU64::new(0),
            deadline: AtomicU64::new(0),
        }
    }

    #[test]
    fn the_first_change_asks_for_the_limits_and_no_other() {
        let state = state();
        assert_eq!(state.add(1, 0), FlushNews::Unknown);
        assert_eq!(state.add(1, 0), FlushNews::Nothing);
        assert!(state.wants_limits());
        assert_eq!(state.changed_rows(), 2);
    }

    #[test]
    fn rows_become_due_once_until_a_flush_begins() {
        let state = state();
        assert_eq!(state.publish(FlushLimits { rows: 10, seconds: 0 }, 5), FlushNews::Nothing);
        assert_eq!(state.add(9, 5), FlushNews::Nothing);
        assert!(!state.is_due(u64::MAX));
        assert_eq!(state.add(1, 5), FlushNews::Due);
        assert_eq!(state.add(100, 5), FlushNews::Nothing);
        assert!(state.is_due(5));
        assert_eq!(state.begin_flush(), 110);
        assert!(!state.is_due(5));
        assert_eq!(state.add(10, 5), FlushNews::Due);
    }

    #[test]
    fn rows_that_came_before_the_limits_count() {
        let state = state();
        state.add(12, 0);
        assert_eq!(state.publish(FlushLimits { rows: 10, seconds: 0 }, 0), FlushNews::Due);
    }

    #[test]
    fn time_counts_from_the_first_changed_row() {
        let state = state();
        state.publish(FlushLimits { rows: 0, seconds: 2 }, 0);
        assert_eq!(state.add(1, 1_000), FlushNews::DueAt(3_000));
        assert_eq!(state.add(1, 2_000), FlushNews::Nothing);
        assert!(!state.is_due(2_999));
        assert!(state.is_due(3_000));
        state.begin_flush();
        assert!(!state.is_due(u64::MAX));
    }

    #[test]
    fn rows_left_behind_are_due_by_time_and_not_at_once() {
        let state = state();
        state.publish(FlushLimits { rows: 10, seconds: 0 }, 0);
        state.add(20, 0);
        state.begin_flush();
        assert_eq!(state.try_again_after(2, 1_000), FlushNews::DueAt(3_000));
        assert_eq!(state.add(1, 1_000), FlushNews::Nothing);
        assert!(!state.is_due(2_999));
        assert!(state.is_due(3_000));
    }

    #[test]
    fn forgotten_limits_are_asked_for_when_rows_wait() {
        let state = state();
        state.publish(FlushLimits { rows: 10, seconds: 0 }, 0);
        assert!(!state.forget_limits());
        assert_eq!(state.add(3, 0), FlushNews::Unknown);
        state.publish(FlushLimits { rows: 10, seconds: 0 }, 0);
        assert!(state.forget_limits());
        assert!(state.wants_limits());
    }
}
