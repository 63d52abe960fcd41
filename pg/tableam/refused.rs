//! Callbacks that are not built: each refuses with a clear error instead of doing half of its work.

use kalamdb_engine::{Error, ErrorKind};
use pgrx::{pg_guard, pg_sys};

use super::storage::relation_name;
use crate::error::raise;

/// Rewriting a table in place: CLUSTER and VACUUM FULL.
#[pg_guard]
pub unsafe extern "C-unwind" fn relation_copy_for_cluster(
    old: pg_sys::Relation,
    _new: pg_sys::Relation,
    _index: pg_sys::Relation,
    _use_sort: bool,
    _oldest_xmin: pg_sys::TransactionId,
    _xid_cutoff: *mut pg_sys::TransactionId,
    _multi_cutoff: *mut pg_sys::MultiXactId,
    _rows: *mut f64,
    _vacuumed: *mut f64,
    _recently_dead: *mut f64,
) {
    raise(
        Error::new(ErrorKind::Unsupported, "CLUSTER and VACUUM FULL are not supported by the access method kalam_shared")
            .with_detail(format!("Table \"{}\" is unchanged.", relation_name(old)))
            .with_hint("VACUUM reclaims the space of deleted rows; ALTER TABLE ... ALTER COLUMN ... TYPE rewrites a table."),
    );
}
