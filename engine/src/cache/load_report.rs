//! What loads have cost: noted with the frame by the worker, counted by the first thread that uses the page.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

const LOADED: u64 = 1 << 63;
const BUILT: u64 = 1 << 62;
const SEGMENTS_SHIFT: u32 = 40;
const SEGMENTS_MAX: u64 = (1 << 16) - 1;
const BYTES_MAX: u64 = (1 << SEGMENTS_SHIFT) - 1;

/// What one load took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LoadReport {
    /// Whether the page was built from a segment; else it was read from the store.
    pub built: bool,
    /// Segments that were opened for it.
    pub segments_opened: u32,
    /// Bytes read from segments.
    pub bytes_read: u64,
}

impl LoadReport {
    /// The word that a frame keeps; never 0.
    pub(super) fn to_word(self) -> u64 {
        let opened = u64::from(self.segments_opened).min(SEGMENTS_MAX) << SEGMENTS_SHIFT;
        LOADED | if self.built { BUILT } else { 0 } | opened | self.bytes_read.min(BYTES_MAX)
    }

    fn from_word(word: u64) -> LoadReport {
        LoadReport {
            built: word & BUILT != 0,
            segments_opened: (word >> SEGMENTS_SHIFT & SEGMENTS_MAX) as u32,
            bytes_read: word & BYTES_MAX,
        }
    }
}

/// What the loads for one thread took since it began; the difference between two moments is the cost of what it did between them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LoadStatistics {
    /// Pages that were looked at, most of them in the cache.
    pub pages: u64,
    /// Pages read from the store.
    pub hot_pages: u64,
    /// Pages built from segments.
    pub cold_pages: u64,
    /// Segments opened.
    pub segments_opened: u64,
    /// Bytes read from segments.
    pub bytes_read: u64,
}

thread_local! {
    static STATISTICS: Cell<LoadStatistics> = const {
        Cell::new(LoadStatistics { pages: 0, hot_pages: 0, cold_pages: 0, segments_opened: 0, bytes_read: 0 })
    };
    static PAGES: Cell<u64> = const { Cell::new(0) };
}

/// Counts a page that the thread looks at.
#[inline]
pub(super) fn count_page() {
    PAGES.set(PAGES.get() + 1);
}

/// What the loads for this thread took so far: of pages that it waited for, or was the first to use after a prefetch.
pub fn load_statistics() -> LoadStatistics {
    LoadStatistics { pages: PAGES.get(), ..STATISTICS.get() }
}

/// Takes note of a frame's report, if nobody has.
#[cold]
pub(super) fn take(word: &AtomicU64) {
    let word = word.swap(0, Ordering::Relaxed);
    if word == 0 {
        return;
    }
    let report = LoadReport::from_word(word);
    let mut statistics = STATISTICS.get();
    if report.built {
        statistics.cold_pages += 1;
    } else {
        statistics.hot_pages += 1;
    }
    statistics.segments_opened += u64::from(report.segments_opened);
    statistics.bytes_read += report.bytes_read;
    STATISTICS.set(statistics);
}
