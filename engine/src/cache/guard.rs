//! Pins and latches on pages, given back when they are dropped.

use std::borrow::Borrow;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::atomic::{AtomicU16, Ordering};

use super::Cache;
use super::frame::Frame;
use super::latch::Wait;
use super::memory::Extent;
use crate::error::Result;
use crate::ids::{Lsn, PageKey};
use crate::page::{PAGE_SIZE, Page, PageMut};

/// Keeps a page in its frame; neither evicted nor compacted as long as the pin lives.
pub struct Pin {
    cache: Cache,
    frame: u32,
}

impl Pin {
    #[inline]
    pub(super) fn new(cache: Cache, frame: u32) -> Pin {
        Pin { cache, frame }
    }

    #[inline]
    fn descriptor(&self) -> &Frame {
        self.cache.frame(self.frame)
    }

    /// The page's name.
    #[inline]
    pub fn key(&self) -> PageKey {
        self.descriptor().key()
    }

    /// The number of the frame.
    #[inline]
    pub fn frame(&self) -> u32 {
        self.frame
    }

    /// Where the page lies in this process. Row versions read through it stay in place as long as a pin lives; their headers
    /// may change meanwhile.
    #[inline]
    pub fn data(&self) -> *const u8 {
        self.cache.page_pointer(self.frame)
    }

    /// Gives the pin out of Rust's hands; [`Cache::adopt_pin`] takes it back.
    #[inline]
    pub fn into_frame(self) -> u32 {
        let frame = self.frame;
        std::mem::forget(self);
        frame
    }

    /// A second pin on the same page.
    #[inline]
    pub fn duplicate(&self) -> Pin {
        self.descriptor().add_pin();
        Pin { cache: self.cache, frame: self.frame }
    }

    /// Whether the page is changed and not yet written back.
    #[inline]
    pub fn is_dirty(&self) -> bool {
        self.descriptor().is_dirty()
    }

    /// Whether nobody else pins the page at the moment.
    pub fn is_sole(&self) -> bool {
        self.descriptor().pins() == 1
    }

    /// Latches the page for reading.
    ///
    /// # Errors
    /// What `wait` ends the wait with.
    #[inline]
    pub fn shared(&self, wait: &dyn Wait) -> Result<SharedGuard<'_>> {
        self.descriptor().latch.lock_shared(wait)?;
        Ok(SharedGuard { pin: self })
    }

    /// Latches the page for writing.
    ///
    /// # Errors
    /// What `wait` ends the wait with.
    #[inline]
    pub fn exclusive(&self, wait: &dyn Wait) -> Result<ExclusiveGuard<'_>> {
        self.descriptor().latch.lock_exclusive(wait)?;
        Ok(Exclusive { pin: self })
    }

    /// Latches the page for writing and keeps the pin with the latch.
    ///
    /// # Errors
    /// What `wait` ends the wait with.
    #[inline]
    pub fn into_exclusive(self, wait: &dyn Wait) -> Result<LatchedPage> {
        self.descriptor().latch.lock_exclusive(wait)?;
        Ok(Exclusive { pin: self })
    }

    /// Latches the page for writing if nobody holds it.
    #[inline]
    pub fn try_exclusive(&self) -> Option<ExclusiveGuard<'_>> {
        if self.descriptor().latch.try_lock_exclusive() { Some(Exclusive { pin: self }) } else { None }
    }

    /// Takes the latch for writing if nobody holds it; the caller makes a guard of it.
    pub(super) fn try_latch(&self) -> bool {
        self.descriptor().latch.try_lock_exclusive()
    }

    /// Sets bits of a 16-bit word of the page (a version's infomask at `offset`, which is even) under any latch or none:
    /// hints that any process may set at any time and that may be lost.
    #[inline]
    pub fn set_hint(&self, offset: usize, bits: u16) {
        assert!(offset.is_multiple_of(2) && offset + 2 <= PAGE_SIZE, "a hint lies within its page");
        // SAFETY: the word lies inside the pinned page and is aligned; other processes change it atomically or under the
        // exclusive latch only.
        let word = unsafe { AtomicU16::from_ptr(self.cache.page_pointer(self.frame).add(offset).cast::<u16>()) };
        word.fetch_or(bits, Ordering::Relaxed);
    }

    /// Lets the page be evicted before others: for scans, which seldom come back.
    pub fn cool(&self) {
        self.descriptor().cool();
    }
}

impl Drop for Pin {
    #[inline]
    fn drop(&mut self) {
        self.descriptor().unpin();
    }
}

impl Cache {
    /// Takes back a pin that [`Pin::into_frame`] gave out.
    #[inline]
    pub fn adopt_pin(&self, frame: u32) -> Pin {
        Pin::new(*self, frame)
    }

    /// Writes "kind 0" into a claimed frame.
    pub(super) fn blank(&self, frame: u32) {
        self.zero(frame);
    }

    /// The bytes of a frame that the caller has claimed, is loading or has latched for writing.
    #[allow(clippy::mut_from_ref, reason = "the exclusive latch or the loading state is the borrow")]
    pub(super) fn bytes_mut(&self, frame: u32) -> &mut [u8; PAGE_SIZE] {
        // SAFETY: the callers hold the frame exclusively, as said above; the page lies inside the region.
        unsafe { &mut *self.page_pointer(frame).cast::<[u8; PAGE_SIZE]>() }
    }

    /// The bytes of a frame that the caller has latched.
    #[inline]
    pub(super) fn bytes(&self, frame: u32) -> &[u8; PAGE_SIZE] {
        // SAFETY: the callers hold the latch, so that only hints change, which no reader depends on.
        unsafe { &*self.page_pointer(frame).cast::<[u8; PAGE_SIZE]>() }
    }
}

/// A page latched for reading.
pub struct SharedGuard<'p> {
    pin: &'p Pin,
}

impl SharedGuard<'_> {
    /// The page.
    #[inline]
    pub fn page(&self) -> Page<'_> {
        Page::new(self.pin.cache.bytes(self.pin.frame))
    }

    /// Its bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8; PAGE_SIZE] {
        self.pin.cache.bytes(self.pin.frame)
    }
}

impl Deref for SharedGuard<'_> {
    type Target = Pin;

    fn deref(&self) -> &Pin {
        self.pin
    }
}

impl Drop for SharedGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.pin.descriptor().latch.unlock_shared();
    }
}

/// A page latched for writing, with the pin borrowed or owned.
pub struct Exclusive<P: Borrow<Pin>> {
    pin: P,
}

/// A page latched for writing under a pin of the caller.
pub type ExclusiveGuard<'p> = Exclusive<&'p Pin>;

/// A page latched for writing together with its pin.
pub type LatchedPage = Exclusive<Pin>;

impl<P: Borrow<Pin>> Exclusive<P> {
    #[inline]
    fn pinned(&self) -> &Pin {
        self.pin.borrow()
    }

    /// The page.
    #[inline]
    pub fn page(&self) -> Page<'_> {
        Page::new(self.bytes())
    }

    /// The page, to be changed.
    #[inline]
    pub fn page_mut(&mut self) -> PageMut<'_> {
        PageMut::new(self.bytes_mut())
    }

    /// Its bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8; PAGE_SIZE] {
        let pin = self.pinned();
        pin.cache.bytes(pin.frame)
    }

    /// Its bytes, to be changed.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8; PAGE_SIZE] {
        let (cache, frame) = (self.pinned().cache, self.pinned().frame);
        // SAFETY: the latch is held for writing as long as the borrow of this guard.
        unsafe { &mut *cache.page_pointer(frame).cast::<[u8; PAGE_SIZE]>() }
    }

    /// Notes that the page changes: `rec_lsn` is the log's insert position read after the latch was taken and before the
    /// change's record is inserted.
    #[inline]
    pub fn mark_dirty(&self, rec_lsn: Lsn) {
        let pin = self.pinned();
        if pin.descriptor().set_dirty(rec_lsn) {
            pin.cache.count_dirty(pin.descriptor());
        }
    }

    /// Notes that the store has what is in the page.
    pub(super) fn mark_clean(&self) {
        let pin = self.pinned();
        if pin.descriptor().is_dirty() {
            pin.descriptor().clear_dirty();
            pin.cache.count_clean(pin.descriptor());
        }
    }

    /// Counts what the page takes of memory after the changes, and gives the latch back.
    #[inline]
    fn unlatch(&self) {
        let pin = self.pinned();
        let frame = pin.descriptor();
        pin.cache.note_extent(frame, Extent::of(self.page()));
        frame.latch.unlock_exclusive();
    }

    /// The guard of a latch that was taken.
    pub(super) fn over(pin: P) -> Exclusive<P> {
        Exclusive { pin }
    }

    /// Whether nobody else pins the page, so that versions may move within it.
    pub fn sole_pin(&self) -> bool {
        self.pinned().is_sole()
    }
}

impl LatchedPage {
    /// Gives the latch back and keeps the pin.
    pub fn into_pin(self) -> Pin {
        let this = ManuallyDrop::new(self);
        this.unlatch();
        // SAFETY: the guard is not dropped, so the pin is moved out once.
        unsafe { std::ptr::read(&this.pin) }
    }
}

impl<P: Borrow<Pin>> Deref for Exclusive<P> {
    type Target = Pin;

    #[inline]
    fn deref(&self) -> &Pin {
        self.pinned()
    }
}

impl<P: Borrow<Pin>> Drop for Exclusive<P> {
    #[inline]
    fn drop(&mut self) {
        self.unlatch();
    }
}
