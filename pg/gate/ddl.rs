//! What CREATE TABLE, ALTER TABLE and CREATE INDEX mean for user tables: a column `_user_id`, and keys that begin with it.
//!
//! The statements are changed before they run: by the hook for utility statements, and by an event trigger for the first statement
//! of a session that has not loaded the library yet. Doing it twice does no harm. The access method itself refuses tables without
//! the column and unique indexes that do not begin with it, should both have been passed by.

mod columns;
mod create_as;
mod keys;
mod method;
mod trees;

use std::ffi::{CStr, c_char};

use pgrx::{pg_guard, pg_sys};

use super::context::{enter_utility, leave, work_on_whole_tables};
use super::is_user_table;
use super::planner::nodes;
use super::tree::Kind;
use super::withheld;
use crate::error::{SqlError, raise};
use crate::ffi::catalog;
use crate::ffi::function::version_1;
use crate::ffi::memory::in_context;
use crate::ffi::utility::Statement;

/// Changes a statement that concerns user tables, and has it run as what it is for the gate.
///
/// # Safety
/// See [`crate::ffi::utility::Handler`].
pub unsafe fn watch(statement: Statement) {
    // SAFETY: a parsed statement; a read-only tree is copied before it is changed.
    unsafe {
        let statement = if changes(statement.node()) {
            let (planned, read_only_tree) = statement.planned();
            statement.replaced(prepare_statement(planned, read_only_tree))
        } else {
            statement
        };
        let whole_tables = works_on_whole_tables(statement.node());
        let before = enter_utility(whole_tables);
        if whole_tables {
            withheld::run(|| statement.run());
        } else {
            statement.run();
        }
        leave(before);
    }
}

/// The node behind a pointer, if it is one of that kind.
macro_rules! cast {
    ($node:expr, $tag:ident, $type:ident) => {
        if (*$node).type_ == pg_sys::NodeTag::$tag { Some(&mut *$node.cast::<pg_sys::$type>()) } else { None }
    };
}
use cast;

/// Whether a statement may have to be changed.
unsafe fn changes(node: *mut pg_sys::Node) -> bool {
    use pg_sys::NodeTag::*;
    // SAFETY: every node begins with its tag.
    let tag = unsafe { (*node).type_ };
    matches!(
        tag,
        T_CreateStmt
            | T_CreateForeignTableStmt
            | T_AlterTableStmt
            | T_IndexStmt
            | T_RenameStmt
            | T_CreateTableAsStmt
            | T_ClusterStmt
            | T_CreateStatsStmt
            | T_RuleStmt
    )
}

/// Whether a statement scans and writes tables on behalf of everybody who has rows there. Queries that it runs have their own user.
unsafe fn works_on_whole_tables(node: *mut pg_sys::Node) -> bool {
    use pg_sys::NodeTag::*;
    // SAFETY: every node begins with its tag.
    let tag = unsafe { (*node).type_ };
    matches!(
        tag,
        T_AlterTableStmt
            | T_AlterDomainStmt
            | T_AlterTypeStmt
            | T_CreateDomainStmt
            | T_CreateStmt
            | T_IndexStmt
            | T_ReindexStmt
            | T_ClusterStmt
            | T_VacuumStmt
            | T_AlterTableMoveAllStmt
    )
}

#[pg_guard]
unsafe extern "C-unwind" fn prepare_statement(
    statement: *mut pg_sys::PlannedStmt,
    read_only_tree: bool,
) -> *mut pg_sys::PlannedStmt {
    // SAFETY: a parsed statement, copied where it must not be changed.
    unsafe {
        let statement =
            if read_only_tree { pg_sys::copyObjectImpl(statement.cast()).cast::<pg_sys::PlannedStmt>() } else { statement };
        prepare((*statement).utilityStmt);
        statement
    }
}

/// Changes a statement about a user table; refuses what is not built.
unsafe fn prepare(node: *mut pg_sys::Node) {
    // SAFETY: the tag says which struct it is; the tree may be changed.
    unsafe {
        if let Some(create) = cast!(node, T_CreateStmt, CreateStmt) {
            columns::prepare_create(create);
        } else if let Some(create) = cast!(node, T_CreateForeignTableStmt, CreateForeignTableStmt) {
            trees::check_parents(create.base.inhRelations, Kind::Other);
        } else if let Some(alter) = cast!(node, T_AlterTableStmt, AlterTableStmt) {
            columns::prepare_alter(alter);
        } else if let Some(index) = cast!(node, T_IndexStmt, IndexStmt) {
            keys::prepare_index(index);
        } else if let Some(rename) = cast!(node, T_RenameStmt, RenameStmt) {
            columns::check_rename(rename);
        } else if let Some(create) = cast!(node, T_CreateTableAsStmt, CreateTableAsStmt) {
            create_as::prepare(create);
        } else if let Some(cluster) = cast!(node, T_ClusterStmt, ClusterStmt) {
            keys::check_cluster(cluster);
        } else if let Some(create) = cast!(node, T_CreateStatsStmt, CreateStatsStmt) {
            columns::check_statistics(create);
        } else if let Some(rule) = cast!(node, T_RuleStmt, RuleStmt) {
            columns::check_rule(rule);
        }
    }
}

/// The event trigger at the start of a statement about tables.
///
/// It does what the hook has done already, unless this very call has loaded the library.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn kalam_prepare_ddl(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: Postgres calls it with the event's data; everybody else is refused.
    unsafe {
        let event = (*call).context.cast::<pg_sys::EventTriggerData>();
        if event.is_null() || (*event).type_ != pg_sys::NodeTag::T_EventTriggerData {
            raise(SqlError::prerequisite("kalam.prepare_ddl() is called by an event trigger only"));
        }
        let node = (*event).parsetree;
        if changes(node) {
            // What is added lives as long as the statement, and not only as long as the trigger.
            in_context(pg_sys::GetMemoryChunkContext(node.cast()), || prepare(node));
        }
        if works_on_whole_tables(node) {
            work_on_whole_tables();
        }
    }
    pg_sys::Datum::from(0)
}

version_1!(pg_finfo_kalam_prepare_ddl);

/// A text that Postgres can keep as long as the statement.
fn text(name: &CStr) -> *mut c_char {
    // SAFETY: copies the text into the current memory context.
    unsafe { pg_sys::pstrdup(name.as_ptr()) }
}

unsafe fn name_of<'n>(name: *const c_char) -> &'n CStr {
    // SAFETY: the caller's name ends with a zero byte or is missing.
    unsafe { if name.is_null() { c"" } else { CStr::from_ptr(name) } }
}

/// The access method that a statement names, or the default.
unsafe fn method_named(method: *const c_char) -> pg_sys::Oid {
    // SAFETY: the name ends with a zero byte; the setting is never null.
    unsafe {
        let method = if method.is_null() { pg_sys::default_table_access_method.cast_const() } else { method };
        pg_sys::get_am_oid(method, true)
    }
}

/// The relation of a name, if it exists. The statement itself takes the lock, and looks the name up again.
unsafe fn relation(range: *mut pg_sys::RangeVar) -> Option<pg_sys::Oid> {
    // SAFETY: a parsed name.
    unsafe {
        let flags = pg_sys::RVROption::RVR_MISSING_OK;
        let find = || pg_sys::RangeVarGetRelidExtended(range, pg_sys::NoLock as i32, flags, None, std::ptr::null_mut());
        let lock = pg_sys::AccessShareLock as i32;
        let mut found = find();
        // Whoever makes something else of the table at the moment comes first. Who does not own it waits for nobody.
        while found != pg_sys::InvalidOid && catalog::is_owner_of(found) {
            pg_sys::LockRelationOid(found, lock);
            pg_sys::UnlockRelationOid(found, lock);
            let again = find();
            if again == found {
                break;
            }
            found = again;
        }
        (found != pg_sys::InvalidOid).then_some(found)
    }
}

/// The table that a statement is about, if it is a user table that exists, or partitioned into some.
unsafe fn user_table(range: *mut pg_sys::RangeVar) -> Option<pg_sys::Oid> {
    // SAFETY: a parsed name.
    unsafe { if range.is_null() { None } else { relation(range).and_then(as_user_table) } }
}

/// The same of the table to which a foreign key refers. It is locked until the transaction ends, so that the statement means it too
/// and not another one that has got its name meanwhile.
unsafe fn referred_user_table(range: *mut pg_sys::RangeVar) -> Option<pg_sys::Oid> {
    let (lock, flags) = (pg_sys::AccessShareLock as i32, pg_sys::RVROption::RVR_MISSING_OK);
    // SAFETY: a parsed name.
    unsafe {
        let table = pg_sys::RangeVarGetRelidExtended(range, lock, flags, None, std::ptr::null_mut());
        if table == pg_sys::InvalidOid {
            return None;
        }
        let found = as_user_table(table);
        if found.is_none() {
            // Whoever has the statement's own table waits for this one perhaps.
            pg_sys::UnlockRelationOid(table, lock);
        }
        found
    }
}

/// A relation, if it is a user table, or partitioned into some.
fn as_user_table(table: pg_sys::Oid) -> Option<pg_sys::Oid> {
    // SAFETY: looks into the catalog's cache.
    unsafe {
        let kind = pg_sys::get_rel_relkind(table) as u8;
        let may_be = matches!(kind, pg_sys::RELKIND_RELATION | pg_sys::RELKIND_PARTITIONED_TABLE);
        (may_be && is_user_table(table).is_some()).then_some(table)
    }
}

#[cold]
fn unsupported(message: impl Into<String>) -> SqlError {
    SqlError::unsupported(message)
}
