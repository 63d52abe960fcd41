//! What the worker does with the cache while it recovers: load pages that stay hidden, and make up for a worker that is gone.

use std::sync::atomic::Ordering;

use super::frame::{DIRTY, LOADING, QUEUED, REPLAYED, TAGGED, VALID};
use super::header::raise;
use super::latch::{Wait, WaitForever};
use super::{Cache, LoadFailure, LoadReport, Pin};
use crate::error::Result;
use crate::ids::{Lsn, PageKey};
use crate::page::COLD;

/// Takes the stored form of a page that was asked for, or none for a page that does not exist.
pub type FoundPage<'f> = &'f mut dyn FnMut(Option<&[u8]>) -> Result<()>;

impl Cache {
    /// Pins a page for replay, loading it with `load` when it is not in the cache.
    ///
    /// A page that replay loads shows a state of the past: nobody else finds it before [`Cache::end_replay`]. Only one thread
    /// replays, and no other loads meanwhile.
    ///
    /// # Errors
    /// What `load` or `wait` answers; `Corrupt` when the stored bytes are no page.
    pub fn replay_page(&self, key: PageKey, wait: &dyn Wait, load: &mut dyn FnMut(FoundPage<'_>) -> Result<()>) -> Result<Pin> {
        let pin = match self.find_pinned(key) {
            Some(pin) => pin,
            None => self.tag_for_replay(key, wait)?,
        };
        if self.frame(pin.frame()).state.fetch_and(!QUEUED, Ordering::AcqRel) & LOADING == 0 {
            return Ok(pin);
        }
        // The frame is new, or a process asked for the page and waits until it may have it.
        let mut own = Some(self.own_load(pin.frame(), key));
        load(&mut |stored| match own.take() {
            Some(own) => own.finish_as(stored, REPLAYED, LoadReport::default()),
            None => Ok(()),
        })?;
        Ok(pin)
    }

    /// Shows the pages that replay loaded to everybody, except those that are `lost`.
    pub fn end_replay(&self, lost: &dyn Fn(PageKey) -> bool) {
        for (number, frame) in self.frames().iter().enumerate() {
            let state = frame.state.load(Ordering::Acquire);
            if state & (TAGGED | REPLAYED) != TAGGED | REPLAYED {
                continue;
            }
            if lost(frame.key()) {
                frame.failure.store(LoadFailure::Corrupt as u32, Ordering::Release);
                if frame.pin_unfinished() {
                    self.give_up(number as u32);
                }
                continue;
            }
            frame.state.fetch_or(VALID, Ordering::Release);
            frame.state.fetch_and(!REPLAYED, Ordering::Release);
            raise(&frame.loaded);
        }
    }

    /// Marks every page changed that has a change which the log holds after `position`: its last worker may have taken it to the
    /// store's memory, which is gone with that worker.
    pub fn mark_dirty_since(&self, position: Lsn) {
        for (number, frame) in self.frames().iter().enumerate() {
            let key = frame.key();
            if frame.state.load(Ordering::Acquire) & VALID == 0 || !frame.pin(key) {
                continue;
            }
            let pin = Pin::new(*self, number as u32);
            let Ok(mut guard) = pin.exclusive(&WaitForever) else { continue };
            if guard.page().lsn() > position || guard.is_dirty() {
                // Whether its segment is still in the store is not known; written as a hot one, the page is there in any case.
                guard.page_mut().clear_flags(COLD);
                guard.mark_dirty(position);
                frame.lower_rec_lsn(position);
            }
        }
    }

    /// Gives up a page whose content nobody may see, and the caller's pin on it: its waiters ask again or get its failure.
    pub(super) fn give_up(&self, number: u32) {
        let frame = self.frame(number);
        if frame.state.fetch_and(!(DIRTY | REPLAYED), Ordering::SeqCst) & DIRTY != 0 {
            self.count_clean(frame);
        }
        self.abandon(number);
    }
}
