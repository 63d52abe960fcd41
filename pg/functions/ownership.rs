//! What one user owns in all user tables of the database: how much it is, all of it, and erasing it.

use kalamdb_engine::Error;
use pgrx::prelude::*;
use pgrx::spi::Spi;

use crate::error::{OrRaise, SqlError};
use crate::identity::account::{Rank, current_rank};
use crate::identity::audit::Event;
use crate::identity::check_user_name;
use crate::identity::control_table::Lasts;
use crate::identity::session::act_as;

use super::acting::require_above;
use super::users::run_as_owner;

/// Tables whose rows belong to users, but for temporary ones of other sessions.
const USER_TABLES: &str = "SELECT c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname) \
     FROM pg_catalog.pg_class c \
     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     JOIN pg_catalog.pg_am a ON a.oid = c.relam \
     WHERE a.amname IN ('kalam_user', 'kalam_stream') AND c.relkind = 'r' \
     AND NOT pg_catalog.pg_is_other_temp_schema(n.oid) \
     ORDER BY n.nspname, c.relname";

fn user_tables() -> Result<Vec<(pg_sys::Oid, String)>, SqlError> {
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

fn failed(error: pgrx::spi::Error) -> SqlError {
    Error::internal(format!("a user's rows could not be looked at: {error}")).into()
}

/// Whether the session may handle all that a user owns: its own, or what it may act for.
fn require_may_handle(user: &str) -> Result<(), SqlError> {
    if let Err(detail) = check_user_name(user) {
        return Err(SqlError::invalid_parameter("the name of the user is not acceptable")
            .with_detail(detail.to_string_lossy().into_owned())
            .with_hint("Name the user as kalam.user_id() does."));
    }
    require_above(user, true)
}

/// Rows and bytes of a user in each user table that has some.
#[pg_extern]
fn user_usage(user: Option<&str>) -> TableIterator<'static, (name!(relation, pg_sys::Oid), name!(rows, i64), name!(bytes, i64))> {
    let user = user.unwrap_or_default();
    require_may_handle(user).or_raise();
    TableIterator::new(usage(user).or_raise())
}

fn usage(user: &str) -> Result<Vec<(pg_sys::Oid, i64, i64)>, SqlError> {
    let mut found = Vec::new();
    for (oid, table) in user_tables()? {
        let query = format!(
            "SELECT pg_catalog.count(*), coalesce(pg_catalog.sum(pg_catalog.pg_column_size(t.*)), 0)::bigint \
             FROM {table} t WHERE t._user_id = $1"
        );
        let (rows, bytes) = act_as(user, || Spi::get_two_with_args::<i64, i64>(&query, &[user.into()])).map_err(failed)?;
        if let (Some(rows @ 1..), Some(bytes)) = (rows, bytes) {
            found.push((oid, rows, bytes));
        }
    }
    Ok(found)
}

/// Every row of a user in every user table, as JSON, which has the form of text.
#[pg_extern]
fn user_rows(user: Option<&str>) -> TableIterator<'static, (name!(relation, pg_sys::Oid), name!(row, String))> {
    let user = user.unwrap_or_default();
    require_may_handle(user).or_raise();
    Event::about("export_user", user).record(Lasts::ForGood).or_raise();
    TableIterator::new(rows(user).or_raise())
}

fn rows(user: &str) -> Result<Vec<(pg_sys::Oid, String)>, SqlError> {
    let mut found = Vec::new();
    for (oid, table) in user_tables()? {
        let query = format!("SELECT pg_catalog.row_to_json(t)::text FROM {table} t WHERE t._user_id = $1");
        let read = || {
            Spi::connect(|client| {
                for row in client.select(query.as_str(), None, &[user.into()])? {
                    if let Some(json) = row.get(1)? {
                        found.push((oid, json));
                    }
                }
                Ok(())
            })
        };
        act_as(user, read).map_err(failed)?;
    }
    Ok(found)
}

/// Deletes every row of a user in every user table, and the account; returns how many rows of which table.
#[pg_extern]
fn erase_user(user: Option<&str>) -> TableIterator<'static, (name!(relation, pg_sys::Oid), name!(rows, i64))> {
    let user = user.unwrap_or_default();
    require_may_erase(user).or_raise();
    TableIterator::new(erase(user).or_raise())
}

/// Only a dba erases: nobody who got hold of a user's session can.
fn require_may_erase(user: &str) -> Result<(), SqlError> {
    require_may_handle(user)?;
    let (identity, rank) = current_rank()?;
    if rank >= Rank::Dba {
        return Ok(());
    }
    Err(SqlError::insufficient_privilege("permission denied to erase a user")
        .with_detail(format!("User \"{}\" has the role {rank}; the role dba is needed.", identity.name))
        .with_hint("Ask a dba."))
}

fn erase(user: &str) -> Result<Vec<(pg_sys::Oid, i64)>, SqlError> {
    let mut proof = Vec::new();
    let mut counts = serde_json::Map::new();
    for (oid, table) in user_tables()? {
        let statement = format!(
            "WITH gone AS (DELETE FROM {table} t WHERE t._user_id = $1 RETURNING 1) SELECT pg_catalog.count(*) FROM gone"
        );
        let gone = act_as(user, || Spi::get_one_with_args::<i64>(&statement, &[user.into()])).map_err(failed)?;
        if let Some(rows @ 1..) = gone {
            proof.push((oid, rows));
            counts.insert(table, rows.into());
        }
    }
    for table in ["kalam.user_accounts", "kalam.login_attempts"] {
        run_as_owner(&format!("DELETE FROM {table} WHERE name = $1"), &[user.into()])?;
    }
    Event::about("erase_user", user).with("rows", counts).record(Lasts::WithTransaction)?;
    Ok(proof)
}

/// Writes everything that a user owns to a storage.
#[pg_extern]
fn export_user(_user: Option<&str>, _storage: Option<&str>) {
    Err::<(), SqlError>(
        SqlError::unsupported("exports to a storage are not built yet")
            .with_detail("Everything that a user owns comes from kalam.user_rows().")
            .with_hint("Use COPY (SELECT * FROM kalam.user_rows('name')) TO a file or STDOUT."),
    )
    .or_raise();
}
