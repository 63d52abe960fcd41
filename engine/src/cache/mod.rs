//! Owns the page cache in shared memory: frames, the way to find them, pins and latches, the queue of loads.
//!
//! Every process maps the same region and works on it in place: a hit costs no process switch. Whoever misses takes a clean
//! frame itself, tags it, and queues it for the worker, which alone can read the store; from then on the frame is the
//! worker's, and a requester that goes away leaves nothing behind. Only offsets stand in the region, never addresses.
//!
//! Invariant: the cache is a cache. Emptied at any moment between operations, every query still gives the same answer.

mod cooling;
mod eras;
mod failure;
mod flush_state;
mod frame;
pub mod futex;
mod guard;
mod header;
mod job_board;
mod latch;
mod layout;
mod load_queue;
mod load_report;
mod lookup;
mod memory;
mod recent;
mod recovery;
mod requests;
mod storage_table;
mod worker_side;

pub use cooling::{ForCooling, Reserved};
pub use eras::{Eras, Readers};
pub use flush_state::{FlushLimits, FlushNews, FlushState};
pub use frame::LoadFailure;
pub use guard::{Exclusive, ExclusiveGuard, LatchedPage, Pin, SharedGuard};
pub use header::{Counters, FAILURE_TEXT, Header, LAYOUT_VERSION, WorkerState, raise};
pub use job_board::{
    DatabaseWish, Duty, JOB_PROCESSES, JOB_REQUESTS, JOB_TEXT, JobBoard, JobProcess, PostedRequest, TakenRequest, monotonic_ms,
    wanted,
};
pub use latch::{Latch, Wait, WaitForever, set_latch_hooks};
pub use layout::{CacheConfig, SharedMemory};
pub use load_queue::LOAD_QUEUE;
pub use load_report::{LoadReport, LoadStatistics, load_statistics};
pub use recent::Recent;
pub use recovery::FoundPage;
pub use requests::{REQUEST_BYTES, REQUEST_SLOTS, Request, RequestClass};
pub use storage_table::{RelationFile, StorageDescriptor, StorageInfo, StorageTable};
pub use worker_side::{DirtyFrame, Load, WriteBack};

use crate::page::PAGE_SIZE;
use layout::Layout;

/// A handle on the shared region; cheap to copy, valid as long as the region stays mapped.
#[derive(Clone, Copy)]
pub struct Cache {
    region: &'static Region,
}

/// Where this process sees the region; made once per process and never given back.
struct Region {
    base: *mut u8,
    layout: Layout,
}

// SAFETY: everything behind the pointer is reached through atomics, or through latches that threads of all processes obey.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// The unit in which frames take memory, in bytes.
pub const MEMORY_UNIT: usize = 4096;
/// Units of a whole frame.
pub const FRAME_UNITS: u32 = (PAGE_SIZE / MEMORY_UNIT) as u32;

impl Cache {
    /// The table of storages.
    #[inline]
    pub fn storages(&self) -> StorageTable<'_> {
        StorageTable { cache: self }
    }

    /// Number of frames.
    pub fn frame_count(&self) -> u32 {
        self.region.layout.frames
    }
}
