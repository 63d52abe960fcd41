//! The audit log: who did what for whom. Attempts are written so that no ROLLBACK takes them back, changes with their
//! transaction.

use pgrx::datum::JsonB;
use pgrx::pg_sys;
use pgrx::prelude::*;

use super::control_table::{ControlTable, Lasts};
use super::{current_identity, outer_role_text, snowflake};
use crate::error::SqlError;

/// Something that the audit log tells of.
pub struct Event<'a> {
    pub action: &'a str,
    /// The user it was done to or for.
    pub subject: Option<&'a str>,
    /// The object it was done to.
    pub target: Option<&'a str>,
    pub details: serde_json::Map<String, serde_json::Value>,
    /// Whether the session's role did it, whoever the session acts for.
    by_role: bool,
}

impl<'a> Event<'a> {
    /// An event about a user.
    pub fn about(action: &'a str, subject: &'a str) -> Event<'a> {
        Event { action, subject: Some(subject), target: None, details: serde_json::Map::new(), by_role: false }
    }

    /// An event about an object.
    pub fn on(action: &'a str, target: &'a str) -> Event<'a> {
        Event { action, subject: None, target: Some(target), details: serde_json::Map::new(), by_role: false }
    }

    /// Adds a particular.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<serde_json::Value>) -> Event<'a> {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    /// Makes the session's role the one who did it.
    #[must_use]
    pub fn by_role(self) -> Event<'a> {
        Event { by_role: true, ..self }
    }

    /// Writes the event.
    ///
    /// # Errors
    /// When the session's user is not known, and as [`ControlTable::append`].
    pub fn record(self, lasts: Lasts) -> Result<(), SqlError> {
        // Whoever's login has expired still acts, under the role.
        let role = outer_role_text()?;
        let actor = match current_identity() {
            Ok(identity) if !self.by_role => identity.name,
            _ => role.clone(),
        };
        let table = ControlTable::append(c"audit_log")?;
        let id = snowflake::next_id()?;
        let mut details = self.details;
        details.insert("role".to_owned(), serde_json::Value::from(role));
        let details = serde_json::Value::Object(details);
        // SAFETY: reads the clock; the function of Postgres takes no argument.
        let (now, address) =
            unsafe { (pg_sys::GetCurrentTimestamp(), pgrx::direct_function_call_as_datum(pg_sys::inet_client_addr, &[])) };
        let columns = [
            id.into_datum(),
            Some(pg_sys::Datum::from(now)),
            actor.into_datum(),
            self.subject.and_then(IntoDatum::into_datum),
            self.action.into_datum(),
            self.target.and_then(IntoDatum::into_datum),
            JsonB(details).into_datum(),
            address,
        ];
        let mut nulls = columns.map(|column| column.is_none());
        let mut values = columns.map(|column| column.unwrap_or(pg_sys::Datum::from(0)));
        table.append_row(&mut values, &mut nulls, lasts)
    }
}
