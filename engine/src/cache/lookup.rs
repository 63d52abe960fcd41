//! Finds the frame of a page, takes frames away from cold pages, and asks the worker for what is missing.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::frame::{CLAIMED, DIRTY, Frame, LOADING, PINS, QUEUED, REPLAYED, TAGGED, VALID};
use super::header::raise;
use super::latch::{Wait, WaitForever};
use super::{Cache, Pin, futex, load_report};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::PageKey;

const END: u32 = u32::MAX;

/// Waits of 100 ms for a clean frame after which a failing store is reported.
const CLEAN_WAITS_MAX: u32 = 100;

/// How long all frames may be pinned before a wait for one ends: whoever pins many and waits for one more waits for himself.
const ALL_PINNED_LIMIT: Duration = Duration::from_secs(10);

const CACHE_IS_FULL: &str = "the KalamDB store takes no writes and its cache is full";

#[cold]
fn all_in_use() -> Error {
    Error::new(ErrorKind::OutOfMemory, "all pages of the KalamDB cache are in use at the same time")
        .with_hint("Raise \"kalam.cache_size\", or use fewer tables or partitions at a time.")
}

/// What tagging a frame for a page found.
enum Tagged {
    /// The page was there already; it is pinned.
    Present(u32),
    /// The caller's frame holds the page's tag now; it is pinned.
    New(u32),
}

fn hash(key: PageKey) -> u32 {
    let mixed = (key.storage.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ key.page.0).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    (mixed >> 32) as u32
}

impl Cache {
    fn bucket(&self, hash: u32) -> &std::sync::atomic::AtomicU32 {
        &self.bucket_heads()[(hash & (self.region.layout.buckets - 1)) as usize]
    }

    /// The chain of a bucket without its latch: may miss a page while others change the chain, never finds a wrong one.
    #[inline]
    fn find_unlatched(&self, key: PageKey, hash: u32) -> Option<u32> {
        let mut number = self.bucket(hash).load(Ordering::Acquire);
        for _ in 0..32 {
            if number >= self.region.layout.frames {
                return None;
            }
            let frame = self.frame(number);
            if frame.key() == key && frame.pin(key) {
                return Some(number);
            }
            number = frame.next.load(Ordering::Acquire);
        }
        None
    }

    /// The chain of a bucket, with its partition latched by the caller.
    fn find_latched(&self, key: PageKey, hash: u32) -> Option<u32> {
        let mut number = self.bucket(hash).load(Ordering::Acquire);
        while number != END {
            let frame = self.frame(number);
            if frame.key() == key && frame.state.load(Ordering::Acquire) & TAGGED != 0 {
                return Some(number);
            }
            number = frame.next.load(Ordering::Acquire);
        }
        None
    }

    fn find(&self, key: PageKey, hash: u32) -> Option<u32> {
        if let Some(number) = self.find_unlatched(key, hash) {
            return Some(number);
        }
        let latch = self.partition_latch(hash);
        latch.lock_shared(&WaitForever).ok()?;
        let found = self.find_latched(key, hash).filter(|number| self.frame(*number).pin(key));
        latch.unlock_shared();
        found
    }

    /// Pins a page if it is in the cache with its content.
    #[inline]
    pub fn lookup(&self, key: PageKey) -> Option<Pin> {
        let number = self.find_unlatched(key, hash(key))?;
        let frame = self.frame(number);
        if frame.state.load(Ordering::Acquire) & VALID != 0 {
            load_report::count_page();
            if frame.report.load(Ordering::Relaxed) != 0 {
                load_report::take(&frame.report);
            }
            return Some(Pin::new(*self, number));
        }
        frame.unpin();
        None
    }

    /// Pins a page, loading it through the worker when it is not in the cache.
    ///
    /// A page that the store does not have comes as a page of kind 0.
    ///
    /// # Errors
    /// What `wait` ends the wait with; `Corrupt` or `Io` when the page cannot be read; `DiskFull` or `Io` when no frame is
    /// free because the store takes no writes.
    #[inline]
    pub fn read(&self, key: PageKey, wait: &dyn Wait) -> Result<Pin> {
        match self.lookup(key) {
            Some(pin) => Ok(pin),
            None => self.read_slow(key, wait),
        }
    }

    #[cold]
    fn read_slow(&self, key: PageKey, wait: &dyn Wait) -> Result<Pin> {
        load_report::count_page();
        loop {
            if let Some(number) = self.find_or_request(key, wait)?
                && let Some(pin) = self.await_load(number, key, wait)?
            {
                return Ok(pin);
            }
        }
    }

    /// Starts to load a page without waiting for it.
    pub fn prefetch(&self, key: PageKey) {
        let hash = hash(key);
        if let Some(number) = self.find_unlatched(key, hash) {
            self.frame(number).unpin();
            return;
        }
        let Some(claimed) = self.claim_once(256) else { return };
        match self.tag(claimed, key, hash, LOADING | QUEUED) {
            Tagged::New(number) if !self.queue_load(number) => self.abandon(number),
            Tagged::New(number) | Tagged::Present(number) => self.frame(number).unpin(),
        }
    }

    /// The frame of the page, pinned: the one it has, or one that was queued for the worker.
    fn find_or_request(&self, key: PageKey, wait: &dyn Wait) -> Result<Option<u32>> {
        let hash = hash(key);
        if let Some(number) = self.find(key, hash) {
            return Ok(Some(number));
        }
        let claimed = self.claim(wait)?;
        match self.tag(claimed, key, hash, LOADING | QUEUED) {
            Tagged::Present(number) => Ok(Some(number)),
            Tagged::New(number) => {
                if self.queue_load(number) {
                    return Ok(Some(number));
                }
                self.abandon(number);
                std::thread::sleep(Duration::from_millis(1));
                wait.pause()?;
                Ok(None)
            }
        }
    }

    /// Pins a page if it has a frame, with its content or without.
    pub(super) fn find_pinned(&self, key: PageKey) -> Option<Pin> {
        self.find(key, hash(key)).map(|number| Pin::new(*self, number))
    }

    /// Pins the frame of a page, giving it one to be filled by the caller when it has none.
    pub(super) fn tag_for_replay(&self, key: PageKey, wait: &dyn Wait) -> Result<Pin> {
        let claimed = self.claim(wait)?;
        let (Tagged::New(number) | Tagged::Present(number)) = self.tag(claimed, key, hash(key), LOADING);
        Ok(Pin::new(*self, number))
    }

    /// Gives a page that is not in the cache a frame that nobody fills; nothing when it is there now or no frame is free at once.
    pub(super) fn reserve(&self, key: PageKey) -> Option<Pin> {
        let claimed = self.claim_once(self.region.layout.frames as usize * 7)?;
        match self.tag(claimed, key, hash(key), LOADING) {
            Tagged::New(number) => Some(Pin::new(*self, number)),
            Tagged::Present(number) => {
                self.frame(number).unpin();
                None
            }
        }
    }

    fn queue_load(&self, number: u32) -> bool {
        if !self.load_queue().push(number) {
            return false;
        }
        let header = self.header();
        header.counters.loads.fetch_add(1, Ordering::Relaxed);
        header.load_wake.fetch_add(1, Ordering::SeqCst);
        if header.load_sleepers.load(Ordering::SeqCst) != 0 {
            futex::wake_one(&header.load_wake);
        }
        true
    }

    /// Waits until a pinned frame has its content; nothing when the load was given up and is to be tried again.
    fn await_load(&self, number: u32, key: PageKey, wait: &dyn Wait) -> Result<Option<Pin>> {
        let frame = self.frame(number);
        let pin = Pin::new(*self, number);
        loop {
            let word = frame.loaded.load(Ordering::Acquire);
            let state = frame.state.load(Ordering::Acquire);
            if state & VALID != 0 {
                load_report::take(&frame.report);
                return Ok(Some(pin));
            }
            if state & (LOADING | REPLAYED) == 0 {
                return match frame.failure.load(Ordering::Acquire) {
                    0 => Ok(None),
                    failure => Err(self.load_error(failure, key)),
                };
            }
            futex::wait(&frame.loaded, word);
            wait.pause()?;
        }
    }

    /// Pins a frame for a page that does not exist yet; its content is undefined until the caller initialises it under the
    /// exclusive latch, unless another process got there first.
    ///
    /// # Errors
    /// As [`Cache::read`].
    pub fn create_page(&self, key: PageKey, wait: &dyn Wait) -> Result<Pin> {
        let hash = hash(key);
        if self.find(key, hash).is_some_and(|number| {
            self.frame(number).unpin();
            true
        }) {
            return self.read(key, wait);
        }
        let claimed = self.claim(wait)?;
        // The first bytes say "kind 0" to whoever finds the page before its creator has initialised it.
        self.blank(claimed);
        match self.tag(claimed, key, hash, VALID) {
            Tagged::Present(number) => {
                self.frame(number).unpin();
                self.read(key, wait)
            }
            Tagged::New(number) => {
                self.header().counters.creates.fetch_add(1, Ordering::Relaxed);
                Ok(Pin::new(*self, number))
            }
        }
    }

    /// Gives a claimed frame the tag of a page and one pin, unless the page has a frame.
    fn tag(&self, claimed: u32, key: PageKey, hash: u32, content: u64) -> Tagged {
        let frame = self.frame(claimed);
        let latch = self.partition_latch(hash);
        let _ = latch.lock_exclusive(&WaitForever);
        while let Some(number) = self.find_latched(key, hash) {
            let found = self.frame(number);
            if found.pin(key) {
                latch.unlock_exclusive();
                frame.state.store(0, Ordering::Release);
                return Tagged::Present(number);
            }
            if !found.is_dirty() {
                // The frame with this tag is claimed by an evictor that waits for this partition to unlink it: unlink it here.
                self.unlink(number, hash);
                break;
            }
            // A changed page is claimed by `discard`, which is about to drop it or to leave it alone: its change is nobody else's to drop.
            latch.unlock_exclusive();
            std::thread::yield_now();
            let _ = latch.lock_exclusive(&WaitForever);
        }
        frame.set_key(key);
        frame.failure.store(0, Ordering::Relaxed);
        frame.report.store(0, Ordering::Relaxed);
        frame.next.store(self.bucket(hash).load(Ordering::Relaxed), Ordering::Relaxed);
        frame.state.store(TAGGED | content | 1, Ordering::Release);
        self.bucket(hash).store(claimed, Ordering::Release);
        latch.unlock_exclusive();
        Tagged::New(claimed)
    }

    /// Takes a clean frame, waiting for the writer when there is none.
    fn claim(&self, wait: &dyn Wait) -> Result<u32> {
        let mut waits = 0;
        let mut all_pinned_since = None;
        loop {
            let header = self.header();
            let cleaned = header.cleaned.load(Ordering::Acquire);
            if let Some(number) = self.claim_once(self.region.layout.frames as usize * 7) {
                return Ok(number);
            }
            header.counters.clean_waits.fetch_add(1, Ordering::Relaxed);
            raise(&header.writer_wake);
            futex::wait(&header.cleaned, cleaned);
            wait.pause()?;
            if self.has_unpinned_memory() {
                all_pinned_since = None;
            } else if all_pinned_since.get_or_insert_with(Instant::now).elapsed() > ALL_PINNED_LIMIT {
                return Err(all_in_use());
            }
            waits += 1;
            if waits >= CLEAN_WAITS_MAX
                && let Some(failure) = header.store_failure(CACHE_IS_FULL)
            {
                return Err(failure);
            }
        }
    }

    /// Waits until pages take about as much memory as they may; no latch is held.
    ///
    /// # Errors
    /// What `wait` ends the wait with; `DiskFull` or `Io` when the store takes no writes; `OutOfMemory` when no memory can be given back.
    #[cold]
    pub fn await_memory(&self, wait: &dyn Wait) -> Result<()> {
        let mut waits = 0;
        let mut stuck_since = None;
        while self.memory_is_far_exceeded() {
            let header = self.header();
            let cleaned = header.cleaned.load(Ordering::Acquire);
            header.counters.clean_waits.fetch_add(1, Ordering::Relaxed);
            raise(&header.writer_wake);
            futex::wait(&header.cleaned, cleaned);
            wait.pause()?;
            if !self.memory_is_stuck() {
                stuck_since = None;
            } else if stuck_since.get_or_insert_with(Instant::now).elapsed() > ALL_PINNED_LIMIT {
                return Err(all_in_use());
            }
            waits += 1;
            if waits >= CLEAN_WAITS_MAX
                && let Some(failure) = header.store_failure(CACHE_IS_FULL)
            {
                return Err(failure);
            }
        }
        Ok(())
    }

    /// Goes round the frames at most `steps` steps for one that can be taken away; it comes untagged and claimed, and may be written to.
    pub(super) fn claim_once(&self, steps: usize) -> Option<u32> {
        let claimed = self.claim_any(steps);
        claimed.inspect(|number| self.occupy(*number))
    }

    /// As [`Cache::claim_once`], for a frame to which nothing is written.
    ///
    /// When memory is used up only a frame that has some will do, and when pages have grown beyond it the first ones give theirs back.
    pub(super) fn claim_any(&self, steps: usize) -> Option<u32> {
        for _ in 0..steps {
            let number = self.header().clock_hand.fetch_add(1, Ordering::Relaxed) % self.region.layout.frames;
            let frame = self.frame(number);
            if (self.memory_is_full() && !self.has_memory(number)) || !frame.try_claim() {
                continue;
            }
            if frame.state.load(Ordering::Relaxed) & TAGGED != 0 {
                self.header().counters.evictions.fetch_add(1, Ordering::Relaxed);
                self.untag(number);
            }
            if self.memory_is_exceeded() && self.release_memory(number) {
                frame.state.store(0, Ordering::Release);
                continue;
            }
            return Some(number);
        }
        None
    }

    /// Takes a claimed frame out of its chain.
    fn untag(&self, number: u32) {
        let frame = self.frame(number);
        let hash = hash(frame.key());
        let latch = self.partition_latch(hash);
        let _ = latch.lock_exclusive(&WaitForever);
        if frame.state.load(Ordering::Relaxed) & TAGGED != 0 {
            self.unlink(number, hash);
        }
        latch.unlock_exclusive();
    }

    /// Takes a frame out of the chain of its bucket; the caller holds the partition's latch.
    fn unlink(&self, number: u32, hash: u32) {
        let frame = self.frame(number);
        let mut link = self.bucket(hash);
        loop {
            let current = link.load(Ordering::Relaxed);
            if current == number {
                link.store(frame.next.load(Ordering::Relaxed), Ordering::Release);
                break;
            }
            if current == END {
                break;
            }
            link = &self.frame(current).next;
        }
        // The key stays: whoever has claimed the frame finds by it the partition whose latch to take.
        frame.state.fetch_and(!(TAGGED | VALID), Ordering::Release);
    }

    /// Gives up a frame that was tagged for a load and never queued, or whose load failed.
    pub(super) fn abandon(&self, number: u32) {
        let frame = self.frame(number);
        let hash = hash(frame.key());
        let latch = self.partition_latch(hash);
        let _ = latch.lock_exclusive(&WaitForever);
        if frame.state.load(Ordering::Relaxed) & TAGGED != 0 {
            self.unlink(number, hash);
        }
        frame.state.fetch_and(!(LOADING | QUEUED), Ordering::Release);
        latch.unlock_exclusive();
        raise(&frame.loaded);
        frame.unpin();
    }

    /// Drops the pages for which `doomed` answers true, changed or not; returns how many could not be dropped because
    /// somebody uses them.
    pub fn discard(&self, doomed: &dyn Fn(PageKey) -> bool) -> usize {
        let mut busy = 0;
        for number in 0..self.region.layout.frames {
            let frame = self.frame(number);
            if frame.state.load(Ordering::Acquire) & TAGGED == 0 || !doomed(frame.key()) {
                continue;
            }
            if !frame.try_claim_to_discard() {
                busy += 1;
                continue;
            }
            if doomed(frame.key()) {
                self.untag(number);
            }
            if frame.state.load(Ordering::Relaxed) & TAGGED != 0 {
                frame.state.fetch_and(!CLAIMED, Ordering::Release);
                continue;
            }
            if frame.is_dirty() {
                self.count_clean(frame);
            }
            frame.state.store(0, Ordering::Release);
        }
        busy
    }

    /// Number of frames with a page, and of those pinned at the moment.
    pub fn occupancy(&self) -> (u32, u32) {
        let used = |frame: &&Frame| frame.state.load(Ordering::Relaxed) & TAGGED != 0;
        let pinned = |frame: &&Frame| frame.state.load(Ordering::Relaxed) & PINS != 0;
        (self.frames().iter().filter(used).count() as u32, self.frames().iter().filter(used).filter(pinned).count() as u32)
    }

    /// Whether a page is in the cache and changed.
    pub fn is_dirty(&self, key: PageKey) -> bool {
        self.find(key, hash(key)).is_some_and(|number| {
            let dirty = self.frame(number).state.load(Ordering::Relaxed) & DIRTY != 0;
            self.frame(number).unpin();
            dirty
        })
    }
}
