//! Tells the audit log for whom sessions act by the setting `kalam.user_id`: an entry for each user, role and session, once an hour.
//!
//! A gateway sets it for every transaction, so an entry for each would cost more than the transaction's own work.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::RefCell;

use super::audit::Event;
use super::control_table::{ControlTable, Lasts};
use super::outer_role_name;
use super::session::{current_login, setting, statement_time, with_setting};
use crate::error::OrRaise;
use crate::hash::Map;
use crate::settings;

/// Users that a session remembers to have told of.
const REMEMBERED: usize = 10_000;
const HOUR: i64 = 3600;

#[derive(Default)]
struct Noted {
    /// The last one, for the many statements in a row that are for the same user.
    last: (u32, String, i64),
    /// When the session told of a role and a user, in hours.
    hours: Map<(u32, String), i64>,
}

thread_local! {
    static NOTED: RefCell<Noted> = RefCell::default();
}

/// Called when a statement that may see rows of users begins.
#[pg_guard]
pub extern "C-unwind" fn note() {
    if !settings::audits_user_id() {
        return;
    }
    // SAFETY: plain values of the process. What a parallel worker does, its leader has begun.
    let (role, may_write) =
        unsafe { (pg_sys::GetOuterUserId().to_u32(), !pg_sys::IsInParallelMode() && !pg_sys::RecoveryInProgress()) };
    let hour = statement_time() / HOUR;
    let is_last = |user: &str| NOTED.with_borrow(|noted| noted.last.0 == role && noted.last.2 == hour && noted.last.1 == user);
    if may_write
        && with_setting(is_last) == Some(false)
        && let Some(user) = setting()
    {
        note_user(role, user, hour);
    }
}

fn note_user(role: u32, user: String, hour: i64) {
    let key = (role, user.clone());
    if NOTED.with_borrow(|noted| noted.hours.get(&key) == Some(&hour)) {
        NOTED.with_borrow_mut(|noted| noted.last = (role, user, hour));
        return;
    }
    if current_login().is_some() {
        return;
    }
    // A database without the extension has no user tables. Who acts for oneself acts for nobody else.
    if ControlTable::read(c"audit_log").is_some() && outer_role_name().or_raise() != user {
        Event::about("set_user_id", &user).by_role().record(Lasts::ForGood).or_raise();
    }
    NOTED.with_borrow_mut(|noted| {
        if noted.hours.len() >= REMEMBERED {
            noted.hours.clear();
        }
        noted.hours.insert((role, user.clone()), hour);
        noted.last = (role, user, hour);
    });
}
