//! What one user owns in all user tables of a database: finding it, erasing it for good, writing it to a storage.

pub mod cleanup;
pub mod erase;
pub mod export;

use kalamdb_engine::Error;
use pgrx::pg_sys;
use pgrx::spi::Spi;

use crate::error::SqlError;
use crate::ffi::catalog;
use crate::ffi::interrupts::BackendWait;
use crate::tableam::partition;
use crate::tableam::storage::Storage;

/// Tables whose rows belong to users, but for temporary ones of other sessions. Access methods may have been given other names.
const USER_TABLES: &str = "SELECT c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname) \
     FROM pg_catalog.pg_class c \
     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     JOIN pg_catalog.pg_am a ON a.oid = c.relam \
     WHERE a.amhandler IN ('kalam.user_handler(internal)'::pg_catalog.regprocedure, \
         'kalam.stream_handler(internal)'::pg_catalog.regprocedure) \
     AND c.relkind = 'r' AND NOT pg_catalog.pg_is_other_temp_schema(n.oid) \
     ORDER BY n.nspname, c.relname";

/// The user tables of the database with their quoted names.
///
/// # Errors
/// Those of the query.
pub fn user_tables() -> Result<Vec<(pg_sys::Oid, String)>, SqlError> {
    Spi::connect(|client| {
        let mut found = Vec::new();
        for row in client.select(USER_TABLES, None, &[])? {
            if let (Some(oid), Some(name)) = (row.get(1)?, row.get(2)?) {
                found.push((oid, name));
            }
        }
        Ok(found)
    })
    .map_err(failed)
}

/// Those of them in which a user has, or had, rows: what the owners of all others have set up for them does not matter to the user.
///
/// # Errors
/// As [`user_tables`], and those of the cache.
pub fn user_tables_of(user: &str) -> Result<Vec<(pg_sys::Oid, String)>, SqlError> {
    let mut found = user_tables()?;
    let mut failure = None;
    found.retain(|(oid, _)| {
        let partition = catalog::with_relation(*oid, |rel| {
            let storage = Storage::of(rel);
            partition::find(&storage, user.as_bytes(), &BackendWait::new(storage.cache))
        });
        match partition {
            Some(Ok(partition)) => partition.is_some(),
            Some(Err(error)) => {
                failure = Some(error);
                false
            }
            None => false,
        }
    });
    failure.map_or(Ok(found), |error| Err(error.into()))
}

/// The error for a query of ours that failed.
pub fn failed(error: pgrx::spi::Error) -> SqlError {
    Error::internal(format!("a user's rows could not be looked at: {error}")).into()
}
