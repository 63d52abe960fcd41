//! Where the effective user of a session is kept: two settings, so that Postgres gives them to parallel workers, undoes them with
//! the transaction, and resets them with DISCARD ALL.

use std::ffi::{CStr, CString, c_char, c_void};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::pg_sys;
use pgrx::prelude::*;

use super::account::active_account;
use super::{Identity, KnownUser, check_user_name, setting_use};
use crate::error::{SqlError, raise};
use crate::ffi::plain;
use crate::ffi::utility::Statement;

static USER_ID: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

/// The login of the session, as [`Login::to_text`] writes it. Only this library can set it.
static SESSION_LOGIN: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
const SESSION_LOGIN_NAME: &CStr = c"kalam.session_login";

/// Whether this library itself is setting [`SESSION_LOGIN`].
static SETTING_LOGIN: AtomicBool = AtomicBool::new(false);

/// What made a user the effective one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// `kalam.login()`.
    Password,
    /// `kalam.authenticate()`.
    Token,
    /// `kalam.execute_as()`.
    Impersonation,
    /// The setting `kalam.user_id`.
    Setting,
    /// The session's own role.
    Role,
}

/// Defines the settings.
pub fn define() {
    // SAFETY: the hooks live as long as the process and follow Postgres' conventions for them.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            c"kalam.user_id",
            c"User whose rows of KalamDB's user tables the session sees and changes.",
            c"Only superusers and roles that were granted SET on it may set it. A login in the session goes before it.",
            &USER_ID,
            GucContext::Suset,
            GucFlags::default(),
            Some(check_user_id),
            None,
            None,
        );
        GucRegistry::define_string_guc_with_hooks(
            SESSION_LOGIN_NAME,
            c"User that logged in with kalam.login() or kalam.authenticate().",
            c"Set by these functions only.",
            &SESSION_LOGIN,
            GucContext::Suset,
            GucFlags::NO_SHOW_ALL | GucFlags::DISALLOW_IN_FILE,
            Some(check_session_login),
            None,
            None,
        );
    }
}

/// A login: its user, the role that the session had, and when it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    pub name: String,
    pub origin: Origin,
    /// Seconds since 1970 at which the login ends; 0 for never.
    pub expires: i64,
}

impl Login {
    /// "role:origin:expiry:name". The name is last because it may contain the separator.
    fn to_text(&self, session_role: u32) -> String {
        let origin = match self.origin {
            Origin::Password => "password",
            Origin::Token => "token",
            _ => "impersonation",
        };
        format!("{session_role}:{origin}:{}:{}", self.expires, self.name)
    }

    /// The login behind a text, and the session's role at that time.
    fn from_text(text: &str) -> Option<(Login, u32)> {
        let mut fields = text.splitn(4, ':');
        let session_role = fields.next()?.parse().ok()?;
        let origin = match fields.next()? {
            "password" => Origin::Password,
            "token" => Origin::Token,
            "impersonation" => Origin::Impersonation,
            _ => return None,
        };
        let expires = fields.next()?.parse().ok()?;
        Some((Login { name: fields.next()?.to_owned(), origin, expires }, session_role))
    }
}

/// The login in force, whether or not it has expired.
pub fn current_login() -> Option<Login> {
    let (login, session_role) = with_text(&SESSION_LOGIN, Login::from_text)??;
    // Another session role (SET SESSION AUTHORIZATION) is another session.
    // SAFETY: a value of the process.
    (session_role == unsafe { plain::GetSessionUserId() }.to_u32()).then_some(login)
}

/// The user that logged in.
///
/// # Errors
/// 28000 when the login has expired or its user was dropped: the session acts for nobody until it logs in again or logs out.
pub fn login() -> Result<Option<Identity>, SqlError> {
    let Some(login) = current_login() else { return Ok(None) };
    if login.expires != 0 && statement_time() >= login.expires {
        return Err(SqlError::invalid_authorization("the login of this session has expired")
            .with_detail("The token with which it was made has reached its end.")
            .with_hint("Call kalam.authenticate() with a new token, or kalam.logout()."));
    }
    require_active(&login)?;
    Ok(Some(Identity { name: login.name, origin: login.origin }))
}

/// The latest transaction, by its start, that found a user not dropped.
static FOUND_ACTIVE: Mutex<(i64, String)> = Mutex::new((0, String::new()));

/// Raises an error if the user of a login was dropped since; looks once in a transaction.
fn require_active(login: &Login) -> Result<(), SqlError> {
    // SAFETY: a value of the process; parallel workers have their leader's.
    let transaction = unsafe { plain::GetCurrentTransactionStartTimestamp() };
    let found = || FOUND_ACTIVE.lock().unwrap_or_else(PoisonError::into_inner);
    if *found() == (transaction, login.name.clone()) {
        return Ok(());
    }
    if login.origin != Origin::Impersonation && active_account(&login.name).is_none() {
        return Err(SqlError::invalid_authorization("the user of this session's login was dropped")
            .with_detail(format!("User \"{}\" may do nothing any more.", login.name))
            .with_hint("Call kalam.logout() to act as the session's role."));
    }
    *found() = (transaction, login.name.clone());
    Ok(())
}

/// Whether nobody has logged in.
pub fn has_no_login() -> bool {
    // SAFETY: as in `with_text`.
    unsafe {
        let text = *SESSION_LOGIN.as_ptr();
        text.is_null() || *text == 0
    }
}

/// The user of the setting `kalam.user_id`, if it is set.
pub fn setting() -> Option<Rc<KnownUser>> {
    with_text(&USER_ID, KnownUser::of)
}

/// Calls a function with a setting's text, unless it is empty; every statement asks for the user, so nothing is copied. The function
/// calls nothing of Postgres.
fn with_text<R>(setting: &GucSetting<Option<CString>>, run: impl FnOnce(&str) -> R) -> Option<R> {
    // SAFETY: Postgres keeps a text that ends with a zero byte there, or null, and changes it between our functions only.
    let text = unsafe {
        let text = *setting.as_ptr();
        (!text.is_null()).then(|| CStr::from_ptr(text))
    };
    text.and_then(|text| text.to_str().ok()).filter(|text| !text.is_empty()).map(run)
}

/// Seconds since 1970 at which the statement started.
pub fn statement_time() -> i64 {
    const SECONDS_1970_TO_2000: i64 = 946_684_800;
    // SAFETY: a value of the process; parallel workers have their leader's.
    unsafe { plain::GetCurrentStatementStartTimestamp() }.div_euclid(1_000_000) + SECONDS_1970_TO_2000
}

/// How long a change of the login lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Span {
    Session,
    Transaction,
    /// Until the innermost nest of settings ends.
    Nest,
}

/// Makes a user the effective one, or ends the login.
///
/// # Errors
/// None of ours; Postgres raises its own.
pub fn set_login(login: Option<&Login>, span: Span) {
    // SAFETY: a value of the process.
    let session_role = unsafe { plain::GetSessionUserId() }.to_u32();
    let text = login.map(|login| login.to_text(session_role)).unwrap_or_default();
    // A name with a zero byte cannot come from Postgres.
    let value = CString::new(text).unwrap_or_default();
    let action = match span {
        Span::Session => pg_sys::GucAction::GUC_ACTION_SET,
        Span::Transaction => pg_sys::GucAction::GUC_ACTION_LOCAL,
        Span::Nest => pg_sys::GucAction::GUC_ACTION_SAVE,
    };
    let _permit = Permit::take();
    // SAFETY: both texts end with a zero byte and are copied.
    unsafe {
        pg_sys::set_config_option(
            SESSION_LOGIN_NAME.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
            action,
            true,
            0,
            false,
        );
    }
}

/// Runs something with a user as the effective one; the login in force comes back whichever way it ends.
pub fn act_as<R>(user: &str, run: impl FnOnce() -> R) -> R {
    let expires = current_login().map_or(0, |login| login.expires);
    let login = Login { name: user.to_owned(), origin: Origin::Impersonation, expires };
    // SAFETY: the nest ends below, or with the transaction that an ERROR rolls back; either restores the login.
    let nest = unsafe { pg_sys::NewGUCNestLevel() };
    set_login(Some(&login), Span::Nest);
    let result = run();
    if current_login().as_ref() != Some(&login) {
        raise(
            SqlError::insufficient_privilege("the user that is acted for was changed meanwhile")
                .with_detail(
                    "Code that the statement calls has reset the session's settings, so that it acted for somebody else.",
                )
                .with_hint("Look for RESET ALL in functions, triggers and expressions of the tables."),
        );
    }
    // SAFETY: opened above.
    unsafe { pg_sys::AtEOXact_GUC(true, nest) };
    result
}

/// As long as it lives, the login may be set; an ERROR ends it too.
struct Permit;

impl Permit {
    fn take() -> Permit {
        SETTING_LOGIN.store(true, Ordering::Relaxed);
        Permit
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        SETTING_LOGIN.store(false, Ordering::Relaxed);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn check_user_id(
    value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: Postgres gives a text that ends with a zero byte, or null.
    let text = unsafe { if (*value).is_null() { c"" } else { CStr::from_ptr(*value) } };
    let wrong = match text.to_str() {
        Ok("") => None,
        Ok(name) => check_user_name(name).err(),
        Err(_) => Some(c"The name of a user is text in UTF-8."),
    };
    explain(wrong)
}

#[pg_guard]
unsafe extern "C-unwind" fn check_session_login(
    value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: Postgres gives a text that ends with a zero byte, or null.
    let is_empty = unsafe { (*value).is_null() || **value == 0 };
    // A parallel worker takes what its leader has.
    // SAFETY: a flag of the process.
    let inherited = unsafe { pg_sys::InitializingParallelWorker };
    let permitted = is_empty || inherited || SETTING_LOGIN.load(Ordering::Relaxed);
    explain((!permitted).then_some(c"Only kalam.login() and kalam.authenticate() set it."))
}

/// Whether a value is right; what is wrong becomes the detail of Postgres' error.
fn explain(wrong: Option<&'static CStr>) -> bool {
    let Some(detail) = wrong else { return true };
    // SAFETY: Postgres copies the text when it reports the error and never frees it.
    unsafe { pg_sys::GUC_check_errdetail_string = detail.as_ptr().cast_mut() };
    false
}

/// Commands that bring or read rows themselves, and call code of users in doing so, some in parallel workers.
const CALLS_CODE: [pg_sys::NodeTag; 6] = [
    pg_sys::NodeTag::T_CopyStmt,
    pg_sys::NodeTag::T_IndexStmt,
    pg_sys::NodeTag::T_ReindexStmt,
    pg_sys::NodeTag::T_ClusterStmt,
    pg_sys::NodeTag::T_VacuumStmt,
    pg_sys::NodeTag::T_AlterTableStmt,
];

/// Watches for statements that end a login: a change of the session's role does, for as long as the change itself lasts.
///
/// # Safety
/// See [`crate::ffi::utility::Handler`].
pub unsafe fn watch(statement: Statement) {
    // SAFETY: a parsed statement, looked at before it runs, which may free it.
    unsafe {
        let ends_login = role_change(statement.node());
        // A query notes for itself whom it is for.
        if CALLS_CODE.contains(&(*statement.node()).type_) {
            setting_use::note_with_workers();
        }
        statement.run();
        if let Some(span) = ends_login {
            end_login(span);
        }
    }
}

#[pg_guard]
extern "C-unwind" fn end_login(span: Span) {
    if !has_no_login() {
        set_login(None, span);
    }
}

/// How long the session's role changes if the statement is one that sets or resets it.
///
/// # Safety
/// A parsed utility statement.
unsafe fn role_change(statement: *mut pg_sys::Node) -> Option<Span> {
    // SAFETY: a statement's tag says which struct it is; the name is a text or null.
    unsafe {
        if (*statement).type_ != pg_sys::NodeTag::T_VariableSetStmt {
            return None;
        }
        let set: *mut pg_sys::VariableSetStmt = statement.cast();
        if (*set).name.is_null() || CStr::from_ptr((*set).name) != c"session_authorization" {
            return None;
        }
        Some(if (*set).is_local { Span::Transaction } else { Span::Session })
    }
}
