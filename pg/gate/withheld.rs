//! Errors of commands that read everybody's rows: they do not show values that may be another user's.
//!
//! Who builds a unique index or adds a key reads the rows of all, but acts for one user. Postgres names the row that stands in the
//! way in the error's detail; it is replaced before the error is reported.

use std::cell::Cell;
use std::ffi::{CStr, c_void};

use pgrx::{PgSqlErrorCode, pg_sys};

use super::context::{User, user_of_session, works_on_whole_tables};

const DETAIL: &CStr = c"The row that stands in the way may be another user's: it is shown with row_security = off.";

thread_local! {
    /// Whether the running command has read the rows of all users of a table.
    static READ_OTHERS: Cell<bool> = const { Cell::new(false) };
}

/// Notes that the running command reads the rows of all users of a table.
pub fn note_read_of_all() {
    READ_OTHERS.set(works_on_whole_tables());
}

/// Runs a command; its errors do not tell of rows that the session does not see.
///
/// # Safety
/// The frames of the caller own nothing: an error jumps over them.
pub unsafe fn run(command: impl FnOnce()) {
    // Asked for before the command goes on with the rights of a table's owner.
    if matches!(user_of_session(), Ok(User::All)) {
        return command();
    }
    // SAFETY: the entry is taken off the list again, by Postgres if an error ends the command.
    unsafe {
        let mut entry = pg_sys::ErrorContextCallback {
            previous: pg_sys::error_context_stack,
            callback: Some(withhold),
            arg: std::ptr::null_mut(),
        };
        pg_sys::error_context_stack = &raw mut entry;
        let outer = READ_OTHERS.replace(false);
        command();
        READ_OTHERS.set(outer);
        pg_sys::error_context_stack = entry.previous;
    }
}

/// Called while an error is reported. A query below the command has its own user, and its errors stay as they are.
unsafe extern "C-unwind" fn withhold(_arg: *mut c_void) {
    use PgSqlErrorCode::{ERRCODE_EXCLUSION_VIOLATION, ERRCODE_FOREIGN_KEY_VIOLATION, ERRCODE_UNIQUE_VIOLATION};
    if !READ_OTHERS.get() || !works_on_whole_tables() {
        return;
    }
    let named = [ERRCODE_UNIQUE_VIOLATION, ERRCODE_EXCLUSION_VIOLATION, ERRCODE_FOREIGN_KEY_VIOLATION];
    // SAFETY: an error is being reported, and its texts are copied.
    unsafe {
        let code = pg_sys::geterrcode();
        if named.iter().any(|named| *named as std::ffi::c_int == code) {
            pg_sys::errdetail_internal(DETAIL.as_ptr());
        }
    }
}
