//! The users that KalamDB itself knows, and the ranks that say who may act for whom.

use std::ffi::CStr;
use std::fmt;

use pgrx::pg_sys;

use super::control_table::ControlTable;
use super::{Identity, Origin, current_identity};
use crate::error::SqlError;
use crate::ffi::plain;
use crate::gate;

/// How much a user may do; each includes what is below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    User,
    Service,
    Dba,
    System,
}

impl Rank {
    /// The rank behind its name.
    pub fn from_name(name: &str) -> Option<Rank> {
        Some(match name {
            "user" => Rank::User,
            "service" => Rank::Service,
            "dba" => Rank::Dba,
            "system" => Rank::System,
            _ => return None,
        })
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Rank::User => "user",
            Rank::Service => "service",
            Rank::Dba => "dba",
            Rank::System => "system",
        })
    }
}

/// A row of kalam.user_accounts.
pub struct Account {
    /// None for a user who has tokens only.
    pub password_hash: Option<String>,
    pub rank: Rank,
    /// Whether it was dropped.
    pub deleted: bool,
}

/// The account of a user, as of now.
pub fn account(name: &str) -> Option<Account> {
    let row = ControlTable::read(c"user_accounts")?.last_with(c"user_accounts_pkey", name)?;
    Some(Account {
        password_hash: row.text(1),
        // The table's check admits no other role.
        rank: row.text(2).and_then(|role| Rank::from_name(&role)).unwrap_or(Rank::User),
        deleted: row.timestamp(6).is_some(),
    })
}

/// The account of a user unless it was dropped.
pub fn active_account(name: &str) -> Option<Account> {
    account(name).filter(|account| !account.deleted)
}

/// The names of the group roles, and what membership in them makes a role.
pub const GROUP_ROLES: [(&CStr, Rank); 3] =
    [(c"kalam_dba", Rank::Dba), (c"kalam_service", Rank::Service), (c"kalam_user", Rank::User)];

/// What a role of Postgres may do.
pub fn role_rank(role: pg_sys::Oid) -> Rank {
    // SAFETY: catalog look-ups inside a transaction.
    unsafe {
        if pg_sys::superuser_arg(role) {
            return Rank::System;
        }
        for (group, rank) in GROUP_ROLES {
            let oid = pg_sys::get_role_oid(group.as_ptr(), true);
            if oid != pg_sys::InvalidOid && pg_sys::has_privs_of_role(role, oid) {
                return rank;
            }
        }
    }
    Rank::User
}

/// The role of Postgres with a name.
pub fn role_oid(name: &str) -> Option<pg_sys::Oid> {
    let name = std::ffi::CString::new(name).ok()?;
    // SAFETY: a catalog look-up inside a transaction.
    let oid = unsafe { pg_sys::get_role_oid(name.as_ptr(), true) };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// What the session may do: as its role while it acts for nobody else, else as the user it acts for.
///
/// # Errors
/// As [`current_identity`].
pub fn current_rank() -> Result<(Identity, Rank), SqlError> {
    let identity = current_identity()?;
    let rank = match identity.origin {
        // A function with its owner's rights gets no more of its caller's, nor its caller of the owner's.
        // SAFETY: values of the process.
        Origin::Role => unsafe { role_rank(plain::GetOuterUserId()).min(role_rank(plain::GetUserId())) },
        _ => active_account(&identity.name).map_or(Rank::User, |account| account.rank),
    };
    // Code that runs with the rights of a table's owner for somebody who has not called it may do no more than its owner.
    let rank = gate::lent_now().map_or(rank, |role| rank.min(role_rank(role)));
    Ok((identity, rank))
}

/// The session's identity and rank, if it may do what takes a rank.
///
/// # Errors
/// 42501 if it may not.
pub fn require_rank(wanted: Rank, deed: &str) -> Result<(Identity, Rank), SqlError> {
    let (identity, rank) = current_rank()?;
    if rank >= wanted {
        return Ok((identity, rank));
    }
    Err(SqlError::insufficient_privilege(format!("permission denied to {deed}"))
        .with_detail(format!("User \"{}\" has the role {rank}; the role {wanted} is needed.", identity.name))
        .with_hint(match identity.origin {
            Origin::Role => "Ask for membership in the role kalam_dba, or let a superuser do it.",
            _ => "End the session's login with kalam.logout(), or reset kalam.user_id, to act as the session's role.",
        }))
}
