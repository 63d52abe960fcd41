//! Our records in Postgres' write-ahead log: writing them and reading them back.
//!
//! A record is a logical message with database 0 and the prefix "kalamdb": recovery and replicas ignore it, decoding plugins
//! of any database skip it, and no resource manager has to be registered, so the library need not be preloaded.

mod insert;
mod reader;

pub use insert::insert;
pub use reader::Reader;

use std::sync::atomic::Ordering;

use kalamdb_engine::cache::{Cache, Wait, futex, raise};
use kalamdb_engine::ids::Lsn;
use pgrx::pg_sys;

use crate::error::OrRaise;
use crate::ffi::interrupts::BackendWait;

/// Number of the resource manager of logical messages.
const RM_LOGICALMSG: u8 = pg_sys::RmgrIds::RM_LOGICALMSG_ID as u8;

/// The only kind of record of that resource manager.
const XLOG_LOGICAL_MESSAGE: u8 = 0;

/// The prefix of our messages with the zero byte that ends it: its eight bytes keep the payload aligned.
const PREFIX: [u8; 8] = *b"kalamdb\0";

/// What stands before the payload: Postgres' `xl_logical_message` and our prefix.
#[repr(C)]
#[derive(Clone, Copy)]
struct MessageHead {
    database: u32,
    transactional: bool,
    padding: [u8; 3],
    prefix_size: usize,
    message_size: usize,
    prefix: [u8; 8],
}

const _: () = assert!(size_of::<MessageHead>() == 32);

/// The insert position of the log: where the next record starts at the earliest.
#[inline]
pub fn insert_lsn() -> Lsn {
    unsafe extern "C-unwind" {
        fn GetXLogInsertRecPtr() -> u64;
    }
    // SAFETY: reads shared memory under a spinlock and raises nothing, so it needs no guard.
    Lsn(unsafe { GetXLogInsertRecPtr() })
}

/// Where the last record ends: what to flush or to replay up to.
pub fn end_lsn() -> Lsn {
    record_end(insert_lsn())
}

/// Up to where the log is on disk.
pub fn flushed_lsn() -> Lsn {
    // SAFETY: reads shared memory; a null pointer asks for no timeline.
    Lsn(unsafe { pg_sys::GetFlushRecPtr(std::ptr::null_mut()) })
}

/// Brings the log to disk up to a position, at most up to its end.
pub fn flush(up_to: Lsn) {
    let up_to = up_to.min(end_lsn());
    // SAFETY: the position is not behind the end of the log, which would be an ERROR.
    unsafe { pg_sys::XLogFlush(up_to.0) };
}

/// The log that the server keeps for a slot at most, in bytes; none when it keeps all.
pub fn slot_limit() -> Option<u64> {
    // SAFETY: a setting, changed only by this process when it reads its configuration.
    let megabytes = unsafe { pg_sys::max_slot_wal_keep_size_mb };
    u64::try_from(megabytes).ok().map(|megabytes| megabytes << 20)
}

/// Holds a writer back while the log is so far ahead of the store that the server might soon remove what the store needs, or while
/// pages have outgrown the cache.
///
/// Called before a change, with no page latched. Costs two comparisons where the server keeps all log for slots.
#[inline]
pub fn wait_for_room(cache: &Cache) {
    if let Some(limit) = slot_limit() {
        wait_for_store(cache, limit / 2);
    }
    if cache.memory_is_far_exceeded() {
        cache.await_memory(&BackendWait::new(cache)).or_raise();
    }
}

fn wait_for_store(cache: &Cache, most: u64) {
    let header = cache.header();
    let is_far_ahead = || insert_lsn().0.saturating_sub(header.durable_lsn.load(Ordering::Acquire)) > most;
    if !is_far_ahead() {
        return;
    }
    let wait = BackendWait::new(cache);
    raise(&header.main_wake);
    loop {
        let seen = header.state_changed.load(Ordering::Acquire);
        if !is_far_ahead() {
            return;
        }
        wait.pause().or_raise();
        futex::wait(&header.state_changed, seen);
    }
}

/// The end of the last record before an insert position.
///
/// At a page's start the insert position stands behind the header of a page that is not written before the next record, so a
/// flush up to it could not be satisfied.
fn record_end(insert: Lsn) -> Lsn {
    const BLOCK: u64 = pg_sys::XLOG_BLCKSZ as u64;
    const SHORT_HEADER: u64 = size_of::<pg_sys::XLogPageHeaderData>().next_multiple_of(8) as u64;
    const LONG_HEADER: u64 = size_of::<pg_sys::XLogLongPageHeaderData>().next_multiple_of(8) as u64;
    // SAFETY: set once at the start of the server.
    let segment = unsafe { pg_sys::wal_segment_size } as u64;
    let header = if insert.0 % segment < BLOCK { LONG_HEADER } else { SHORT_HEADER };
    if insert.0 % BLOCK == header { Lsn(insert.0 - header) } else { insert }
}
