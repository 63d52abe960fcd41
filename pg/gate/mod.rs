//! The gate of user tables: whose rows a statement may see and write, decided when it runs and never when it is planned.
//!
//! A user table's rows lie in partitions, one for each user. Scans and fetches under a snapshot of a statement reach the
//! partition of the statement's user only; rows are written to that partition only. Who the user is was asked when the statement
//! began, so that a cursor goes on as the user who opened it. Superusers and roles with BYPASSRLS reach all partitions with
//! `row_security = off`, as do the server's own passes over a whole table: index builds, rewrites, VACUUM, checks of foreign keys.

mod context;
mod cost;
mod counters;
pub mod ddl;
mod estimates;
mod lent;
mod planner;
mod statistics;
mod tree;
mod withheld;

use std::ffi::CStr;
use std::rc::Rc;

use kalamdb_engine::cache::{Pin, Wait};
use kalamdb_engine::page::Page;
use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::error::{OrRaise, SqlError, raise};
use crate::ffi::compat;
use crate::ffi::function::{return_null, return_text, version_1};
use crate::ffi::plain;
use crate::identity::{self, KnownUser};
use crate::tableam::partition;
use crate::tableam::storage::{Storage, relation_name};
use context::User;
pub use context::{
    acts_for_everybody, begin_transaction_statement, enter_rights_of, in_key_check, in_query, is_partitioned, leave, lent_now,
    note_move, running_query, works_on_whole_tables,
};
pub use estimates::own_share;
pub use statistics::Sample;
pub use withheld::note_read_of_all;

/// The column that says whose a row is.
pub const USER_COLUMN: &CStr = c"_user_id";

/// Which rows a scan or fetch reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Those of everybody.
    All,
    /// Those of one partition.
    Partition(u32),
    /// None: the user has never had a row here.
    Nothing,
}

/// What a process registers with Postgres when it loads the library.
pub fn init() {
    context::init();
    planner::init();
    estimates::init();
    counters::init();
}

impl Access {
    /// What the running statement reaches of a table; raises an error when nobody is known for whom it runs.
    pub fn of_statement(rel: pg_sys::Relation, storage: &Storage, wait: &dyn Wait) -> Access {
        if !is_partitioned(rel) {
            return Access::All;
        }
        context::require_prepared().or_raise();
        match context::user_in(rel).or_raise() {
            User::All => {
                note_read_of_all();
                Access::All
            }
            User::Named(user) => Access::of_user(&user, storage, wait),
        }
    }

    /// What a user reaches of a table.
    fn of_user(user: &KnownUser, storage: &Storage, wait: &dyn Wait) -> Access {
        partition::of_user(storage, user, wait).or_raise().map_or(Access::Nothing, Access::Partition)
    }

    /// What a function may tell of a table.
    pub fn for_function(rel: pg_sys::Relation, storage: &Storage, wait: &dyn Wait) -> Access {
        match user_for_function(rel) {
            None => Access::All,
            Some(user) => Access::of_user(&user, storage, wait),
        }
    }

    /// Pins the page of a block if it may be looked at; one that may not is not loaded.
    ///
    /// # Errors
    /// Those of the cache.
    #[inline]
    pub fn pin_block(self, storage: &Storage, block: u32, wait: &dyn Wait) -> kalamdb_engine::Result<Option<Pin>> {
        let key = storage.block(block);
        if self == Access::All {
            return storage.cache.read(key, wait).map(Some);
        }
        if let Some(pin) = storage.cache.lookup(key) {
            let allowed = self.allows(pin.shared(wait)?.page());
            return Ok(allowed.then_some(pin));
        }
        if self.allows_block(storage, block, wait)? { storage.cache.read(key, wait).map(Some) } else { Ok(None) }
    }

    /// Whether the page of a block may be looked at, judged without loading it where that can be told.
    ///
    /// # Errors
    /// Those of the cache.
    pub fn allows_block(self, storage: &Storage, block: u32, wait: &dyn Wait) -> kalamdb_engine::Result<bool> {
        match self {
            Access::All => Ok(true),
            Access::Nothing => Ok(false),
            Access::Partition(partition) => {
                if let Some(pin) = storage.cache.lookup(storage.block(block)) {
                    return Ok(self.allows(pin.shared(wait)?.page()));
                }
                Ok(partition::place_of(storage, block, wait)?.partition == partition)
            }
        }
    }

    /// Whether the rows of a page may be seen.
    #[inline]
    pub fn allows(self, page: Page<'_>) -> bool {
        match self {
            Access::All => true,
            Access::Nothing => false,
            Access::Partition(partition) => page.partition() == partition,
        }
    }

    /// Whether anything of a partition may be seen.
    pub fn allows_partition(self, partition: u32) -> bool {
        match self {
            Access::All => true,
            Access::Nothing => false,
            Access::Partition(own) => own == partition,
        }
    }
}

/// Whether a relation of a query is of a kind that may have rows of users, itself or in its partitions.
fn may_have_users(entry: &pg_sys::RangeTblEntry) -> bool {
    entry.rtekind == pg_sys::RTEKind::RTE_RELATION
        && matches!(entry.relkind as u8, pg_sys::RELKIND_RELATION | pg_sys::RELKIND_PARTITIONED_TABLE)
}

/// The number of the column that says whose a row is.
pub fn user_column(rel: pg_sys::Relation) -> i32 {
    // SAFETY: an open relation has a descriptor.
    let found = unsafe { find_user_column((*rel).rd_att) };
    found.unwrap_or_else(|| raise(missing_column(rel)))
}

/// The number of the column that says whose a row is, if a descriptor has it in its proper form.
///
/// # Safety
/// `descriptor` is valid.
pub unsafe fn find_user_column(descriptor: pg_sys::TupleDesc) -> Option<i32> {
    // SAFETY: the descriptor has `natts` columns with terminated names.
    unsafe {
        let count = (*descriptor).natts as usize;
        let columns = std::slice::from_raw_parts(compat::attributes(descriptor), count);
        let place = columns.iter().rposition(|column| {
            !column.attisdropped
                && column.atttypid == pg_sys::TEXTOID
                && CStr::from_ptr(column.attname.data.as_ptr()) == USER_COLUMN
        })?;
        Some(place as i32 + 1)
    }
}

#[cold]
fn missing_column(rel: pg_sys::Relation) -> SqlError {
    SqlError::invalid_definition(format!("user table \"{}\" has no column \"_user_id\" of type text", relation_name(rel)))
        .with_detail("The column says whose a row is; CREATE TABLE adds it.")
        .with_hint(
            "Use CREATE TABLE with the columns and then INSERT; the event trigger \"kalam_user_tables\" must not be disabled.",
        )
}

/// Checks that a table of this access method can say whose its rows are.
pub fn check_columns(rel: pg_sys::Relation) {
    if !is_partitioned(rel) {
        return;
    }
    let column = user_column(rel);
    // SAFETY: the column is one of the descriptor's.
    let form = unsafe { &*compat::attributes((*rel).rd_att).add(column as usize - 1) };
    if form.attgenerated != 0 {
        raise(
            SqlError::invalid_definition("column \"_user_id\" of a user table cannot be generated")
                .with_hint("Leave the column to CREATE TABLE, or give it a default."),
        );
    }
    // Others can be dropped, and the column with them.
    if form.attcollation.to_u32() >= pg_sys::FirstNormalObjectId {
        raise(
            SqlError::invalid_definition("column \"_user_id\" has a collation that is not PostgreSQL's own")
                .with_hint("Leave the column to CREATE TABLE, or use COLLATE \"C\"."),
        );
    }
    // SAFETY: looks into the catalog's cache.
    if !unsafe { pg_sys::get_collation_isdeterministic(form.attcollation) } {
        raise(
            SqlError::invalid_definition("column \"_user_id\" has a collation that takes different texts for equal")
                .with_detail("Rows of two users would collide.")
                .with_hint("Leave the column to CREATE TABLE, or use COLLATE \"C\"."),
        );
    }
}

/// Checks that an index which keeps rows apart by a key keeps those of different users apart too.
///
/// # Safety
/// The index and its description belong to the open table.
pub unsafe fn check_index(rel: pg_sys::Relation, index: pg_sys::Relation, info: *const pg_sys::IndexInfo) {
    if !is_partitioned(rel) {
        return;
    }
    // SAFETY: see above.
    unsafe {
        let separates = (*info).ii_Unique || !(*info).ii_ExclusionOps.is_null();
        if !separates {
            return;
        }
        if i32::from((*info).ii_IndexAttrNumbers[0]) != user_column(rel) {
            raise(
                SqlError::invalid_definition(format!("index \"{}\" does not begin with \"_user_id\"", relation_name(index)))
                    .with_detail("Keys of user tables are unique for each user, so their indexes begin with the user.")
                    .with_hint("Name \"_user_id\" as the first column of the index."),
            );
        }
        let equals =
            (*info).ii_ExclusionOps.is_null() || *(*info).ii_ExclusionOps == pg_sys::Oid::from(pg_sys::TextEqualOperator);
        if !equals || !pg_sys::get_collation_isdeterministic(*(*index).rd_indcollation) {
            raise(
                SqlError::invalid_definition(format!("index \"{}\" does not keep users apart", relation_name(index)))
                    .with_detail(
                        "Keys of user tables compare \"_user_id\" by = and a collation that takes no different texts for equal.",
                    )
                    .with_hint("Leave \"_user_id\" out of the index; it is added."),
            );
        }
    }
}

/// The text of a row's `_user_id`.
unsafe fn user_of_slot<'s>(rel: pg_sys::Relation, slot: *mut pg_sys::TupleTableSlot) -> &'s [u8] {
    let column = user_column(rel);
    // SAFETY: the slot holds a row of the relation; the text lives as long as the slot's row or the statement's memory.
    unsafe {
        if i32::from((*slot).tts_nvalid) < column {
            pg_sys::slot_getsomeattrs_int(slot, column);
        }
        let place = column as usize - 1;
        if *(*slot).tts_isnull.add(place) {
            raise(
                SqlError::not_null_violation(format!(
                    "null value in column \"_user_id\" of user table \"{}\"",
                    relation_name(rel)
                ))
                .with_detail("Each row of a user table belongs to a user."),
            );
        }
        text_bytes(*(*slot).tts_values.add(place))
    }
}

/// Prepares a user table for rows that come outside of a query: by COPY or replication, which have its indexes open.
pub fn begin_rows(rel: pg_sys::Relation) {
    if is_partitioned(rel) && !in_query() {
        // SAFETY: an open table; the callers own nothing yet.
        unsafe { counters::hide_of_table((*rel).rd_id) };
    }
}

/// The partition that a new row, or a new version of one, belongs to; 0 in shared tables. Raises an error when the row would be somebody else's.
///
/// # Safety
/// `slot` holds a row of `rel`; no latch is held.
pub unsafe fn partition_of_row(
    rel: pg_sys::Relation,
    storage: &Storage,
    slot: *mut pg_sys::TupleTableSlot,
    wait: &dyn Wait,
) -> u32 {
    if !is_partitioned(rel) {
        return 0;
    }
    if !in_query() {
        // Triggers may have made the session act for somebody else.
        identity::setting_use::note();
    }
    // SAFETY: the caller's.
    let owner = unsafe { user_of_slot(rel, slot) };
    let user = match context::user_in(rel).or_raise() {
        User::Named(user) if user.name().as_bytes() != owner => raise(not_own_row(rel)),
        User::Named(user) => user,
        User::All => {
            if context::in_key_check() && context::take_move().is_some_and(|user| *user != *owner) {
                refuse_other_partition(rel);
            }
            checked_user(owner)
        }
    };
    partition::of_user_or_new(storage, &user, wait).or_raise()
}

/// The partition that a row which is moved as it is belongs to; 0 in shared tables.
///
/// # Safety
/// `tuple` is a row of `rel`; no latch is held.
///
/// # Errors
/// Those of the cache.
pub unsafe fn partition_of_tuple(
    rel: pg_sys::Relation,
    storage: &Storage,
    tuple: pg_sys::HeapTuple,
    wait: &dyn Wait,
) -> kalamdb_engine::Result<u32> {
    if !is_partitioned(rel) {
        return Ok(0);
    }
    // SAFETY: the tuple fits the descriptor; the text lives as long as it.
    let owner = unsafe {
        let mut is_null = false;
        let value = pg_sys::heap_getattr(tuple, user_column(rel), (*rel).rd_att, &mut is_null);
        if is_null {
            return Err(kalamdb_engine::Error::corrupt("row of a user table has no user"));
        }
        text_bytes(value)
    };
    let owner = std::str::from_utf8(owner)
        .map_err(|_| kalamdb_engine::Error::corrupt("row of a user table has a user whose name is no text in UTF-8"))?;
    partition::of_user_or_new(storage, &KnownUser::of(owner), wait)
}

/// Whose row a tuple is, given its bytes; nothing in shared tables.
pub fn owner_of_row(rel: pg_sys::Relation, tuple: &[u8]) -> Option<Box<[u8]>> {
    if !is_partitioned(rel) {
        return None;
    }
    // SAFETY: a row of the relation, copied to where it is aligned; the name is copied before that goes.
    unsafe {
        let copy = pg_sys::palloc(tuple.len()).cast::<u8>();
        std::ptr::copy_nonoverlapping(tuple.as_ptr(), copy, tuple.len());
        let mut whole =
            pg_sys::HeapTupleData { t_len: tuple.len() as u32, t_data: copy.cast(), ..pg_sys::HeapTupleData::default() };
        let mut is_null = false;
        let value = pg_sys::heap_getattr(&mut whole, user_column(rel), (*rel).rd_att, &mut is_null);
        let owner = (!is_null).then(|| text_bytes(value).into());
        plain::pfree(copy.cast());
        owner
    }
}

/// The user whose rows a function may tell of a table; nothing where it may tell those of all. That it asks is noted for the audit log,
/// as what it tells may be all that the statement sees of the table.
pub fn user_for_function(rel: pg_sys::Relation) -> Option<Rc<KnownUser>> {
    if !is_partitioned(rel) {
        return None;
    }
    identity::setting_use::note();
    match context::user_of_function(rel).or_raise() {
        User::All => None,
        User::Named(user) => Some(user),
    }
}

/// The bytes of a text.
unsafe fn text_bytes<'t>(value: pg_sys::Datum) -> &'t [u8] {
    // SAFETY: the caller's value is a text; it lives as long as its row or the statement's memory.
    unsafe {
        let text = pg_sys::pg_detoast_datum_packed(value.cast_mut_ptr());
        std::slice::from_raw_parts(pgrx::vardata_any(text).cast::<u8>(), pgrx::varsize_any_exhdr(text))
    }
}

/// Refuses a change of a row that lies in another partition than the changed row or the statement's user has.
pub fn refuse_other_partition(rel: pg_sys::Relation) -> ! {
    raise(
        SqlError::insufficient_privilege(format!("row of user table \"{}\" cannot change hands", relation_name(rel)))
            .with_detail("Column \"_user_id\" of a row stays what it was when the row was inserted.")
            .with_hint("Delete the row and insert it for the other user."),
    )
}

#[cold]
fn not_own_row(rel: pg_sys::Relation) -> SqlError {
    SqlError::insufficient_privilege(format!(
        "row of user table \"{}\" does not belong to the user of the session",
        relation_name(rel)
    ))
    .with_detail("Column \"_user_id\" of a written row is the user that kalam.user_id() names.")
    .with_hint("Leave \"_user_id\" to its default.")
}

/// The user with a name that comes with a row.
fn checked_user(name: &[u8]) -> Rc<KnownUser> {
    let name = std::str::from_utf8(name).map_err(|_| c"The name of a user is text in UTF-8.");
    let checked = name.and_then(|name| identity::check_user_name(name).map(|()| KnownUser::of(name)));
    checked.unwrap_or_else(|detail| {
        raise(
            SqlError::invalid_parameter("invalid value for column \"_user_id\"")
                .with_detail(detail.to_string_lossy().into_owned())
                .with_hint("Each row of a user table belongs to a user."),
        )
    })
}

/// The partition of a user for the planner, who must not fail: nothing when nobody is known or the user has no rows.
pub fn access_for_estimate(rel: pg_sys::Relation, storage: &Storage, wait: &dyn Wait) -> Access {
    if !is_partitioned(rel) {
        return Access::All;
    }
    match context::user_in(rel) {
        Ok(User::Named(user)) => Access::of_user(&user, storage, wait),
        _ => Access::All,
    }
}

version_1!(pg_finfo_kalam_scan_user);

/// The user whose rows the running statement reaches; null when it reaches everybody's. The planner adds
/// `_user_id = kalam.scan_user()` to what a query asks of a user table, so that indexes can be used.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn kalam_scan_user(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    let user = context::user_of_scan().or_raise();
    // SAFETY: what Postgres passes to a function.
    unsafe {
        match user {
            User::All => return_null(call),
            User::Named(user) => return_text(user.name()),
        }
    }
}
/// The column that says whose a row is and its collation, if a table, by its OID, is a user table or partitioned into some.
fn is_user_table(table: pg_sys::Oid) -> Option<(i32, pg_sys::Oid)> {
    // SAFETY: the caller's statement holds a lock on the table; the reference is given back at once.
    unsafe {
        let rel = pg_sys::RelationIdGetRelation(table);
        if rel.is_null() {
            return None;
        }
        let is_parent = (*(*rel).rd_rel).relkind as u8 == pg_sys::RELKIND_PARTITIONED_TABLE;
        let found = (is_parent || is_partitioned(rel)).then(|| find_user_column((*rel).rd_att)).flatten();
        let found = found.filter(|_| !is_parent || tree::has_user_tables(table));
        let place = found.map(|column| {
            let form = &*compat::attributes((*rel).rd_att).add(column as usize - 1);
            (column, form.attcollation)
        });
        plain::RelationClose(rel);
        place
    }
}
