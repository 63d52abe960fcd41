//! What the engine does, and asking it to make everything durable.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kalamdb_engine::cache::{Cache, MEMORY_UNIT, Wait, WorkerState, futex, raise};
use pgrx::prelude::*;

use crate::error::{OrRaise, raise as raise_error};
use crate::ffi::interrupts::BackendWait;
use crate::shmem::engine_cache;

/// How long a store may refuse writes before a wait for it ends in an error: longer than it takes to notice that there is room
/// again, which RocksDB and the writer each look for every five seconds.
const STORE_FAILURE_LIMIT: Duration = Duration::from_secs(15);

/// Waits until everything that was logged before the call is durable in the store.
#[pg_extern]
fn engine_checkpoint() {
    let cache = engine_cache();
    let header = cache.header();
    let ticket = header.checkpoints_wanted.fetch_add(1, Ordering::AcqRel) + 1;
    raise(&header.main_wake);
    let wait = BackendWait::new(cache);
    let mut failing_since = None;
    loop {
        let seen = header.state_changed.load(Ordering::Acquire);
        if header.checkpoints_done.load(Ordering::Acquire) >= ticket {
            return;
        }
        wait.pause().or_raise();
        match header.store_failure("the KalamDB store takes no writes") {
            None => failing_since = None,
            Some(failure) if failing_since.get_or_insert_with(Instant::now).elapsed() > STORE_FAILURE_LIMIT => {
                raise_error(failure)
            }
            Some(_) => {}
        }
        futex::wait(&header.state_changed, seen);
    }
}

type Statistic = (&'static str, i64, &'static str, &'static str);

/// The engine's counters and positions.
#[pg_extern]
fn engine_stats() -> TableIterator<
    'static,
    (name!(name, &'static str), name!(value, i64), name!(unit, &'static str), name!(description, &'static str)),
> {
    TableIterator::new(statistics(engine_cache()))
}

fn statistics(cache: &Cache) -> Vec<Statistic> {
    let header = cache.header();
    let counters = &header.counters;
    let (used, _) = cache.occupancy();
    let clip = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let read = |value: &AtomicU64| clip(value.load(Ordering::Relaxed));
    let units = |value: &AtomicU64| clip(value.load(Ordering::Relaxed).saturating_mul(MEMORY_UNIT as u64));
    let ready = i64::from(header.worker_state() == WorkerState::Ready);
    vec![
        ("worker_ready", ready, "0 or 1", "whether the engine worker has replayed the log and serves"),
        ("worker_pid", header.worker_pid.load(Ordering::Relaxed).into(), "process id", "process of the engine worker"),
        (
            "worker_starts",
            header.generation.load(Ordering::Relaxed).into(),
            "starts",
            "starts of the worker since the cache was made",
        ),
        ("attached_processes", header.attached.load(Ordering::Relaxed).into(), "processes", "processes that use the page cache"),
        ("storages", clip(cache.storages().list().len() as u64), "storages", "storages the engine knows"),
        ("cache_frames", cache.frame_count().into(), "frames", "frames of the page cache, of up to 32 KB each"),
        ("cache_frames_used", used.into(), "frames", "frames that hold a page"),
        (
            "cache_frames_dirty",
            header.dirty_frames.load(Ordering::Relaxed).into(),
            "frames",
            "frames changed since they were stored",
        ),
        ("cache_bytes", units(&AtomicU64::new(cache.memory_units())), "bytes", "memory for the pages in the cache"),
        ("cache_bytes_used", units(&header.resident_units), "bytes", "memory that pages take at the moment"),
        ("cache_bytes_dirty", units(&header.dirty_units), "bytes", "memory of the pages changed since they were stored"),
        ("page_loads", read(&counters.loads), "pages", "pages read from the store"),
        ("page_creates", read(&counters.creates), "pages", "pages made anew"),
        ("page_evictions", read(&counters.evictions), "pages", "unchanged pages dropped for others"),
        ("page_writebacks", read(&counters.writebacks), "pages", "changed pages written to the store"),
        ("writeback_bytes", read(&counters.writeback_bytes), "bytes", "bytes of those pages before compression"),
        ("clean_waits", read(&counters.clean_waits), "waits", "waits for a frame because all were changed or in use"),
        ("checkpoints", read(&counters.checkpoints), "checkpoints", "checkpoints of the store"),
        ("replayed_records", read(&counters.replayed), "records", "log records replayed"),
        ("cold_pages_built", read(&counters.cold_loads), "pages", "pages of cold rows built from segments"),
        ("segments_opened", read(&counters.segments_opened), "segments", "files of segments opened"),
        ("segment_bytes_read", read(&counters.segment_bytes_read), "bytes", "bytes read from segments"),
        ("blocks_cooled", read(&counters.blocks_cooled), "blocks", "blocks whose rows went into segments"),
        ("blocks_thawed", read(&counters.blocks_thawed), "blocks", "cold blocks that were changed and became hot"),
        ("segments_added", read(&counters.segments_added), "segments", "segments that became part of a table"),
        ("segments_deleted", read(&counters.segments_deleted), "segments", "files of segments deleted"),
        ("store_failing", header.is_store_failing().into(), "0 or 1", "whether the store refuses writes at the moment"),
        ("insert_lsn", read(&header.insert_lsn), "byte position", "end of the write-ahead log as the worker last saw it"),
        ("flushed_lsn", read(&header.flushed_lsn), "byte position", "end of the flushed log as the worker last saw it"),
        ("durable_lsn", read(&header.durable_lsn), "byte position", "everything before it is durable in the store"),
    ]
}
