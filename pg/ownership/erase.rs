//! Erasing a user: every row in every user table, those that are kept after a deletion, and the account, in one transaction. What
//! is left on disk then is for the job `UC`.

use pgrx::datum::DatumWithOid;
use pgrx::spi::Spi;
use pgrx::{PgXactCallbackEvent, pg_sys, register_xact_callback};
use serde_json::{Map, Value};

use super::{failed, user_tables_of};
use crate::error::{OrRaise, SqlError};
use crate::ffi::catalog;
use crate::ffi::sql::{query, query_one};
use crate::history;
use crate::identity::audit::Event;
use crate::identity::control_table::Lasts;
use crate::identity::session::act_as;
use crate::jobs::limit::limited;
use crate::tableam::vacuum;

/// What the extension itself has of a user beside the rows.
const ACCOUNT_TABLES: [(&str, &str); 3] =
    [("kalam.user_accounts", "name"), ("kalam.login_attempts", "name"), ("kalam.user_storages", "user_name")];

/// Deletes every row of a user in every user table, and the account; returns how many rows of which table. The caller has seen to it
/// that no trigger runs and that the session does not see the rows of all users.
///
/// # Errors
/// Those of the statements.
pub fn erase(user: &str) -> Result<Vec<(pg_sys::Oid, i64)>, SqlError> {
    let _keep_nothing = history::Suspended::begin();
    let mut erased = Vec::new();
    let mut counts = Map::new();
    for (oid, table) in user_tables_of(user)? {
        let delete = |name: &str| act_as(user, || limited(name, || delete_rows(user, name)));
        let Some(gone) = catalog::as_owner(oid, pg_sys::RowExclusiveLock, delete) else { continue };
        let (rows, left) = gone.map_err(failed)?;
        if left > 0 {
            return Err(rows_stay(left, &table));
        }
        if rows > 0 {
            erased.push((oid, rows));
            counts.insert(table, rows.into());
        }
    }
    let kept = erase_kept(user);
    for (table, column) in ACCOUNT_TABLES {
        query(&format!("DELETE FROM {table} WHERE {column} = $1"), &[Some(user)]);
    }
    let id = query_one(
        "INSERT INTO kalam.user_erasure (user_name, rows, kept_rows) VALUES ($1, $2::jsonb, $3::bigint) RETURNING id::text",
        &[Some(user), Some(&Value::Object(counts.clone()).to_string()), Some(&kept.to_string())],
    );
    register_xact_callback(PgXactCallbackEvent::PreCommit, move || note_end(id.as_deref()));
    Event::about("erase_user", user).with("rows", counts).with("kept", kept).record(Lasts::WithTransaction)?;
    Ok(erased)
}

/// Notes which transactions are later than the erasure: rows that earlier ones commit are to be erased as well.
fn note_end(id: Option<&str>) {
    let next = vacuum::next_xid().to_string();
    // SAFETY: the transaction is open; its statements have given their snapshots back.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
    catalog::as_superuser(|| {
        query("UPDATE kalam.user_erasure SET rows_before = $2::bigint WHERE id = $1::bigint", &[id, Some(&next)])
    });
    // SAFETY: pushed above.
    unsafe { pg_sys::PopActiveSnapshot() };
}

/// Deletes what a user has in the user tables from transactions before one, which have ended; returns how many rows. Nothing where these
/// transactions have deleted or written nothing since the erasure.
///
/// # Errors
/// Those of the statements.
pub fn erase_late(user: &str, before: u64) -> Result<i64, SqlError> {
    let _keep_nothing = history::Suspended::begin();
    let mut late = 0;
    for (oid, table) in user_tables_of(user)? {
        let delete = |name: &str| act_as(user, || limited(name, || delete_rows_before(user, name, before)));
        let Some(gone) = catalog::as_owner(oid, pg_sys::RowExclusiveLock, delete) else { continue };
        let (rows, left) = gone.map_err(failed)?;
        if left > 0 {
            return Err(rows_stay(left, &table));
        }
        late += rows;
    }
    Ok(late)
}

fn rows_stay(left: i64, table: &str) -> SqlError {
    SqlError::prerequisite(format!("{left} rows of the user stay in table {table}"))
        .with_detail("A trigger or a rule of the table, which its owner has set to fire always, keeps them.")
        .with_hint("Have the table's owner drop it.")
}

fn delete_rows_before(user: &str, table: &str, before: u64) -> Result<(i64, i64), pgrx::spi::Error> {
    // Frozen rows are older than every snapshot of when the transactions ended, or of a user who came later.
    const IS_LATE: &str = "t._user_id = $1 AND t.xmin::text <> '2' AND pg_catalog.age(t.xmin) > pg_catalog.age($2::text::xid)";
    let short = (before as u32).to_string();
    let delete = format!("WITH gone AS (DELETE FROM {table} t WHERE {IS_LATE} RETURNING 1) SELECT pg_catalog.count(*) FROM gone");
    let gone = Spi::get_one_with_args::<i64>(&delete, &[user.into(), short.as_str().into()])?;
    Spi::run("SET CONSTRAINTS ALL IMMEDIATE")?;
    let count = format!("SELECT pg_catalog.count(*) FROM {table} t WHERE {IS_LATE}");
    let left = Spi::get_one_with_args::<i64>(&count, &[user.into(), short.as_str().into()])?;
    Ok((gone.unwrap_or(0), left.unwrap_or(0)))
}

/// Deletes the rows of a user in a table; returns how many went, and how many stayed. What the table's owner has put off to the end of
/// the transaction runs now, with the rights of now, which is to say that it is refused.
fn delete_rows(user: &str, table: &str) -> Result<(i64, i64), pgrx::spi::Error> {
    let delete =
        format!("WITH gone AS (DELETE FROM {table} t WHERE t._user_id = $1 RETURNING 1) SELECT pg_catalog.count(*) FROM gone");
    let gone = Spi::get_one_with_args::<i64>(&delete, &[user.into()])?;
    Spi::run("SET CONSTRAINTS ALL IMMEDIATE")?;
    let count = format!("SELECT pg_catalog.count(*) FROM {table} t WHERE t._user_id = $1");
    let left = Spi::get_one_with_args::<i64>(&count, &[user.into()])?;
    Ok((gone.unwrap_or(0), left.unwrap_or(0)))
}

/// Erases the deleted rows of a user that are kept; returns how many they were.
pub fn erase_kept(user: &str) -> u64 {
    count_erased(
        "DELETE FROM kalam.deleted_rows
         WHERE user_id = pg_catalog.convert_to($1, pg_catalog.getdatabaseencoding()) RETURNING rows",
        &[user.into()],
    )
}

/// Runs a statement that deletes entries with deleted rows and returns their rows; the number of those.
pub fn count_erased(delete: &str, arguments: &[DatumWithOid<'_>]) -> u64 {
    let count = Spi::connect_mut(|client| {
        let mut count = 0;
        for row in client.update(delete, None, arguments)? {
            count += row.get::<&[u8]>(1)?.map_or(0, history::count_rows);
        }
        Ok::<u64, pgrx::spi::Error>(count)
    });
    count.map_err(SqlError::from_spi).or_raise()
}
