//! Which tables may be partitions and children of which: user tables stay among themselves, as a tree shows the rows of all its tables.

use pgrx::pg_sys;

use super::super::tree::{Kind, is_user_method, kind_of};
use super::super::{find_user_column, is_user_table};
use super::{method_named, relation, unsupported};
use crate::error::{SqlError, raise};
use crate::ffi::catalog;
use crate::ffi::sql::{query_latest, text};

const HINT: &str = "Name an access method with USING: kalam_user for all partitions and children, or another one for all.";

/// What a CREATE TABLE statement makes.
pub unsafe fn kind_of_new(create: &pg_sys::CreateStmt) -> Kind {
    // SAFETY: a parsed statement; the setting is never null.
    unsafe {
        let method = create.accessMethod;
        if method.is_null() && !create.partspec.is_null() {
            return Kind::Empty;
        }
        let parent = super::nodes::<pg_sys::RangeVar>(create.inhRelations).next().filter(|_| !create.partbound.is_null());
        let of_parent = parent.and_then(|parent| relation(parent)).and_then(catalog::method_of).map(|(_, method)| method);
        let is_user = match of_parent {
            Some(of_parent) if method.is_null() && of_parent != pg_sys::InvalidOid => is_user_method(of_parent),
            _ => is_user_method(method_named(method)),
        };
        if is_user { Kind::User } else { Kind::Other }
    }
}

/// Checks the parents of a table that is made.
pub unsafe fn check_parents(parents: *mut pg_sys::List, kind: Kind) {
    // SAFETY: names of a parsed statement. Postgres refuses those that do not exist.
    unsafe {
        for parent in super::nodes::<pg_sys::RangeVar>(parents) {
            if let Some(parent) = relation(parent) {
                check_join(parent, None, kind);
            }
        }
    }
}

/// Whether a table is partitioned, has no partitions with rows yet, and could get user tables for some.
pub fn may_become_user_tree(table: pg_sys::Oid) -> bool {
    is_partitioned_table(table) && kind_of(root_of(table)) == Kind::Empty && has_user_column(table)
}

pub fn is_partitioned_table(table: pg_sys::Oid) -> bool {
    catalog::method_of(table).is_some_and(|(kind, _)| kind == pg_sys::RELKIND_PARTITIONED_TABLE)
}

/// Checks that a table may become a partition or a child of another one.
pub fn check_join(parent: pg_sys::Oid, child: Option<pg_sys::Oid>, kind: Kind) {
    let root = root_of(parent);
    let of_parent = kind_of(root);
    let name = catalog::relation_info(parent).map(|info| info.name).unwrap_or_default();
    match (of_parent, kind) {
        (Kind::User, Kind::Other) => raise(
            unsupported(format!("partitions and children of user table \"{name}\" have to be user tables"))
                .with_detail("Other tables show the rows of all users to everybody.")
                .with_hint(HINT),
        ),
        (Kind::Other, Kind::User) => raise(
            unsupported(format!("a user table cannot be a partition or a child of table \"{name}\""))
                .with_detail("Its other tables show the rows of all users to everybody.")
                .with_hint(HINT),
        ),
        (Kind::Empty, Kind::Empty) => return,
        _ => {}
    }
    let becomes_user = of_parent == Kind::User || kind == Kind::User;
    if becomes_user && !has_user_column(parent) {
        raise(
            SqlError::invalid_definition(format!("table \"{name}\" has no column \"_user_id\" of type text"))
                .with_detail(
                    "The column says whose a row is; user tables that are partitions have it from the partitioned table.",
                )
                .with_hint("Use ALTER TABLE ... ADD COLUMN _user_id text COLLATE \"C\" NOT NULL DEFAULT kalam.user_id()."),
        );
    }
    // Also those of a table whose column was renamed while it was empty.
    let mut tables = tables_of(root);
    tables.extend(child.into_iter().flat_map(tables_of));
    check_foreign_keys(&tables, becomes_user);
    if becomes_user {
        forget_statistics(&tables);
    }
}

/// Takes the values of rows of all users out of the statistics of tables that become user tables, or partitioned into some; refuses
/// tables with statistics over several columns, as CREATE STATISTICS does.
pub fn forget_statistics(tables: &[pg_sys::Oid]) {
    const EXTENDED: &str = "SELECT stxname::text, stxrelid::regclass::text FROM pg_catalog.pg_statistic_ext
         WHERE stxrelid OPERATOR(pg_catalog.=) ANY ($1::oid[]) ORDER BY stxname LIMIT 1";
    const KNOWN: &str = "SELECT DISTINCT starelid::text FROM pg_catalog.pg_statistic
         WHERE starelid OPERATOR(pg_catalog.=) ANY ($1::oid[] || ARRAY(
             SELECT indexrelid FROM pg_catalog.pg_index WHERE indrelid OPERATOR(pg_catalog.=) ANY ($1::oid[])))";
    let numbers: Vec<String> = tables.iter().map(|oid| oid.to_u32().to_string()).collect();
    let list = format!("{{{}}}", numbers.join(","));
    if let Some(row) = query_latest(EXTENDED, &[Some(&list)]).first() {
        let (statistics, table) = (text(row, 0).unwrap_or_default(), text(row, 1).unwrap_or_default());
        raise(
            unsupported(format!("table {table} with extended statistics cannot become a user table"))
                .with_detail(format!("Statistics \"{statistics}\" keep values of rows of all users where others can read them."))
                .with_hint("Use DROP STATISTICS first."),
        );
    }
    // Whoever may not see the catalog's rows may still have them removed.
    let known = catalog::as_superuser(|| query_latest(KNOWN, &[Some(&list)]));
    for oid in known.iter().filter_map(|row| text(row, 0)?.parse::<u32>().ok()) {
        // SAFETY: removes catalog rows in the open transaction.
        unsafe { pg_sys::RemoveStatistics(oid.into(), 0) };
    }
}

fn has_user_column(table: pg_sys::Oid) -> bool {
    // SAFETY: an open relation has a descriptor.
    catalog::with_relation(table, |rel| unsafe { find_user_column((*rel).rd_att) }.is_some()).unwrap_or(false)
}

/// The topmost partitioned table above a table; itself if it is no partition.
fn root_of(table: pg_sys::Oid) -> pg_sys::Oid {
    // SAFETY: looks into the catalog's cache.
    if !unsafe { pg_sys::get_rel_relispartition(table) } {
        return table;
    }
    oids("SELECT pg_catalog.pg_partition_root($1::oid)::oid::text", table).next().unwrap_or(table)
}

/// A table and all partitions below it.
fn tables_of(root: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    let below = oids("SELECT relid::oid::text FROM pg_catalog.pg_partition_tree($1::oid)", root);
    below.filter(|table| *table != root).chain([root]).collect()
}

fn oids(statement: &str, argument: pg_sys::Oid) -> impl Iterator<Item = pg_sys::Oid> {
    let rows = query_latest(statement, &[Some(&argument.to_u32().to_string())]);
    rows.into_iter().filter_map(|row| text(&row, 0)?.parse::<u32>().ok()).map(pg_sys::Oid::from)
}

/// Checks the foreign keys from and to the tables of a tree: they tell whether a row exists, so those that refer to user tables stay
/// within a user's rows.
pub fn check_foreign_keys(tree: &[pg_sys::Oid], of_users: bool) {
    const KEYS: &str = "SELECT conname::text, conrelid::text, confrelid::text, EXISTS (
             SELECT FROM pg_catalog.generate_subscripts(conkey, 1) place
             JOIN pg_catalog.pg_attribute own
                 ON own.attrelid OPERATOR(pg_catalog.=) conrelid AND own.attnum OPERATOR(pg_catalog.=) conkey[place]
             JOIN pg_catalog.pg_attribute other
                 ON other.attrelid OPERATOR(pg_catalog.=) confrelid AND other.attnum OPERATOR(pg_catalog.=) confkey[place]
             WHERE own.attname OPERATOR(pg_catalog.=) '_user_id' AND other.attname OPERATOR(pg_catalog.=) '_user_id')::text
         FROM pg_catalog.pg_constraint
         WHERE contype OPERATOR(pg_catalog.=) 'f'
             AND (conrelid OPERATOR(pg_catalog.=) ANY ($1::oid[]) OR confrelid OPERATOR(pg_catalog.=) ANY ($1::oid[]))
         ORDER BY conname";
    let numbers: Vec<String> = tree.iter().map(|oid| oid.to_u32().to_string()).collect();
    let is_of_users = |oid: pg_sys::Oid| if tree.contains(&oid) { of_users } else { is_user_table(oid).is_some() };
    for row in query_latest(KEYS, &[Some(&format!("{{{}}}", numbers.join(",")))]) {
        let oid = |place| pg_sys::Oid::from(text(&row, place).and_then(|text| text.parse::<u32>().ok()).unwrap_or(0));
        let stays_within = is_of_users(oid(1)) && text(&row, 3) == Some("true");
        if is_of_users(oid(2)) && !stays_within {
            let name = text(&row, 0).unwrap_or_default();
            raise(
                SqlError::invalid_foreign_key(format!("foreign key \"{name}\" would refer to rows of other users"))
                    .with_detail("Rows of user tables are referred to by rows of the same user only.")
                    .with_hint("Drop it, and make it anew between user tables with \"_user_id\" on both sides."),
            );
        }
    }
}

/// Whether a partitioned table may have user tables for its partitions from now on, or no longer.
pub unsafe fn check_method(table: pg_sys::Oid, method: *const std::ffi::c_char) -> bool {
    // SAFETY: a name of a parsed statement, or none for the default.
    let wanted = if is_user_method(unsafe { method_named(method) }) { Kind::User } else { Kind::Other };
    is_partitioned_table(table)
        && match kind_of(root_of(table)) {
            Kind::Empty => wanted == Kind::Other || has_user_column(table),
            kind => kind == wanted,
        }
}
