//! Storages of cold segments as this database's catalog has them: their definitions, their use in this process, and the engine's copy.

use kalamdb_engine::cold::StoredLocation;
use kalamdb_engine::location::{self, Definition, Location};
use kalamdb_engine::{Error, Result};
use pgrx::{PgXactCallbackEvent, pg_sys, register_xact_callback};
use serde_json::{Map, Value};

use crate::error::{OrRaise, SqlError};
use crate::ffi::extension;
use crate::identity::control_table::ControlTable;
use crate::shmem::engine_cache;
use crate::worker::{requests, segments_directory, with_all_blocked};

/// The definition of a storage with its secrets, as of now; whoever asks sees to it that nobody else gets them.
///
/// # Errors
/// `Internal` when the catalog's texts are no JSON.
pub fn definition(name: &str) -> Result<Option<Definition>> {
    let Some(row) = ControlTable::read(c"storage_catalog").and_then(|table| table.last_with(c"storage_catalog_pkey", name))
    else {
        return Ok(None);
    };
    let mut options = parse(row.text(2))?;
    let secrets = ControlTable::read(c"storage_secrets").and_then(|table| table.last_with(c"storage_secrets_pkey", name));
    options.extend(parse(secrets.and_then(|row| row.text(1)))?);
    Ok(Some(Definition { name: name.to_owned(), url: row.text(1).unwrap_or_default(), options }))
}

fn parse(text: Option<String>) -> Result<Map<String, Value>> {
    let options = serde_json::from_str(text.as_deref().unwrap_or("{}"));
    options.map_err(|error| Error::internal("the options of a storage are no JSON object").with_source(error))
}

/// The definition of a storage that must exist.
///
/// # Errors
/// 42704 when it does not; as [`definition`].
pub fn require(name: &str) -> std::result::Result<Definition, SqlError> {
    definition(name)?.ok_or_else(|| {
        SqlError::undefined_object(format!("storage \"{name}\" does not exist"))
            .with_detail("Each database has storages of its own.")
            .with_hint("The view kalam.storages lists the storages of this database.")
    })
}

/// As [`require`]; the storage stays until the transaction ends.
///
/// # Errors
/// As [`require`].
pub fn require_and_keep(name: &str) -> std::result::Result<Definition, SqlError> {
    if let Some(catalog) = extension::relation(c"storage_catalog") {
        // SAFETY: the transaction gives the lock back. Changes of storages take a lock that excludes this one.
        unsafe { pg_sys::LockRelationOid(catalog, pg_sys::RowExclusiveLock as pg_sys::LOCKMODE) };
    }
    require(name)
}

/// The storage that a user's rows go to instead of the table's.
pub fn of_user(user: &str) -> Option<String> {
    ControlTable::read(c"user_storages")?.last_with(c"user_storages_pkey", user)?.text(1)
}

/// Makes a storage usable in this process.
///
/// # Errors
/// As [`Location::open`].
pub fn open(definition: &Definition) -> Result<Location> {
    // Postgres' signal handlers must run on its own thread.
    with_all_blocked(location::start)?;
    Location::open(definition, &segments_directory())
}

/// Gives the engine the definition of a storage unless it has it: before a segment is put there.
///
/// # Errors
/// Those of the engine.
pub fn publish(definition: &Definition) -> Result<()> {
    let database = database();
    let stored = StoredLocation { database, name: definition.name.clone(), definition: definition.to_value() };
    requests::with_client(engine_cache(), |client| match client.locations(database)?.contains(&stored) {
        true => Ok(()),
        false => client.put_location(stored),
    })
}

/// Gives the engine what the catalog says of a storage when the transaction commits.
pub fn publish_at_commit(name: &str) {
    let name = name.to_owned();
    register_xact_callback(PgXactCallbackEvent::PreCommit, move || {
        let published = match definition(&name) {
            Ok(Some(definition)) => publish(&definition),
            Ok(None) => requests::with_client(engine_cache(), |client| client.drop_location(database(), &name)),
            Err(error) => Err(error),
        };
        published.or_raise();
    });
    register_xact_callback(PgXactCallbackEvent::PrePrepare, || {
        Err::<(), SqlError>(
            SqlError::unsupported("cannot PREPARE a transaction that has changed storages")
                .with_detail("The engine learns of the change when the transaction commits in its own session.")
                .with_hint("Use COMMIT."),
        )
        .or_raise();
    });
}

fn database() -> u32 {
    // SAFETY: a value of the process.
    unsafe { pg_sys::MyDatabaseId }.to_u32()
}

/// How many files the engine has in a storage, those that are about to be deleted included.
///
/// # Errors
/// Those of the engine.
pub fn files(name: &str) -> Result<u64> {
    let database = database();
    requests::with_client(engine_cache(), |client| client.location_uses(database, name))
}
