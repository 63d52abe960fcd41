//! What one user owns in all user tables of a database: finding it, erasing it for good, writing it to a storage.

pub mod cleanup;
pub mod erase;
pub mod export;

use kalamdb_engine::Error;
use pgrx::pg_sys;
use pgrx::spi::Spi;

use crate::error::SqlError;

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

/// The error for a query of ours that failed.
pub fn failed(error: pgrx::spi::Error) -> SqlError {
    Error::internal(format!("a user's rows could not be looked at: {error}")).into()
}
