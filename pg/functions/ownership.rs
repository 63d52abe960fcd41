//! What one user owns in all user tables of the database: how much it is, all of it, and erasing it.

use kalamdb_engine::location::LOCAL;
use pgrx::prelude::*;
use pgrx::spi::Spi;
use pgrx::{PgXactCallbackEvent, register_xact_callback};
use serde_json::json;

use crate::error::{OrRaise, SqlError, raise};
use crate::ffi::catalog;
use crate::ffi::sql::{query, query_one};
use crate::identity::account::{Rank, current_rank, require_rank};
use crate::identity::audit::Event;
use crate::identity::control_table::{ControlTable, Lasts};
use crate::identity::session::act_as;
use crate::identity::{check_user_name, setting_use, snowflake};
use crate::jobs::{Kind, request};
use crate::ownership::{erase, export, failed, user_tables_of};
use crate::storages;

use super::acting::require_above;

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
    setting_use::note();
    TableIterator::new(usage(user).or_raise())
}

fn usage(user: &str) -> Result<Vec<(pg_sys::Oid, i64, i64)>, SqlError> {
    let mut found = Vec::new();
    for (oid, _) in user_tables_of(user)? {
        let count = |table: &str| {
            let query = format!(
                "SELECT pg_catalog.count(*), coalesce(pg_catalog.sum(pg_catalog.pg_column_size(t.*)), 0)::bigint \
                 FROM {table} t WHERE t._user_id = $1"
            );
            act_as(user, || Spi::get_two_with_args::<i64, i64>(&query, &[user.into()]))
        };
        let Some(counts) = catalog::as_owner(oid, pg_sys::AccessShareLock, count) else { continue };
        let (rows, bytes) = counts.map_err(failed)?;
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
    for (oid, _) in user_tables_of(user)? {
        let read = |table: &str| {
            let query = format!("SELECT pg_catalog.row_to_json(t.*)::text FROM {table} t WHERE t._user_id = $1");
            act_as(user, || {
                Spi::connect(|client| {
                    for row in client.select(query.as_str(), None, &[user.into()])? {
                        if let Some(json) = row.get(1)? {
                            found.push((oid, json));
                        }
                    }
                    Ok(())
                })
            })
        };
        catalog::as_owner(oid, pg_sys::AccessShareLock, read).transpose().map_err(failed)?;
    }
    Ok(found)
}

/// Deletes every row of a user in every user table, and the account; returns how many rows of which table.
#[pg_extern]
fn erase_user(user: Option<&str>) -> TableIterator<'static, (name!(relation, pg_sys::Oid), name!(rows, i64))> {
    let user = user.unwrap_or_default();
    require_may_erase(user).or_raise();
    // SAFETY: a setting of the transaction.
    if unsafe { pg_sys::XactIsoLevel } as u32 >= pg_sys::XACT_REPEATABLE_READ {
        raise(
            SqlError::prerequisite("a user cannot be erased in a REPEATABLE READ or SERIALIZABLE transaction")
                .with_detail("Rows that came since its snapshot would stay.")
                .with_hint("Use READ COMMITTED."),
        );
    }
    let rows = erase::erase(user).or_raise();
    register_xact_callback(PgXactCallbackEvent::Commit, request::ask_to_keep_house);
    TableIterator::new(rows)
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

/// Has what erased users leave on disk removed, in a job; returns its id.
#[pg_extern]
fn clean_up_users(wait: bool) -> String {
    let rank = require_rank(Rank::Dba, "clean up after users").map(drop);
    rank.or_raise();
    let id = request::add_named(Kind::UserCleanup, None, &json!({})).or_raise();
    // The active one may have been added for somebody else.
    catalog::as_superuser(|| finish(id, wait))
}

/// Writes everything that a user owns to a storage, in a job; returns its id.
#[pg_extern]
fn export_user(user: Option<&str>, storage: Option<&str>, wait: Option<bool>) -> String {
    let user = user.unwrap_or_default();
    require_may_handle(user).or_raise();
    let id = begin_export(user, storage.unwrap_or(LOCAL)).or_raise();
    // The active one may have been asked for by somebody else.
    catalog::as_superuser(|| finish(id, wait.unwrap_or(false)))
}

/// Has the files of an export deleted.
#[pg_extern]
fn drop_export(export: i64) {
    drop_own_export(export).or_raise();
    register_xact_callback(PgXactCallbackEvent::Commit, request::ask_to_keep_house);
}

fn drop_own_export(export: i64) -> Result<(), SqlError> {
    let number = export.to_string();
    let user = catalog::as_superuser(|| {
        query_one("SELECT user_name FROM kalam.user_exports WHERE id = $1::bigint AND dropped_at IS NULL", &[Some(&number)])
    });
    // Who may not handle the user's data learns nothing of the export.
    let Some(user) = user.filter(|user| require_may_handle(user).is_ok()) else {
        return Err(SqlError::undefined_object(format!("export {export} does not exist"))
            .with_detail("It never did, it was dropped, or its retention has ended.")
            .with_hint("The number of an export is in the parameters of its job in kalam.jobs."));
    };
    Event::about("drop_export", &user).with("export", export).record(Lasts::WithTransaction)?;
    catalog::as_superuser(|| {
        query("UPDATE kalam.user_exports SET dropped_at = pg_catalog.clock_timestamp() WHERE id = $1::bigint", &[Some(&number)])
    });
    Ok(())
}

fn begin_export(user: &str, storage: &str) -> Result<String, SqlError> {
    storages::require(storage)?;
    if let Some(active) = catalog::as_superuser(|| export::active_job(user)) {
        return Ok(active);
    }
    Event::about("export_user", user).with("storage", storage).record(Lasts::ForGood)?;
    // The job sees what is there for good. It alone, and dbas, learn from the number whose export it is.
    let id = snowflake::next_id()?;
    // SAFETY: reads the clock.
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    let mut values = [
        pg_sys::Datum::from(id),
        user.into_datum().unwrap_or(pg_sys::Datum::from(0)),
        storage.into_datum().unwrap_or(pg_sys::Datum::from(0)),
        pg_sys::Datum::from(now),
        pg_sys::Datum::from(0),
        pg_sys::Datum::from(0),
        pg_sys::Datum::from(0),
    ];
    let mut nulls = [false, false, false, false, true, true, true];
    ControlTable::append(c"user_exports")?.append_row(&mut values, &mut nulls, Lasts::ForGood)?;
    let id = id.to_string();
    // Two calls at once get one job.
    let name = catalog::as_superuser(|| query_one("SELECT pg_catalog.md5($1)", &[Some(user)]));
    request::add_named(Kind::UserExport, name.as_deref(), &json!({ "export": id }))
}

/// Waits for a job that was asked for, if that is wanted; returns its id.
fn finish(id: String, wait: bool) -> String {
    if wait {
        request::wait_for_success(&id);
    }
    id
}
