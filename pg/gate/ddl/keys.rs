//! Keys of user tables: unique for each user, so their indexes begin with `_user_id`; foreign keys stay within a user's rows.

use std::ffi::{CStr, CString, c_char};

use pgrx::pg_sys;

use super::super::USER_COLUMN;
use super::super::lent;
use super::super::planner::nodes;
use super::{name_of, referred_user_table, relation, text, unsupported, user_table};
use crate::error::{SqlError, raise};
use crate::ffi::{catalog, plain};

unsafe fn index_column() -> *mut pg_sys::IndexElem {
    // SAFETY: a node of zeroes, with its tag; zero is the default order.
    unsafe {
        let element = pg_sys::palloc0(size_of::<pg_sys::IndexElem>()).cast::<pg_sys::IndexElem>();
        (*element).type_ = pg_sys::NodeTag::T_IndexElem;
        (*element).name = text(USER_COLUMN);
        element
    }
}

unsafe fn is_user(element: *const pg_sys::IndexElem) -> bool {
    // SAFETY: an element of a parsed index.
    unsafe { name_of((*element).name) == USER_COLUMN }
}

/// Puts the column before those of a unique or btree index, so that the rows of a user stand together in it.
pub unsafe fn prepare_index(index: &mut pg_sys::IndexStmt) {
    // SAFETY: a parsed statement that may be changed.
    unsafe {
        let Some(table) = user_table(index.relation) else { return };
        let is_btree = index.accessMethod.is_null() || name_of(index.accessMethod) == c"btree";
        let separates = index.unique || !index.excludeOpNames.is_null();
        let first = nodes::<pg_sys::IndexElem>(index.indexParams).next();
        if index.indexParams.is_null() || first.is_some_and(|first| is_user(first)) || !(is_btree || separates) {
            return;
        }
        if index.idxname.is_null() {
            index.idxname = choose_name(index, table);
        }
        // An index that names the user further behind keeps that place free.
        let mut columns = pg_sys::lappend(std::ptr::null_mut(), index_column().cast());
        let mut operators = if index.excludeOpNames.is_null() {
            std::ptr::null_mut()
        } else {
            pg_sys::lappend(std::ptr::null_mut(), equality().cast())
        };
        let mut old_operators = nodes::<pg_sys::List>(index.excludeOpNames);
        for element in nodes::<pg_sys::IndexElem>(index.indexParams) {
            let operator = old_operators.next();
            if is_user(element) {
                continue;
            }
            columns = pg_sys::lappend(columns, element.cast());
            if let Some(operator) = operator {
                operators = pg_sys::lappend(operators, operator.cast());
            }
        }
        index.indexParams = columns;
        index.excludeOpNames = operators;
    }
}

unsafe fn equality() -> *mut pg_sys::List {
    // SAFETY: allocates nodes.
    unsafe { pg_sys::lappend(std::ptr::null_mut(), pg_sys::makeString(text(c"=")).cast()) }
}

/// The name that the index would have without the column.
unsafe fn choose_name(index: &pg_sys::IndexStmt, table: pg_sys::Oid) -> *mut c_char {
    // SAFETY: a parsed statement.
    unsafe {
        let elements = nodes(index.indexParams).chain(nodes(index.indexIncludingParams));
        let label = match (index.primary, index.isconstraint, index.excludeOpNames.is_null()) {
            (true, ..) => c"pkey",
            (false, _, false) => c"excl",
            (false, true, true) => c"key",
            (false, false, true) => c"idx",
        };
        choose(index.relation, table, elements.map(|element| element_name(element)), label)
    }
}

/// What Postgres calls an element of an index in the index's name.
unsafe fn element_name<'n>(element: *mut pg_sys::IndexElem) -> &'n CStr {
    // SAFETY: a parsed element; the function of Postgres gives a text that lives as long as the statement, or null.
    unsafe {
        let names = [(*element).indexcolname, (*element).name, plain::FigureIndexColname((*element).expr)];
        names.into_iter().find(|name| !name.is_null()).map_or(c"expr", |name| name_of(name))
    }
}

/// A name for an index as Postgres chooses them: of the table's name, those of the columns, and a label.
unsafe fn choose<'n>(
    relation: *mut pg_sys::RangeVar,
    table: pg_sys::Oid,
    columns: impl Iterator<Item = &'n CStr>,
    label: &CStr,
) -> *mut c_char {
    let mut names: Vec<String> = Vec::new();
    for column in columns {
        let column = column.to_string_lossy();
        let numbered = (1..).map(|number| format!("{column}{number}"));
        let free = std::iter::once(column.to_string()).chain(numbered).find(|name| !names.contains(name));
        names.extend(free);
    }
    let columns = CString::new(names.join("_")).unwrap_or_default();
    let columns = if label == c"pkey" { std::ptr::null() } else { columns.as_ptr() };
    // SAFETY: a parsed statement; the names are copied.
    unsafe {
        let schema = pg_sys::get_rel_namespace(table);
        pg_sys::ChooseRelationName((*relation).relname, columns, label.as_ptr(), schema, label != c"idx")
    }
}

/// Gives a key that ALTER TABLE adds the name that it would have without the column, unless it has one.
unsafe fn name_constraint<'n>(
    constraint: &mut pg_sys::Constraint,
    table: *mut pg_sys::RangeVar,
    columns: impl Iterator<Item = &'n CStr>,
    label: &CStr,
) {
    // SAFETY: a parsed statement that may be changed.
    unsafe {
        if constraint.conname.is_null()
            && let Some(oid) = user_table(table)
        {
            constraint.conname = choose(table, oid, columns, label);
        }
    }
}

/// Makes a key that ALTER TABLE adds begin with the column.
pub unsafe fn prepare_constraint(constraint: &mut pg_sys::Constraint, table: *mut pg_sys::RangeVar, column: Option<&CStr>) {
    use pg_sys::ConstrType::*;
    // SAFETY: a parsed statement that may be changed.
    unsafe {
        match constraint.contype {
            CONSTR_PRIMARY | CONSTR_UNIQUE if constraint.indexname.is_null() => {
                if constraint.keys.is_null() {
                    let Some(column) = column else { return };
                    constraint.keys = pg_sys::lappend(std::ptr::null_mut(), pg_sys::makeString(text(column)).cast());
                }
                let names: Vec<&CStr> = nodes::<pg_sys::Node>(constraint.keys).map(|node| string(node)).collect();
                if names.first() == Some(&USER_COLUMN) {
                    return;
                }
                let label = if constraint.contype == CONSTR_PRIMARY { c"pkey" } else { c"key" };
                let included = nodes(constraint.including).map(|node| string(node));
                name_constraint(constraint, table, names.iter().copied().chain(included), label);
                let mut keys = pg_sys::lappend(std::ptr::null_mut(), pg_sys::makeString(text(USER_COLUMN)).cast());
                for name in names.iter().filter(|name| **name != USER_COLUMN) {
                    keys = pg_sys::lappend(keys, pg_sys::makeString(text(name)).cast());
                }
                constraint.keys = keys;
            }
            CONSTR_EXCLUSION => {
                let first = nodes::<pg_sys::List>(constraint.exclusions).next();
                let names_user = first.is_some_and(|pair| nodes::<pg_sys::IndexElem>(pair).next().is_some_and(|e| is_user(e)));
                if !names_user {
                    let elements = nodes::<pg_sys::List>(constraint.exclusions).filter_map(|pair| nodes(pair).next());
                    name_constraint(constraint, table, elements.map(|element| element_name(element)), c"excl");
                    let pair = pg_sys::lappend(std::ptr::null_mut(), index_column().cast());
                    let pair = pg_sys::lappend(pair, equality().cast());
                    constraint.exclusions = pg_sys::lcons(pair.cast(), constraint.exclusions);
                }
            }
            _ => check_foreign_key(constraint, column, relation(table)),
        }
    }
}

unsafe fn string<'n>(node: *mut pg_sys::Node) -> &'n CStr {
    // SAFETY: a name in a list of names.
    unsafe { name_of((*node.cast::<pg_sys::String>()).sval) }
}

/// Refuses a foreign key of a user table that refers to a user table and could leave the user's rows.
pub unsafe fn check_foreign_key(constraint: &pg_sys::Constraint, column: Option<&CStr>, table: Option<pg_sys::Oid>) {
    // SAFETY: a parsed statement.
    unsafe {
        if constraint.contype != pg_sys::ConstrType::CONSTR_FOREIGN {
            return;
        }
        // A table that becomes a user table is none yet.
        let to_itself = table.is_some() && relation(constraint.pktable) == table;
        let own: Vec<&CStr> = nodes::<pg_sys::Node>(constraint.fk_attrs).map(|node| string(node)).collect();
        let own = if own.is_empty() { column.into_iter().collect() } else { own };
        let referred = referred_user_table(constraint.pktable);
        if referred.is_none() && !to_itself {
            if own.contains(&USER_COLUMN) {
                refuse_null_user(constraint, &own);
            }
            return;
        }
        let other: Vec<&CStr> = nodes::<pg_sys::Node>(constraint.pk_attrs).map(|node| string(node)).collect();
        // Without a list the primary key is meant, which begins with the user.
        let place = if other.is_empty() { Some(0) } else { other.iter().position(|name| *name == USER_COLUMN) };
        if place.is_some_and(|place| own.get(place) == Some(&USER_COLUMN)) {
            referred.filter(|_| !to_itself).inspect(|table| require_owner(*table));
            refuse_null_user(constraint, &own);
            return;
        }
        let list = |names: &[&CStr]| {
            let names = names.iter().filter(|name| **name != USER_COLUMN).map(|name| name.to_string_lossy().into_owned());
            std::iter::once("_user_id".to_owned()).chain(names).collect::<Vec<_>>().join(", ")
        };
        let target = name_of((*constraint.pktable).relname).to_string_lossy().into_owned();
        let target_columns = if other.is_empty() { String::new() } else { format!(" ({})", list(&other)) };
        raise(
            SqlError::invalid_foreign_key(format!(
                "foreign key to user table \"{target}\" does not name \"_user_id\" on both sides"
            ))
            .with_detail("Rows of user tables refer to rows of the same user only.")
            .with_hint(format!("Write FOREIGN KEY ({}) REFERENCES {target}{target_columns}.", list(&own))),
        );
    }
}

/// Refuses a foreign key to a user table of somebody else: its check, and the rows that its actions change, would show what others have.
fn require_owner(table: pg_sys::Oid) {
    let owner = lent::owner(table);
    // SAFETY: looks into the catalog's cache.
    if unsafe { pg_sys::has_privs_of_role(plain::GetUserId(), owner) } {
        return;
    }
    raise(
        SqlError::insufficient_privilege("a foreign key cannot refer to a user table of another owner")
            .with_detail("It would show rows of its users to whom the referring table belongs.")
            .with_hint("Let one role own both tables."),
    );
}

/// Refuses an action of a foreign key that would set the user of rows to NULL, and so fail whenever there are such rows.
unsafe fn refuse_null_user(constraint: &pg_sys::Constraint, columns: &[&CStr]) {
    const SET_NULL: u8 = pg_sys::FKCONSTR_ACTION_SETNULL;
    // SAFETY: a parsed statement.
    let listed = |name: &CStr| unsafe { nodes::<pg_sys::Node>(constraint.fk_del_set_cols).any(|node| string(node) == name) };
    let on_delete = constraint.fk_del_action as u8 == SET_NULL && (constraint.fk_del_set_cols.is_null() || listed(USER_COLUMN));
    let on_update = constraint.fk_upd_action as u8 == SET_NULL;
    if on_delete || on_update {
        let others = columns.iter().filter(|name| **name != USER_COLUMN).map(|name| name.to_string_lossy());
        let others = others.collect::<Vec<_>>().join(", ");
        raise(
            SqlError::invalid_foreign_key("foreign key would set column \"_user_id\" to NULL")
                .with_detail("Each row of a user table belongs to a user.")
                .with_hint(if others.is_empty() {
                    "Use CASCADE, RESTRICT or NO ACTION.".to_owned()
                } else if on_delete {
                    format!("Write ON DELETE SET NULL ({others}).")
                } else {
                    "Use ON UPDATE CASCADE or NO ACTION; ON UPDATE SET NULL takes no list of columns.".to_owned()
                }),
        );
    }
}

/// Refuses a foreign key of another table that refers to a user table: it would tell which rows others have.
pub unsafe fn refuse_foreign_key(constraint: &pg_sys::Constraint, table_name: &CStr) -> ! {
    // SAFETY: a parsed statement.
    let target = unsafe { name_of((*constraint.pktable).relname) }.to_string_lossy().into_owned();
    let table = table_name.to_string_lossy().into_owned();
    raise(
        unsupported(format!("foreign key of table \"{table}\" cannot refer to user table \"{target}\""))
            .with_detail("It would tell whether another user has a row.")
            .with_hint(format!("Make \"{table}\" a user table too.")),
    )
}

/// The index by which a table was clustered last, or is to be.
unsafe fn clustered_index(table: pg_sys::Oid) -> pg_sys::Oid {
    let found = catalog::with_relation(table, |rel| {
        // SAFETY: an open relation; the list is a copy.
        unsafe { catalog::oids(pg_sys::RelationGetIndexList(rel)).find(|index| pg_sys::get_index_isclustered(*index)) }
    });
    found.flatten().unwrap_or(pg_sys::InvalidOid)
}

/// Refuses to cluster a user table by an index in which users are mixed.
pub unsafe fn check_cluster(cluster: &pg_sys::ClusterStmt) {
    // SAFETY: a parsed statement.
    unsafe {
        let Some(table) = user_table(cluster.relation) else { return };
        let index = if cluster.indexname.is_null() {
            clustered_index(table)
        } else {
            pg_sys::get_relname_relid(cluster.indexname, pg_sys::get_rel_namespace(table))
        };
        if index == pg_sys::InvalidOid {
            return;
        }
        let first = pg_sys::get_attname(index, 1, true);
        if name_of(first) != USER_COLUMN {
            raise(
                unsupported("a user table can be clustered by an index that begins with \"_user_id\" only")
                    .with_hint("Rows of different users are never stored together."),
            );
        }
    }
}
