//! Where everything lies in the shared region, and how it is made and attached.

use std::mem::size_of;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use super::failure::LoadFailures;
use super::frame::Frame;
use super::header::{Header, LAYOUT_VERSION, MAGIC};
use super::job_board::JobBoard;
use super::latch::Latch;
use super::load_queue::LoadQueue;
use super::memory::{Edge, HEAD};
use super::recent::Recent;
use super::requests::RequestBoard;
use super::storage_table::StorageDescriptor;
use super::{Cache, FRAME_UNITS, MEMORY_UNIT, Region};
use crate::error::{Error, ErrorKind, Result};
use crate::page::PAGE_SIZE;

/// Latches that guard the chains of frames; a power of two.
pub(super) const PARTITIONS: u32 = 128;

/// The sizes of a cache.
#[derive(Clone, Copy, Debug)]
pub struct CacheConfig {
    /// Number of whole pages that there is memory for; at least 16.
    pub pages: u32,
    /// Frames for each of them, so that as many small pages fit into that memory. More than one demands a region whose memory comes
    /// when it is touched and can be given back in units of 4 KB.
    pub frames_per_page: u32,
    /// Most storages that can exist at a time.
    pub storages: u32,
}

/// Offsets of the parts of the region, in bytes.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) frames: u32,
    pub(super) storages: u32,
    pub(super) buckets: u32,
    load_queue: usize,
    load_failures: usize,
    requests: usize,
    job_board: usize,
    recent: usize,
    partitions: usize,
    bucket_heads: usize,
    storage_buckets: usize,
    storage_descriptors: usize,
    frame_descriptors: usize,
    pages: usize,
    total: usize,
}

impl CacheConfig {
    fn layout(&self) -> Layout {
        Layout::new(self.whole_pages().saturating_mul(self.frames_per_page.max(1)), self.storages.max(64))
    }

    fn whole_pages(&self) -> u32 {
        self.pages.max(16)
    }
}

impl Layout {
    fn new(frames: u32, storages: u32) -> Layout {
        let buckets = frames.next_power_of_two();
        let mut end = 0usize;
        let mut place = |bytes: usize, align: usize| {
            let start = end.next_multiple_of(align);
            end = start + bytes;
            start
        };
        place(size_of::<Header>(), 4096);
        let load_queue = place(size_of::<LoadQueue>(), 64);
        let load_failures = place(size_of::<LoadFailures>(), 64);
        let requests = place(size_of::<RequestBoard>(), 64);
        let job_board = place(size_of::<JobBoard>(), 64);
        let recent = place(size_of::<Recent>(), 64);
        let partitions = place(PARTITIONS as usize * 64, 64);
        let bucket_heads = place(buckets as usize * 4, 64);
        let storage_buckets = place(storages as usize * 4, 64);
        let storage_descriptors = place(storages as usize * size_of::<StorageDescriptor>(), 64);
        // One more, for the edge behind the last frame.
        let frame_descriptors = place((frames as usize + 1) * size_of::<Frame>(), 64);
        let first_edge = place(MEMORY_UNIT + frames as usize * PAGE_SIZE, MEMORY_UNIT);
        let pages = first_edge + MEMORY_UNIT - HEAD;
        Layout {
            frames,
            storages,
            buckets,
            load_queue,
            load_failures,
            requests,
            job_board,
            recent,
            partitions,
            bucket_heads,
            storage_buckets,
            storage_descriptors,
            frame_descriptors,
            pages,
            total: end,
        }
    }
}

impl Cache {
    /// Bytes that a region with these sizes needs.
    pub fn required_bytes(config: &CacheConfig) -> usize {
        config.layout().total
    }

    /// Makes an empty cache in a region of zeroes.
    ///
    /// # Safety
    /// `base` points to `len` bytes, zeroed, aligned to 4096, that stay mapped as long as any copy of the handle is used, and
    /// nobody else uses them yet.
    ///
    /// # Errors
    /// `LimitExceeded` when the region is too small.
    pub unsafe fn create(base: *mut u8, len: usize, config: &CacheConfig) -> Result<Cache> {
        let layout = config.layout();
        if len < layout.total {
            return Err(Error::new(ErrorKind::LimitExceeded, "shared memory for the KalamDB engine is too small")
                .with_detail(format!("It has {len} bytes and needs {}.", layout.total)));
        }
        let cache = Cache { region: Box::leak(Box::new(Region { base, layout })) };
        let header = cache.header();
        header.clear_for_use();
        header.layout_version.store(LAYOUT_VERSION, Ordering::Relaxed);
        header.frames.store(layout.frames, Ordering::Relaxed);
        header.storages.store(layout.storages, Ordering::Relaxed);
        header.memory_units.store(u64::from(config.whole_pages()) * u64::from(FRAME_UNITS), Ordering::Relaxed);
        cache.load_queue().format();
        cache.load_failures().format();
        cache.requests().format();
        cache.jobs().format();
        cache.recent().format();
        for bucket in cache.bucket_heads() {
            bucket.store(u32::MAX, Ordering::Relaxed);
        }
        cache.storages().format();
        header.magic.store(MAGIC, Ordering::Release);
        Ok(cache)
    }

    /// Attaches a region that another process made.
    ///
    /// # Safety
    /// `base` points to `len` bytes aligned to 4096 that stay mapped as long as any copy of the handle is used.
    ///
    /// # Errors
    /// `Unavailable` when the region was laid out by another version of the library, `Internal` when it is no cache.
    pub unsafe fn attach(base: *mut u8, len: usize) -> Result<Cache> {
        if len < size_of::<Header>() {
            return Err(Error::internal("shared memory of the KalamDB engine is cut short"));
        }
        // SAFETY: the caller vouches for the memory; a header fits, as just checked, and its fields are atomics.
        let header = unsafe { &*base.cast::<Header>() };
        if header.magic.load(Ordering::Acquire) != MAGIC {
            return Err(Error::internal("shared memory of the KalamDB engine has no valid header"));
        }
        let version = header.layout_version.load(Ordering::Relaxed);
        if version != LAYOUT_VERSION {
            return Err(Error::new(ErrorKind::Unavailable, "the KalamDB library does not fit the running engine")
                .with_detail(format!("The engine uses memory layout {version}, this library layout {LAYOUT_VERSION}."))
                .with_hint("Restart the server, so that both come from the same installation."));
        }
        let layout = Layout::new(header.frames.load(Ordering::Relaxed), header.storages.load(Ordering::Relaxed));
        if len < layout.total {
            return Err(Error::internal("shared memory of the KalamDB engine is cut short"));
        }
        Ok(Cache { region: Box::leak(Box::new(Region { base, layout })) })
    }

    fn part<T>(&self, offset: usize, count: usize) -> &[T] {
        debug_assert!(offset + count * size_of::<T>() <= self.region.layout.total);
        // SAFETY: the layout keeps every part inside the region and aligned; T is made of atomics only.
        unsafe { std::slice::from_raw_parts(self.region.base.add(offset).cast::<T>(), count) }
    }

    /// The fields at the start of the region.
    #[inline]
    pub fn header(&self) -> &Header {
        &self.part::<Header>(0, 1)[0]
    }

    pub(super) fn load_queue(&self) -> &LoadQueue {
        &self.part::<LoadQueue>(self.region.layout.load_queue, 1)[0]
    }

    pub(super) fn load_failures(&self) -> &LoadFailures {
        &self.part::<LoadFailures>(self.region.layout.load_failures, 1)[0]
    }

    pub(super) fn requests(&self) -> &RequestBoard {
        &self.part::<RequestBoard>(self.region.layout.requests, 1)[0]
    }

    /// Where jobs are asked for and watched.
    pub fn jobs(&self) -> &JobBoard {
        &self.part::<JobBoard>(self.region.layout.job_board, 1)[0]
    }

    /// What processes tell each other that they have met.
    pub fn recent(&self) -> &Recent {
        &self.part::<Recent>(self.region.layout.recent, 1)[0]
    }

    pub(super) fn partition_latch(&self, hash: u32) -> &Latch {
        &self.part::<Latch>(self.region.layout.partitions + (hash % PARTITIONS) as usize * 64, 1)[0]
    }

    #[inline]
    pub(super) fn bucket_heads(&self) -> &[AtomicU32] {
        self.part(self.region.layout.bucket_heads, self.region.layout.buckets as usize)
    }

    pub(super) fn storage_buckets(&self) -> &[AtomicU32] {
        self.part(self.region.layout.storage_buckets, self.region.layout.storages as usize)
    }

    pub(super) fn storage_descriptors(&self) -> &[StorageDescriptor] {
        self.part(self.region.layout.storage_descriptors, self.region.layout.storages as usize)
    }

    #[inline]
    pub(super) fn frames(&self) -> &[Frame] {
        self.part(self.region.layout.frame_descriptors, self.region.layout.frames as usize)
    }

    #[inline]
    pub(super) fn frame(&self, number: u32) -> &Frame {
        &self.frames()[number as usize]
    }

    /// The edge before a frame, or behind the last one.
    #[inline]
    pub(super) fn edge(&self, number: u32) -> &Edge {
        &self.part::<Frame>(self.region.layout.frame_descriptors, self.region.layout.frames as usize + 1)[number as usize].edge
    }

    #[inline]
    pub(super) fn page_pointer(&self, frame: u32) -> *mut u8 {
        debug_assert!(frame < self.region.layout.frames);
        // SAFETY: the layout keeps the page of every frame inside the region.
        unsafe { self.region.base.add(self.region.layout.pages + frame as usize * PAGE_SIZE) }
    }

    /// Whether memory can be given back: not if all of it was there from the start, as it might not be had again.
    pub(super) fn can_give_back(&self) -> bool {
        self.memory_units() < u64::from(self.frame_count()) * u64::from(FRAME_UNITS)
    }

    /// Gives units of a frame that the caller has to itself back to the operating system; the bytes read as zero then.
    pub(super) fn give_back(&self, frame: u32, range: Range<usize>) -> bool {
        if range.is_empty() {
            return true;
        }
        if !self.can_give_back() {
            return false;
        }
        // SAFETY: the range lies in the frame, which nobody else reads or writes.
        unsafe { libc::madvise(self.page_pointer(frame).add(range.start).cast(), range.len(), libc::MADV_REMOVE) == 0 }
    }

    /// As [`Cache::give_back`] with the unit of an edge that no frame uses.
    pub(super) fn give_edge_back(&self, edge: u32) -> bool {
        debug_assert!(edge <= self.region.layout.frames);
        let start = self.region.layout.pages + edge as usize * PAGE_SIZE + HEAD - MEMORY_UNIT;
        // SAFETY: the layout keeps the edges on both sides of every frame inside the region; nobody reads or writes this one.
        unsafe { libc::madvise(self.region.base.add(start).cast(), MEMORY_UNIT, libc::MADV_REMOVE) == 0 }
    }
}

/// A shared mapping made from a file descriptor: for tests with several processes and for tools.
pub struct SharedMemory {
    base: *mut u8,
    len: usize,
}

impl SharedMemory {
    /// Maps `len` bytes of a file that all processes share.
    ///
    /// # Errors
    /// The operating system's refusal.
    pub fn map(file: &std::fs::File, len: usize) -> Result<SharedMemory> {
        use std::os::fd::AsRawFd;
        // SAFETY: a fresh mapping of the caller's file; nothing else is touched.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        Ok(SharedMemory { base: base.cast(), len })
    }

    /// Makes an empty cache in it. The mapping must not be dropped while the cache is used.
    ///
    /// # Errors
    /// As [`Cache::create`].
    pub fn create_cache(&self, config: &CacheConfig) -> Result<Cache> {
        // SAFETY: the mapping is page aligned and as long as said; a new file reads as zeroes.
        unsafe { Cache::create(self.base, self.len, config) }
    }

    /// Attaches the cache that another process made in it. The mapping must not be dropped while the cache is used.
    ///
    /// # Errors
    /// As [`Cache::attach`].
    pub fn attach_cache(&self) -> Result<Cache> {
        // SAFETY: the mapping is page aligned and as long as said.
        unsafe { Cache::attach(self.base, self.len) }
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` and is unmapped once.
        unsafe {
            libc::munmap(self.base.cast(), self.len);
        }
    }
}
