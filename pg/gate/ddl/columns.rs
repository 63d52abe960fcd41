//! The column `_user_id`: added to new user tables, and kept as it is.

#![allow(non_upper_case_globals, reason = "constants in patterns have Postgres' names")]

use std::ffi::CStr;

use pgrx::pg_sys;

use super::super::USER_COLUMN;
use super::super::planner::nodes;
use super::super::tree::{Kind, is_user_method, kind_of};
use super::{cast, keys, method, method_named, name_of, referred_user_table, relation, text, trees, unsupported, user_table};
use crate::error::{SqlError, raise};

/// Whether CREATE TABLE makes a user table.
pub unsafe fn makes_user_table(method: *const std::ffi::c_char) -> bool {
    // SAFETY: the caller's name ends with a zero byte, or is missing.
    is_user_method(unsafe { method_named(method) })
}

/// Adds the column to CREATE TABLE of a user table.
pub unsafe fn prepare_create(create: &mut pg_sys::CreateStmt) {
    // SAFETY: a parsed statement that may be changed.
    unsafe {
        let kind = trees::kind_of_new(create);
        trees::check_parents(create.inhRelations, kind);
        if kind != Kind::User {
            return;
        }
        if !create.ofTypename.is_null() {
            raise(
                unsupported("user tables cannot be typed tables")
                    .with_hint("Write the columns instead of OF and the type's name."),
            );
        }
        if !create.inhRelations.is_null() {
            // The column is inherited.
            return;
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
pub unsafe fn complete(column: &mut pg_sys::ColumnDef) {
    use pg_sys::ConstrType::{CONSTR_DEFAULT, CONSTR_NOTNULL};
    // SAFETY: a column of a parsed statement that may be changed.
    unsafe {
        let has = |kind| nodes::<pg_sys::Constraint>(column.constraints).any(|constraint| (*constraint).contype == kind);
        let (has_not_null, has_default) = (has(CONSTR_NOTNULL), has(CONSTR_DEFAULT));
        if !has_not_null {
            column.constraints = pg_sys::lappend(column.constraints, constraint(CONSTR_NOTNULL).cast());
        }
        if !has_default {
            let default = constraint(CONSTR_DEFAULT);
            (*default).raw_expr = default_of_user();
            column.constraints = pg_sys::lappend(column.constraints, default.cast());
        }
    }
}

/// `kalam.user_id()`, as a statement has it.
pub unsafe fn default_of_user() -> *mut pg_sys::Node {
    // SAFETY: allocates nodes.
    unsafe {
        let names = pg_sys::lappend(std::ptr::null_mut(), pg_sys::makeString(text(c"kalam")).cast());
        let names = pg_sys::lappend(names, pg_sys::makeString(text(c"user_id")).cast());
        pg_sys::makeFuncCall(names, std::ptr::null_mut(), pg_sys::CoercionForm::COERCE_EXPLICIT_CALL, -1).cast()
    }
}

/// Changes the commands of ALTER TABLE on a user table, and refuses those that would undo what makes it one.
pub unsafe fn prepare_alter(alter: &mut pg_sys::AlterTableStmt) {
    use pg_sys::ObjectType::{OBJECT_FOREIGN_TABLE, OBJECT_MATVIEW, OBJECT_TABLE};
    // SAFETY: a parsed statement that may be changed.
    unsafe {
        if !matches!(alter.objtype, OBJECT_TABLE | OBJECT_FOREIGN_TABLE | OBJECT_MATVIEW) {
            return;
        }
        let Some(table) = relation(alter.relation) else { return };
        let is_own = user_table(alter.relation).is_some();
        // Commands are added on the way.
        let commands: Vec<_> = nodes::<pg_sys::AlterTableCmd>(alter.cmds).collect();
        let sets_method =
            |command: &*mut pg_sys::AlterTableCmd| (**command).subtype == pg_sys::AlterTableType::AT_SetAccessMethod;
        let methods: Vec<_> = commands.iter().copied().filter(sets_method).map(|command| (*command).name.cast_const()).collect();
        if methods.len() > 1 && (is_own || methods.iter().any(|method| makes_user_table(*method))) {
            raise(unsupported("cannot have multiple SET ACCESS METHOD subcommands").with_hint("Use a statement for each."));
        }
        let method = methods.first().copied();
        if let Some(method) = method {
            prepare_method(alter, table, is_own, method);
        }
        // The others are about the table as it will be.
        let stays = trees::is_partitioned_table(table);
        let becomes = method.filter(|_| !stays).map_or(is_own, |method| makes_user_table(method));
        for command in commands.into_iter().filter(|command| !sets_method(command)) {
            check_tree(&*command, table);
            if is_own || becomes {
                prepare_command(&mut *command, table, is_own, alter.relation);
            }
            if !becomes {
                check_other_table(&*command, table, name_of((*alter.relation).relname));
            }
        }
    }
}

/// Checks what makes a table a partition or a child of another one, or the other way round.
unsafe fn check_tree(command: &pg_sys::AlterTableCmd, table: pg_sys::Oid) {
    use pg_sys::AlterTableType::{AT_AddInherit, AT_AttachPartition};
    // SAFETY: a command of a parsed statement.
    unsafe {
        match command.subtype {
            AT_AddInherit => {
                if let Some(parent) = relation(command.def.cast()) {
                    trees::check_join(parent, Some(table), kind_of(table));
                }
            }
            AT_AttachPartition => {
                if let Some(partition) = relation((*command.def.cast::<pg_sys::PartitionCmd>()).name) {
                    trees::check_join(table, Some(partition), kind_of(partition));
                }
            }
            _ => {}
        }
    }
}

/// Changes or refuses a command on a user table, or on one that is partitioned into some.
unsafe fn prepare_command(command: &mut pg_sys::AlterTableCmd, table: pg_sys::Oid, is_own: bool, range: *mut pg_sys::RangeVar) {
    use pg_sys::AlterTableType::*;
    // SAFETY: a command of a parsed statement that may be changed.
    unsafe {
        // A table that becomes a user table gets its column ready.
        let about_user = is_own && name_of(command.name) == USER_COLUMN;
        match command.subtype {
            AT_ColumnDefault if about_user && trees::is_partitioned_table(table) => {}
            // What a dump says of a table that inherits the column.
            AT_ColumnDefault if about_user && pg_sys::equal(command.def.cast(), default_of_user().cast()) => {}
            AT_DropColumn | AT_AlterColumnType | AT_DropNotNull | AT_ColumnDefault | AT_DropIdentity if about_user => {
                raise(
                    unsupported("column \"_user_id\" of a user table cannot be changed or dropped")
                        .with_hint("It says whose a row is. Use a kalam_shared table if rows belong to nobody."),
                );
            }
            AT_AddConstraint => keys::prepare_constraint(&mut *command.def.cast(), range, None),
            AT_AddColumn => {
                let column = &mut *command.def.cast::<pg_sys::ColumnDef>();
                let name = name_of(column.colname);
                for constraint in nodes::<pg_sys::Constraint>(column.constraints) {
                    keys::prepare_constraint(&mut *constraint, range, Some(name));
                }
            }
            AT_AddOf => raise(typed_table()),
            _ => {}
        }
    }
}

/// Prepares what makes a user table of another one, or the other way round.
unsafe fn prepare_method(alter: &mut pg_sys::AlterTableStmt, table: pg_sys::Oid, is_own: bool, method: *const std::ffi::c_char) {
    // SAFETY: a parsed statement that may be changed.
    unsafe {
        if trees::is_partitioned_table(table) {
            if (is_own || makes_user_table(method)) && !trees::check_method(table, method) {
                refuse_method(method);
            }
            return;
        }
        match (is_own, makes_user_table(method)) {
            (false, true) => method::to_users(alter, method),
            (true, false) => method::from_users(alter, method),
            (true, true) => method::between_users(table, method),
            (false, false) => {}
        }
    }
}

/// Refuses what would refer to a user table.
unsafe fn check_other_table(command: &pg_sys::AlterTableCmd, table: pg_sys::Oid, table_name: &CStr) {
    use pg_sys::AlterTableType::*;
    // SAFETY: a command of a parsed statement.
    unsafe {
        match command.subtype {
            AT_AddConstraint => check_foreign_key(&*command.def.cast(), table, None, table_name),
            AT_AddColumn => {
                let column = &*command.def.cast::<pg_sys::ColumnDef>();
                for constraint in nodes::<pg_sys::Constraint>(column.constraints) {
                    check_foreign_key(&*constraint, table, Some(name_of(column.colname)), table_name);
                }
            }
            _ => {}
        }
    }
}

unsafe fn check_foreign_key(constraint: &pg_sys::Constraint, table: pg_sys::Oid, column: Option<&CStr>, table_name: &CStr) {
    // SAFETY: a constraint of a parsed statement.
    unsafe {
        if constraint.contype != pg_sys::ConstrType::CONSTR_FOREIGN || referred_user_table(constraint.pktable).is_none() {
            return;
        }
        if trees::may_become_user_tree(table) {
            keys::check_foreign_key(constraint, column, Some(table));
        } else {
            keys::refuse_foreign_key(constraint, table_name);
        }
    }
}

/// Refuses another method for the partitions to come than those that are there have.
unsafe fn refuse_method(method: *const std::ffi::c_char) {
    // SAFETY: a name of a parsed statement.
    let name = unsafe { name_of(method) }.to_string_lossy().into_owned();
    raise(
        unsupported("partitions of a table are all user tables or none is")
            .with_detail(format!("The statement asks for access method \"{name}\"."))
            .with_hint("Create another partitioned table and use INSERT ... SELECT."),
    )
}

/// Refuses statistics over several columns, which are about values.
pub unsafe fn check_statistics(create: &pg_sys::CreateStatsStmt) {
    // SAFETY: a parsed statement.
    unsafe {
        for range in nodes::<pg_sys::Node>(create.relations) {
            if cast!(range, T_RangeVar, RangeVar).is_some_and(|range| user_table(range).is_some()) {
                raise(
                    unsupported("extended statistics of user tables are not supported")
                        .with_detail("They would keep values of rows of all users where others can read them.")
                        .with_hint("ANALYZE keeps statistics of single columns, without values."),
                );
            }
        }
    }
}

/// A table whose columns are those of a type, and change with it.
#[cold]
pub fn typed_table() -> SqlError {
    unsupported("user tables cannot be typed tables").with_hint("The column \"_user_id\" is not the type's.")
}

/// Refuses the rule that would make a view of a table, whose rows of other users would be lost.
pub unsafe fn check_rule(rule: &pg_sys::RuleStmt) {
    // SAFETY: a parsed statement.
    unsafe {
        if rule.event == pg_sys::CmdType::CMD_SELECT && user_table(rule.relation).is_some() {
            raise(
                unsupported("a user table cannot become a view")
                    .with_detail("A rule for SELECT makes a view of its table.")
                    .with_hint("Use CREATE VIEW."),
            );
        }
    }
}

/// Keeps the column's name. The columns of a table are also the attributes of its row type.
pub unsafe fn check_rename(rename: &pg_sys::RenameStmt) {
    use pg_sys::ObjectType::{OBJECT_ATTRIBUTE, OBJECT_COLUMN};
    // SAFETY: a parsed statement.
    unsafe {
        if !matches!(rename.renameType, OBJECT_ATTRIBUTE | OBJECT_COLUMN) || user_table(rename.relation).is_none() {
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
