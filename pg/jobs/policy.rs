//! Flush policies: publishes the limits of tables in shared memory, and makes jobs of what is due.

use std::sync::atomic::Ordering;

use kalamdb_engine::cache::{FlushLimits, FlushNews, StorageDescriptor};
use pgrx::pg_sys;

use super::kinds::Kind;
use super::process::{self, Me};
use super::table::{self, NewJob};
use crate::error::SqlError;
use crate::ffi::catalog;
use crate::tableam::storage::Storage;
use crate::{options, settings, tableam};

/// Looks at the storages of the database: publishes limits that somebody asked for, all of them at the first look after a start, and
/// adds a job for each table whose rows are due.
pub fn apply(me: Me, first_look: bool) -> Result<(), SqlError> {
    for descriptor in me.cache.storages().in_use() {
        let file = descriptor.file();
        if file.database != me.database || !descriptor.outlives_crash() {
            continue;
        }
        let state = &descriptor.flush;
        if state.wants_limits() || (first_look && !state.is_published()) {
            let relation = catalog::relation_of_file(file.tablespace, file.relnumber);
            // A table that nobody sees yet, or no more, has nothing to flush.
            if relation != pg_sys::InvalidOid {
                publish(me, descriptor, relation, first_look);
            }
        }
        if state.is_due(process::now()) {
            let relation = catalog::relation_of_file(file.tablespace, file.relnumber);
            let kind = if is_stream(relation) { Kind::Evict } else { Kind::Flush };
            if let Some(table) = catalog::relation_info(relation) {
                table::add(&NewJob::automatic(kind, &table))?;
            }
        }
    }
    Ok(())
}

fn publish(me: Me, descriptor: &StorageDescriptor, relation: pg_sys::Oid, first_look: bool) {
    let limits = if is_stream(relation) {
        FlushLimits { rows: 0, seconds: settings::stream_eviction_interval() }
    } else {
        options::read(relation).flush_limits()
    };
    let state = &descriptor.flush;
    let mut news = state.publish(limits, process::now());
    // How many rows were changed before the server was started is not known, but that some are in the hot store.
    let has_rows = descriptor.stored_bytes.load(Ordering::Relaxed) > 0;
    if first_look && has_rows && limits.seconds > 0 && news == FlushNews::Nothing {
        news = state.try_again_after(limits.seconds, process::now());
    }
    if let FlushNews::DueAt(at) = news {
        me.cache.jobs().note_deadline(at);
    }
}

/// Adds a job for each table with deleted rows that have been kept long enough. Whether rows of dropped tables were found.
pub fn end_retention() -> Result<bool, SqlError> {
    // SAFETY: asks the clock.
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    let mut orphans = false;
    for (relation, oldest) in table::tables_with_deleted_rows() {
        match catalog::relation_info(relation) {
            None => orphans = true,
            Some(table) if oldest < now.saturating_sub(options::of(relation).deleted_retention_us()) => {
                table::add(&NewJob::automatic(Kind::Retention, &table))?;
            }
            Some(_) => {}
        }
    }
    Ok(orphans)
}

/// Whether a table is a stream, whose rows are given back and not flushed. Takes no lock on it: whoever holds the table must not hold up
/// the jobs of all others.
fn is_stream(relation: pg_sys::Oid) -> bool {
    catalog::method_of(relation).is_some_and(|(_, method)| tableam::is_stream_routine(catalog::routine_of_method(method)))
}

/// The storage of a table in shared memory; none if the table is gone. Takes no lock on the table, as above.
pub fn flush_state(relation: pg_sys::Oid) -> Option<&'static StorageDescriptor> {
    let found = process::transaction(c"KalamDB: looking for the table", || {
        Ok(catalog::with_relation_unlocked(relation, |rel| Storage::find(rel).map(|storage| storage.descriptor)).flatten())
    });
    found.ok().flatten()
}
