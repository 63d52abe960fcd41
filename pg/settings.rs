//! The settings `kalam.*`: definition, limits and typed getters.

use std::sync::OnceLock;

use kalamdb_engine::cache::CacheConfig;
use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::pg_sys;

const FRAMES_PER_MB: u32 = (1 << 20) / 32_768;

/// The cache of a preloaded library, in MB, on a machine with enough memory.
const CACHE_MB_PRELOADED: i32 = 1024;

/// The cache made on first use, in MB: it lives in /dev/shm, which is small in containers.
const CACHE_MB_ON_DEMAND: i32 = 256;

static CACHE_SIZE: OnceLock<&'static GucSetting<i32>> = OnceLock::new();
static MAX_STORAGES: GucSetting<i32> = GucSetting::<i32>::new(16_384);
static CHECKPOINT_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(60);
static CHECKPOINT_DIRTY: GucSetting<i32> = GucSetting::<i32>::new(30);
static LOADER_THREADS: GucSetting<i32> = GucSetting::<i32>::new(4);

/// Defines all settings; called when the library is loaded.
pub fn define() {
    // Postgres refuses postmaster-level settings after its start; without preload the first use of the engine fixes the sizes,
    // and the configuration file alone may state them, so that all sessions agree.
    let fixed_at_start = || if crate::shmem::preloading() { GucContext::Postmaster } else { GucContext::Sighup };
    let cache_size = *CACHE_SIZE.get_or_init(|| Box::leak(Box::new(GucSetting::<i32>::new(default_cache_mb()))));
    GucRegistry::define_int_guc(
        c"kalam.cache_size",
        c"Size of the shared page cache of KalamDB tables.",
        c"Fixed when the server starts, or at the first use of the engine if the library is not preloaded.",
        cache_size,
        16,
        4 << 20,
        fixed_at_start(),
        GucFlags::UNIT_MB,
    );
    GucRegistry::define_int_guc(
        c"kalam.max_storages",
        c"Most KalamDB tables and materialized views that can exist in the server at a time.",
        c"Fixed when the server starts, or at the first use of the engine if the library is not preloaded.",
        &MAX_STORAGES,
        64,
        4 << 20,
        fixed_at_start(),
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"kalam.checkpoint_interval",
        c"Longest time between two checkpoints of the KalamDB store.",
        c"A checkpoint makes changed pages durable in the store and lets the server remove WAL.",
        &CHECKPOINT_INTERVAL,
        1,
        86_400,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_int_guc(
        c"kalam.checkpoint_dirty",
        c"Share of the page cache, in percent, that may be changed before a checkpoint of the KalamDB store starts.",
        c"",
        &CHECKPOINT_DIRTY,
        1,
        90,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"kalam.loader_threads",
        c"Number of engine threads that read pages into the cache.",
        c"Takes effect when the engine worker starts.",
        &LOADER_THREADS,
        1,
        64,
        GucContext::Sighup,
        GucFlags::default(),
    );
    // SAFETY: Postgres copies the prefix; all settings with it are defined above.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"kalam".as_ptr()) };
}

/// The sizes of the page cache to make.
pub fn cache_config() -> CacheConfig {
    let megabytes = CACHE_SIZE.get().map_or(CACHE_MB_ON_DEMAND, |setting| setting.get());
    CacheConfig { frames: megabytes.unsigned_abs().saturating_mul(FRAMES_PER_MB), storages: MAX_STORAGES.get().unsigned_abs() }
}

/// Longest time between two checkpoints.
pub fn checkpoint_interval() -> std::time::Duration {
    std::time::Duration::from_secs(u64::from(CHECKPOINT_INTERVAL.get().unsigned_abs()))
}

/// Share of the cache in percent that may be dirty before a checkpoint starts.
pub fn checkpoint_dirty_percent() -> u64 {
    u64::from(CHECKPOINT_DIRTY.get().unsigned_abs())
}

/// Number of loader threads.
pub fn loader_threads() -> usize {
    LOADER_THREADS.get().unsigned_abs() as usize
}

fn default_cache_mb() -> i32 {
    let wanted = if crate::shmem::preloading() { CACHE_MB_PRELOADED } else { CACHE_MB_ON_DEMAND };
    // A quarter of a small machine's memory leaves room for Postgres' own buffers and the processes.
    physical_memory_mb().map_or(wanted, |memory| wanted.min((memory / 4).max(16)))
}

fn physical_memory_mb() -> Option<i32> {
    // SAFETY: sysconf only reads the system's configuration.
    let (pages, page_size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    if pages <= 0 || page_size <= 0 {
        return None;
    }
    i32::try_from((pages as u64).saturating_mul(page_size as u64) >> 20).ok()
}
