//! Users of KalamDB: making, changing and dropping them, and their logins.

use kalamdb_engine::Error;
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::Spi;

use crate::error::{OrRaise, SqlError};
use crate::ffi::extension;
use crate::gate;
use crate::identity::account::{Account, Rank, account, require_rank, role_oid};
use crate::identity::audit::Event;
use crate::identity::control_table::Lasts;
use crate::identity::session::{Login, Span, current_login, set_login};
use crate::identity::{Identity, Origin, attempt, check_user_name, password};

/// Runs a statement on a control table; the SQL function around it is the owner's (SECURITY DEFINER).
pub fn run_as_owner(statement: &str, arguments: &[DatumWithOid<'_>]) -> Result<(), SqlError> {
    extension::require();
    Spi::run_with_args(statement, arguments)
        .map_err(|error| Error::internal(format!("a control table could not be changed: {error}")).into())
}

/// Makes a user.
#[pg_extern]
fn create_user(name: Option<&str>, password: Option<&str>, role: Option<&str>, email: Option<&str>) {
    make_user(name.unwrap_or_default(), password, role.unwrap_or("user"), email).or_raise();
}

fn make_user(name: &str, password: Option<&str>, role: &str, email: Option<&str>) -> Result<(), SqlError> {
    let (_, rank) = require_rank(Rank::Dba, "create a user")?;
    if let Err(detail) = check_user_name(name) {
        return Err(SqlError::invalid_parameter("the name of the user is not acceptable")
            .with_detail(detail.to_string_lossy().into_owned())
            .with_hint("Choose 1 to 255 bytes of visible characters."));
    }
    let role = assignable_role(role, rank)?;
    require_no_role_of_postgres(name, rank)?;
    if let Some(existing) = account(name) {
        return Err(SqlError::duplicate_object(format!("user \"{name}\" already exists")).with_hint(if existing.deleted {
            "It was dropped; use kalam.restore_user() to bring it back."
        } else {
            "Use kalam.alter_user() to change it."
        }));
    }
    let hash = hash_of_new(name, password)?;
    run_as_owner(
        "INSERT INTO kalam.user_accounts (name, password_hash, role, email) VALUES ($1, $2, $3, $4)",
        &[name.into(), hash.into(), role.to_string().into(), email.into()],
    )?;
    Event::about("create_user", name).with("role_of_user", role.to_string()).record(Lasts::WithTransaction)
}

/// Changes a user; what is null stays.
#[pg_extern]
fn alter_user(name: Option<&str>, password: Option<&str>, role: Option<&str>, email: Option<&str>) {
    change_user(name.unwrap_or_default(), password, role, email).or_raise();
}

fn change_user(name: &str, password: Option<&str>, role: Option<&str>, email: Option<&str>) -> Result<(), SqlError> {
    let (_, rank) = require_rank(Rank::Dba, "alter a user")?;
    require_user(name, rank)?;
    let role = role.map(|role| assignable_role(role, rank)).transpose()?.map(|role| role.to_string());
    let hash = hash_of_new(name, password)?;
    let has_new_password = hash.is_some();
    run_as_owner(
        "UPDATE kalam.user_accounts SET password_hash = coalesce($2, password_hash), role = coalesce($3, role), \
         email = coalesce($4, email), updated_at = clock_timestamp() WHERE name = $1",
        &[name.into(), hash.into(), role.clone().into(), email.into()],
    )?;
    if has_new_password {
        unlock(name)?;
    }
    let mut event = Event::about("alter_user", name).with("password", has_new_password).with("email", email.is_some());
    if let Some(role) = role {
        event = event.with("role_of_user", role);
    }
    event.record(Lasts::WithTransaction)
}

/// Ends a lock after failures.
fn unlock(name: &str) -> Result<(), SqlError> {
    run_as_owner("INSERT INTO kalam.login_attempts (name, at, failures) VALUES ($1, clock_timestamp(), 0)", &[name.into()])
}

/// Drops a user; the rows stay until a job erases them.
#[pg_extern]
fn drop_user(name: Option<&str>) {
    let name = name.unwrap_or_default();
    let drop = || -> Result<(), SqlError> {
        let (_, rank) = require_rank(Rank::Dba, "drop a user")?;
        require_user(name, rank)?;
        run_as_owner("UPDATE kalam.user_accounts SET deleted_at = clock_timestamp() WHERE name = $1", &[name.into()])?;
        Event::about("drop_user", name).record(Lasts::WithTransaction)
    };
    drop().or_raise();
}

/// Brings a dropped user back.
#[pg_extern]
fn restore_user(name: Option<&str>) {
    let name = name.unwrap_or_default();
    let restore = || -> Result<(), SqlError> {
        let (_, rank) = require_rank(Rank::Dba, "restore a user")?;
        let dropped = require_known_user(name, rank)?;
        if !dropped.deleted {
            return Err(
                SqlError::prerequisite(format!("user \"{name}\" was not dropped")).with_hint("There is nothing to restore.")
            );
        }
        run_as_owner(
            "UPDATE kalam.user_accounts SET deleted_at = NULL, updated_at = clock_timestamp() WHERE name = $1",
            &[name.into()],
        )?;
        unlock(name)?;
        Event::about("restore_user", name).record(Lasts::WithTransaction)
    };
    restore().or_raise();
}

/// The role to give to a user, if the session may give it.
fn assignable_role(role: &str, rank: Rank) -> Result<Rank, SqlError> {
    let Some(wanted) = Rank::from_name(role) else {
        return Err(SqlError::invalid_parameter(format!("unknown role \"{role}\""))
            .with_detail("The roles are user, service, dba and system.")
            .with_hint("Leave the role out to make an ordinary user."));
    };
    if wanted > rank {
        return Err(SqlError::insufficient_privilege(format!("permission denied to give the role {wanted}"))
            .with_detail(format!("The session has the role {rank}."))
            .with_hint("Nobody can give a role above the own one."));
    }
    Ok(wanted)
}

/// A name of a role of Postgres is that role's: whoever logs in with it sees the rows of the role.
fn require_no_role_of_postgres(name: &str, rank: Rank) -> Result<(), SqlError> {
    if rank == Rank::System || role_oid(name).is_none() {
        return Ok(());
    }
    Err(SqlError::insufficient_privilege(format!("permission denied to create the user \"{name}\""))
        .with_detail("A role of the server has this name, and the user would see its rows.")
        .with_hint("Choose another name, or let a superuser do it."))
}

/// A user's account, dropped or not, if the session may change it.
fn require_known_user(name: &str, rank: Rank) -> Result<Account, SqlError> {
    let Some(found) = account(name) else {
        return Err(SqlError::undefined_object(format!("user \"{name}\" does not exist"))
            .with_hint("The view kalam.users lists the users."));
    };
    if found.rank > rank {
        return Err(SqlError::insufficient_privilege(format!("permission denied for user \"{name}\""))
            .with_detail(format!("It has the role {}, the session has the role {rank}.", found.rank))
            .with_hint("Nobody can change a user whose role is above the own one."));
    }
    Ok(found)
}

/// A user's account if it is not dropped and the session may change it.
fn require_user(name: &str, rank: Rank) -> Result<Account, SqlError> {
    let found = require_known_user(name, rank)?;
    if found.deleted {
        return Err(SqlError::undefined_object(format!("user \"{name}\" does not exist"))
            .with_detail("It was dropped.")
            .with_hint("Use kalam.restore_user() to bring it back."));
    }
    Ok(found)
}

fn hash_of_new(name: &str, password: Option<&str>) -> Result<Option<String>, SqlError> {
    let Some(password) = password else { return Ok(None) };
    password::check_new(name, password)?;
    password::hash(password).map(Some)
}

/// Logs the session in with a password; returns the user.
#[pg_extern]
fn login(name: Option<&str>, password: Option<&str>) -> String {
    require_own_session("log in").or_raise();
    attempt::attempt(name, password).or_raise();
    let name = name.unwrap_or_default().to_owned();
    // What was noted about earlier attempts has had its use. Nobody waits for whoever removes it at the moment, and an older snapshot
    // leaves it to others.
    if may_write() {
        run_as_owner(
            "DELETE FROM kalam.login_attempts WHERE ctid = ANY (ARRAY( \
                 SELECT a.ctid FROM kalam.login_attempts a \
                 WHERE a.name IN ($1, '') AND a.at < clock_timestamp() - interval '1 day' \
                     AND a.at < (SELECT max(b.at) FROM kalam.login_attempts b WHERE b.name = a.name) \
                 ORDER BY a.at LIMIT 1000 FOR UPDATE SKIP LOCKED))",
            &[name.as_str().into()],
        )
        .or_raise();
    }
    set_login(Some(&Login { name: name.clone(), origin: Origin::Password, expires: 0 }), Span::Session);
    name
}

fn may_write() -> bool {
    // SAFETY: values of the process.
    unsafe { !pg_sys::XactReadOnly && pg_sys::XactIsoLevel as u32 <= pg_sys::XACT_READ_COMMITTED }
}

/// Ends the session's login, if there is one.
#[pg_extern]
fn logout() {
    require_own_session("log out").or_raise();
    let Some(login) = current_login() else { return };
    Event::about("logout", &login.name).record(Lasts::WithTransaction).or_raise();
    set_login(None, Span::Session);
}

/// Raises an error inside `kalam.execute_as()` and in code of a table's owner: what runs there must not change who the session is.
pub fn require_own_session(deed: &str) -> Result<(), SqlError> {
    if gate::lent_now().is_some() {
        return Err(SqlError::insufficient_privilege(format!(
            "cannot {deed} in code that runs with the rights of a table's owner"
        ))
        .with_detail("It runs for a command or a change of somebody who has not called it.")
        .with_hint("Call the function in a statement of its own."));
    }
    match crate::identity::current_identity() {
        Ok(Identity { origin: Origin::Impersonation, .. }) => {
            Err(SqlError::prerequisite(format!("cannot {deed} while acting for another user"))
                .with_detail("The statement runs inside kalam.execute_as().")
                .with_hint("Call the function outside of kalam.execute_as()."))
        }
        _ => Ok(()),
    }
}
