//! Who the session acts for: the effective user of user tables, and where it comes from.

pub mod account;
pub mod attempt;
pub mod audit;
pub mod control_table;
pub mod known;
pub mod password;
pub mod session;
pub mod setting_use;
pub mod snowflake;
pub mod token;

mod name;

pub use known::KnownUser;
pub use name::{check_user_name, shortened};
pub use session::Origin;

use std::cell::RefCell;
use std::ffi::CStr;
use std::rc::Rc;

use pgrx::{pg_guard, pg_sys};

use crate::error::{OrRaise, SqlError};
use crate::ffi::catalog::on_change;
use crate::ffi::function::{return_text, version_1};
use crate::ffi::plain;

/// The effective user and what made it so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    pub origin: Origin,
}

/// Called when a process loads the library, before the settings' prefix is reserved.
pub fn define_settings() {
    session::define();
}

thread_local! {
    /// The role that was asked for last, and the user of its name.
    static LAST_ROLE: RefCell<Option<(pg_sys::Oid, Rc<KnownUser>)>> = const { RefCell::new(None) };
}

/// Registers the callback; once per process.
pub fn init() {
    setting_use::init();
    on_change(pg_sys::SysCacheIdentifier::AUTHOID, forget_role);
}

unsafe extern "C-unwind" fn forget_role(_argument: pg_sys::Datum, _cache: std::ffi::c_int, _hash: u32) {
    LAST_ROLE.set(None);
}

/// The effective user; see [`current_identity`].
///
/// # Errors
/// As [`current_identity`].
pub fn current_user() -> Result<Rc<KnownUser>, SqlError> {
    if session::has_no_login() {
        return session::setting().map_or_else(user_of_role, Ok);
    }
    Ok(KnownUser::of(&current_identity()?.name))
}

/// The effective user: the one that logged in, else the setting `kalam.user_id`, else the session's own role.
///
/// The role is the outer one, which `SET ROLE` changes, and neither a SECURITY DEFINER function nor a foreign key's check does.
/// Looks at the catalog in the last case only, so the caller is in a transaction. Never part of a plan: callers ask when a scan
/// starts and when a row is written.
///
/// # Errors
/// 28000 when the login has expired, or when the session's role is gone.
pub fn current_identity() -> Result<Identity, SqlError> {
    if let Some(login) = session::login()? {
        return Ok(login);
    }
    if let Some(user) = session::setting() {
        return Ok(Identity { name: user.name().to_owned(), origin: Origin::Setting });
    }
    Ok(Identity { name: user_of_role()?.name().to_owned(), origin: Origin::Role })
}

/// The user who has the name of the session's own role.
///
/// # Errors
/// 28000 when it was dropped.
pub fn user_of_role() -> Result<Rc<KnownUser>, SqlError> {
    // SAFETY: a value of the process.
    let role = unsafe { plain::GetOuterUserId() };
    let known = LAST_ROLE.with_borrow(|last| last.as_ref().filter(|(known, _)| *known == role).map(|(_, user)| Rc::clone(user)));
    if let Some(user) = known {
        return Ok(user);
    }
    // What is no text would have to be changed into one, and two roles might become the same user.
    let name = role_name(role)?.to_str().map_err(|_| unknown_user("The name of the session's role is no text in UTF-8."))?;
    let user = KnownUser::of(name);
    LAST_ROLE.set(Some((role, Rc::clone(&user))));
    Ok(user)
}

/// What the audit log calls the session's own role.
///
/// # Errors
/// 28000 when it was dropped.
pub fn outer_role_text() -> Result<String, SqlError> {
    // SAFETY: a value of the process.
    Ok(role_name(unsafe { plain::GetOuterUserId() })?.to_string_lossy().into_owned())
}

/// A role's name; it lives as long as the statement's memory.
fn role_name<'n>(role: pg_sys::Oid) -> Result<&'n CStr, SqlError> {
    // SAFETY: the name is null, or allocated by Postgres.
    unsafe {
        let name = pg_sys::GetUserNameFromId(role, true);
        if name.is_null() { Err(unknown_user("The session's role does not exist any more.")) } else { Ok(CStr::from_ptr(name)) }
    }
}

fn unknown_user(detail: &str) -> SqlError {
    SqlError::invalid_authorization("no user is known for this session")
        .with_detail(detail)
        .with_hint("Connect as another role, or log in with kalam.login().")
}

version_1!(pg_finfo_kalam_user_id);

/// The effective user, for SQL.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn kalam_user_id(_call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    return_text(current_user().or_raise().name())
}
