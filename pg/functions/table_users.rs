//! Who has rows in a user table, and how many blocks of it.

use pgrx::prelude::*;

use crate::error::{OrRaise, SqlError, raise};
use crate::ffi::interrupts::BackendWait;
use crate::gate::is_partitioned;
use crate::tableam::partition;
use crate::tableam::storage::{Storage, relation_name};

/// The users that have or had rows in a user table; no row if the table was dropped meanwhile.
#[pg_extern]
fn table_users(
    relation: pg_sys::Oid,
) -> TableIterator<'static, (name!(user_id, String), name!(partition, i64), name!(blocks, i64))> {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: opened with a lock and closed below; after an ERROR the resource owner closes it.
    let rel = unsafe { pg_sys::try_relation_open(relation, lock) };
    if rel.is_null() {
        return TableIterator::empty();
    }
    if !is_partitioned(rel) {
        raise(
            SqlError::wrong_object_type(format!("\"{}\" is neither a user table nor a stream", relation_name(rel)))
                .with_hint("Rows of other tables belong to nobody."),
        );
    }
    let storage = Storage::of(rel);
    let wait = BackendWait::new(storage.cache);
    let mut users = Vec::new();
    partition::each_user(&storage, &wait, &mut |number, name| {
        users.push((String::from_utf8_lossy(name).into_owned(), number));
        Ok(())
    })
    .or_raise();
    users.sort_unstable();
    let rows: Vec<(String, i64, i64)> = users
        .into_iter()
        .map(|(name, number)| {
            let entry = partition::entry(&storage, number, &wait).or_raise();
            (name, i64::from(number), i64::from(entry.blocks))
        })
        .collect();
    // SAFETY: opened above.
    unsafe { pg_sys::relation_close(rel, lock) };
    TableIterator::new(rows)
}
