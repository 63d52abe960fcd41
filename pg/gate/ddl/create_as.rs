//! CREATE TABLE AS of user tables: the query gets the column `_user_id`, so that its rows are those of the session's user, and the
//! table what the column needs.

use pgrx::{pg_guard, pg_sys};

use super::super::planner::{nodes, user_function};
use super::super::tree::{Kind, kind_of};
use super::super::{USER_COLUMN, find_user_column};
use super::columns::{default_of_user, makes_user_table};
use super::{enter_utility, leave, method_named, name_of, text, unsupported};
use crate::error::{SqlError, raise};
use crate::ffi::catalog;
use crate::ffi::compat;
use crate::ffi::function::version_1;
use crate::ffi::sql::{query, text as text_of};
use crate::tableam::is_stream_routine;

/// Adds the column to the query.
pub unsafe fn prepare(create: &mut pg_sys::CreateTableAsStmt) {
    // SAFETY: a parsed statement that may be changed; its query is an analyzed one.
    unsafe {
        if create.into.is_null() || !makes_user_table((*create.into).accessMethod) {
            return;
        }
        if create.objtype == pg_sys::ObjectType::OBJECT_MATVIEW {
            raise(
                unsupported("materialized views cannot be user tables or streams")
                    .with_detail("Its rows would be those of whoever refreshes it, and nobody else's.")
                    .with_hint("Name another access method with USING, as heap or kalam_shared."),
            );
        }
        let routine = catalog::routine_of_method(method_named((*create.into).accessMethod));
        if is_stream_routine(routine) && !(*create.into).skipData {
            raise(
                unsupported("CREATE TABLE AS cannot fill a stream table")
                    .with_detail("Its rows would be there before the option \"ttl\" says how long they live.")
                    .with_hint("Add WITH NO DATA, or use CREATE TABLE with the columns; then INSERT."),
            );
        }
        let query: *mut pg_sys::Query = create.query.cast();
        if (*query).commandType == pg_sys::CmdType::CMD_UTILITY {
            raise(
                unsupported("a user table cannot be made from a prepared statement")
                    .with_hint("Write the query instead of EXECUTE, or use CREATE TABLE with the columns."),
            );
        }
        if names_user(query, (*create.into).colNames) {
            return;
        }
        // What compares whole rows must not get another column.
        let compares = !(*query).setOperations.is_null() || !(*query).distinctClause.is_null();
        if compares && (*query).hasModifyingCTE {
            raise(
                unsupported("a user table cannot be made from such a query")
                    .with_detail("It has DISTINCT, UNION or the like, and a WITH query that changes rows.")
                    .with_hint("Use CREATE TABLE with the columns, then INSERT."),
            );
        }
        let query = if compares { select_from(query) } else { query };
        add_user(query);
        create.query = query.cast();
    }
}

/// Whether a column of the new table is called `_user_id` already.
unsafe fn names_user(query: *mut pg_sys::Query, names: *mut pg_sys::List) -> bool {
    // SAFETY: an analyzed query, and a list of names.
    unsafe {
        let mut names = nodes::<pg_sys::String>(names);
        nodes::<pg_sys::TargetEntry>((*query).targetList).filter(|column| !(**column).resjunk).any(|column| {
            let name = names.next().map_or((*column).resname.cast_const(), |name| (*name).sval.cast_const());
            name_of(name) == USER_COLUMN
        })
    }
}

/// `SELECT * FROM (query)`.
unsafe fn select_from(query: *mut pg_sys::Query) -> *mut pg_sys::Query {
    // SAFETY: nodes of zeroes with their tags, and nodes that Postgres makes.
    unsafe {
        let state = pg_sys::make_parsestate(std::ptr::null_mut());
        let alias = pg_sys::makeAlias(c"query".as_ptr(), std::ptr::null_mut());
        let item = pg_sys::addRangeTableEntryForSubquery(state, query, alias, false, true);
        let reference = pg_sys::palloc0(size_of::<pg_sys::RangeTblRef>()).cast::<pg_sys::RangeTblRef>();
        (*reference).type_ = pg_sys::NodeTag::T_RangeTblRef;
        (*reference).rtindex = 1;
        let outer = pg_sys::palloc0(size_of::<pg_sys::Query>()).cast::<pg_sys::Query>();
        (*outer).type_ = pg_sys::NodeTag::T_Query;
        (*outer).commandType = pg_sys::CmdType::CMD_SELECT;
        (*outer).querySource = (*query).querySource;
        (*outer).canSetTag = true;
        (*outer).rtable = pg_sys::lappend(std::ptr::null_mut(), (*item).p_rte.cast());
        let from = pg_sys::lappend(std::ptr::null_mut(), reference.cast());
        (*outer).jointree = pg_sys::makeFromExpr(from, std::ptr::null_mut());
        for column in nodes::<pg_sys::TargetEntry>((*query).targetList).filter(|column| !(**column).resjunk) {
            let value = pg_sys::makeVarFromTargetEntry(1, column);
            let copy = pg_sys::makeTargetEntry(value.cast(), (*column).resno, (*column).resname, false);
            (*outer).targetList = pg_sys::lappend((*outer).targetList, copy.cast());
        }
        outer
    }
}

/// Adds `kalam.user_id() AS _user_id` behind the columns of a query.
unsafe fn add_user(query: *mut pg_sys::Query) {
    // SAFETY: an analyzed query, whose columns are changed in place.
    unsafe {
        let Some(function) = user_function(c"user_id") else { return };
        let value = pg_sys::makeFuncExpr(
            function,
            pg_sys::TEXTOID,
            std::ptr::null_mut(),
            pg_sys::C_COLLATION_OID,
            pg_sys::InvalidOid,
            pg_sys::CoercionForm::COERCE_EXPLICIT_CALL,
        );
        let added = pg_sys::makeTargetEntry(value.cast(), 0, text(USER_COLUMN), false);
        let columns: Vec<*mut pg_sys::TargetEntry> = nodes((*query).targetList).collect();
        let (shown, hidden): (Vec<_>, Vec<_>) = columns.into_iter().partition(|column| !(**column).resjunk);
        let mut list = std::ptr::null_mut();
        for (place, column) in shown.into_iter().chain([added]).chain(hidden).enumerate() {
            (*column).resno = place as i16 + 1;
            list = pg_sys::lappend(list, column.cast());
        }
        (*query).targetList = list;
    }
}

/// The event trigger behind CREATE TABLE AS: gives the column of the new table NOT NULL and the default.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn kalam_complete_table(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: Postgres calls it with the event's data; everybody else is refused.
    unsafe {
        let event = (*call).context.cast::<pg_sys::EventTriggerData>();
        if event.is_null() || (*event).type_ != pg_sys::NodeTag::T_EventTriggerData {
            raise(SqlError::prerequisite("kalam.complete_table() is called by an event trigger only"));
        }
    }
    let made = query(
        "SELECT objid::text FROM pg_catalog.pg_event_trigger_ddl_commands()
         WHERE classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass AND object_type OPERATOR(pg_catalog.=) 'table'",
        &[],
    );
    for table in made.iter().filter_map(|row| text_of(row, 0)?.parse::<u32>().ok()).map(pg_sys::Oid::from) {
        if kind_of(table) == Kind::User {
            // SAFETY: the table was made by this statement.
            unsafe { complete(table) };
        }
    }
    pg_sys::Datum::from(0)
}

unsafe fn complete(table: pg_sys::Oid) {
    use pg_sys::AlterTableType::{AT_ColumnDefault, AT_SetNotNull};
    // SAFETY: the statement holds the new table's lock; the commands are those of ALTER TABLE.
    unsafe {
        let is_complete = catalog::with_relation(table, |rel| {
            let column = find_user_column((*rel).rd_att);
            column.is_none_or(|column| (*compat::attributes((*rel).rd_att).add(column as usize - 1)).atthasdef)
        });
        if is_complete != Some(false) {
            return;
        }
        let commands = pg_sys::lappend(std::ptr::null_mut(), command(AT_ColumnDefault, default_of_user()).cast());
        let commands = pg_sys::lappend(commands, command(AT_SetNotNull, std::ptr::null_mut()).cast());
        // NOT NULL is checked for the rows of all.
        let before = enter_utility(true);
        pg_sys::EventTriggerInhibitCommandCollection();
        pg_sys::AlterTableInternal(table, commands, false);
        pg_sys::EventTriggerUndoInhibitCommandCollection();
        leave(before);
    }
}

/// A command of ALTER TABLE about the column.
pub unsafe fn command(kind: pg_sys::AlterTableType::Type, definition: *mut pg_sys::Node) -> *mut pg_sys::AlterTableCmd {
    // SAFETY: a node of zeroes, with its tag.
    unsafe {
        let command = pg_sys::palloc0(size_of::<pg_sys::AlterTableCmd>()).cast::<pg_sys::AlterTableCmd>();
        (*command).type_ = pg_sys::NodeTag::T_AlterTableCmd;
        (*command).subtype = kind;
        (*command).name = text(USER_COLUMN);
        (*command).def = definition;
        command
    }
}

version_1!(pg_finfo_kalam_complete_table);
