//! What a statement looked at and loaded, in EXPLAIN (ANALYZE, BUFFERS): pages, those from the store, those built from segments.
//!
//! Parallel workers count for themselves and are not seen here.

use std::ffi::CString;

use kalamdb_engine::cache::{LoadStatistics, load_statistics};
use pgrx::{pg_guard, pg_sys};

use crate::ffi::compat;

static mut PREVIOUS: pg_sys::ExplainOneQuery_hook_type = None;

/// Installs the hook; once per process.
pub fn init() {
    // SAFETY: hooks are chained while the library is loaded, by the process' only thread.
    unsafe {
        PREVIOUS = pg_sys::ExplainOneQuery_hook;
        pg_sys::ExplainOneQuery_hook = Some(explain_one_query);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn explain_one_query(
    query: *mut pg_sys::Query,
    options: std::ffi::c_int,
    into: *mut pg_sys::IntoClause,
    state: *mut pg_sys::ExplainState,
    text: *const std::ffi::c_char,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
) {
    let before = load_statistics();
    // SAFETY: the hook gets what Postgres' own function gets.
    unsafe {
        match PREVIOUS {
            Some(previous) => previous(query, options, into, state, text, parameters, environment),
            None => compat::explain_one_query(query, options, into, state, text, parameters, environment),
        }
        if (*state).analyze && (*state).buffers {
            print(state, &difference(&before, &load_statistics()));
        }
    }
}

fn difference(before: &LoadStatistics, after: &LoadStatistics) -> LoadStatistics {
    LoadStatistics {
        pages: after.pages - before.pages,
        hot_pages: after.hot_pages - before.hot_pages,
        cold_pages: after.cold_pages - before.cold_pages,
        segments_opened: after.segments_opened - before.segments_opened,
        bytes_read: after.bytes_read - before.bytes_read,
    }
}

unsafe fn print(state: *mut pg_sys::ExplainState, loads: &LoadStatistics) {
    let LoadStatistics { pages, hot_pages, cold_pages, segments_opened, bytes_read } = *loads;
    // SAFETY: the state is that of the running EXPLAIN; labels end with a zero byte.
    unsafe {
        if (*state).format != pg_sys::ExplainFormat::EXPLAIN_FORMAT_TEXT {
            // The group of the plan is closed: this is one more element of the list.
            pg_sys::ExplainOpenGroup(c"Query".as_ptr(), std::ptr::null(), true, state);
            pg_sys::ExplainOpenGroup(c"KalamDB".as_ptr(), c"KalamDB".as_ptr(), true, state);
            let properties = [
                (c"Pages", pages),
                (c"Hot Pages Read", hot_pages),
                (c"Cold Pages Built", cold_pages),
                (c"Segments Opened", segments_opened),
                (c"Segment Bytes Read", bytes_read),
            ];
            for (label, value) in properties {
                pg_sys::ExplainPropertyUInteger(label.as_ptr(), std::ptr::null(), value, state);
            }
            pg_sys::ExplainCloseGroup(c"KalamDB".as_ptr(), c"KalamDB".as_ptr(), true, state);
            pg_sys::ExplainCloseGroup(c"Query".as_ptr(), std::ptr::null(), true, state);
            return;
        }
        // What was in the cache is of interest to those who ask for everything.
        if hot_pages + cold_pages == 0 && !((*state).verbose && pages > 0) {
            return;
        }
        let line = format!(
            "pages={pages} hot pages read={hot_pages} cold pages built={cold_pages} segments opened={segments_opened} segment bytes read={bytes_read}"
        );
        let line = CString::new(line).expect("numbers and letters");
        pg_sys::ExplainPropertyText(c"KalamDB".as_ptr(), line.as_ptr(), state);
    }
}
