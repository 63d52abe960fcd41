//! Who the running statement acts for.
//!
//! The user of a query is asked for when its executor starts and holds until it ends, whatever the session becomes meanwhile. What
//! runs outside of a query acts for the session's user of the moment (COPY) or for the whole table (ALTER TABLE and its like).
//!
//! The hooks call Postgres unguarded: errors keep their context and jump over these frames, which own nothing. The state that they
//! would have put back is put back by the end of the transaction or of the subtransaction that the error ends.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use pgrx::{pg_guard, pg_sys};

use super::{counters, lent, planner};
use crate::error::{OrRaise, SqlError};
use crate::ffi::{compat, plain, unguarded};
use crate::hash::Map;
use crate::identity::KnownUser;
use crate::{identity, tableam};

/// For whom a statement runs.
#[derive(Clone, Debug)]
pub enum User {
    /// For everybody: all partitions.
    All,
    /// For one user.
    Named(Rc<KnownUser>),
}

/// What a query was started as.
struct Captured {
    user: Result<User, SqlError>,
    /// The query is the one that checks a foreign key.
    is_key_check: bool,
    /// See [`Scope::lent`].
    lent: Option<pg_sys::Oid>,
    /// The user of the row that the query is moving from one partition of a table to another.
    moved: Option<Box<[u8]>>,
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
struct Scope {
    place: Place,
    is_key_check: bool,
    /// The role with whose rights code runs here, if it is not the session's own: see [`super::lent`].
    lent: Option<pg_sys::Oid>,
    /// A command on whole tables runs that puts back what was before: some commit in the middle and go on.
    outlasts_commit: bool,
}

const OUTSIDE: Scope = Scope { place: Place::Session, is_key_check: false, lent: None, outlasts_commit: false };

thread_local! {
    static CURRENT: Cell<Scope> = const { Cell::new(OUTSIDE) };
    /// Where the process was at the starts of the open subtransactions.
    static SAVED: RefCell<Vec<(u32, Scope)>> = const { RefCell::new(Vec::new()) };
    static QUERIES: RefCell<Map<usize, Captured>> = RefCell::default();
    /// Whether the process has met a user table: as long as not, nobody needs to be asked for.
    static MET: Cell<bool> = const { Cell::new(false) };
    /// Whether a hook of ours has been called yet. As long as not, the statement runs that has loaded the library, and nobody has
    /// looked at it.
    static HOOKED: Cell<bool> = const { Cell::new(false) };
    /// Whether the library was loaded below a check of a foreign key, in this transaction: the hooks have not seen it begin.
    static LOADED_IN_CHECK: Cell<bool> = const { Cell::new(false) };
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
        LOADED_IN_CHECK.set(plain::InNoForceRLSOperation());
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

/// For whom the running statement acts on a table.
///
/// # Errors
/// As [`user`]; 42501 when the code that runs has the rights of somebody to whom the table does not belong.
pub fn user_in(rel: pg_sys::Relation) -> Result<User, SqlError> {
    let scope = CURRENT.get();
    // Parallel workers begin scans before their query runs.
    // SAFETY: a value of the process.
    let outside = scope.place == Place::Session && unsafe { pg_sys::ParallelWorkerNumber } < 0;
    let lent = if outside { lent_now() } else { scope.lent };
    lent::check(user()?, lent, || lent::owner_of(rel))
}

/// The role with whose rights code runs at the moment, if it is not the session's own.
pub fn lent_now() -> Option<pg_sys::Oid> {
    lent::at_the_moment(CURRENT.get().lent, LOADED_IN_CHECK.get())
}

/// For whom the running statement acts.
///
/// # Errors
/// 28000 when nobody is known, 42501 when the session asks for everybody's rows and may not have them.
pub fn user() -> Result<User, SqlError> {
    match CURRENT.get().place {
        Place::Maintenance => Ok(User::All),
        Place::Session => user_of_session(),
        Place::Query(query) => captured_user(query).unwrap_or_else(user_of_session),
    }
}

/// Whether the running statement acts for everybody, as the restore of a dump does.
pub fn acts_for_everybody() -> bool {
    matches!(user(), Ok(User::All))
}

/// For whom a query was started, by the address of its descriptor, if that was noted.
fn captured_user(query: usize) -> Option<Result<User, SqlError>> {
    QUERIES.with_borrow(|queries| queries.get(&query).map(|captured| captured.user.clone()))
}

/// For whom the scan acts that asks while it begins or begins anew.
///
/// # Errors
/// As [`user`].
pub fn user_of_scan() -> Result<User, SqlError> {
    if CURRENT.get().place == Place::Session {
        // A cursor that is rewound asks outside of what the hooks see; Postgres says which one it is.
        // SAFETY: the portal that runs at the moment, if one does.
        let query = unsafe {
            let portal = pg_sys::ActivePortal;
            if portal.is_null() { std::ptr::null_mut() } else { (*portal).queryDesc }
        };
        if let Some(user) = captured_user(query as usize) {
            return user;
        }
    }
    user()
}

/// For whom a function acts on a table that a statement calls. Neither a command on whole tables nor the check of a foreign key
/// lends anything to functions that it calls: some run without a query of their own.
///
/// # Errors
/// As [`user_in`].
pub fn user_of_function(rel: pg_sys::Relation) -> Result<User, SqlError> {
    let borrows = works_on_whole_tables() || CURRENT.get().is_key_check;
    let user = if borrows { user_of_session()? } else { user()? };
    lent::check(user, lent_now(), || lent::owner_of(rel))
}

/// For whom the session acts at the moment.
pub fn user_of_session() -> Result<User, SqlError> {
    // SAFETY: a value of the process.
    if unsafe { pg_sys::ParallelWorkerNumber } >= 0 && !identity::setting_use::knows_session() {
        return Err(SqlError::prerequisite("a parallel worker does not know for whom the session acts")
            .with_detail("Its leader has not loaded the library.")
            .with_hint("Use LOAD 'kalamdb' first, or put the library into \"shared_preload_libraries\"."));
    }
    // SAFETY: plain values of the process.
    if unsafe { plain::IsLogicalWorker() } {
        // Rows that replication brings say themselves whose they are.
        return Ok(User::All);
    }
    // SAFETY: as above.
    if unsafe { pg_sys::row_security } {
        return Ok(User::Named(identity::current_user()?));
    }
    if sees_everybody() {
        return Ok(User::All);
    }
    Err(SqlError::insufficient_privilege("query would be affected by the separation of users")
        .with_detail("With row_security = off a user table shows the rows of all users, which takes a superuser or BYPASSRLS.")
        .with_hint("Set row_security to on to see the rows of the session's user."))
}

/// Whether the rows of all users may be seen: by both the session's role and the one that the code runs as, so that no function
/// lends this right to its caller, or its caller to it.
fn sees_everybody() -> bool {
    // SAFETY: looks into the catalog's cache.
    unsafe { pg_sys::has_bypassrls_privilege(plain::GetOuterUserId()) && pg_sys::has_bypassrls_privilege(plain::GetUserId()) }
}

/// Raises an error when the statement that scans a table is the one that has loaded the library, and no query: it may work on the rows of
/// everybody, and has not been prepared for that.
///
/// # Errors
/// 55000.
pub fn require_prepared() -> Result<(), SqlError> {
    // SAFETY: plain values of the process.
    if HOOKED.get() || unsafe { pg_sys::ParallelWorkerNumber >= 0 || plain::IsLogicalWorker() } {
        return Ok(());
    }
    // SAFETY: the portal that runs at the moment, if one does, has its statements in a list.
    let running = unsafe {
        let portal = pg_sys::ActivePortal;
        let list = if portal.is_null() { std::ptr::null_mut() } else { (*portal).stmts };
        planner::nodes::<pg_sys::PlannedStmt>(list)
            .map(|statement| (*statement).utilityStmt)
            .find(|utility| !utility.is_null())
            .map(|utility| (*utility).type_)
    };
    match running {
        Some(pg_sys::NodeTag::T_CopyStmt) => {
            identity::setting_use::note();
            return Ok(());
        }
        // No event tells of them.
        Some(pg_sys::NodeTag::T_ReindexStmt | pg_sys::NodeTag::T_ClusterStmt | pg_sys::NodeTag::T_VacuumStmt) => {
            work_on_whole_tables();
            return Ok(());
        }
        _ => {}
    }
    Err(SqlError::prerequisite("the statement cannot be the first one of a session that is about user tables")
        .with_detail("The event trigger \"kalam_user_tables\", which prepares such statements, did not run.")
        .with_hint("Use LOAD 'kalamdb' first, or put the library into \"shared_preload_libraries\"."))
}

/// Whether the running query is the one that checks a foreign key.
pub fn in_key_check() -> bool {
    CURRENT.get().is_key_check
}

/// Notes whose row the running query takes out of a partition of a table, to put it into another one.
pub fn note_move(user: Option<Box<[u8]>>) {
    with_query(|query| query.moved = user);
}

/// Whose row the running query has just taken out of a partition of a table, if it is the check of a foreign key.
pub fn take_move() -> Option<Box<[u8]>> {
    with_query(|query| query.moved.take()).flatten()
}

fn with_query<R>(run: impl FnOnce(&mut Captured) -> R) -> Option<R> {
    let Place::Query(query) = CURRENT.get().place else { return None };
    QUERIES.with_borrow_mut(|queries| queries.get_mut(&query).map(run))
}

/// Whether the statement being planned may be a check of a foreign key. The planner cannot tell it from those of triggers below the
/// check, and a plan for everybody's rows does for one user's.
pub fn may_plan_key_check() -> bool {
    // SAFETY: a flag of the process.
    unsafe { plain::InNoForceRLSOperation() }
}

/// Whether a query is what the check of a foreign key runs, or what a rule has made of that. Only these checks use SPI and leave the
/// triggers to their caller: queries of functions and triggers below them do not, nor do parallel workers.
unsafe fn comes_from_key_check(query: *mut pg_sys::QueryDesc, flags: std::ffi::c_int) -> bool {
    // SAFETY: the executor's own descriptor; a flag of the process.
    unsafe {
        flags & pg_sys::EXEC_FLAG_SKIP_TRIGGERS as std::ffi::c_int != 0
            && plain::InNoForceRLSOperation()
            && !(*query).dest.is_null()
            && [pg_sys::CommandDest::DestSPI, pg_sys::CommandDest::DestNone].contains(&(*(*query).dest).mydest)
    }
}

/// Begins to plan a statement; returns what to put back afterwards. Functions that the planner calls are below the statement.
pub fn enter_planner() -> Before {
    HOOKED.set(true);
    let before = CURRENT.get();
    let lent = if may_plan_key_check() { lent::by_key_check(lent_now()) } else { before.lent };
    CURRENT.set(Scope { is_key_check: before.is_key_check || may_plan_key_check(), lent, ..before });
    Before(before)
}

/// Begins to run statements with the rights of a role; returns what to put back afterwards.
pub fn enter_rights_of(role: pg_sys::Oid) -> Before {
    let before = CURRENT.get();
    CURRENT.set(Scope { lent: Some(lent::lesser(lent_now(), role)), ..before });
    Before(before)
}

/// Runs a command that works on whole tables; returns what to put back afterwards.
pub fn enter_utility(whole_tables: bool) -> Before {
    HOOKED.set(true);
    let before = CURRENT.get();
    let place = if whole_tables { Place::Maintenance } else { Place::Session };
    CURRENT.set(Scope { place, outlasts_commit: whole_tables, ..before });
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

/// The query that the process runs, by the address of its descriptor.
pub fn running_query() -> Option<usize> {
    match CURRENT.get().place {
        Place::Query(query) => Some(query),
        Place::Session | Place::Maintenance => None,
    }
}

/// Goes on with a command as one that works on whole tables.
pub fn work_on_whole_tables() {
    HOOKED.set(true);
    CURRENT.set(Scope { place: Place::Maintenance, ..CURRENT.get() });
}

/// Begins BEGIN, COMMIT or one of their like, which stand for themselves. The first statement of a session that has loaded the library may
/// have left something behind.
pub fn begin_transaction_statement() {
    HOOKED.set(true);
    CURRENT.set(OUTSIDE);
}

/// Where the process was before a utility command or the like.
#[derive(Clone, Copy)]
pub struct Before(Scope);

/// Puts back what [`enter_utility`], [`enter_planner`] or [`enter_rights_of`] changed.
pub fn leave(before: Before) {
    CURRENT.set(before.0);
}

#[pg_guard]
unsafe extern "C-unwind" fn capture(query: *mut pg_sys::QueryDesc, from_key_check: bool) {
    // SAFETY: the executor's own descriptor.
    let (statement, receiver) = unsafe { ((*query).plannedstmt, (*query).dest) };
    let captured = if from_key_check {
        // SAFETY: a finished plan.
        let user = unsafe { user_of_key_check(statement) };
        Captured { user, is_key_check: true, lent: lent::by_key_check(lent_now()), moved: None }
    } else {
        let user = user_of_query();
        identity::setting_use::note();
        if matches!(user, Ok(User::All)) {
            // SAFETY: a finished plan.
            unsafe { planner::refuse_plan_of_one_user(statement) }.or_raise();
        }
        // A parallel worker does what its leader has been allowed to do.
        // SAFETY: what the query's rows go to, if anywhere.
        let is_part = unsafe { !receiver.is_null() && (*receiver).mydest == pg_sys::CommandDest::DestTupleQueue };
        let lent = if is_part { None } else { lent_now() };
        Captured { user, is_key_check: false, lent, moved: None }
    };
    if let Captured { user: Ok(user @ User::Named(_)), lent: lent @ Some(_), .. } = &captured {
        // SAFETY: a finished plan, whose tables are locked. Asked for at once, as parallel workers do not ask.
        for table in unsafe { planner::relations((*statement).rtable) } {
            if super::is_user_table(table).is_some() {
                lent::check(user.clone(), *lent, || lent::owner(table)).or_raise();
            }
        }
    }
    QUERIES.with_borrow_mut(|queries| queries.insert(query as usize, captured));
}

/// Hides the counters of the indexes that a query is about to search. It has opened them: whatever becomes of their descriptions from here
/// on, they keep the counters. Each FETCH hides them anew, as statements in between may take the counters away.
#[pg_guard]
unsafe extern "C-unwind" fn hide_counters(query: *mut pg_sys::QueryDesc) {
    // SAFETY: the executor's own descriptor.
    unsafe { counters::hide_of_statement((*(*query).plannedstmt).rtable) };
}

/// For whom a query runs that checks no foreign key.
fn user_of_query() -> Result<User, SqlError> {
    // SAFETY: a flag of the process.
    if unsafe { plain::IsLogicalWorker() } && !sees_everybody() {
        // The rows that come say whose they are, but triggers run here too.
        return Ok(User::Named(identity::current_user()?));
    }
    user_of_session()
}

/// For whom the statement of a foreign key's check runs.
unsafe fn user_of_key_check(statement: *mut pg_sys::PlannedStmt) -> Result<User, SqlError> {
    // SAFETY: the caller's.
    unsafe {
        if planner::is_as_written(statement) {
            return Ok(User::All);
        }
        // What a rule has made of the check is its author's.
        if planner::relations((*statement).rtable).any(|table| planner::has_rules(table) && super::is_user_table(table).is_some())
        {
            return Err(SqlError::unsupported("a foreign key cannot change rows of a user table that has rules")
                .with_detail("What rules make of the change would reach the rows of all users.")
                .with_hint("Drop the rules; use triggers instead."));
        }
    }
    user_of_session()
}

unsafe extern "C-unwind" fn executor_start(query: *mut pg_sys::QueryDesc, flags: std::ffi::c_int) {
    HOOKED.set(true);
    // SAFETY: the hook gets what the executor gets.
    unsafe {
        // What is below the check of a foreign key, or a parallel worker's query, has to know even if that meets no user table itself.
        let from_key_check = comes_from_key_check(query, flags);
        if MET.get() || from_key_check || pg_sys::ParallelWorkerNumber >= 0 {
            meet();
            capture(query, from_key_check);
        }
        // Bitmap scans begin here already, and partitions are chosen.
        let before = enter(query);
        let run = PREVIOUS_START.unwrap_or(unguarded::standard_ExecutorStart);
        run(query, flags);
        CURRENT.set(before);
    }
}

fn enter(query: *mut pg_sys::QueryDesc) -> Scope {
    let before = CURRENT.get();
    if MET.get() {
        let query = query as usize;
        let captured = QUERIES.with_borrow(|queries| queries.get(&query).map(|known| (known.is_key_check, known.lent)));
        let (is_key_check, lent) = captured.unwrap_or((false, before.lent));
        CURRENT.set(Scope { place: Place::Query(query), is_key_check, lent, outlasts_commit: false });
    }
    before
}

compat::run_hook!(executor_run, PREVIOUS_RUN, run_as_captured);

/// Runs a query for whom it was started.
unsafe fn run_as_captured(query: *mut pg_sys::QueryDesc, run: impl FnOnce()) {
    // Functions that workers call may be the first ones of the session that meet a user table, and cannot tell of it. The session may act
    // for somebody else than when the query was started.
    // SAFETY: the hook gets what the executor gets.
    if unsafe { (*(*query).plannedstmt).parallelModeNeeded } {
        identity::setting_use::note_with_workers();
    }
    let before = enter(query);
    if MET.get() {
        // SAFETY: as below.
        unsafe { hide_counters(query) };
    }
    // SAFETY: the hook gets what the executor gets. The flag of a plan that is kept is put back; after an ERROR the plan runs without
    // workers, which changes nothing else.
    unsafe {
        let statement = (*query).plannedstmt;
        let alone = (*statement).parallelModeNeeded && is_for_another_user(query);
        if alone {
            // Workers ask the session for whom they act.
            (*statement).parallelModeNeeded = false;
        }
        run();
        if alone {
            (*statement).parallelModeNeeded = true;
        }
    }
    CURRENT.set(before);
}

/// Whether the session has begun to act for somebody else since the query was started.
fn is_for_another_user(query: *mut pg_sys::QueryDesc) -> bool {
    match (captured_user(query as usize), user_of_session()) {
        (Some(Ok(User::Named(then))), Ok(User::Named(now))) => then != now,
        (Some(Ok(User::All)), Ok(User::All)) | (None, _) => false,
        _ => true,
    }
}

unsafe extern "C-unwind" fn executor_finish(query: *mut pg_sys::QueryDesc) {
    let before = enter(query);
    // SAFETY: as above.
    unsafe {
        let run = PREVIOUS_FINISH.unwrap_or(unguarded::standard_ExecutorFinish);
        run(query);
        let is_measured = (*query).instrument_options != 0 || !(*query).totaltime.is_null();
        if is_measured && MET.get() && matches!(user(), Ok(User::Named(_))) {
            planner::forget_counts_of_others(query);
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

compat::permissions_hook!(check_permissions, PREVIOUS_PERMISSIONS, refuses_one_query);

/// Answers "no" when Postgres asks whether it may check a new foreign key of a user table by one query, which would see one
/// user's rows; it then checks row by row, and each of these checks sees everybody's.
unsafe fn refuses_one_query(tables: *mut pg_sys::List, raises: bool) -> bool {
    // SAFETY: a list of range table entries.
    unsafe { !raises && planner::relations(tables).any(|table| super::is_user_table(table).is_some()) }
}

unsafe extern "C-unwind" fn at_transaction_end(event: pg_sys::XactEvent::Type, _arg: *mut std::ffi::c_void) {
    use pg_sys::XactEvent::*;
    if matches!(event, XACT_EVENT_COMMIT | XACT_EVENT_ABORT | XACT_EVENT_PREPARE | XACT_EVENT_PARALLEL_ABORT) {
        if !(event == XACT_EVENT_COMMIT && CURRENT.get().outlasts_commit) {
            CURRENT.set(OUTSIDE);
        }
        LOADED_IN_CHECK.set(false);
        SAVED.with_borrow_mut(Vec::clear);
        QUERIES.with_borrow_mut(Map::clear);
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
            while let Some((id, scope)) = saved.pop_if(|(id, _)| *id >= subtransaction) {
                if id == subtransaction && event == SUBXACT_EVENT_ABORT_SUB {
                    CURRENT.set(scope);
                }
            }
        }
        _ => {}
    });
}
