//! The column `_user_id`: added to new user tables, and kept as it is.

#![allow(non_upper_case_globals, reason = "constants in patterns have Postgres' names")]

use std::ffi::CStr;

use pgrx::pg_sys;

use super::super::USER_COLUMN;
use super::super::planner::nodes;
use super::{cast, is_partitioned_method, keys, name_of, text, unsupported, user_table};
use crate::error::{SqlError, raise};

const HINT_PARTITIONS: &str = "Each user's rows are a partition of their own already; use a plain user table, or kalam_shared.";

/// Whether CREATE TABLE makes a user table.
unsafe fn makes_user_table(method: *const std::ffi::c_char) -> bool {
    // SAFETY: names end with a zero byte; the setting is never null.
    unsafe {
        let name = if method.is_null() { pg_sys::default_table_access_method } else { method };
        is_partitioned_method(name_of(name))
    }
}

/// Adds the column to CREATE TABLE of a user table.
pub unsafe fn prepare_create(create: &mut pg_sys::CreateStmt) {
    // SAFETY: a parsed statement that may be changed.
    unsafe {
        if !create.partspec.is_null() || !makes_user_table(create.accessMethod) {
            return;
        }
        if !create.inhRelations.is_null() || !create.partbound.is_null() {
            raise(unsupported("user tables cannot be partitions or inherit from other tables").with_hint(HINT_PARTITIONS));
        }
        if !create.ofTypename.is_null() {
            raise(
                unsupported("user tables cannot be typed tables")
                    .with_hint("Write the columns instead of OF and the type's name."),
            );
        }
        match nodes::<pg_sys::Node>(create.tableElts).find_map(|node| user_column(node)) {
            Some(column) => complete(column),
            None if copies_column(create.tableElts) => {}
            None => create.tableElts = pg_sys::lappend(create.tableElts, new_column().cast()),
        }
    }
}

unsafe fn user_column<'n>(node: *mut pg_sys::Node) -> Option<&'n mut pg_sys::ColumnDef> {
    // SAFETY: a table element of a parsed statement.
    unsafe { cast!(node, T_ColumnDef, ColumnDef).filter(|column| name_of(column.colname) == USER_COLUMN) }
}

/// Whether a LIKE clause brings the column.
unsafe fn copies_column(elements: *mut pg_sys::List) -> bool {
    // SAFETY: table elements of a parsed statement.
    unsafe {
        nodes::<pg_sys::Node>(elements).any(|node| {
            let Some(like) = cast!(node, T_TableLikeClause, TableLikeClause) else { return false };
            let flags = pg_sys::RVROption::RVR_MISSING_OK;
            let source =
                pg_sys::RangeVarGetRelidExtended(like.relation, pg_sys::NoLock as i32, flags, None, std::ptr::null_mut());
            source != pg_sys::InvalidOid && pg_sys::get_attnum(source, USER_COLUMN.as_ptr()) != 0
        })
    }
}

unsafe fn constraint(kind: pg_sys::ConstrType::Type) -> *mut pg_sys::Constraint {
    // SAFETY: a node of zeroes, with its tag.
    unsafe {
        let constraint = pg_sys::palloc0(size_of::<pg_sys::Constraint>()).cast::<pg_sys::Constraint>();
        (*constraint).type_ = pg_sys::NodeTag::T_Constraint;
        (*constraint).contype = kind;
        (*constraint).location = -1;
        constraint
    }
}

/// `_user_id text COLLATE "C" NOT NULL DEFAULT kalam.user_id()`.
unsafe fn new_column() -> *mut pg_sys::ColumnDef {
    // SAFETY: allocates nodes.
    unsafe {
        let column = pg_sys::makeColumnDef(USER_COLUMN.as_ptr(), pg_sys::TEXTOID, -1, pg_sys::C_COLLATION_OID);
        complete(&mut *column);
        column
    }
}

/// Adds NOT NULL and the default to the column where the statement does not say otherwise.
unsafe fn complete(column: &mut pg_sys::ColumnDef) {
    use pg_sys::ConstrType::{CONSTR_DEFAULT, CONSTR_NOTNULL};
    // SAFETY: a column of a parsed statement that may be changed.
    unsafe {
        let has = |kind| nodes::<pg_sys::Constraint>(column.constraints).any(|constraint| (*constraint).contype == kind);
        let (has_not_null, has_default) = (has(CONSTR_NOTNULL), has(CONSTR_DEFAULT));
        if !has_not_null {
            column.constraints = pg_sys::lappend(column.constraints, constraint(CONSTR_NOTNULL).cast());
        }
        if !has_default {
            let names = pg_sys::lappend(std::ptr::null_mut(), pg_sys::makeString(text(c"kalam")).cast());
            let names = pg_sys::lappend(names, pg_sys::makeString(text(c"user_id")).cast());
            let call = pg_sys::makeFuncCall(names, std::ptr::null_mut(), pg_sys::CoercionForm::COERCE_EXPLICIT_CALL, -1);
            let default = constraint(CONSTR_DEFAULT);
            (*default).raw_expr = call.cast();
            column.constraints = pg_sys::lappend(column.constraints, default.cast());
        }
    }
}

/// Changes the commands of ALTER TABLE on a user table, and refuses those that would undo what makes it one.
pub unsafe fn prepare_alter(alter: &mut pg_sys::AlterTableStmt) {
    use pg_sys::AlterTableType::*;
    // SAFETY: a parsed statement that may be changed.
    unsafe {
        if alter.objtype != pg_sys::ObjectType::OBJECT_TABLE {
            return;
        }
        let table_name = name_of((*alter.relation).relname);
        let own = user_table(alter.relation);
        for command in nodes::<pg_sys::AlterTableCmd>(alter.cmds) {
            let command = &mut *command;
            if own.is_none() {
                check_other_table(command, table_name);
                continue;
            }
            let about_user = name_of(command.name) == USER_COLUMN;
            match command.subtype {
                AT_DropColumn | AT_AlterColumnType | AT_DropNotNull | AT_ColumnDefault | AT_DropIdentity if about_user => {
                    raise(
                        unsupported("column \"_user_id\" of a user table cannot be changed or dropped")
                            .with_hint("It says whose a row is. Use a kalam_shared table if rows belong to nobody."),
                    );
                }
                AT_AddConstraint => keys::prepare_constraint(&mut *command.def.cast(), alter.relation, None, table_name),
                AT_AddColumn => {
                    let column = &mut *command.def.cast::<pg_sys::ColumnDef>();
                    let name = name_of(column.colname);
                    for constraint in nodes::<pg_sys::Constraint>(column.constraints) {
                        keys::prepare_constraint(&mut *constraint, alter.relation, Some(name), table_name);
                    }
                }
                AT_AddInherit | AT_AttachPartition | AT_AddOf => {
                    raise(unsupported("user tables cannot be partitions or inherit from other tables").with_hint(HINT_PARTITIONS))
                }
                AT_SetAccessMethod => refuse_method(command),
                _ => {}
            }
        }
    }
}

/// Refuses what would make a user table of another table, or refer to one.
unsafe fn check_other_table(command: &pg_sys::AlterTableCmd, table_name: &CStr) {
    use pg_sys::AlterTableType::*;
    // SAFETY: a command of a parsed statement.
    unsafe {
        match command.subtype {
            AT_SetAccessMethod if makes_user_table(command.name) => refuse_method(command),
            AT_AddConstraint => keys::check_foreign_key_of_other(&*command.def.cast(), table_name),
            AT_AddColumn => {
                for constraint in nodes::<pg_sys::Constraint>((*command.def.cast::<pg_sys::ColumnDef>()).constraints) {
                    keys::check_foreign_key_of_other(&*constraint, table_name);
                }
            }
            AT_AttachPartition => {
                let partition = (*command.def.cast::<pg_sys::PartitionCmd>()).name;
                if user_table(partition).is_some() {
                    raise(
                        unsupported("user tables cannot be partitions or inherit from other tables").with_hint(HINT_PARTITIONS),
                    );
                }
            }
            _ => {}
        }
    }
}

unsafe fn refuse_method(command: &pg_sys::AlterTableCmd) {
    // SAFETY: a command of a parsed statement.
    let name = unsafe { name_of(command.name) }.to_string_lossy().into_owned();
    raise(
        unsupported("a table cannot become a user table, nor a user table one of another kind")
            .with_detail(format!("The statement asks for access method \"{name}\"."))
            .with_hint("Create another table and use INSERT ... SELECT, with row_security = off for the rows of all users."),
    )
}

/// Keeps the column's name.
pub unsafe fn check_rename(rename: &pg_sys::RenameStmt) {
    // SAFETY: a parsed statement.
    unsafe {
        if rename.renameType != pg_sys::ObjectType::OBJECT_COLUMN || user_table(rename.relation).is_none() {
            return;
        }
        if name_of(rename.subname) == USER_COLUMN {
            raise(
                SqlError::unsupported("column \"_user_id\" of a user table cannot be renamed")
                    .with_hint("It says whose a row is, and is known by its name."),
            );
        }
    }
}

/// CREATE TABLE AS takes its columns from the query.
pub unsafe fn refuse_create_as(create: &pg_sys::CreateTableAsStmt) {
    // SAFETY: a parsed statement.
    unsafe {
        if !create.into.is_null() && makes_user_table((*create.into).accessMethod) {
            raise(
                unsupported("user tables and streams cannot be made from a query")
                    .with_hint("Use CREATE TABLE with the columns, then INSERT ... SELECT."),
            );
        }
    }
}
