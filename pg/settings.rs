//! The settings `kalam.*`: definition, limits and typed getters.

use std::ffi::CString;
use std::sync::OnceLock;

use kalamdb_engine::cache::CacheConfig;
use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::pg_sys;

const PAGES_PER_MB: u32 = (1 << 20) / 32_768;

/// The cache of a preloaded library, in MB, on a machine with enough memory.
const CACHE_MB_PRELOADED: i32 = 1024;

/// The cache made on first use, in MB: it lives in /dev/shm, which is small in containers.
const CACHE_MB_ON_DEMAND: i32 = 256;

static CACHE_SIZE: OnceLock<&'static GucSetting<i32>> = OnceLock::new();
static MAX_STORAGES: GucSetting<i32> = GucSetting::<i32>::new(16_384);
static STREAM_EVICTION_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(10);
static CHECKPOINT_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(60);
static CHECKPOINT_DIRTY: GucSetting<i32> = GucSetting::<i32>::new(30);
static FLUSH_IO_LIMIT: GucSetting<i32> = GucSetting::<i32>::new(65_536);
static FLUSH_USER_SIZE: GucSetting<i32> = GucSetting::<i32>::new(128);
static MAX_PARALLEL_JOBS: GucSetting<i32> = GucSetting::<i32>::new(2);
static JOB_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(30 * 24 * 60);
static AUDIT_USER_ID: GucSetting<bool> = GucSetting::<bool>::new(true);
static USER_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(30 * 24 * 60);
static EXPORT_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(7 * 24 * 60);
static OWNER_CODE_LIMIT: GucSetting<i32> = GucSetting::<i32>::new(60);
static FLUSH_CHECK_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(60);
static LOADER_THREADS: GucSetting<i32> = GucSetting::<i32>::new(4);
static COLD_LOADER_THREADS: GucSetting<i32> = GucSetting::<i32>::new(8);
static SEGMENT_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(0);
static BCRYPT_COST: GucSetting<i32> = GucSetting::<i32>::new(12);
static WORKER_ID: GucSetting<i32> = GucSetting::<i32>::new(0);
static JWT_SECRET_FILE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static JWT_PUBLIC_KEY_FILE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static JWT_ISSUER: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"kalamdb"));
static JWT_AUDIENCE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

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
    define_cold();
    define_identity();
    define_jobs();
    define_ownership();
    crate::options::defaults::define();
    // SAFETY: Postgres copies the prefix; all settings with it are defined above.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"kalam".as_ptr()) };
}

fn define_cold() {
    GucRegistry::define_int_guc(
        c"kalam.flush_io_limit",
        c"Most bytes of pages per second that a flush or a compaction works on.",
        c"0 sets no limit.",
        &FLUSH_IO_LIMIT,
        0,
        i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"kalam.flush_user_size",
        c"Least size of the hot pages of a user that a flush by policy moves into a segment.",
        c"Smaller parts of user tables stay hot, and so does a user's latest page. 0 has every flush move everything.",
        &FLUSH_USER_SIZE,
        0,
        i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"kalam.cold_loader_threads",
        c"Number of engine threads that build pages of cold rows from segments.",
        c"Each waits for one segment at a time. Takes effect when the engine worker starts.",
        &COLD_LOADER_THREADS,
        1,
        64,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"kalam.segment_retention",
        c"Time for which the file of a segment is kept after no table needs it any more.",
        c"As long as backups of the data directory are to find the files that they name.",
        &SEGMENT_RETENTION,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
}

/// Defines the settings of users, tokens and identifiers.
fn define_identity() {
    crate::identity::define_settings();
    GucRegistry::define_bool_guc(
        c"kalam.audit_user_id",
        c"Whether the audit log tells for whom sessions act by the setting kalam.user_id.",
        c"An entry for each user, role and session, once an hour.",
        &AUDIT_USER_ID,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"kalam.bcrypt_cost",
        c"Work of hashing a password of a KalamDB user, as a power of two.",
        c"Each step doubles the time of a login.",
        &BCRYPT_COST,
        10,
        14,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"kalam.worker_id",
        c"Number of this server in the identifiers of kalam.snowflake_id().",
        c"Servers whose identifiers meet in one table need different numbers.",
        &WORKER_ID,
        0,
        1023,
        GucContext::Sighup,
        GucFlags::default(),
    );
    for (name, short, long, setting, flags) in [
        (
            c"kalam.jwt_secret_file",
            c"File with the secret of tokens signed with HS256.",
            c"At least 32 bytes, readable by the server only.",
            &JWT_SECRET_FILE,
            GucFlags::SUPERUSER_ONLY,
        ),
        (
            c"kalam.jwt_public_key_file",
            c"File with the public key, in PEM, of tokens signed with RS256 or ES256.",
            c"The kind of key decides about the algorithm.",
            &JWT_PUBLIC_KEY_FILE,
            GucFlags::SUPERUSER_ONLY,
        ),
        (
            c"kalam.jwt_issuer",
            c"Issuer that tokens must name, and that issued tokens have.",
            c"",
            &JWT_ISSUER,
            GucFlags::default(),
        ),
        (
            c"kalam.jwt_audience",
            c"Audience that tokens must name.",
            c"If it is empty, tokens that are meant for a certain audience are refused.",
            &JWT_AUDIENCE,
            GucFlags::default(),
        ),
    ] {
        GucRegistry::define_string_guc(name, short, long, setting, GucContext::Suset, flags);
    }
}

/// Work of hashing a password, as a power of two.
pub fn bcrypt_cost() -> u32 {
    BCRYPT_COST.get().unsigned_abs()
}

/// Number of this server in identifiers.
pub fn worker_id() -> u16 {
    WORKER_ID.get() as u16
}

/// File with the secret for tokens.
pub fn jwt_secret_file() -> Option<String> {
    text(&JWT_SECRET_FILE)
}

/// File with the public key for tokens.
pub fn jwt_public_key_file() -> Option<String> {
    text(&JWT_PUBLIC_KEY_FILE)
}

/// Issuer of tokens.
pub fn jwt_issuer() -> String {
    text(&JWT_ISSUER).unwrap_or_default()
}

/// Audience that tokens must name.
pub fn jwt_audience() -> Option<String> {
    text(&JWT_AUDIENCE)
}

/// A setting's text; none if it is empty.
fn text(setting: &GucSetting<Option<CString>>) -> Option<String> {
    setting.get().map(|text| text.to_string_lossy().into_owned()).filter(|text| !text.is_empty())
}

fn define_ownership() {
    GucRegistry::define_int_guc(
        c"kalam.export_retention",
        c"How long the files of a user's export are kept; -1 keeps them until the export is dropped.",
        c"",
        &EXPORT_RETENTION,
        -1,
        i32::MAX / 60,
        GucContext::Sighup,
        GucFlags::UNIT_MIN,
    );
    GucRegistry::define_int_guc(
        c"kalam.owner_code_limit",
        c"How long code of a table's owner may take in a part of a job.",
        c"A part is a thousand rows of an export, the rows of one user that are erased, or a command, which has a second more for each MB.",
        &OWNER_CODE_LIMIT,
        1,
        86_400,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
}

fn define_jobs() {
    GucRegistry::define_int_guc(
        c"kalam.max_parallel_jobs",
        c"Most KalamDB jobs that run at the same time in the server.",
        c"Each takes a background worker. With 0, jobs wait.",
        &MAX_PARALLEL_JOBS,
        0,
        32,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"kalam.stream_eviction_interval",
        c"How often the storage of expired rows of stream tables is given back.",
        c"Nobody sees a row from the end of its lifetime on, whenever its storage is given back.",
        &STREAM_EVICTION_INTERVAL,
        1,
        86_400,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_int_guc(
        c"kalam.job_retention",
        c"How long the rows of ended jobs stay in kalam.jobs.",
        c"",
        &JOB_RETENTION,
        0,
        i32::MAX / 60,
        GucContext::Sighup,
        GucFlags::UNIT_MIN,
    );
    GucRegistry::define_int_guc(
        c"kalam.user_retention",
        c"How long a dropped user can be restored; then a job erases what the user owns.",
        c"",
        &USER_RETENTION,
        0,
        i32::MAX / 60,
        GucContext::Sighup,
        GucFlags::UNIT_MIN,
    );
    GucRegistry::define_int_guc(
        c"kalam.flush_check_interval",
        c"How often all tables are looked at for rows whose flush is due.",
        c"Rows and times of flush policies act at once; this is for what failed and is to be tried again.",
        &FLUSH_CHECK_INTERVAL,
        1,
        86_400,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
}

/// Most jobs that run at the same time.
pub fn max_parallel_jobs() -> usize {
    MAX_PARALLEL_JOBS.get().unsigned_abs() as usize
}

/// How long rows of ended jobs are kept, in seconds.
pub fn job_retention_seconds() -> u64 {
    u64::from(JOB_RETENTION.get().unsigned_abs()) * 60
}

/// Whether the use of the setting `kalam.user_id` is audited.
pub fn audits_user_id() -> bool {
    AUDIT_USER_ID.get()
}

/// How long dropped users can be restored, in seconds.
pub fn user_retention_seconds() -> u64 {
    u64::from(USER_RETENTION.get().unsigned_abs()) * 60
}

/// How long exports of users are kept, in seconds; nothing if for good.
pub fn export_retention_seconds() -> Option<u64> {
    u64::try_from(EXPORT_RETENTION.get()).ok().map(|minutes| minutes * 60)
}

/// How long code of a table's owner may take in a part of a job.
pub fn owner_code_limit() -> std::time::Duration {
    std::time::Duration::from_secs(u64::from(OWNER_CODE_LIMIT.get().unsigned_abs()))
}

/// Seconds between two evictions of a stream.
pub fn stream_eviction_interval() -> u32 {
    STREAM_EVICTION_INTERVAL.get().unsigned_abs()
}

/// How often all tables are looked at.
pub fn flush_check_interval() -> std::time::Duration {
    std::time::Duration::from_secs(u64::from(FLUSH_CHECK_INTERVAL.get().unsigned_abs()))
}

/// The sizes of the page cache to make, with this many frames for each whole page that there is memory for.
pub fn cache_config(frames_per_page: u32) -> CacheConfig {
    let megabytes = CACHE_SIZE.get().map_or(CACHE_MB_ON_DEMAND, |setting| setting.get());
    CacheConfig {
        pages: megabytes.unsigned_abs().saturating_mul(PAGES_PER_MB),
        frames_per_page,
        storages: MAX_STORAGES.get().unsigned_abs(),
    }
}

/// Longest time between two checkpoints.
pub fn checkpoint_interval() -> std::time::Duration {
    std::time::Duration::from_secs(u64::from(CHECKPOINT_INTERVAL.get().unsigned_abs()))
}

/// Share of the cache in percent that may be dirty before a checkpoint starts.
pub fn checkpoint_dirty_percent() -> u64 {
    u64::from(CHECKPOINT_DIRTY.get().unsigned_abs())
}

/// Number of threads that build cold pages.
pub fn cold_loader_threads() -> usize {
    COLD_LOADER_THREADS.get().unsigned_abs() as usize
}

/// How long files of segments are kept that no table needs.
pub fn segment_retention() -> std::time::Duration {
    std::time::Duration::from_secs(SEGMENT_RETENTION.get().unsigned_abs().into())
}

/// Number of loader threads.
pub fn loader_threads() -> usize {
    LOADER_THREADS.get().unsigned_abs() as usize
}

/// The speed of a flush or a compaction, if it has a limit.
pub fn flush_bytes_per_second() -> Option<u64> {
    let kilobytes = u64::from(FLUSH_IO_LIMIT.get().unsigned_abs());
    (kilobytes > 0).then_some(kilobytes << 10)
}

/// Least bytes of a user's hot pages that a flush by policy moves.
pub fn flush_user_bytes() -> u64 {
    u64::from(FLUSH_USER_SIZE.get().unsigned_abs()) << 10
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
