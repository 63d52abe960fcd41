//! What differs between versions of Postgres and between processors, under one name each.

mod callbacks;

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use kalamdb_engine::cache::RelationFile;
use pgrx::pg_sys;

use crate::ffi::plain;
use crate::ffi::utility::elements;

pub(crate) use callbacks::{analyze_next_block, bitmap_callbacks, copy_minimal_tuple, permissions_hook, run_hook};

#[cfg(target_arch = "x86_64")]
type AtomicSpinLock = std::sync::atomic::AtomicU8;
#[cfg(not(target_arch = "x86_64"))]
type AtomicSpinLock = std::sync::atomic::AtomicI32;

const _: () = assert!(size_of::<AtomicSpinLock>() == size_of::<pg_sys::slock_t>());

/// Index of AddinShmemInitLock among the built-in lightweight locks; the same in all supported versions.
const ADDIN_SHMEM_INIT_LOCK: usize = 21;

/// The timeout of statements among those of a process; the same number in all supported versions.
pub const STATEMENT_TIMEOUT: std::ffi::c_int = 3;

/// Stands for a timeout of the process' own when it is registered: a number behind Postgres' own in all supported versions.
pub const OWN_TIMEOUT: std::ffi::c_int = 20;

/// The type of an access method's function for costs.
pub type CostFunction = unsafe extern "C-unwind" fn(
    *mut pg_sys::PlannerInfo,
    *mut pg_sys::IndexPath,
    f64,
    *mut pg_sys::Cost,
    *mut pg_sys::Cost,
    *mut pg_sys::Selectivity,
    *mut f64,
    *mut f64,
);

/// Has the planner ask a function for the costs of an index.
pub fn set_cost_function(index: &mut pg_sys::IndexOptInfo, function: CostFunction) {
    #[cfg(feature = "pg15")]
    {
        // SAFETY: the declaration leaves the arguments out; the planner passes these.
        index.amcostestimate = Some(unsafe { std::mem::transmute::<CostFunction, unsafe extern "C-unwind" fn()>(function) });
    }
    #[cfg(not(feature = "pg15"))]
    {
        index.amcostestimate = Some(function);
    }
}

/// The lock under which extensions find or make their shared memory.
pub fn addin_shmem_init_lock() -> *mut pg_sys::LWLock {
    // SAFETY: the array is in shared memory from the start of the process and has far more built-in locks.
    unsafe { &raw mut (*pg_sys::MainLWLockArray.add(ADDIN_SHMEM_INIT_LOCK)).lock }
}

/// Runs a function of a few instructions under a spinlock of Postgres.
///
/// # Safety
/// `lock` is an initialised spinlock in shared memory, and `run` calls nothing of Postgres.
pub unsafe fn with_spinlock<R>(lock: *mut pg_sys::slock_t, run: impl FnOnce() -> R) -> R {
    // SAFETY: a spinlock is one word that is zero when free; Postgres' own code changes it by atomic operations only.
    let word = unsafe { &*lock.cast::<AtomicSpinLock>() };
    if word.swap(1, Ordering::Acquire) != 0 {
        // SAFETY: the contended path of Postgres' own macro.
        unsafe { pg_sys::s_lock(lock, c"kalamdb".as_ptr(), 0, c"with_spinlock".as_ptr()) };
    }
    let result = run();
    word.store(0, Ordering::Release);
    result
}

/// Postgres' number for the backend of a relation that all sessions can use (`InvalidBackendId`).
pub const NO_BACKEND: i32 = -1;

/// Which files a relation has.
#[cfg(feature = "pg15")]
pub type FileLocator = pg_sys::RelFileNode;
/// Which files a relation has.
#[cfg(not(feature = "pg15"))]
pub type FileLocator = pg_sys::RelFileLocator;

/// The files of an open relation.
pub fn locator_of(rel: pg_sys::Relation) -> FileLocator {
    // SAFETY: the caller's relation is open.
    unsafe {
        #[cfg(feature = "pg15")]
        {
            (*rel).rd_node
        }
        #[cfg(not(feature = "pg15"))]
        {
            (*rel).rd_locator
        }
    }
}

/// The engine's name of files; the backend is [`NO_BACKEND`] unless the relation is temporary.
pub fn file_of_locator(locator: &FileLocator, backend: i32) -> RelationFile {
    #[cfg(feature = "pg15")]
    let (tablespace, database, relnumber) = (locator.spcNode, locator.dbNode, locator.relNode);
    #[cfg(not(feature = "pg15"))]
    let (tablespace, database, relnumber) = (locator.spcOid, locator.dbOid, locator.relNumber);
    RelationFile {
        tablespace: tablespace.to_u32(),
        database: database.to_u32(),
        relnumber: relnumber.to_u32(),
        owner: (backend + 1) as u32,
    }
}

/// The files that the engine names so.
pub fn locator_of_file(file: &RelationFile) -> FileLocator {
    let (tablespace, database, relnumber) = (file.tablespace.into(), file.database.into(), file.relnumber.into());
    #[cfg(feature = "pg15")]
    {
        FileLocator { spcNode: tablespace, dbNode: database, relNode: relnumber }
    }
    #[cfg(not(feature = "pg15"))]
    {
        FileLocator { spcOid: tablespace, dbOid: database, relNumber: relnumber }
    }
}

/// Path of a relation's main fork, relative to the data directory; the backend is [`NO_BACKEND`] unless the relation is
/// temporary.
fn main_fork_path(database: u32, tablespace: u32, relnumber: u32, backend: i32) -> CString {
    // SAFETY: plain numbers in, a string out.
    let path = unsafe {
        pg_sys::GetRelationPath(database.into(), tablespace.into(), relnumber.into(), backend, pg_sys::ForkNumber::MAIN_FORKNUM)
    };
    #[cfg(not(feature = "pg18"))]
    {
        // SAFETY: the function returns an allocated string that is freed once copied.
        unsafe {
            let copy = CStr::from_ptr(path).to_owned();
            plain::pfree(path.cast());
            copy
        }
    }
    #[cfg(feature = "pg18")]
    {
        // SAFETY: the string inside the struct ends with a zero byte.
        unsafe { CStr::from_ptr(path.str_.as_ptr()).to_owned() }
    }
}

/// The main fork's path of a storage's files.
pub fn main_fork_of(file: &RelationFile) -> PathBuf {
    let path = main_fork_path(file.database, file.tablespace, file.relnumber, file.owner as i32 - 1);
    PathBuf::from(OsStr::from_bytes(path.as_bytes()))
}

/// One of Postgres' blocks, as aligned as some version of it wants.
#[repr(align(4096))]
struct ZeroBlock([u8; pg_sys::BLCKSZ as usize]);

/// Gives an unlogged relation's main fork a block.
///
/// After a crash Postgres replaces the fork by a copy of the init fork, which has none: that the block is gone says that the table
/// is to be empty. The checkpoint that ends a clean shutdown brings it to disk.
///
/// # Safety
/// The relation's main fork exists and has no block.
pub unsafe fn write_unlogged_mark(files: pg_sys::SMgrRelation) {
    static BLOCK: ZeroBlock = ZeroBlock([0; pg_sys::BLCKSZ as usize]);
    // SAFETY: see above; the block is only read.
    unsafe { pg_sys::smgrextend(files, pg_sys::ForkNumber::MAIN_FORKNUM, 0, BLOCK.0.as_ptr().cast_mut().cast(), false) };
}

/// Creates a persistent physical replication slot and acquires it.
pub fn create_physical_slot(name: &CStr) {
    let persistent = pg_sys::ReplicationSlotPersistency::RS_PERSISTENT;
    // SAFETY: the name is copied; errors are raised as ERROR.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        pg_sys::ReplicationSlotCreate(name.as_ptr(), false, persistent, false);
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        pg_sys::ReplicationSlotCreate(name.as_ptr(), false, persistent, false, false, false);
    }
}

/// Acquires a replication slot, or raises ERROR if another process has it.
pub fn acquire_slot(name: &CStr) {
    // SAFETY: the name is only read.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        pg_sys::ReplicationSlotAcquire(name.as_ptr(), true);
        #[cfg(feature = "pg18")]
        pg_sys::ReplicationSlotAcquire(name.as_ptr(), true, false);
    }
}

/// Whether the server gave up the WAL that a slot held.
pub fn slot_is_invalidated(slot: &pg_sys::ReplicationSlot) -> bool {
    #[cfg(feature = "pg15")]
    {
        slot.data.invalidated_at != 0
    }
    #[cfg(not(feature = "pg15"))]
    {
        slot.data.invalidated != pg_sys::ReplicationSlotInvalidationCause::RS_INVAL_NONE
    }
}

/// Whether a process sleeps on a condition variable.
///
/// # Safety
/// The condition variable is an initialised one in shared memory.
pub unsafe fn has_waiters(variable: *mut pg_sys::ConditionVariable) -> bool {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    const NOBODY: i32 = i32::MAX;
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    const NOBODY: i32 = -1;
    // SAFETY: the list is read under the variable's own lock.
    unsafe { with_spinlock(&raw mut (*variable).mutex, || (*variable).wakeup.head != NOBODY) }
}

/// The oldest transaction id whose outcome the commit log still knows, as a full id.
pub fn oldest_known_xid() -> u64 {
    // SAFETY: a value of shared memory that only grows; reading an old one is harmless, as it is only a lower bound.
    let oldest = unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        let oldest = (*pg_sys::ShmemVariableCache).oldestClogXid;
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        let oldest = (*pg_sys::TransamVariables).oldestClogXid;
        u32::from(oldest)
    };
    // SAFETY: reads shared memory under Postgres' own lock.
    let next = unsafe { plain::ReadNextFullTransactionId() }.value;
    let distance = (next as u32).wrapping_sub(oldest);
    next.saturating_sub(u64::from(distance))
}

/// The columns whose change keeps a new version out of its chain.
#[cfg(feature = "pg15")]
pub const ALL_INDEXED_COLUMNS: pg_sys::IndexAttrBitmapKind::Type = pg_sys::IndexAttrBitmapKind::INDEX_ATTR_BITMAP_ALL;
/// The columns whose change keeps a new version out of its chain.
#[cfg(not(feature = "pg15"))]
pub const ALL_INDEXED_COLUMNS: pg_sys::IndexAttrBitmapKind::Type = pg_sys::IndexAttrBitmapKind::INDEX_ATTR_BITMAP_HOT_BLOCKING;

/// The next value of a finished sort of single values.
///
/// # Safety
/// `sort` is a performed datum sort of values passed by value.
pub unsafe fn next_sorted_datum(sort: *mut pg_sys::Tuplesortstate) -> Option<pg_sys::Datum> {
    let mut value = pg_sys::Datum::from(0);
    let mut is_null = false;
    // SAFETY: see above.
    let found = unsafe {
        #[cfg(feature = "pg15")]
        {
            pg_sys::tuplesort_getdatum(sort, true, &mut value, &mut is_null, std::ptr::null_mut())
        }
        #[cfg(not(feature = "pg15"))]
        {
            pg_sys::tuplesort_getdatum(sort, true, false, &mut value, &mut is_null, std::ptr::null_mut())
        }
    };
    found.then_some(value)
}

/// Begins a scan of a whole index in its order.
///
/// # Safety
/// Both relations are open and locked, and the snapshot stays valid during the scan.
pub unsafe fn begin_index_scan(
    table: pg_sys::Relation,
    index: pg_sys::Relation,
    snapshot: pg_sys::Snapshot,
) -> pg_sys::IndexScanDesc {
    // SAFETY: see above.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        {
            pg_sys::index_beginscan(table, index, snapshot, 0, 0)
        }
        #[cfg(feature = "pg18")]
        {
            pg_sys::index_beginscan(table, index, snapshot, std::ptr::null_mut(), 0, 0)
        }
    }
}

/// Explains a query as Postgres itself does without a hook.
///
/// # Safety
/// The arguments are those of the hook.
pub unsafe fn explain_one_query(
    query: *mut pg_sys::Query,
    options: std::ffi::c_int,
    into: *mut pg_sys::IntoClause,
    state: *mut pg_sys::ExplainState,
    text: *const std::ffi::c_char,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
) {
    // SAFETY: see above.
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    unsafe {
        pg_sys::standard_ExplainOneQuery(query, options, into, state, text, parameters, environment);
    }
    // SAFETY: see above; usage and duration are those of the planning.
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    unsafe {
        let (before, begun) = (pg_sys::pgBufferUsage, std::time::Instant::now());
        let plan = pg_sys::pg_plan_query(query, text, options, parameters);
        let duration = instr_time(begun.elapsed());
        let after = pg_sys::pgBufferUsage;
        let used = buffer_difference(&before, &after);
        let used = if (*state).buffers { &raw const used } else { std::ptr::null() };
        pg_sys::ExplainOnePlan(plan, into, state, text, parameters, environment, &duration, used);
    }
}

#[cfg(feature = "pg15")]
fn instr_time(duration: std::time::Duration) -> pg_sys::instr_time {
    pg_sys::instr_time { tv_sec: duration.as_secs() as _, tv_nsec: duration.subsec_nanos().into() }
}

#[cfg(feature = "pg16")]
fn instr_time(duration: std::time::Duration) -> pg_sys::instr_time {
    pg_sys::instr_time { ticks: duration.as_nanos() as i64 }
}

#[cfg(any(feature = "pg15", feature = "pg16"))]
fn buffer_difference(before: &pg_sys::BufferUsage, after: &pg_sys::BufferUsage) -> pg_sys::BufferUsage {
    unsafe extern "C-unwind" {
        fn BufferUsageAccumDiff(
            target: *mut pg_sys::BufferUsage,
            add: *const pg_sys::BufferUsage,
            subtract: *const pg_sys::BufferUsage,
        );
    }
    let mut difference = pg_sys::BufferUsage::default();
    // SAFETY: adds numbers; raises nothing.
    unsafe { BufferUsageAccumDiff(&mut difference, after, before) };
    difference
}

/// The timeout after which Postgres looks whether a client is there still.
pub const CLIENT_CONNECTION_CHECK_TIMEOUT: std::ffi::c_int = if cfg!(any(feature = "pg15", feature = "pg16")) { 10 } else { 11 };

/// Whether the transaction has gone on for longer than it may, which ends the session.
pub fn transaction_timed_out() -> bool {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    {
        false
    }
    #[cfg(not(any(feature = "pg15", feature = "pg16")))]
    // SAFETY: a flag of the process.
    unsafe {
        pg_sys::TransactionTimeoutPending != 0
    }
}

/// Replaces what EXPLAIN ANALYZE shows of a bitmap scan's blocks.
///
/// # Safety
/// A live node of the executor.
pub unsafe fn set_bitmap_blocks(state: *mut pg_sys::BitmapHeapScanState, exact: u64, lossy: u64) {
    // SAFETY: see above.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        {
            (*state).exact_pages = exact as _;
            (*state).lossy_pages = lossy as _;
        }
        #[cfg(feature = "pg18")]
        {
            (*state).stats.exact_pages = exact;
            (*state).stats.lossy_pages = lossy;
        }
    }
}

/// Tells ANALYZE's functions how much detail a column wants; false if it wants no statistics.
///
/// # Safety
/// A column of an open relation.
#[cfg_attr(any(feature = "pg15", feature = "pg16"), allow(unused_variables, reason = "the column has its target itself"))]
pub unsafe fn begin_statistics(
    statistics: &mut pg_sys::VacAttrStats,
    table: pg_sys::Oid,
    column: &pg_sys::FormData_pg_attribute,
) -> bool {
    // SAFETY: allocates in the current context; a row of the cache is read before it is released.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        {
            // Postgres puts the default in the place of a missing target.
            statistics.attr = pg_sys::palloc(size_of::<pg_sys::FormData_pg_attribute>()).cast();
            statistics.attr.write(*column);
            column.attstattarget != 0
        }
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        {
            let cache = pg_sys::SysCacheIdentifier::ATTNUM as std::ffi::c_int;
            let row = pg_sys::SearchSysCache2(cache, table.into(), column.attnum.into());
            if row.is_null() {
                return false;
            }
            let mut is_null = false;
            let target =
                pg_sys::SysCacheGetAttr(cache, row, pg_sys::Anum_pg_attribute_attstattarget as i16, &mut is_null).value() as i16;
            pg_sys::ReleaseSysCache(row);
            statistics.attstattarget = if is_null { -1 } else { target.into() };
            statistics.attstattarget != 0
        }
    }
}

/// The steps by which a node of a plan chooses partitions when it runs.
///
/// # Safety
/// A node of a finished plan.
#[cfg_attr(not(feature = "pg18"), allow(unused_variables, reason = "the node has them itself"))]
pub unsafe fn pruning_steps(statement: *mut pg_sys::PlannedStmt, plan: *mut pg_sys::Plan) -> Vec<*mut pg_sys::Node> {
    // SAFETY: the tag says which struct it is; lists of a plan do not change.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        let info = match (*plan).type_ {
            pg_sys::NodeTag::T_Append => (*plan.cast::<pg_sys::Append>()).part_prune_info,
            pg_sys::NodeTag::T_MergeAppend => (*plan.cast::<pg_sys::MergeAppend>()).part_prune_info,
            _ => std::ptr::null_mut(),
        };
        #[cfg(feature = "pg18")]
        let info = {
            let place = match (*plan).type_ {
                pg_sys::NodeTag::T_Append => (*plan.cast::<pg_sys::Append>()).part_prune_index,
                pg_sys::NodeTag::T_MergeAppend => (*plan.cast::<pg_sys::MergeAppend>()).part_prune_index,
                _ => -1,
            };
            let infos = elements::<pg_sys::PartitionPruneInfo>((*statement).partPruneInfos);
            usize::try_from(place).ok().and_then(|place| infos.get(place).copied()).unwrap_or(std::ptr::null_mut())
        };
        if info.is_null() {
            return Vec::new();
        }
        let hierarchies = elements::<pg_sys::List>((*info).prune_infos).iter();
        let tables = hierarchies.flat_map(|list| elements::<pg_sys::PartitionedRelPruneInfo>(*list));
        let lists = tables.flat_map(|table| [(**table).initial_pruning_steps, (**table).exec_pruning_steps]);
        lists.flat_map(|list| elements::<pg_sys::Node>(list)).copied().collect()
    }
}

/// A relation's counters of scans and searches, of rows that these returned, of rows that were fetched for an index, and of blocks that
/// were asked for and found in memory.
pub struct TableCounters<'c> {
    pub scans: &'c mut pg_sys::PgStat_Counter,
    pub returned: &'c mut pg_sys::PgStat_Counter,
    pub fetched: &'c mut pg_sys::PgStat_Counter,
    pub blocks: &'c mut pg_sys::PgStat_Counter,
    pub hits: &'c mut pg_sys::PgStat_Counter,
}

/// The counters in what Postgres keeps of a relation for its statistics.
pub fn table_counters(status: &mut pg_sys::PgStat_TableStatus) -> TableCounters<'_> {
    #[cfg(feature = "pg15")]
    {
        let counts = &mut status.t_counts;
        TableCounters {
            scans: &mut counts.t_numscans,
            returned: &mut counts.t_tuples_returned,
            fetched: &mut counts.t_tuples_fetched,
            blocks: &mut counts.t_blocks_fetched,
            hits: &mut counts.t_blocks_hit,
        }
    }
    #[cfg(not(feature = "pg15"))]
    {
        let counts = &mut status.counts;
        TableCounters {
            scans: &mut counts.numscans,
            returned: &mut counts.tuples_returned,
            fetched: &mut counts.tuples_fetched,
            blocks: &mut counts.blocks_fetched,
            hits: &mut counts.blocks_hit,
        }
    }
}

/// An entry of the process' copy of the table of sessions, by its number from 1 on; null if there is none.
///
/// # Safety
/// The number is at most [`pg_sys::pgstat_fetch_stat_numbackends`].
pub unsafe fn session_entry(number: std::ffi::c_int) -> *mut pg_sys::LocalPgBackendStatus {
    // SAFETY: see above.
    unsafe {
        #[cfg(feature = "pg15")]
        {
            pg_sys::pgstat_fetch_stat_local_beentry(number)
        }
        #[cfg(not(feature = "pg15"))]
        {
            pg_sys::pgstat_get_local_beentry_by_index(number)
        }
    }
}

/// The columns of a row's description, as many as it says.
///
/// # Safety
/// The description is valid.
pub unsafe fn attributes(descriptor: pg_sys::TupleDesc) -> *const pg_sys::FormData_pg_attribute {
    // SAFETY: see above.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        {
            (*descriptor).attrs.as_ptr()
        }
        #[cfg(feature = "pg18")]
        {
            pg_sys::TupleDescAttr(descriptor, 0)
        }
    }
}

/// Ends the making of a column of a row's description: where it lies in a row is not known yet.
///
/// # Safety
/// A description that nobody uses yet, with such a column filled in.
pub unsafe fn complete_attribute(descriptor: pg_sys::TupleDesc, place: usize) {
    // SAFETY: see above.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        {
            (*attributes(descriptor).cast_mut().add(place)).attcacheoff = -1;
        }
        #[cfg(feature = "pg18")]
        pg_sys::populate_compact_attribute(descriptor, place as std::ffi::c_int);
    }
}

/// Which indexes an update has to add entries to.
#[cfg(feature = "pg15")]
pub type UpdateIndexes = bool;
/// Which indexes an update has to add entries to.
#[cfg(not(feature = "pg15"))]
pub type UpdateIndexes = pg_sys::TU_UpdateIndexes::Type;

/// All indexes, or none.
pub fn update_indexes(all: bool) -> UpdateIndexes {
    #[cfg(feature = "pg15")]
    {
        all
    }
    #[cfg(not(feature = "pg15"))]
    {
        if all { pg_sys::TU_UpdateIndexes::TU_All } else { pg_sys::TU_UpdateIndexes::TU_None }
    }
}

/// Counts an update for Postgres' statistics: whether the new version stays in its chain, and whether it is on another page.
///
/// # Safety
/// An open relation.
#[cfg_attr(feature = "pg15", allow(unused_variables, reason = "pages are not counted"))]
pub unsafe fn count_update(rel: pg_sys::Relation, heap_only: bool, new_page: bool) {
    // SAFETY: see above.
    unsafe {
        #[cfg(feature = "pg15")]
        pg_sys::pgstat_count_heap_update(rel, heap_only);
        #[cfg(not(feature = "pg15"))]
        pg_sys::pgstat_count_heap_update(rel, heap_only, new_page);
    }
}

/// The number of this process among those of sessions.
///
/// # Safety
/// The process is a backend.
pub unsafe fn process_number() -> usize {
    // SAFETY: a plain global of the backend.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        {
            pg_sys::MyBackendId as usize
        }
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        {
            pg_sys::MyProcNumber as usize
        }
    }
}

/// What a process waits for that waits for pins.
#[cfg(any(feature = "pg15", feature = "pg16"))]
pub const WAIT_FOR_PINS: u32 = pg_sys::PG_WAIT_BUFFER_PIN;
/// What a process waits for that waits for pins.
#[cfg(any(feature = "pg17", feature = "pg18"))]
pub const WAIT_FOR_PINS: u32 = pg_sys::WaitEventBufferPin::WAIT_EVENT_BUFFER_PIN;

/// Whether the process holds a lock in this mode.
///
/// # Safety
/// A tag as Postgres makes them.
pub unsafe fn holds_lock(tag: &pg_sys::LOCKTAG, mode: pg_sys::LOCKMODE) -> bool {
    // SAFETY: see above.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        {
            pg_sys::LockHeldByMe(tag, mode)
        }
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        {
            pg_sys::LockHeldByMe(tag, mode, false)
        }
    }
}

/// Whether a transaction has ended, without waiting for that.
///
/// # Safety
/// No latch is held.
pub unsafe fn try_wait_for_xid(xid: pg_sys::TransactionId) -> bool {
    // SAFETY: see above.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        {
            pg_sys::ConditionalXactLockTableWait(xid)
        }
        #[cfg(feature = "pg18")]
        {
            pg_sys::ConditionalXactLockTableWait(xid, pg_sys::log_lock_failures)
        }
    }
}

/// Takes the heavyweight lock of a row if it is free.
///
/// # Safety
/// An open relation; no latch is held.
pub unsafe fn try_lock_tuple(rel: pg_sys::Relation, tid: pg_sys::ItemPointer, mode: pg_sys::LOCKMODE) -> bool {
    // SAFETY: see above.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        {
            pg_sys::ConditionalLockTuple(rel, tid, mode)
        }
        #[cfg(feature = "pg18")]
        {
            pg_sys::ConditionalLockTuple(rel, tid, mode, pg_sys::log_lock_failures)
        }
    }
}

/// Installs the handler of a signal.
///
/// # Safety
/// The handler does what a signal handler may.
pub unsafe fn handle_signal(signal: std::ffi::c_int, handler: pg_sys::pqsigfunc) {
    // SAFETY: see above.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        pg_sys::pqsignal(signal, handler);
        #[cfg(feature = "pg18")]
        pg_sys::pqsignal_be(signal, handler);
    }
}

/// Keeps a bitmap scan from prefetching; where the access method prefetches itself it does not.
///
/// # Safety
/// A live node of the executor.
#[cfg_attr(feature = "pg18", allow(unused_variables, reason = "nobody else prefetches"))]
pub unsafe fn stop_prefetch(state: *mut pg_sys::BitmapHeapScanState) {
    // SAFETY: see above.
    #[cfg(not(feature = "pg18"))]
    unsafe {
        (*state).prefetch_maximum = 0;
    }
}

/// The callback that gives a table new files.
type SetNewFiles = unsafe extern "C-unwind" fn(
    pg_sys::Relation,
    *const FileLocator,
    std::ffi::c_char,
    *mut pg_sys::TransactionId,
    *mut pg_sys::MultiXactId,
);

/// Puts the callback that gives a table new files into the table of callbacks.
pub fn set_new_files_callback(routine: &mut pg_sys::TableAmRoutine, callback: SetNewFiles) {
    #[cfg(feature = "pg15")]
    {
        routine.relation_set_new_filenode = Some(callback);
    }
    #[cfg(not(feature = "pg15"))]
    {
        routine.relation_set_new_filelocator = Some(callback);
    }
}
