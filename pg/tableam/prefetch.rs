//! Keeps the executor from prefetching blocks of our tables through their empty files.
//!
//! A bitmap scan prefetches through the relation's main fork, which has holes for blocks: at best that is wasted, and where the fork is
//! shorter than the table it fails.

use pgrx::pg_sys;

use crate::ffi::compat;
use crate::ffi::unguarded;
use crate::ffi::utility::elements;

static mut PREVIOUS: pg_sys::ExecutorStart_hook_type = None;

/// Installs the hook; once per process.
pub fn init() {
    // SAFETY: hooks are chained while the library is loaded, by the process' only thread.
    unsafe {
        PREVIOUS = pg_sys::ExecutorStart_hook;
        pg_sys::ExecutorStart_hook = Some(executor_start);
    }
}

// Without a guard, which each statement would pay for: nothing in here owns anything.
unsafe extern "C-unwind" fn executor_start(query: *mut pg_sys::QueryDesc, flags: std::ffi::c_int) {
    // SAFETY: the hook gets what the executor gets.
    unsafe {
        let start = PREVIOUS.unwrap_or(unguarded::standard_ExecutorStart);
        start(query, flags);
        if !(*query).planstate.is_null() {
            visit((*query).planstate, std::ptr::null_mut());
            for state in elements::<pg_sys::PlanState>((*(*query).estate).es_subplanstates) {
                if !state.is_null() {
                    visit(*state, std::ptr::null_mut());
                }
            }
        }
    }
}

unsafe extern "C-unwind" fn visit(state: *mut pg_sys::PlanState, context: *mut std::ffi::c_void) -> bool {
    // SAFETY: the walker passes nodes of the executor's tree.
    unsafe {
        if (*state).type_ == pg_sys::NodeTag::T_BitmapHeapScanState {
            let bitmap = state.cast::<pg_sys::BitmapHeapScanState>();
            let rel = (*bitmap).ss.ss_currentRelation;
            if !rel.is_null() && super::is_ours(rel) {
                compat::stop_prefetch(bitmap);
            }
        }
        unguarded::planstate_tree_walker(state, visit, context)
    }
}
