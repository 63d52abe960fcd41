//! What only the worker does with the cache: fill frames, find and copy changed pages, start a new generation.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::frame::{DIRTY, LOADING, TAGGED, VALID};
use super::header::raise;
use super::latch::WaitForever;
use super::memory::Extent;
use super::{Cache, LoadFailure, LoadReport, Pin, futex};
use crate::error::{Error, Result};
use crate::ids::{Lsn, PageKey};
use crate::page::{COLD, Page, PageMut};

/// A frame that waits for its content; dropped unfinished, it counts as failed, by a panic as never tried.
pub struct Load {
    cache: Cache,
    frame: u32,
    key: PageKey,
    done: bool,
}

impl Load {
    /// The page to load.
    pub fn key(&self) -> PageKey {
        self.key
    }

    /// Fills the frame from a page's stored form, or as a page that does not exist, and wakes the waiters.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are no page; the waiters get the same.
    pub fn finish(self, stored: Option<&[u8]>) -> Result<()> {
        self.finish_as(stored, VALID, LoadReport::default())
    }

    /// As [`Load::finish`] with a page built from a segment; the page becomes a cold one.
    ///
    /// # Errors
    /// As [`Load::finish`].
    pub fn finish_cold(self, built: &[u8], report: LoadReport) -> Result<()> {
        self.finish_as(Some(built), VALID, LoadReport { built: true, ..report })
    }

    /// Fills the frame and says with `content` who may see it.
    pub(super) fn finish_as(mut self, stored: Option<&[u8]>, content: u64, report: LoadReport) -> Result<()> {
        let expanded = match stored {
            Some(stored) => self.expand(stored),
            None => {
                self.cache.blank(self.frame);
                Ok(())
            }
        };
        if let Err(error) = expanded {
            if report.built {
                self.cache.keep_failure(self.key, Some(&error));
            }
            self.end_failed(LoadFailure::Corrupt);
            return Err(error);
        }
        self.done = true;
        let frame = self.cache.frame(self.frame);
        if report.built {
            PageMut::new(self.cache.bytes_mut(self.frame)).set_flags(COLD);
        }
        if stored.is_some() {
            frame.report.store(report.to_word(), Ordering::Relaxed);
        }
        frame.state.fetch_or(content, Ordering::Release);
        frame.state.fetch_and(!LOADING, Ordering::Release);
        raise(&frame.loaded);
        Ok(())
    }

    fn expand(&self, stored: &[u8]) -> Result<()> {
        let (cache, frame) = (self.cache, self.cache.frame(self.frame));
        let expanded = PageMut::new(cache.bytes_mut(self.frame)).from_compact_over(stored, frame.extent().untouched());
        if expanded.is_err() {
            cache.note_extent(frame, Extent::WHOLE);
            return expanded;
        }
        let needed = Extent::of(Page::new(cache.bytes(self.frame)));
        cache.note_extent(frame, needed);
        cache.release_surplus(self.frame, needed);
        Ok(())
    }

    /// Ends the load without content; the waiters get an error of this kind.
    pub fn fail(mut self, failure: LoadFailure) {
        self.cache.keep_failure(self.key, None);
        self.end_failed(failure);
    }

    /// Ends the load without content; the waiters get this error.
    pub fn fail_with(mut self, error: &Error) {
        self.cache.keep_failure(self.key, Some(error));
        self.end_failed(LoadFailure::of(error));
    }

    /// Ends the load as if it was never tried: the waiters ask again.
    pub fn give_back(mut self) {
        self.end_without_content();
    }

    fn end_failed(&mut self, failure: LoadFailure) {
        self.cache.frame(self.frame).failure.store(failure as u32, Ordering::Release);
        self.end_without_content();
    }

    fn end_without_content(&mut self) {
        self.done = true;
        self.cache.frame(self.frame).add_pin();
        self.cache.abandon(self.frame);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        if std::thread::panicking() {
            // The page is not to blame: the waiters ask the next worker.
            self.end_without_content();
        } else {
            self.end_failed(LoadFailure::Internal);
        }
    }
}

/// A changed page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirtyFrame {
    /// The frame.
    pub frame: u32,
    /// The page in it when it was looked at.
    pub key: PageKey,
    /// From where the log is needed for it.
    pub rec_lsn: Lsn,
}

/// A page on its way to the store. It stays pinned as long as this lives, so that nobody reads an older copy from the store;
/// unless it is said to be stored, it counts as changed again then.
pub struct WriteBack {
    /// The page.
    pub key: PageKey,
    /// The log must be flushed to here before the page is stored.
    pub page_lsn: Lsn,
    /// From where the log is needed until the page is durable.
    pub rec_lsn: Lsn,
    pin: Pin,
    cache: Cache,
    stored: bool,
}

impl WriteBack {
    /// The store gives out the copy from now on.
    pub fn stored(mut self) {
        self.stored = true;
    }
}

impl Drop for WriteBack {
    fn drop(&mut self) {
        if self.stored {
            return;
        }
        if let Ok(guard) = self.pin.exclusive(&WaitForever) {
            guard.mark_dirty(self.rec_lsn);
            self.cache.frame(self.pin.frame()).lower_rec_lsn(self.rec_lsn);
        }
    }
}

impl Cache {
    /// The next frame to fill; nothing when none was asked for within `timeout` (at most 100 ms).
    pub fn next_load(&self, timeout: Duration) -> Option<Load> {
        let header = self.header();
        if let Some(load) = self.pop_load() {
            return Some(load);
        }
        header.load_sleepers.fetch_add(1, Ordering::SeqCst);
        let word = header.load_wake.load(Ordering::SeqCst);
        let mut load = self.pop_load();
        if load.is_none() {
            futex::wait_for(&header.load_wake, word, timeout);
            load = self.pop_load();
        }
        header.load_sleepers.fetch_sub(1, Ordering::SeqCst);
        load
    }

    /// Ends the waits in [`Cache::next_load`].
    pub fn wake_loaders(&self) {
        raise(&self.header().load_wake);
    }

    /// The next frame to fill, if one was asked for.
    pub fn try_next_load(&self) -> Option<Load> {
        self.pop_load()
    }

    pub(super) fn own_load(&self, frame: u32, key: PageKey) -> Load {
        Load { cache: *self, frame, key, done: false }
    }

    fn pop_load(&self) -> Option<Load> {
        loop {
            let number = self.load_queue().pop()?;
            let frame = self.frame(number);
            if frame.begin_load() {
                return Some(Load { cache: *self, frame: number, key: frame.key(), done: false });
            }
        }
    }

    /// Starts a new generation of the worker: loads and replayed pages that the last one left are given up, their waiters ask again.
    pub fn begin_generation(&self) -> u32 {
        let header = self.header();
        let generation = header.generation.fetch_add(1, Ordering::SeqCst) + 1;
        while self.load_queue().pop().is_some() {}
        for number in 0..self.region.layout.frames {
            if self.frame(number).pin_unfinished() {
                self.give_up(number);
            }
        }
        header.load_sleepers.store(0, Ordering::SeqCst);
        self.requests().begin_generation();
        generation
    }

    /// Lists the changed pages of the moment.
    pub fn dirty_frames(&self, into: &mut Vec<DirtyFrame>) {
        into.clear();
        for (number, frame) in self.frames().iter().enumerate() {
            if frame.state.load(Ordering::SeqCst) & (DIRTY | TAGGED) == DIRTY | TAGGED {
                into.push(DirtyFrame { frame: number as u32, key: frame.key(), rec_lsn: frame.rec_lsn() });
            }
        }
    }

    /// The oldest position from which the log is needed for a changed page.
    ///
    /// Reading the log's insert position first makes this a bound for every page that is being changed meanwhile: a change
    /// whose record lies before that position has marked its page before.
    pub fn min_rec_lsn(&self) -> Option<Lsn> {
        self.frames().iter().filter(|frame| frame.state.load(Ordering::SeqCst) & DIRTY != 0).map(|frame| frame.rec_lsn()).min()
    }

    /// Copies a changed page's stored form and marks it unchanged; nothing when it is not changed any more.
    pub fn copy_for_write(&self, dirty: &DirtyFrame, stored: &mut Vec<u8>) -> Option<WriteBack> {
        let frame = self.frame(dirty.frame);
        if !frame.pin_unnoticed(dirty.key) {
            return None;
        }
        let pin = Pin::new(*self, dirty.frame);
        frame.latch.lock_shared(&WaitForever).ok()?;
        if !frame.is_dirty() {
            frame.latch.unlock_shared();
            return None;
        }
        let page = Page::new(self.bytes(dirty.frame));
        stored.clear();
        page.to_compact(stored);
        let page_lsn = page.lsn();
        let rec_lsn = frame.rec_lsn();
        frame.clear_dirty();
        self.count_clean(frame);
        frame.latch.unlock_shared();
        Some(WriteBack { key: dirty.key, page_lsn, rec_lsn, pin, cache: *self, stored: false })
    }

    /// Whether some thread or process holds a latch of a page for writing: then the mapping may be half changed.
    pub fn any_exclusive_latch(&self) -> bool {
        self.frames().iter().any(|frame| frame.latch.is_exclusive())
    }
}
