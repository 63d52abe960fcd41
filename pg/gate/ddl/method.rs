//! ALTER TABLE ... SET ACCESS METHOD that makes a user table of another one, or the other way round.
//!
//! Postgres writes the rows anew, each to the user whom its column names; here is what has to hold before and what must not stay.

use pgrx::pg_sys;

use super::super::context::{User, user_of_session};
use super::super::planner::nodes;
use super::super::{USER_COLUMN, find_user_column, is_user_table};
use super::columns::{complete, default_of_user, typed_table};
use super::{method_named, name_of, trees, unsupported};
use crate::error::{OrRaise, SqlError, raise};
use crate::ffi::catalog;
use crate::ffi::compat;
use crate::ffi::sql::{query_latest, text as row_text};
use crate::history;
use crate::tableam;

/// Prepares a table for becoming a user table.
pub unsafe fn to_users(alter: &mut pg_sys::AlterTableStmt, method: *const std::ffi::c_char) {
    // SAFETY: a parsed statement that may be changed.
    unsafe {
        let Some(table) = lock(alter.relation) else { return };
        let name = name_of((*alter.relation).relname).to_string_lossy().into_owned();
        check_kind(table, &name, method);
        let added = nodes::<pg_sys::AlterTableCmd>(alter.cmds)
            .filter(|command| (**command).subtype == pg_sys::AlterTableType::AT_AddColumn)
            .map(|command| &mut *(*command).def.cast::<pg_sys::ColumnDef>())
            .find(|column| name_of(column.colname) == USER_COLUMN);
        let present = catalog::with_relation(table, |rel| {
            if (*(*rel).rd_rel).reloftype != pg_sys::InvalidOid {
                raise(typed_table());
            }
            find_user_column((*rel).rd_att).map(|column| (*compat::attributes((*rel).rd_att).add(column as usize - 1)).atthasdef)
        });
        match (present.flatten(), added) {
            (Some(has_default), _) => complete_column(alter, has_default),
            (None, Some(column)) => complete(column),
            (None, None) => raise(missing_column(&name)),
        }
        check_commands(alter, &name);
        trees::check_foreign_keys(&[table], true);
        trees::forget_statistics(&[table]);
        forget_deleted_rows(table, &name);
    }
}

/// Checks that a user table may become one of another kind.
pub unsafe fn from_users(alter: &pg_sys::AlterTableStmt, method: *const std::ffi::c_char) {
    // SAFETY: a parsed statement.
    unsafe {
        let Some(table) = lock(alter.relation) else { return };
        let name = name_of((*alter.relation).relname).to_string_lossy().into_owned();
        check_kind(table, &name, method);
        if !matches!(user_of_session().or_raise(), User::All) {
            raise(
                SqlError::insufficient_privilege(format!("user table \"{name}\" cannot become a table of another kind"))
                    .with_detail("Whoever may read the table would see the rows of all users.")
                    .with_hint("Set row_security to off, which takes a superuser or BYPASSRLS."),
            );
        }
        trees::check_foreign_keys(&[table], false);
    }
}

/// Checks that a user table does not become a stream, or the other way round.
pub unsafe fn between_users(table: pg_sys::Oid, method: *const std::ffi::c_char) {
    // SAFETY: the caller's.
    unsafe {
        if Some(method_named(method)) != catalog::method_of(table).map(|(_, method)| method) {
            refuse_streams();
        }
    }
}

fn refuse_streams() {
    raise(
        unsupported("a stream cannot become a table of another kind, nor another table a stream")
            .with_hint("Create another table and use INSERT ... SELECT, with row_security = off for the rows of all users."),
    )
}

/// The table of the statement, locked as the statement locks it; nothing if the statement will be refused anyway.
unsafe fn lock(range: *mut pg_sys::RangeVar) -> Option<pg_sys::Oid> {
    // SAFETY: a parsed name. Nobody but the owner may wait for, or hold up, users of the table.
    unsafe {
        let table = super::relation(range).filter(|table| catalog::is_owner_of(*table))?;
        let (lock, flags) = (pg_sys::AccessExclusiveLock as i32, pg_sys::RVROption::RVR_MISSING_OK);
        let locked = pg_sys::RangeVarGetRelidExtended(range, lock, flags, None, std::ptr::null_mut());
        (locked == table && catalog::is_owner_of(table)).then_some(table)
    }
}

/// Checks what the table is and becomes, beside what it has.
unsafe fn check_kind(table: pg_sys::Oid, name: &str, method: *const std::ffi::c_char) {
    // SAFETY: looks into catalogs; the name ends with a zero byte, or is missing for the default.
    unsafe {
        let methods = [Some(method_named(method)), catalog::method_of(table).map(|(_, method)| method)];
        if methods.into_iter().flatten().any(|method| tableam::is_stream_routine(catalog::routine_of_method(method))) {
            refuse_streams();
        }
        if pg_sys::get_rel_relkind(table) as u8 != pg_sys::RELKIND_RELATION {
            raise(unsupported(format!("\"{name}\" cannot become a user table")).with_detail("It is not a table."));
        }
        let rows = query_latest(
            "SELECT (NOT EXISTS (SELECT FROM pg_catalog.pg_inherits
                 WHERE inhrelid OPERATOR(pg_catalog.=) $1::oid OR inhparent OPERATOR(pg_catalog.=) $1::oid))::text",
            &[Some(&table.to_u32().to_string())],
        );
        if rows.first().and_then(|row| row_text(row, 0)) != Some("true") {
            let change = if is_user_table(table).is_some() { "become a table of another kind" } else { "become a user table" };
            raise(
                unsupported(format!("table \"{name}\" cannot {change} as part of a tree"))
                    .with_detail(
                        "Partitions of a table, and tables that inherit from each other, are all user tables or none is.",
                    )
                    .with_hint("Use ALTER TABLE ... DETACH PARTITION or NO INHERIT first."),
            );
        }
    }
}

/// Refuses what would make the table part of a tree in the same statement, unseen by what is checked before.
unsafe fn check_commands(alter: &pg_sys::AlterTableStmt, name: &str) {
    use pg_sys::AlterTableType::{AT_AddInherit, AT_AddOf};
    // SAFETY: commands of a parsed statement.
    unsafe {
        if nodes::<pg_sys::AlterTableCmd>(alter.cmds).any(|command| [AT_AddInherit, AT_AddOf].contains(&(*command).subtype)) {
            raise(
                unsupported(format!("table \"{name}\" cannot become a user table and part of a tree in one statement"))
                    .with_hint("Use two statements."),
            );
        }
    }
}

#[cold]
fn missing_column(name: &str) -> SqlError {
    SqlError::invalid_definition(format!("table \"{name}\" has no column \"_user_id\" of type text"))
        .with_detail("The column says whose a row is.")
        .with_hint(
            "Add it with ALTER TABLE ... ADD COLUMN _user_id text COLLATE \"C\", fill it, let the keys begin with it, and then set the \
             access method.",
        )
}

/// Adds what the column needs to the commands, where they do not say it already.
unsafe fn complete_column(alter: &mut pg_sys::AlterTableStmt, has_default: bool) {
    use pg_sys::AlterTableType::{AT_ColumnDefault, AT_SetNotNull};
    // SAFETY: commands of a parsed statement that may be changed; nodes of zeroes with their tags.
    unsafe {
        let mut add = |kind, definition: *mut pg_sys::Node| {
            let says =
                |command: *mut pg_sys::AlterTableCmd| (*command).subtype == kind && name_of((*command).name) == USER_COLUMN;
            if !nodes::<pg_sys::AlterTableCmd>(alter.cmds).any(says) {
                let command = super::create_as::command(kind, definition);
                alter.cmds = pg_sys::lappend(alter.cmds, command.cast());
            }
        };
        add(AT_SetNotNull, std::ptr::null_mut());
        if !has_default {
            add(AT_ColumnDefault, default_of_user());
        }
    }
}

/// Forgets deleted rows of the table, which do not say whose they are.
fn forget_deleted_rows(table: pg_sys::Oid, name: &str) {
    if history::has_pending(table) {
        raise(
            SqlError::prerequisite(format!("table \"{name}\" cannot become a user table in this transaction"))
                .with_detail("The transaction has deleted rows of it, and deleted rows are kept.")
                .with_hint("Do it in a transaction of its own."),
        );
    }
    catalog::as_superuser(|| history::erase(table, pg_sys::TimestampTz::MAX));
}
