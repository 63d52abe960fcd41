//! The table access methods `kalam_shared`, `kalam_user` and `kalam_stream`: Postgres' callbacks, one file per family.

pub mod change;
pub mod fetch;
pub mod index_build;
pub mod index_delete;
pub mod insert;
pub mod lifecycle;
pub mod lock;
pub mod modified;
pub mod partition;
pub mod pins;
pub mod prefetch;
pub mod prune;
pub mod raw;
pub mod row;
pub mod row_lock;
pub mod scan;
pub mod size;
pub mod slot;
pub mod space;
pub mod stats;
pub mod status;
pub mod storage;
pub mod stream;
pub mod update;
pub mod vacuum;
pub mod values;

mod analyze;
mod delete;
pub mod main_fork;
mod parallel;
mod rewrite;
mod temporary;

use std::sync::OnceLock;

use crate::ffi::compat;
use crate::ffi::function::version_1;
use pgrx::prelude::*;

pub use storage::require_table;

struct SyncRoutine(pg_sys::TableAmRoutine);
// SAFETY: the routine is written once and only read afterwards, by the backend's one thread.
unsafe impl Sync for SyncRoutine {}

static SHARED: OnceLock<SyncRoutine> = OnceLock::new();
static USER: OnceLock<SyncRoutine> = OnceLock::new();
static STREAM: OnceLock<SyncRoutine> = OnceLock::new();

/// The table of callbacks of shared tables.
pub fn shared_routine() -> &'static pg_sys::TableAmRoutine {
    &SHARED.get_or_init(callbacks).0
}

/// The table of callbacks of user tables: the same ones, at an address of their own by which the kind of a table is told.
pub fn user_routine() -> &'static pg_sys::TableAmRoutine {
    &USER.get_or_init(callbacks).0
}

/// The table of callbacks of stream tables.
pub fn stream_routine() -> &'static pg_sys::TableAmRoutine {
    &STREAM.get_or_init(callbacks).0
}

/// Whether a relation is a table of one of our access methods.
///
/// # Safety
/// An open relation.
pub unsafe fn is_ours(rel: pg_sys::Relation) -> bool {
    // SAFETY: see above.
    let routine = unsafe { (*rel).rd_tableam };
    std::ptr::eq(routine, shared_routine()) || is_partitioned_routine(routine)
}

/// Whether rows of tables with this table of callbacks belong to users.
#[inline]
pub fn is_partitioned_routine(routine: *const pg_sys::TableAmRoutine) -> bool {
    std::ptr::eq(routine, user_routine()) || is_stream_routine(routine)
}

/// Whether rows of tables with this table of callbacks vanish.
#[inline]
pub fn is_stream_routine(routine: *const pg_sys::TableAmRoutine) -> bool {
    std::ptr::eq(routine, stream_routine())
}

/// The callbacks, in the order of Postgres' struct.
fn callbacks() -> SyncRoutine {
    let mut routine = pg_sys::TableAmRoutine {
        type_: pg_sys::NodeTag::T_TableAmRoutine,
        slot_callbacks: Some(slot::slot_callbacks),
        scan_begin: Some(scan::scan_begin),
        scan_end: Some(scan::scan_end),
        scan_rescan: Some(scan::scan_rescan),
        scan_getnextslot: Some(scan::scan_getnextslot),
        scan_set_tidrange: Some(scan::scan_set_tidrange),
        scan_getnextslot_tidrange: Some(scan::scan_getnextslot_tidrange),
        parallelscan_estimate: Some(parallel::estimate),
        parallelscan_initialize: Some(parallel::initialize),
        parallelscan_reinitialize: Some(parallel::reinitialize),
        index_fetch_begin: Some(fetch::index_fetch_begin),
        index_fetch_reset: Some(fetch::index_fetch_reset),
        index_fetch_end: Some(fetch::index_fetch_end),
        index_fetch_tuple: Some(fetch::index_fetch_tuple),
        tuple_fetch_row_version: Some(fetch::tuple_fetch_row_version),
        tuple_tid_valid: Some(fetch::tuple_tid_valid),
        tuple_get_latest_tid: Some(fetch::tuple_get_latest_tid),
        tuple_satisfies_snapshot: Some(fetch::tuple_satisfies_snapshot),
        index_delete_tuples: Some(index_delete::index_delete_tuples),
        tuple_insert: Some(insert::tuple_insert),
        tuple_insert_speculative: Some(insert::tuple_insert_speculative),
        tuple_complete_speculative: Some(insert::tuple_complete_speculative),
        multi_insert: Some(insert::multi_insert),
        tuple_delete: Some(delete::tuple_delete),
        tuple_update: Some(update::tuple_update),
        tuple_lock: Some(lock::tuple_lock),
        finish_bulk_insert: Some(insert::finish_bulk_insert),
        relation_nontransactional_truncate: Some(lifecycle::relation_nontransactional_truncate),
        relation_copy_data: Some(lifecycle::relation_copy_data),
        relation_copy_for_cluster: Some(rewrite::relation_copy_for_cluster),
        relation_vacuum: Some(vacuum::relation_vacuum),
        scan_analyze_next_block: Some(analyze::scan_analyze_next_block),
        scan_analyze_next_tuple: Some(analyze::scan_analyze_next_tuple),
        index_build_range_scan: Some(index_build::index_build_range_scan),
        index_validate_scan: Some(index_build::index_validate_scan),
        relation_size: Some(size::relation_size),
        relation_needs_toast_table: Some(values::relation_needs_toast_table),
        relation_toast_am: Some(values::relation_toast_am),
        relation_fetch_toast_slice: Some(values::relation_fetch_toast_slice),
        relation_estimate_size: Some(size::relation_estimate_size),
        scan_sample_next_block: Some(scan::scan_sample_next_block),
        scan_sample_next_tuple: Some(scan::scan_sample_next_tuple),
        ..pg_sys::TableAmRoutine::default()
    };
    compat::set_new_files_callback(&mut routine, lifecycle::relation_set_new_filenode);
    scan::set_bitmap_callbacks(&mut routine);
    SyncRoutine(routine)
}

/// What a process registers with Postgres when it loads the library.
pub fn init() {
    pins::init();
    lifecycle::init();
    prefetch::init();
}

version_1!(pg_finfo_kalam_shared_handler, pg_finfo_kalam_user_handler, pg_finfo_kalam_stream_handler);

/// The SQL function `kalam.shared_handler`: gives Postgres the table of callbacks.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn kalam_shared_handler(_call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    pg_sys::Datum::from(std::ptr::from_ref(shared_routine()).cast_mut())
}

/// The SQL function `kalam.user_handler`: gives Postgres the table of callbacks.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn kalam_user_handler(_call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    pg_sys::Datum::from(std::ptr::from_ref(user_routine()).cast_mut())
}

/// The SQL function `kalam.stream_handler`: gives Postgres the table of callbacks.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn kalam_stream_handler(_call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    pg_sys::Datum::from(std::ptr::from_ref(stream_routine()).cast_mut())
}
