//! Owns this process' way to the shared memory of the engine.
//!
//! A preloaded library maps the memory while the server starts, and every process inherits it. Otherwise the first process that needs the engine makes
//! a dynamic segment that outlives it, and leaves the handle in a small fixed structure, where all others find it.

mod mapping;

use std::ffi::c_int;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use kalamdb_engine::cache::{Cache, CacheConfig, LAYOUT_VERSION, set_latch_hooks};
use kalamdb_engine::{Error, ErrorKind};
use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::error::{OrRaise, SqlError, catching};
use crate::ffi::compat;
use crate::ffi::interrupts::{hold_interrupts, resume_interrupts};
use crate::ffi::plain;
use crate::{settings, worker};
use mapping::Mapping;

/// Alignment that the cache asks for.
const ALIGNMENT: usize = 4096;

/// The fixed structure that every process finds by name; its size never changes, so that versions of the library can meet.
#[repr(C)]
pub struct Anchor {
    /// [`ANCHOR_MAGIC`] once filled.
    magic: AtomicU64,
    layout_version: AtomicU32,
    /// Handle of the dynamic segment; 0 when there is none.
    segment: AtomicU32,
    /// Whether a worker is registered with the postmaster; 0 or 1.
    pub worker_registered: AtomicU32,
    padding: AtomicU32,
    /// The latest millisecond and sequence number of an identifier.
    pub snowflake: AtomicU64,
    reserved: [AtomicU32; 56],
}

const ANCHOR_MAGIC: u64 = u64::from_le_bytes(*b"KALAMANC");
const ANCHOR_NAME: &std::ffi::CStr = c"kalamdb";
const CACHE_NAME: &std::ffi::CStr = c"kalamdb cache";

const _: () = assert!(size_of::<Anchor>() == 256);

/// The cache as this process sees it; the postmaster's children inherit it when the library is preloaded.
static CACHE: AtomicPtr<Cache> = AtomicPtr::new(ptr::null_mut());
static ANCHOR: AtomicPtr<Anchor> = AtomicPtr::new(ptr::null_mut());

/// The process that counted itself as a user of the mapping, and the one that saw the engine ready: a forked child has
/// another id than the process whose memory it inherited.
static COUNTED_BY: AtomicI32 = AtomicI32::new(0);
static READY_IN: AtomicI32 = AtomicI32::new(0);

/// Whether the postmaster loaded the library at its start; its children inherit the answer.
static PRELOADED: AtomicBool = AtomicBool::new(false);

static mut PREVIOUS_REQUEST_HOOK: pg_sys::shmem_request_hook_type = None;
static mut PREVIOUS_STARTUP_HOOK: pg_sys::shmem_startup_hook_type = None;

/// Whether the postmaster is loading the library at its start.
pub fn preloading() -> bool {
    // SAFETY: a flag of the process.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Whether the postmaster loaded the library at its start.
pub fn preloaded() -> bool {
    PRELOADED.load(Ordering::Relaxed)
}

/// Installs the hooks through which the server makes room for the cache; nothing to do without preload.
pub fn init() {
    if !preloading() {
        return;
    }
    PRELOADED.store(true, Ordering::Relaxed);
    // SAFETY: hooks are chained while the postmaster loads libraries, before any child exists.
    unsafe {
        PREVIOUS_REQUEST_HOOK = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(request_hook);
        PREVIOUS_STARTUP_HOOK = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(startup_hook);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn request_hook() {
    // SAFETY: called by the postmaster, which has one thread.
    unsafe {
        if let Some(previous) = PREVIOUS_REQUEST_HOOK {
            previous();
        }
        let cache = if Mapping::make(Cache::required_bytes(&sparse_config())) { 0 } else { cache_bytes() };
        pg_sys::RequestAddinShmemSpace(cache + size_of::<Anchor>());
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn startup_hook() {
    // SAFETY: called by the postmaster once per life of the shared memory, thus again after a crash restart.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP_HOOK {
            previous();
        }
    }
    let _lock = AddinLock::acquire();
    let anchor = find_anchor();
    let cache = match Mapping::emptied() {
        // SAFETY: the mapping reads as zero, is aligned, and nobody uses it: the processes of the life before are gone.
        Some(mapping) => unsafe { Cache::create(mapping.start, mapping.len, &sparse_config()) },
        None => {
            let mut found = false;
            // SAFETY: the lock is held; the memory was requested by `request_hook`. It is `cache_bytes` long, which counts the
            // alignment, and stays mapped as long as the process lives.
            unsafe {
                let start = pg_sys::ShmemInitStruct(CACHE_NAME.as_ptr(), cache_bytes(), &raw mut found);
                place_cache(start.cast(), cache_bytes(), found)
            }
        }
    };
    let cache = cache.or_raise();
    anchor.worker_registered.store(1, Ordering::Relaxed);
    remember(cache);
}

/// The sizes of a cache in memory that is there from the start.
fn plain_config() -> CacheConfig {
    settings::cache_config(1)
}

/// The sizes of a cache in a mapping of our own: as many pages of up to 8 KB as fit into its memory have frames.
fn sparse_config() -> CacheConfig {
    settings::cache_config(4)
}

fn cache_bytes() -> usize {
    Cache::required_bytes(&plain_config()) + ALIGNMENT
}

/// Makes the cache in a region, or attaches the one that stands there.
///
/// # Safety
/// `start` points to `len` bytes that stay mapped as long as the process lives and, unless `found`, read as zero and are
/// used by nobody else.
unsafe fn place_cache(start: *mut u8, len: usize, found: bool) -> Result<Cache, Error> {
    let offset = start.align_offset(ALIGNMENT);
    // SAFETY: the caller vouches for the region; the offset is below the alignment, which `len` exceeds.
    unsafe {
        let base = start.add(offset);
        if found { Cache::attach(base, len - offset) } else { Cache::create(base, len - offset, &plain_config()) }
    }
}

fn remember(cache: Cache) -> &'static Cache {
    let cache: &'static Cache = Box::leak(Box::new(cache));
    CACHE.store(ptr::from_ref(cache).cast_mut(), Ordering::Release);
    cache
}

/// Holds AddinShmemInitLock.
pub struct AddinLock(());

impl AddinLock {
    /// Takes the lock; it is not held by this process yet.
    pub fn acquire() -> AddinLock {
        // SAFETY: a built-in lock.
        unsafe { pg_sys::LWLockAcquire(compat::addin_shmem_init_lock(), pg_sys::LWLockMode::LW_EXCLUSIVE) };
        AddinLock(())
    }
}

impl Drop for AddinLock {
    fn drop(&mut self) {
        // After an ERROR the release of all locks is Postgres' own duty, or the process ends.
        if !std::thread::panicking() {
            // SAFETY: taken by `acquire`.
            unsafe { pg_sys::LWLockRelease(compat::addin_shmem_init_lock()) };
        }
    }
}

/// The anchor; the caller holds AddinShmemInitLock.
fn find_anchor() -> &'static Anchor {
    let mut found = false;
    // SAFETY: the lock is held; the structure is small enough for the slack that Postgres keeps for extensions.
    let place = unsafe { pg_sys::ShmemInitStruct(ANCHOR_NAME.as_ptr(), size_of::<Anchor>(), &raw mut found) };
    let anchor: *mut Anchor = place.cast();
    if !found {
        // SAFETY: new memory of the right size, aligned to a cache line; zero is a valid anchor.
        unsafe { ptr::write_bytes(anchor, 0, 1) };
    }
    // SAFETY: shared memory stays mapped as long as the process lives; all fields are atomics.
    let reference = unsafe { &*anchor };
    if !found {
        reference.layout_version.store(LAYOUT_VERSION, Ordering::Relaxed);
        reference.magic.store(ANCHOR_MAGIC, Ordering::Release);
    }
    ANCHOR.store(anchor, Ordering::Release);
    reference
}

/// The anchor of this server; needs no engine and starts none.
///
/// # Errors
/// 55000 when another version of the library made it.
pub fn any_anchor() -> Result<&'static Anchor, SqlError> {
    let anchor = match anchor() {
        Some(anchor) => anchor,
        None => {
            let _lock = AddinLock::acquire();
            find_anchor()
        }
    };
    check_version(anchor)?;
    Ok(anchor)
}

/// The anchor of this server, once this process has attached the engine's memory.
pub fn anchor() -> Option<&'static Anchor> {
    // SAFETY: null, or memory that stays mapped as long as the process lives.
    unsafe { ANCHOR.load(Ordering::Acquire).as_ref() }
}

/// The engine's cache, with the engine started and ready: what every operation on a table begins with.
///
/// The first call of a process attaches the memory, starts the worker if there is none, and waits until the log is replayed;
/// later calls are a comparison. Raises ERROR when the engine cannot be used.
#[inline]
pub fn engine_cache() -> &'static Cache {
    // SAFETY: set once at the start of the process.
    if READY_IN.load(Ordering::Relaxed) == unsafe { pg_sys::MyProcPid } {
        // SAFETY: set before READY_IN, leaked, never freed.
        return unsafe { &*CACHE.load(Ordering::Acquire) };
    }
    first_use()
}

/// The cache if this process has used it before; never starts anything.
pub fn known_cache() -> Option<&'static Cache> {
    // SAFETY: set once at the start of the process; the handle is leaked and never freed.
    unsafe { if READY_IN.load(Ordering::Relaxed) == pg_sys::MyProcPid { CACHE.load(Ordering::Acquire).as_ref() } else { None } }
}

/// The cache if this process knows where it is, used or not; never starts anything.
pub fn attached_cache() -> Option<&'static Cache> {
    // SAFETY: leaked, never freed; inherited from the postmaster or made by this process.
    unsafe { CACHE.load(Ordering::Acquire).as_ref() }
}

#[cold]
fn first_use() -> &'static Cache {
    check_process().or_raise();
    worker::start::check_prerequisites().or_raise();
    let cache = attach().or_raise();
    count_this_process(cache);
    worker::start::wait_until_ready(cache).or_raise();
    // SAFETY: set once at the start of the process.
    READY_IN.store(unsafe { pg_sys::MyProcPid }, Ordering::Relaxed);
    cache
}

/// Whether this kind of process can use the engine.
fn check_process() -> Result<(), SqlError> {
    // SAFETY: a flag of the process.
    if !unsafe { pg_sys::IsUnderPostmaster } {
        return Err(Error::new(ErrorKind::Unsupported, "KalamDB tables cannot be used in single-user mode")
            .with_detail("Their engine is a worker process, which only a running server starts.")
            .into());
    }
    // SAFETY: reads shared memory.
    if unsafe { plain::RecoveryInProgress() } {
        return Err(Error::new(ErrorKind::Unsupported, "KalamDB tables cannot be used during recovery")
            .with_hint("Use the primary server, or wait until this server is promoted.")
            .into());
    }
    Ok(())
}

/// Attaches the engine's memory, making it if the library is not preloaded and nobody has.
///
/// # Errors
/// 55000 when another version of the library made it, 53100 or 53200 when there is no room for it.
pub fn attach() -> Result<&'static Cache, SqlError> {
    let known = CACHE.load(Ordering::Acquire);
    if !known.is_null() {
        // SAFETY: leaked, never freed; inherited from the postmaster or made by this process.
        return Ok(unsafe { &*known });
    }
    let _lock = AddinLock::acquire();
    let anchor = find_anchor();
    check_version(anchor)?;
    let handle = anchor.segment.load(Ordering::Acquire);
    let cache = if handle == 0 { create_segment(anchor)? } else { attach_segment(handle)? };
    Ok(remember(cache))
}

fn check_version(anchor: &Anchor) -> Result<(), SqlError> {
    let version = anchor.layout_version.load(Ordering::Relaxed);
    if anchor.magic.load(Ordering::Acquire) == ANCHOR_MAGIC && version == LAYOUT_VERSION {
        return Ok(());
    }
    Err(SqlError::prerequisite("the KalamDB library does not fit the running engine")
        .with_detail(format!("The engine uses memory layout {version}, this library layout {LAYOUT_VERSION}."))
        .with_hint("Restart the server, so that both come from the same installation."))
}

fn create_segment(anchor: &Anchor) -> Result<Cache, SqlError> {
    let bytes = cache_bytes();
    let segment = catching(|| {
        // SAFETY: an ERROR is caught; the mapping and the segment are pinned, so they outlive transaction and process.
        unsafe {
            let segment = pg_sys::dsm_create(bytes, 0);
            pg_sys::dsm_pin_mapping(segment);
            segment
        }
    })
    .map_err(|error| no_room(error, bytes))?;
    // SAFETY: the segment was just mapped with this length, and nobody else knows it yet.
    let cache = unsafe {
        let start: *mut u8 = pg_sys::dsm_segment_address(segment).cast();
        if pg_sys::min_dynamic_shared_memory > 0 {
            // A segment from the preallocated region may have been used before.
            ptr::write_bytes(start, 0, bytes);
        }
        place_cache(start, bytes, false)
    }?;
    // SAFETY: as above.
    unsafe {
        pg_sys::dsm_pin_segment(segment);
        anchor.segment.store(pg_sys::dsm_segment_handle(segment), Ordering::Release);
    }
    Ok(cache)
}

fn no_room(error: SqlError, bytes: usize) -> SqlError {
    if !error.is_out_of_space() {
        return error;
    }
    let megabytes = bytes.div_ceil(1 << 20);
    error
        .with_detail(format!("The page cache of KalamDB needs {megabytes} MB of dynamic shared memory."))
        .with_hint("Enlarge /dev/shm, lower \"kalam.cache_size\", or add kalamdb to \"shared_preload_libraries\".")
}

fn attach_segment(handle: u32) -> Result<Cache, SqlError> {
    // SAFETY: the handle was published by its maker; the mapping is pinned for the life of the process.
    unsafe {
        let mut segment = pg_sys::dsm_find_mapping(handle);
        if segment.is_null() {
            segment = pg_sys::dsm_attach(handle);
        }
        if segment.is_null() {
            return Err(Error::internal("shared memory of the KalamDB engine is gone").into());
        }
        pg_sys::dsm_pin_mapping(segment);
        let start = pg_sys::dsm_segment_address(segment).cast();
        Ok(place_cache(start, pg_sys::dsm_segment_map_length(segment), true)?)
    }
}

/// Counts this process among the users of the mapping until it ends, so that the worker outlives it.
fn count_this_process(cache: &'static Cache) {
    // SAFETY: set once at the start of the process.
    let me = unsafe { pg_sys::MyProcPid };
    if COUNTED_BY.swap(me, Ordering::Relaxed) == me {
        return;
    }
    set_latch_hooks(hold_interrupts, resume_interrupts);
    cache.header().attached.fetch_add(1, Ordering::AcqRel);
    let handle = anchor().map_or(0, |anchor| anchor.segment.load(Ordering::Acquire));
    // SAFETY: the callbacks live in this library, which is never unloaded. A dynamic segment is unmapped before the
    // callbacks of on_shmem_exit run, and both run after the transaction was rolled back.
    unsafe {
        if handle == 0 {
            pg_sys::on_shmem_exit(Some(at_exit), pg_sys::Datum::from(0));
        } else {
            pg_sys::on_dsm_detach(pg_sys::dsm_find_mapping(handle), Some(at_detach), pg_sys::Datum::from(0));
        }
    }
}

unsafe extern "C-unwind" fn at_exit(_code: c_int, _argument: pg_sys::Datum) {
    uncount();
}

unsafe extern "C-unwind" fn at_detach(_segment: *mut pg_sys::dsm_segment, _argument: pg_sys::Datum) {
    uncount();
}

fn uncount() {
    // SAFETY: set once at the start of the process.
    let me = unsafe { pg_sys::MyProcPid };
    if COUNTED_BY.swap(0, Ordering::Relaxed) != me {
        return;
    }
    READY_IN.store(0, Ordering::Relaxed);
    // SAFETY: still mapped, as said at the registration.
    if let Some(cache) = unsafe { CACHE.load(Ordering::Acquire).as_ref() } {
        cache.header().attached.fetch_sub(1, Ordering::AcqRel);
        kalamdb_engine::cache::raise(&cache.header().main_wake);
    }
}
