//! What the worker does with cached pages whose content goes into a segment: latch them, make them cold, mark them unchanged.

use std::borrow::Borrow;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::frame::VALID;
use super::guard::{Exclusive, LatchedPage};
use super::{Cache, Pin, WaitForever};
use crate::ids::PageKey;
use crate::page::PageKind;

/// A page that is to become cold: nobody else sees or changes it as long as this lives.
pub enum ForCooling {
    /// It is in the cache, latched for writing.
    Latched(LatchedPage),
    /// It is not; whoever wants it waits.
    Reserved(Reserved),
}

/// A frame without content that keeps a page from being loaded; dropped, the page can be loaded again.
pub struct Reserved {
    pin: Option<Pin>,
    cache: Cache,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(pin) = self.pin.take() {
            // Giving up the load takes the pin with it.
            self.cache.abandon(pin.into_frame());
        }
    }
}

impl Cache {
    /// Keeps a page to the caller, latched if it is in the cache; nothing when others use it or no frame is free.
    ///
    /// Several pages are kept at a time, in whatever order: so this gives up after `patience` instead of waiting without an end.
    pub fn keep_for_cooling(&self, key: PageKey, patience: Duration) -> Option<ForCooling> {
        let begun = Instant::now();
        loop {
            if let Some(pin) = self.find_pinned(key) {
                let state = self.frame(pin.frame()).state.load(Ordering::Acquire);
                if state & VALID != 0 && pin.try_latch() {
                    return Some(ForCooling::Latched(Exclusive::over(pin)));
                }
            } else if let Some(pin) = self.reserve(key) {
                return Some(ForCooling::Reserved(Reserved { pin: Some(pin), cache: *self }));
            }
            if begun.elapsed() >= patience {
                return None;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Makes a page a cold one if it is in the cache and nobody uses it; what it holds is in the store as part of a segment.
    pub fn turn_cold_if_there(&self, key: PageKey) {
        let Some(pin) = self.find_pinned(key) else { return };
        if self.frame(pin.frame()).state.load(Ordering::Acquire) & VALID != 0
            && let Some(mut guard) = pin.try_exclusive()
            && guard.page().kind() != PageKind::Unused
        {
            guard.turn_cold();
        }
    }

    /// The cached pages that are cold and unchanged.
    pub fn cold_pages(&self) -> Vec<PageKey> {
        let mut keys = Vec::new();
        for (number, frame) in self.frames().iter().enumerate() {
            let key = frame.key();
            if frame.state.load(Ordering::Acquire) & VALID == 0 || !frame.pin_unnoticed(key) {
                continue;
            }
            let pin = Pin::new(*self, number as u32);
            if pin.shared(&WaitForever).is_ok_and(|guard| guard.page().is_cold()) {
                keys.push(key);
            }
        }
        keys
    }
}

impl<P: Borrow<Pin>> Exclusive<P> {
    /// Makes the page a cold one that is not to be written: the store has its segment.
    pub fn turn_cold(&mut self) {
        let block = self.key().page.as_block().unwrap_or(0);
        self.page_mut().turn_cold(block);
        self.mark_clean();
    }
}
