//! Code that runs with the rights of a table's owner while it acts for the session's user: expressions of indexes in REINDEX or ANALYZE,
//! a materialized view's query in REFRESH, triggers below a foreign key's action, all that tables have of their own when the extension
//! goes through them. Its author is the owner, whom the user has not asked for anything. So it reaches tables of that owner only, whose
//! author could have seen what is written there anyhow.
//!
//! Code of an owner may call a function with yet others' rights (SECURITY DEFINER). That makes nothing better for the owner: the role
//! stays, or no role is left whose tables are reached.

use pgrx::pg_sys;

use super::context::User;
use crate::error::SqlError;
use crate::ffi::catalog;
use crate::ffi::plain;

/// Whether a role has all rights of another one.
fn has_rights_of(role: pg_sys::Oid, other: pg_sys::Oid) -> bool {
    // SAFETY: looks into the catalog's cache.
    role != pg_sys::InvalidOid && other != pg_sys::InvalidOid && unsafe { pg_sys::has_privs_of_role(role, other) }
}

/// The one of two roles that has no more rights than the other; none has if both have rights of their own.
pub fn lesser(lent: Option<pg_sys::Oid>, role: pg_sys::Oid) -> pg_sys::Oid {
    match lent {
        None => role,
        Some(lent) if has_rights_of(lent, role) => role,
        Some(lent) if has_rights_of(role, lent) => lent,
        Some(_) => pg_sys::InvalidOid,
    }
}

/// The role with whose rights code runs at the moment, given the one of the statement that has called it, and whether the check of
/// a foreign key may have begun unseen.
pub fn at_the_moment(lent: Option<pg_sys::Oid>, unseen: bool) -> Option<pg_sys::Oid> {
    // SAFETY: plain values of the process.
    unsafe {
        // A parallel worker has not seen the check of a foreign key below which its leader is.
        let below_key_check = (unseen || pg_sys::ParallelWorkerNumber >= 0) && plain::InNoForceRLSOperation();
        if !plain::InSecurityRestrictedOperation() && !below_key_check {
            return lent;
        }
        let (role, session) = (plain::GetUserId(), plain::GetOuterUserId());
        match lent {
            // A function with others' rights, which hides whose rights its caller has.
            _ if plain::InLocalUserIdChange() => lent.or(Some(pg_sys::InvalidOid)),
            None if role == session => None,
            _ => Some(lesser(lent, role)),
        }
    }
}

/// The role with whose rights code runs below the check of a foreign key that is about to run.
pub fn by_key_check(lent: Option<pg_sys::Oid>) -> Option<pg_sys::Oid> {
    // SAFETY: plain values of the process. A check runs as the owner of the table that it reads or changes.
    let (owner, session) = unsafe { (plain::GetUserId(), plain::GetOuterUserId()) };
    if owner == session { lent } else { Some(lesser(lent, owner)) }
}

/// The owner of an open relation.
pub fn owner_of(rel: pg_sys::Relation) -> pg_sys::Oid {
    // SAFETY: an open relation.
    unsafe { (*(*rel).rd_rel).relowner }
}

/// The owner of a relation.
pub fn owner(relation: pg_sys::Oid) -> pg_sys::Oid {
    catalog::relation_info(relation).map_or(pg_sys::InvalidOid, |info| info.owner)
}

/// Refuses the rows of one user to code with the rights of a role to which the table does not belong.
///
/// # Errors
/// 42501.
pub fn check(user: User, lent: Option<pg_sys::Oid>, owner: impl FnOnce() -> pg_sys::Oid) -> Result<User, SqlError> {
    match (&user, lent) {
        (User::Named(_), Some(role)) if !has_rights_of(role, owner()) => Err(SqlError::insufficient_privilege(
            "rows of users are out of reach for code that runs with the rights of another table's owner",
        )
        .with_detail("It runs for a command or a change of somebody who has not called it.")
        .with_hint("Such code may use user tables of the same owner.")),
        _ => Ok(user),
    }
}
