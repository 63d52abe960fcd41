//! How long the deleted rows of a table are kept: its option `deleted_retention`.

use pgrx::pg_sys;

use crate::options;

/// What a text that says no time is taken for: rows are rather kept than lost.
const DEFAULT: i64 = 7 * 86_400 * 1_000_000;

/// How long the rows of a relation are kept, in microseconds; 0 for not at all.
pub fn of(rel: pg_sys::Relation) -> i64 {
    // SAFETY: the relation is open.
    let options = options::of(unsafe { (*rel).rd_id });
    match options.own("deleted_retention") {
        Some(text) => microseconds(text),
        None => microseconds(&options::defaults::text_of("deleted_retention")),
    }
}

fn microseconds(text: &str) -> i64 {
    options::definition::stored_microseconds(text).unwrap_or(DEFAULT)
}
