//! Who the running statement acts for.
//!
//! The user of a query is asked for when its executor starts and holds until it ends, whatever the session becomes meanwhile. What
//! runs outside of a query acts for the session's user of the moment (COPY) or for the whole table (ALTER TABLE and its like).
//!
//! The hooks call Postgres unguarded: errors keep their context and jump over these frames, which own nothing. The state that they
//! would have put back is put back by the end of the transaction or of the subtransaction that the error ends.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use pgrx::{pg_guard, pg_sys};

use super::planner;
use crate::error::{OrRaise, SqlError};
use crate::{identity, tableam};

/// For whom a statement runs.
#[derive(Clone, Debug)]
pub enum User {
    /// For everybody: all partitions.
    All,
    /// For one user.
    Named(Rc<str>),
}

/// What a query was started as.
struct Captured {
    user: Result<User, SqlError>,
    /// The query checks a foreign key, or is run by a trigger below such a check.
    below_key_check: bool,
}

/// Where the process is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Outside of a query.
    Session,
    /// In a command that works on whole tables.
    Maintenance,
    /// In the query with this descriptor.
    Query(usize),
}

#[derive(Clone, Copy)]
struct Frame {
    place: Place,
    below_key_check: bool,
}

const OUTSIDE: Frame = Frame { place: Place::Session, below_key_check: false };

thread_local! {
    static CURRENT: Cell<Frame> = const { Cell::new(OUTSIDE) };
    /// The frames at the starts of the open subtransactions.
    static SAVED: RefCell<Vec<(u32, Frame)>> = const { RefCell::new(Vec::new()) };
    static QUERIES: RefCell<HashMap<usize, Captured>> = RefCell::default();
    /// Whether the process has met a user table: as long as not, nobody needs to be asked for.
    static MET: Cell<bool> = const { Cell::new(false) };
}

static mut PREVIOUS_START: pg_sys::ExecutorStart_hook_type = None;
static mut PREVIOUS_RUN: pg_sys::ExecutorRun_hook_type = None;
static mut PREVIOUS_FINISH: pg_sys::ExecutorFinish_hook_type = None;
static mut PREVIOUS_END: pg_sys::ExecutorEnd_hook_type = None;
static mut PREVIOUS_PERMISSIONS: pg_sys::ExecutorCheckPerms_hook_type = None;

/// Installs the hooks; once per process.
pub fn init() {
    // SAFETY: hooks are chained while the library is loaded, by the process' only thread; the functions stay loaded.
    unsafe {
        PREVIOUS_START = pg_sys::ExecutorStart_hook;
        pg_sys::ExecutorStart_hook = Some(executor_start);
        PREVIOUS_RUN = pg_sys::ExecutorRun_hook;
        pg_sys::ExecutorRun_hook = Some(executor_run);
        PREVIOUS_FINISH = pg_sys::ExecutorFinish_hook;
        pg_sys::ExecutorFinish_hook = Some(executor_finish);
        PREVIOUS_END = pg_sys::ExecutorEnd_hook;
        pg_sys::ExecutorEnd_hook = Some(executor_end);
        PREVIOUS_PERMISSIONS = pg_sys::ExecutorCheckPerms_hook;
        pg_sys::ExecutorCheckPerms_hook = Some(check_permissions);
        pg_sys::RegisterXactCallback(Some(at_transaction_end), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(at_subtransaction), std::ptr::null_mut());
    }
}

/// Whether rows of a relation belong to users.
#[inline]
pub fn is_partitioned(rel: pg_sys::Relation) -> bool {
    // SAFETY: an open relation.
    let partitioned = unsafe { tableam::is_partitioned_routine((*rel).rd_tableam) };
    if partitioned {
        meet();
    }
    partitioned
}

/// Notes that the process has met a user table.
#[inline]
pub fn meet() {
    MET.set(true);
}

/// For whom the running statement acts.
///
/// # Errors
/// 28000 when nobody is known, 42501 when the session asks for everybody's rows and may not have them.
pub fn user() -> Result<User, SqlError> {
    match CURRENT.get().place {
        Place::Maintenance => Ok(User::All),
        Place::Session => user_of_session(),
        Place::Query(query) => {
            let captured = QUERIES.with_borrow(|queries| queries.get(&query).map(|captured| captured.user.clone()));
            captured.unwrap_or_else(user_of_session)
        }
    }
}

/// For whom a function acts that a statement calls. A command on whole tables lends nothing to functions that it calls.
///
/// # Errors
/// As [`user`].
pub fn user_of_function() -> Result<User, SqlError> {
    if works_on_whole_tables() { user_of_session() } else { user() }
}

/// For whom the session acts at the moment.
pub fn user_of_session() -> Result<User, SqlError> {
    // SAFETY: plain values of the process.
    if unsafe { pg_sys::IsLogicalWorker() } {
        // Rows that replication brings say themselves whose they are.
        return Ok(User::All);
    }
    // SAFETY: as above.
    if unsafe { pg_sys::row_security } {
        return Ok(User::Named(identity::current_user_name()?.into()));
    }
    // Both the session's role and the one that the code runs as: no function lends this right to its caller, or its caller to it.
    // SAFETY: looks into the catalog's cache.
    let may = unsafe {
        pg_sys::has_bypassrls_privilege(pg_sys::GetOuterUserId()) && pg_sys::has_bypassrls_privilege(pg_sys::GetUserId())
    };
    if may {
        return Ok(User::All);
    }
    Err(SqlError::insufficient_privilege("query would be affected by the separation of users")
        .with_detail("With row_security = off a user table shows the rows of all users, which takes a superuser or BYPASSRLS.")
        .with_hint("Set row_security to on to see the rows of the session's user."))
}

/// Whether the statement being planned or run is a check of a foreign key itself.
pub fn in_key_check() -> bool {
    // SAFETY: a flag of the process.
    unsafe { pg_sys::InNoForceRLSOperation() && !CURRENT.get().below_key_check }
}

/// Runs a command that works on whole tables; returns what to put back afterwards.
pub fn enter_utility(whole_tables: bool) -> Before {
    let before = CURRENT.get();
    let place = if whole_tables { Place::Maintenance } else { Place::Session };
    CURRENT.set(Frame { place, ..before });
    Before(before)
}

/// Whether the process is in a command that works on whole tables, and not in a query that this runs.
pub fn works_on_whole_tables() -> bool {
    CURRENT.get().place == Place::Maintenance
}

/// Whether the process runs a query.
pub fn in_query() -> bool {
    matches!(CURRENT.get().place, Place::Query(_))
}

/// Goes on with a command as one that works on whole tables.
pub fn work_on_whole_tables() {
    CURRENT.set(Frame { place: Place::Maintenance, ..CURRENT.get() });
}

/// Where the process was before a utility command.
#[derive(Clone, Copy)]
pub struct Before(Frame);

/// Puts back what [`enter_utility`] changed.
pub fn leave_utility(before: Before) {
    CURRENT.set(before.0);
}

#[pg_guard]
unsafe extern "C-unwind" fn capture(query: *mut pg_sys::QueryDesc) {
    let below = CURRENT.get().below_key_check;
    let captured = if in_key_check() {
        Captured { user: Ok(User::All), below_key_check: true }
    } else {
        let user = user_of_session();
        identity::setting_use::note();
        if matches!(user, Ok(User::All)) {
            // SAFETY: the executor's own descriptor.
            unsafe { planner::refuse_plan_of_one_user((*query).plannedstmt) }.or_raise();
        }
        Captured { user, below_key_check: below }
    };
    QUERIES.with_borrow_mut(|queries| queries.insert(query as usize, captured));
}

unsafe extern "C-unwind" fn executor_start(query: *mut pg_sys::QueryDesc, flags: std::ffi::c_int) {
    // SAFETY: the hook gets what the executor gets.
    unsafe {
        if MET.get() {
            capture(query);
        }
        // Bitmap scans begin here already, and partitions are chosen.
        let before = enter(query);
        let run = PREVIOUS_START.unwrap_or(unguarded::standard_ExecutorStart);
        run(query, flags);
        CURRENT.set(before);
    }
}

fn enter(query: *mut pg_sys::QueryDesc) -> Frame {
    let before = CURRENT.get();
    if MET.get() {
        let query = query as usize;
        let below = QUERIES.with_borrow(|queries| queries.get(&query).is_some_and(|captured| captured.below_key_check));
        CURRENT.set(Frame { place: Place::Query(query), below_key_check: below });
    }
    before
}

unsafe extern "C-unwind" fn executor_run(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
    once: bool,
) {
    let before = enter(query);
    // SAFETY: the hook gets what the executor gets.
    unsafe {
        let run = PREVIOUS_RUN.unwrap_or(unguarded::standard_ExecutorRun);
        run(query, direction, count, once);
    }
    CURRENT.set(before);
}

unsafe extern "C-unwind" fn executor_finish(query: *mut pg_sys::QueryDesc) {
    let before = enter(query);
    // SAFETY: as above.
    unsafe {
        let run = PREVIOUS_FINISH.unwrap_or(unguarded::standard_ExecutorFinish);
        run(query);
        if MET.get() && (*query).instrument_options != 0 && matches!(user(), Ok(User::Named(_))) {
            planner::forget_counts_of_others((*query).planstate);
        }
    }
    CURRENT.set(before);
}

unsafe extern "C-unwind" fn executor_end(query: *mut pg_sys::QueryDesc) {
    if MET.get() {
        QUERIES.with_borrow_mut(|queries| drop(queries.remove(&(query as usize))));
    }
    // SAFETY: as above.
    unsafe {
        let run = PREVIOUS_END.unwrap_or(unguarded::standard_ExecutorEnd);
        run(query);
    }
}

/// Answers "no" when Postgres asks whether it may check a new foreign key of a user table by one query, which would see one
/// user's rows; it then checks row by row, and each of these checks sees everybody's.
#[pg_guard]
unsafe extern "C-unwind" fn check_permissions(tables: *mut pg_sys::List, raises: bool) -> bool {
    // SAFETY: a list of range table entries.
    unsafe {
        if !raises && planner::relations(tables).any(|table| super::is_user_table(table).is_some()) {
            return false;
        }
        PREVIOUS_PERMISSIONS.is_none_or(|previous| previous(tables, raises))
    }
}

unsafe extern "C-unwind" fn at_transaction_end(event: pg_sys::XactEvent::Type, _arg: *mut std::ffi::c_void) {
    use pg_sys::XactEvent::*;
    if matches!(event, XACT_EVENT_COMMIT | XACT_EVENT_ABORT | XACT_EVENT_PREPARE | XACT_EVENT_PARALLEL_ABORT) {
        CURRENT.set(OUTSIDE);
        SAVED.with_borrow_mut(Vec::clear);
        QUERIES.with_borrow_mut(HashMap::clear);
    }
}

unsafe extern "C-unwind" fn at_subtransaction(
    event: pg_sys::SubXactEvent::Type,
    subtransaction: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _arg: *mut std::ffi::c_void,
) {
    use pg_sys::SubXactEvent::*;
    SAVED.with_borrow_mut(|saved| match event {
        SUBXACT_EVENT_START_SUB => saved.push((subtransaction, CURRENT.get())),
        SUBXACT_EVENT_ABORT_SUB | SUBXACT_EVENT_COMMIT_SUB => {
            while let Some((id, frame)) = saved.pop_if(|(id, _)| *id >= subtransaction) {
                if id == subtransaction && event == SUBXACT_EVENT_ABORT_SUB {
                    CURRENT.set(frame);
                }
            }
        }
        _ => {}
    });
}

#[allow(non_snake_case, reason = "the names are Postgres'")]
mod unguarded {
    use pgrx::pg_sys;

    unsafe extern "C-unwind" {
        pub fn standard_ExecutorStart(query: *mut pg_sys::QueryDesc, flags: std::ffi::c_int);
        pub fn standard_ExecutorRun(
            query: *mut pg_sys::QueryDesc,
            direction: pg_sys::ScanDirection::Type,
            count: u64,
            once: bool,
        );
        pub fn standard_ExecutorFinish(query: *mut pg_sys::QueryDesc);
        pub fn standard_ExecutorEnd(query: *mut pg_sys::QueryDesc);
    }
}
