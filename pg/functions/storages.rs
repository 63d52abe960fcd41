//! Storages of cold segments: making, changing, dropping and checking them.

use std::path::Path;

use kalamdb_engine::location::{Definition, Kind, LOCAL, Report, prepare_directory};
use kalamdb_engine::{Error, ErrorKind};
use pgrx::JsonB;
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::Spi;
use serde_json::{Map, Value, json};

use crate::error::{OrRaise, SqlError};
use crate::ffi::interrupts::StatementWait;
use crate::ffi::{extension, plain};
use crate::identity::account::{Rank, require_rank};
use crate::identity::audit::Event;
use crate::identity::check_user_name;
use crate::identity::control_table::Lasts;
use crate::storages;

/// Makes a storage.
#[pg_extern]
fn create_storage(name: Option<&str>, url: Option<&str>, options: Option<JsonB>) {
    make(name.unwrap_or_default(), url.unwrap_or_default(), options).or_raise();
}

fn make(name: &str, url: &str, options: Option<JsonB>) -> Result<(), SqlError> {
    require_rank(Rank::Dba, "create a storage")?;
    lock_catalog()?;
    let given = Definition::new(name, url, object(options)?);
    // `local` is the one name whose URL users cannot say.
    if name == LOCAL || storages::definition(name)?.is_some() {
        return Err(SqlError::duplicate_object(format!("storage \"{name}\" already exists"))
            .with_detail("Names of storages are unique in a database.")
            .with_hint("Use kalam.alter_storage() to change it."));
    }
    let definition = prepared(given?)?;
    execute(
        "INSERT INTO kalam.storage_catalog (name, url, options) VALUES ($1, $2, $3::pg_catalog.json)",
        &[name.into(), definition.url.clone().into(), text(definition.public_options()).into()],
    )?;
    keep_secrets(&definition)?;
    Event::on("create_storage", name).with("url", definition.url).record(Lasts::WithTransaction)
}

/// Changes a storage; what is null stays.
#[pg_extern]
fn alter_storage(name: Option<&str>, url: Option<&str>, options: Option<JsonB>) {
    change(name.unwrap_or_default(), url, options).or_raise();
}

fn change(name: &str, url: Option<&str>, options: Option<JsonB>) -> Result<(), SqlError> {
    require_rank(Rank::Dba, "alter a storage")?;
    lock_catalog()?;
    let before = storages::require(name)?;
    let mut definition = before.clone();
    definition.url = url.unwrap_or(&before.url).to_owned();
    for (option, value) in object(options)? {
        match value {
            Value::Null => definition.options.remove(&option),
            value => definition.options.insert(option, value),
        };
    }
    definition.check()?;
    if definition.redirects_secrets_of(&before) {
        return Err(SqlError::invalid_parameter(format!("the credentials of storage \"{name}\" are needed again"))
            .with_detail("They were given for another URL or endpoint, and are not sent elsewhere.")
            .with_hint("Give all secret options together with the new address."));
    }
    if definition.url != before.url {
        require_unused(name, "cannot change the URL of")?;
    }
    let definition = if url.is_some() { prepared(definition)? } else { definition };
    execute(
        "UPDATE kalam.storage_catalog SET url = $2, options = $3::pg_catalog.json, updated_at = clock_timestamp() WHERE name = $1",
        &[name.into(), definition.url.clone().into(), text(definition.public_options()).into()],
    )?;
    keep_secrets(&definition)?;
    storages::publish_at_commit(name);
    Event::on("alter_storage", name).with("url", definition.url).record(Lasts::WithTransaction)
}

/// Drops a storage.
#[pg_extern]
fn drop_storage(name: Option<&str>) {
    remove(name.unwrap_or_default()).or_raise();
}

fn remove(name: &str) -> Result<(), SqlError> {
    require_rank(Rank::Dba, "drop a storage")?;
    lock_catalog()?;
    storages::require(name)?;
    if name == LOCAL {
        return Err(SqlError::dependent_objects("cannot drop storage \"local\" because it is always there")
            .with_detail("It is where rows go that no other storage is named for.")
            .with_hint("The setting kalam.storage names another storage for tables without that option."));
    }
    require_unused(name, "cannot drop")?;
    execute("DELETE FROM kalam.storage_catalog WHERE name = $1", &[name.into()])?;
    storages::publish_at_commit(name);
    Event::on("drop_storage", name).record(Lasts::WithTransaction)
}

/// Sends a user's rows to a storage when they become cold.
#[pg_extern]
fn set_user_storage(user: Option<&str>, storage: Option<&str>) {
    send_user(user.unwrap_or_default(), storage).or_raise();
}

fn send_user(user: &str, storage: Option<&str>) -> Result<(), SqlError> {
    require_rank(Rank::Dba, "set the storage of a user")?;
    if let Err(detail) = check_user_name(user) {
        return Err(SqlError::invalid_parameter("the name of the user is not acceptable")
            .with_detail(detail.to_string_lossy().into_owned())
            .with_hint("Choose 1 to 255 bytes of visible characters."));
    }
    match storage {
        None => execute("DELETE FROM kalam.user_storages WHERE user_name = $1", &[user.into()])?,
        Some(storage) => {
            storages::require_and_keep(storage)?;
            execute(
                "INSERT INTO kalam.user_storages (user_name, storage) VALUES ($1, $2) \
                 ON CONFLICT (user_name) DO UPDATE SET storage = EXCLUDED.storage",
                &[user.into(), storage.into()],
            )?;
        }
    }
    Event::about("set_user_storage", user).with("storage", storage).record(Lasts::WithTransaction)
}

/// Tries a storage.
#[pg_extern]
#[allow(clippy::type_complexity, reason = "the macro reads the columns from the signature and takes no alias")]
fn storage_check(
    name: Option<&str>,
    extended: Option<bool>,
) -> TableIterator<
    'static,
    (name!(status, &'static str), name!(milliseconds, f64), name!(operations, JsonB), name!(error, Option<String>)),
> {
    let report = check(name.unwrap_or_default(), extended.unwrap_or(false)).or_raise();
    let milliseconds = |time: std::time::Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
    let total = report.steps.iter().map(|step| step.took).sum();
    let operations: Vec<Value> = report
        .steps
        .iter()
        .map(|step| {
            let error = step.failure.as_ref().map(|error| format!("{}: {}", error.message(), error.detail().unwrap_or_default()));
            json!({ "operation": step.name, "milliseconds": milliseconds(step.took), "error": error })
        })
        .collect();
    let first = operations.iter().find_map(|operation| operation["error"].as_str().map(str::to_owned));
    TableIterator::once((report.health.name(), milliseconds(total), JsonB(Value::Array(operations)), first))
}

fn check(name: &str, extended: bool) -> Result<Report, SqlError> {
    require_rank(Rank::Dba, "check a storage")?;
    let definition = storages::require(name)?;
    let location = match storages::open(&definition) {
        Ok(location) => location,
        Err(error) if error.kind() == ErrorKind::StorageMissing => return Ok(Report::unreachable("open", error)),
        Err(error) => return Err(error.into()),
    };
    let scratch = crate::worker::temporary_directory()?;
    Ok(location.check(extended, &scratch, &StatementWait)?)
}

/// The options as an object.
fn object(options: Option<JsonB>) -> Result<Map<String, Value>, SqlError> {
    match options.map(|options| options.0) {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(options)) => Ok(options),
        Some(_) => Err(SqlError::invalid_parameter("the options of a storage are no JSON object")
            .with_detail("Options are given as {\"option\": value, ...}.")
            .with_hint("The options are in docs/storages.md.")),
    }
}

/// The definition with the real path of its directory, which exists.
fn prepared(mut definition: Definition) -> Result<Definition, SqlError> {
    let address = definition.address()?;
    if address.kind != Kind::File || address.path.is_empty() {
        return Ok(definition);
    }
    // SAFETY: catalog look-ups inside a transaction.
    let may_write = unsafe {
        let role = pg_sys::get_role_oid(c"pg_write_server_files".as_ptr(), false);
        pg_sys::has_privs_of_role(plain::GetOuterUserId(), role)
    };
    if !may_write {
        return Err(SqlError::insufficient_privilege("permission denied to name a directory of the server")
            .with_detail("Only superusers and members of pg_write_server_files may do it.")
            .with_hint("Use an object store, or let a superuser make the storage."));
    }
    let real = prepare_directory(&definition.name, Path::new(&address.path), crate::worker::data_directory())?;
    let real = real.to_str().ok_or_else(|| SqlError::invalid_parameter("the directory's path is no UTF-8"))?;
    definition.url = format!("file://{real}");
    definition.check()?;
    Ok(definition)
}

/// Raises an error if anything needs the storage.
fn require_unused(name: &str, action: &str) -> Result<(), SqlError> {
    let users = count("SELECT count(*) FROM kalam.user_storages WHERE storage = $1", name)?;
    if users > 0 {
        return Err(in_use(name, action, &format!("It is the storage of {users} users; see kalam.user_storages.")));
    }
    let tables = match count("SELECT count(*) FROM pg_class WHERE oid = to_regclass('kalam.table_options') AND $1 <> ''", name)? {
        0 => 0,
        _ => count("SELECT count(*) FROM kalam.table_options WHERE option = 'storage' AND value = $1", name)?,
    };
    if tables > 0 {
        return Err(in_use(name, action, &format!("It is named by the options of {tables} tables; see kalam.table_options.")));
    }
    let exports = match count("SELECT count(*) FROM pg_class WHERE oid = to_regclass('kalam.user_exports') AND $1 <> ''", name)? {
        0 => 0,
        _ => count("SELECT count(*) FROM kalam.user_exports WHERE storage = $1", name)?,
    };
    if exports > 0 {
        return Err(in_use(name, action, &format!("It has {exports} exports of users; see kalam.user_exports.")));
    }
    match storages::files(name)? {
        0 => Ok(()),
        files => Err(in_use(name, action, &format!("It has {files} files of segments; see kalam.segments."))),
    }
}

fn in_use(name: &str, action: &str, detail: &str) -> SqlError {
    SqlError::dependent_objects(format!("{action} storage \"{name}\" because it is needed"))
        .with_detail(detail)
        .with_hint("Give those another storage first, and compact the tables.")
}

fn keep_secrets(definition: &Definition) -> Result<(), SqlError> {
    let secrets = definition.secret_options();
    execute("DELETE FROM kalam.storage_secrets WHERE name = $1", &[definition.name.as_str().into()])?;
    if secrets.is_empty() {
        return Ok(());
    }
    execute(
        "INSERT INTO kalam.storage_secrets (name, options) VALUES ($1, $2::pg_catalog.json)",
        &[definition.name.as_str().into(), text(secrets).into()],
    )
}

fn text(options: Map<String, Value>) -> String {
    Value::Object(options).to_string()
}

/// Changes of storages come one after another; the SQL functions are the owner's (SECURITY DEFINER).
fn lock_catalog() -> Result<(), SqlError> {
    execute("LOCK TABLE kalam.storage_catalog IN SHARE ROW EXCLUSIVE MODE", &[])
}

fn execute(statement: &str, arguments: &[DatumWithOid<'_>]) -> Result<(), SqlError> {
    extension::require();
    Spi::run_with_args(statement, arguments).map_err(refused)
}

fn count(query: &str, name: &str) -> Result<i64, SqlError> {
    extension::require();
    Ok(Spi::get_one_with_args::<i64>(query, &[name.into()]).map_err(refused)?.unwrap_or(0))
}

fn refused(error: pgrx::spi::Error) -> SqlError {
    Error::internal(format!("the catalog of storages could not be used: {error}")).into()
}
