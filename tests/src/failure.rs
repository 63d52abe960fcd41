//! Why a client's transaction did not go through: what it must expect, what only a blow at the server excuses, and what nothing excuses.

use crate::sql;

#[derive(Debug)]
pub enum Failure {
    /// The server rolled it back for a reason that a client must expect, such as a deadlock.
    Aborted,
    /// The session's round is over; when the last statement was a commit, `in_doubt` says whether it may have happened.
    Disconnected { why: String, in_doubt: bool },
    /// The server did something that no crash excuses.
    Wrong(String),
}

impl From<postgres::Error> for Failure {
    fn from(error: postgres::Error) -> Self {
        let state = sql::sqlstate(&error).unwrap_or("");
        let text = sql::describe(&error);
        match state {
            "40P01" | "40001" | "55P03" => Failure::Aborted,
            // The server goes down, or the engine behind it does: both end the session's round, and the driver knows whether it struck.
            "" => Failure::Disconnected { why: text, in_doubt: true },
            _ if ["57P", "58", "08"].iter().any(|class| state.starts_with(class)) => {
                // An ERROR means rolled back; after FATAL or a broken connection nobody knows.
                Failure::Disconnected { why: text, in_doubt: sql::session_is_over(&error) }
            }
            _ => Failure::Wrong(text),
        }
    }
}

impl From<std::io::Error> for Failure {
    /// COPY's stream wraps the client's error.
    fn from(error: std::io::Error) -> Self {
        let text = error.to_string();
        match error.into_inner().map(|inner| inner.downcast::<postgres::Error>()) {
            Some(Ok(error)) => (*error).into(),
            _ => Failure::Wrong(format!("COPY: {text}")),
        }
    }
}
