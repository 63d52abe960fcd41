//! Partitioned tables over user tables: the tables of a tree are all user tables or none is, so one that has rows tells.

use pgrx::pg_sys;

use super::context::meet;
use crate::ffi::catalog;
use crate::ffi::plain;
use crate::tableam;

/// What the tables of a tree are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// User tables or streams.
    User,
    /// Others, also foreign ones.
    Other,
    /// A partitioned table without a partition that has rows, which may become either.
    Empty,
}

/// Whether an access method is one whose tables have rows of users.
pub fn is_user_method(method: pg_sys::Oid) -> bool {
    tableam::is_partitioned_routine(catalog::routine_of_method(method))
}

fn kind_of_method(method: pg_sys::Oid) -> Kind {
    if is_user_method(method) { Kind::User } else { Kind::Other }
}

/// What a table, or the tables below a partitioned one, are.
pub fn kind_of(relation: pg_sys::Oid) -> Kind {
    match catalog::method_of(relation) {
        Some((pg_sys::RELKIND_RELATION, method)) => kind_of_method(method),
        Some((pg_sys::RELKIND_PARTITIONED_TABLE, method)) => match first_leaf(relation) {
            Some(leaf) => kind_of(leaf),
            // Some versions of Postgres have partitioned tables name the method for new partitions.
            None if method != pg_sys::InvalidOid => kind_of_method(method),
            None => Kind::Empty,
        },
        _ => Kind::Other,
    }
}

/// A table with rows below a partitioned one.
pub fn first_leaf(partitioned: pg_sys::Oid) -> Option<pg_sys::Oid> {
    // SAFETY: the description belongs to the open relation.
    unsafe {
        let rel = pg_sys::RelationIdGetRelation(partitioned);
        if rel.is_null() {
            return None;
        }
        let parts = pg_sys::RelationGetPartitionDesc(rel, false);
        let found = (0..(*parts).nparts as usize).find_map(|place| {
            let oid = *(*parts).oids.add(place);
            if *(*parts).is_leaf.add(place) { Some(oid) } else { first_leaf(oid) }
        });
        plain::RelationClose(rel);
        found
    }
}

/// Whether user tables are below a partitioned table.
pub fn has_user_tables(partitioned: pg_sys::Oid) -> bool {
    let found = kind_of(partitioned) == Kind::User;
    if found {
        meet();
    }
    found
}
