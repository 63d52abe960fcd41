//! The group roles of Postgres that stand for KalamDB's roles, and access levels of tables as grants to them.

use std::ffi::CStr;

use kalamdb_engine::Error;
use pgrx::prelude::*;
use pgrx::spi::Spi;

use crate::error::{OrRaise, SqlError};
use crate::ffi::plain;
use crate::identity::Origin;
use crate::identity::account::{GROUP_ROLES, Rank, current_rank, role_oid};
use crate::identity::audit::Event;
use crate::identity::control_table::Lasts;
use crate::tableam;

/// What each group role may do in schema kalam: functions and views, as far as this version has them.
const GRANTS: &str = include_str!("roles.sql");

/// Makes the group roles and gives them their rights; a second call gives what a new version has added.
#[pg_extern]
fn install_roles() {
    make_roles().or_raise();
}

fn make_roles() -> Result<(), SqlError> {
    let (identity, rank) = current_rank()?;
    if rank < Rank::System || identity.origin != Origin::Role {
        return Err(SqlError::insufficient_privilege("permission denied to install KalamDB's roles")
            .with_detail("Only superusers, acting as themselves, may make these roles.")
            .with_hint("Connect as a superuser."));
    }
    run(GRANTS)?;
    Event::on("install_roles", "kalam_user, kalam_service, kalam_dba").record(Lasts::WithTransaction)
}

/// Gives and takes rights on a table as its new access level says.
#[pg_extern]
fn set_access_level(relation: Option<pg_sys::Oid>, level: Option<&str>) {
    change_access(relation.unwrap_or(pg_sys::InvalidOid), level.unwrap_or_default()).or_raise();
}

fn change_access(relation: pg_sys::Oid, level: &str) -> Result<(), SqlError> {
    let grants: &[(&str, &str)] = match level {
        "public" => &[("SELECT", "kalam_user"), ("SELECT, INSERT, UPDATE, DELETE", "kalam_service")],
        "private" | "restricted" => &[("SELECT, INSERT, UPDATE, DELETE", "kalam_service")],
        "dba" => &[("SELECT, INSERT, UPDATE, DELETE", "kalam_dba")],
        _ => {
            return Err(SqlError::invalid_parameter(format!("unknown access level \"{level}\""))
                .with_detail("The levels are public, private, restricted and dba.")
                .with_hint("Use GRANT and REVOKE for anything else."));
        }
    };
    for (group, _) in GROUP_ROLES {
        if role_oid(&group.to_string_lossy()).is_none() {
            return Err(SqlError::prerequisite(format!("role \"{}\" does not exist", group.to_string_lossy()))
                .with_detail("Access levels are grants to KalamDB's roles.")
                .with_hint("Let a superuser call kalam.install_roles()."));
        }
    }
    if relation == pg_sys::InvalidOid {
        return Err(SqlError::undefined_object("no table is named")
            .with_hint("Name a table, as in kalam.set_access_level('app.rooms', 'public')."));
    }
    let name = own_shared_table(relation)?;
    let mut statements = format!("REVOKE ALL ON TABLE {name} FROM PUBLIC, kalam_user, kalam_service, kalam_dba;");
    for (rights, role) in grants {
        statements.push_str(&format!("GRANT {rights} ON TABLE {name} TO {role};"));
    }
    run(&statements)?;
    Event::on("set_access_level", &name).with("level", level).record(Lasts::WithTransaction)
}

/// The quoted name of a shared table that the session owns.
fn own_shared_table(relation: pg_sys::Oid) -> Result<String, SqlError> {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: opened with a lock and closed here; after an ERROR the resource owner closes it.
    unsafe {
        let rel = pg_sys::relation_open(relation, lock);
        let is_shared = tableam::is_ours(rel) && !crate::gate::is_partitioned(rel);
        let is_owner = pg_sys::has_privs_of_role(plain::GetUserId(), (*(*rel).rd_rel).relowner);
        let plain = tableam::storage::relation_name(rel).to_owned();
        let schema = pg_sys::get_namespace_name((*(*rel).rd_rel).relnamespace);
        let quoted = pg_sys::quote_qualified_identifier(schema, (*(*rel).rd_rel).relname.data.as_ptr());
        let quoted = CStr::from_ptr(quoted).to_string_lossy().into_owned();
        pg_sys::relation_close(rel, lock);
        if !is_shared {
            return Err(SqlError::wrong_object_type(format!("\"{plain}\" is not a shared table"))
                .with_detail("User and stream tables show every user the own rows only.")
                .with_hint("Use GRANT and REVOKE for tables of other kinds."));
        }
        if !is_owner {
            return Err(SqlError::insufficient_privilege(format!("must be owner of table {plain}"))
                .with_detail("The access level is the owner's to set.")
                .with_hint("Ask the table's owner."));
        }
        Ok(quoted)
    }
}

fn run(statements: &str) -> Result<(), SqlError> {
    Spi::run(statements).map_err(|error| Error::internal(format!("rights could not be changed: {error}")).into())
}

/// The trigger that keeps a table append-only, for its owner too. Rows come from the library, which no trigger hears of; a superuser
/// may insert, as a restored dump does.
#[pg_trigger]
fn refuse_change<'a>(trigger: &'a pgrx::PgTrigger<'a>) -> Result<Option<PgHeapTuple<'a, AllocatedByPostgres>>, std::fmt::Error> {
    // SAFETY: a flag of the session's user.
    let restores = matches!(trigger.op(), Ok(PgTriggerOperation::Insert)) && unsafe { pg_sys::superuser() };
    if restores {
        return Ok(None);
    }
    let table = trigger.table_name().unwrap_or_default();
    Err::<(), SqlError>(
        SqlError::insufficient_privilege(format!("rows of \"{table}\" cannot be changed"))
            .with_detail("The table is append-only, for its owner and superusers too.")
            .with_hint("A superuser may disable the trigger \"append_only\" for a while."),
    )
    .or_raise();
    Ok(None)
}
