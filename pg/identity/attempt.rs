//! Logins with passwords: checking them, counting failures, and locking users out.

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::account::{Account, account};
use super::audit::Event;
use super::control_table::{ControlTable, Lasts, flush_log};
use super::name::{check_user_name, shortened};
use super::password;
use crate::error::SqlError;

/// So many failures in a row lock a user.
pub const FAILURES_MAX: i32 = 5;

/// How long a user stays locked, in microseconds.
const LOCKED_FOR: i64 = 15 * 60 * 1_000_000;

/// Marks our locks among the advisory ones, so that no SQL function of Postgres can take them.
const LOCK_MARK: u16 = 0x4B4C;

/// What came of an attempt, for the audit log only.
enum Outcome {
    Right,
    Wrong(&'static str),
}

/// Checks a name and a password and notes the attempt for good.
///
/// Attempts for one name queue, so that no number of sessions together has more than [`FAILURES_MAX`] tries. All of them cost
/// one computation of a hash.
///
/// # Errors
/// 28P01, always the same, when the login fails.
pub fn attempt(name: Option<&str>, given: Option<&str>) -> Result<(), SqlError> {
    let (written, given) = (name.unwrap_or_default(), given.unwrap_or_default());
    // What cannot be a name is the name of nobody.
    let name = check_user_name(written).map_or("", |()| written);
    let attempts = ControlTable::append(c"login_attempts")?;
    let lock = NameLock::acquire(name);
    let account = account(name);
    let failures = recent_failures(&attempts, name);
    let outcome = check(account.as_ref(), failures, given);
    // A name that nobody has counts for the empty name, which costs the same and locks nobody.
    let counted = if account.is_some() { name } else { "" };
    match outcome {
        Outcome::Right => {
            note(&attempts, counted, 0)?;
            Event::about("login", name).record(Lasts::ForGood)?;
            drop(lock);
            Ok(())
        }
        Outcome::Wrong(reason) => {
            let failures = failures.unwrap_or(0);
            if failures < FAILURES_MAX {
                note(&attempts, counted, failures + 1)?;
            }
            Event::about("login_failed", shortened(written))
                .with("reason", reason)
                .with("failures", (failures + 1).min(FAILURES_MAX))
                .record(Lasts::ForGood)?;
            flush_log();
            Err(SqlError::invalid_password("Invalid username or password")
                .with_detail("The login was refused.")
                .with_hint("After 5 failures in a row a user is locked for 15 minutes."))
        }
    }
}

/// Compares the password, whoever the user is, and decides.
fn check(account: Option<&Account>, failures: Option<i32>, given: &str) -> Outcome {
    let usable = account.filter(|account| !account.deleted);
    let hash = usable.and_then(|account| account.password_hash.as_deref());
    let is_right = password::is_right(given, hash);
    match (account, usable, failures) {
        (None, ..) => Outcome::Wrong("unknown user"),
        (_, None, _) => Outcome::Wrong("dropped user"),
        (.., Some(FAILURES_MAX..)) => Outcome::Wrong("locked user"),
        _ if hash.is_none() => Outcome::Wrong("user without password"),
        _ if is_right => Outcome::Right,
        _ => Outcome::Wrong("wrong password"),
    }
}

/// Failures in a row up to now; none after a lock has ended.
fn recent_failures(attempts: &ControlTable, name: &str) -> Option<i32> {
    let row = attempts.last_with(c"login_attempts_name_at", name)?;
    let (failures, at) = (row.integer(2), row.timestamp(1)?);
    // SAFETY: reads the clock.
    let age = unsafe { pg_sys::GetCurrentTimestamp() } - at;
    (!name.is_empty() && (failures < FAILURES_MAX || age < LOCKED_FOR)).then_some(failures)
}

fn note(attempts: &ControlTable, name: &str, failures: i32) -> Result<(), SqlError> {
    // SAFETY: reads the clock.
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    let name = name.into_datum().unwrap_or(pg_sys::Datum::from(0));
    let mut values = [name, pg_sys::Datum::from(now), pg_sys::Datum::from(failures)];
    attempts.append_row(&mut values, &mut [false; 3], Lasts::ForGood)
}

/// The lock that attempts for one name queue for.
struct NameLock(pg_sys::LOCKTAG);

impl NameLock {
    fn acquire(name: &str) -> NameLock {
        let hash = hash(name);
        let tag = pg_sys::LOCKTAG {
            // SAFETY: a value of the process.
            locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
            locktag_field2: (hash >> 32) as u32,
            locktag_field3: hash as u32,
            locktag_field4: LOCK_MARK,
            locktag_type: pg_sys::LockTagType::LOCKTAG_ADVISORY as u8,
            locktag_lockmethodid: pg_sys::USER_LOCKMETHOD as u8,
        };
        // SAFETY: a well-formed tag; the wait serves interrupts. The end of the transaction releases the lock too.
        unsafe { pg_sys::LockAcquire(&raw const tag, pg_sys::ExclusiveLock as pg_sys::LOCKMODE, false, false) };
        NameLock(tag)
    }
}

impl Drop for NameLock {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: taken by `acquire`.
            unsafe { pg_sys::LockRelease(&raw const self.0, pg_sys::ExclusiveLock as pg_sys::LOCKMODE, false) };
        }
    }
}

/// Spreads names over locks; two names with one hash merely wait for each other.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3))
}
