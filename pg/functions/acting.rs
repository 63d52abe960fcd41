//! Acting for another user: one statement with that user's rows.

use std::ffi::{CStr, CString};

use pgrx::prelude::*;

use crate::error::{OrRaise, SqlError};
use crate::identity::account::{Rank, account, current_rank, role_oid, role_rank};
use crate::identity::audit::Event;
use crate::identity::control_table::{Lasts, flush_log};
use crate::identity::session::act_as;
use crate::identity::{Identity, check_user_name, shortened};

/// How much of a statement the audit log keeps, in bytes.
const AUDITED_BYTES: usize = 1000;

/// Runs one statement as another user; returns its rows as JSON, which has the form of text.
#[pg_extern]
fn execute_as(user: Option<&str>, statement: Option<&str>) -> SetOfIterator<'static, String> {
    let (user, statement) = (user.unwrap_or_default(), statement.unwrap_or_default());
    if let Err(refusal) = require_may_act_for(user) {
        Event::about("execute_as_refused", shortened(user)).record(Lasts::ForGood).or_raise();
        Err::<(), SqlError>(refusal).or_raise();
    }
    let text = CString::new(statement).unwrap_or_default();
    let shown = &statement[..statement.floor_char_boundary(statement.len().min(AUDITED_BYTES))];
    Event::about("execute_as", user).with("statement", shown).record(Lasts::ForGood).or_raise();
    // Before the caller gets rows, which no crash takes back.
    flush_log();
    require_one_query(&text).or_raise();
    SetOfIterator::new(act_as(user, || run(&text)).or_raise())
}

/// Raises an error unless the session may act for a user: for itself, and for users whose role is below its own.
fn require_may_act_for(user: &str) -> Result<(), SqlError> {
    require_above(user, false)
}

/// As [`require_may_act_for`], but of dropped users too, if wanted. A name without an account or a role is that of a user whom a
/// gateway vouches for; a dba could make it an account.
pub fn require_above(user: &str, dropped_too: bool) -> Result<(), SqlError> {
    let (identity, rank) = current_rank()?;
    let refuse = |detail: String| {
        Err(SqlError::insufficient_privilege(format!("permission denied to act for user \"{user}\""))
            .with_detail(detail)
            .with_hint("A service may act for users, a dba for services and users."))
    };
    if let Err(detail) = check_user_name(user) {
        return refuse(detail.to_string_lossy().into_owned());
    }
    if rank == Rank::System || is_self(&identity, user) {
        return Ok(());
    }
    let account = account(user);
    let is_usable = account.as_ref().is_none_or(|account| dropped_too || !account.deleted);
    let known = account.map(|account| account.rank).max(role_oid(user).map(role_rank));
    match known {
        Some(wanted) if wanted < rank && is_usable => Ok(()),
        None if rank >= Rank::Dba => Ok(()),
        // The same answer whether the user exists or not.
        _ => refuse(format!("User \"{}\" has the role {rank}, and the user is not known to have a lower one.", identity.name)),
    }
}

fn is_self(identity: &Identity, user: &str) -> bool {
    identity.name == user
}

/// Raises an error unless the text is one SELECT, INSERT, UPDATE, DELETE or MERGE.
fn require_one_query(text: &CStr) -> Result<(), SqlError> {
    // SAFETY: the parser gives a list of raw statements, whose tags say what they are.
    let is_query = unsafe {
        let list = pg_sys::raw_parser(text.as_ptr(), pg_sys::RawParseMode::RAW_PARSE_DEFAULT);
        if list.is_null() || (*list).length != 1 {
            false
        } else {
            let raw: *mut pg_sys::RawStmt = (*(*list).elements).ptr_value.cast();
            let statement = (*raw).stmt;
            match (*statement).type_ {
                pg_sys::NodeTag::T_SelectStmt => (*statement.cast::<pg_sys::SelectStmt>()).intoClause.is_null(),
                tag => matches!(
                    tag,
                    pg_sys::NodeTag::T_InsertStmt
                        | pg_sys::NodeTag::T_UpdateStmt
                        | pg_sys::NodeTag::T_DeleteStmt
                        | pg_sys::NodeTag::T_MergeStmt
                ),
            }
        }
    };
    if is_query {
        return Ok(());
    }
    Err(SqlError::unsupported("kalam.execute_as() runs one query only")
        .with_detail("It takes a single SELECT, INSERT, UPDATE, DELETE or MERGE.")
        .with_hint("Call it once for every statement."))
}

/// Runs a query and gives its rows as JSON.
fn run(text: &CStr) -> Result<Vec<String>, SqlError> {
    // SAFETY: the results are read before SPI_finish frees them; an ERROR ends the connection to SPI with the transaction.
    unsafe {
        pg_sys::SPI_connect();
        let code = pg_sys::SPI_execute(text.as_ptr(), false, 0);
        if code < 0 {
            return Err(SqlError::unsupported("kalam.execute_as() cannot run the statement")
                .with_detail(format!("The server's programming interface answered {code}."))
                .with_hint("Use a plain SELECT, INSERT, UPDATE, DELETE or MERGE."));
        }
        let mut rows = Vec::new();
        let table = pg_sys::SPI_tuptable;
        if !table.is_null() {
            let descriptor = pg_sys::BlessTupleDesc((*table).tupdesc);
            for place in 0..pg_sys::SPI_processed as usize {
                let row = pg_sys::heap_copy_tuple_as_datum(*(*table).vals.add(place), descriptor);
                let json = pgrx::direct_function_call::<&str>(pg_sys::row_to_json, &[Some(row)]).unwrap_or_default();
                rows.push(json.to_owned());
            }
        }
        pg_sys::SPI_finish();
        Ok(rows)
    }
}
