//! Turns errors into Postgres' reports and back; the only file that names SQLSTATEs.

use std::panic::AssertUnwindSafe;

use kalamdb_engine::{Error, ErrorKind};
use pgrx::pg_sys::panic::{CaughtError, ErrorReport};
use pgrx::{PgLogLevel, PgSqlErrorCode, PgTryBuilder, pg_sys};

/// An error as Postgres reports it: SQLSTATE, message, detail and hint.
#[derive(Debug, Clone)]
pub struct SqlError {
    code: PgSqlErrorCode,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
}

/// Separates the fields of [`SqlError::to_text`]; no message contains it.
const SEPARATOR: char = '\u{1f}';

impl SqlError {
    fn new(code: PgSqlErrorCode, message: impl Into<String>) -> SqlError {
        SqlError { code, message: message.into(), detail: None, hint: None }
    }

    /// The server is not configured or not in the state that the operation needs (55000).
    #[cold]
    pub fn prerequisite(message: impl Into<String>) -> SqlError {
        SqlError::new(PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, message)
    }

    /// The server has no place left for something it needs (53400).
    #[cold]
    pub fn configuration_limit(message: impl Into<String>) -> SqlError {
        SqlError::new(PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED, message)
    }

    /// A row lock that NOWAIT did not get (55P03).
    #[cold]
    pub fn lock_not_available(message: impl Into<String>) -> SqlError {
        SqlError::new(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, message)
    }

    /// The transaction has to be repeated (40001).
    #[cold]
    pub fn serialization_failure(message: impl Into<String>) -> SqlError {
        SqlError::new(PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE, message)
    }

    /// The object is of another kind than the operation needs (42809).
    #[cold]
    pub fn wrong_object_type(message: impl Into<String>) -> SqlError {
        SqlError::new(PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE, message)
    }

    /// The transaction is in no state for the operation (25000).
    #[cold]
    pub fn invalid_transaction_state(message: impl Into<String>) -> SqlError {
        SqlError::new(PgSqlErrorCode::ERRCODE_INVALID_TRANSACTION_STATE, message)
    }

    /// Adds a sentence with the particulars.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> SqlError {
        self.detail = Some(detail.into());
        self
    }

    /// Adds a sentence that says what the user can do.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> SqlError {
        self.hint = Some(hint.into());
        self
    }

    /// The message.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Whether memory or disk space ran out.
    pub fn is_out_of_space(&self) -> bool {
        matches!(self.code, PgSqlErrorCode::ERRCODE_DISK_FULL | PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY)
    }

    /// Whether an object is in use by someone else.
    pub fn is_object_in_use(&self) -> bool {
        self.code == PgSqlErrorCode::ERRCODE_OBJECT_IN_USE
    }

    /// Whether a file is missing.
    pub fn is_missing_file(&self) -> bool {
        self.code == PgSqlErrorCode::ERRCODE_UNDEFINED_FILE
    }

    /// One line of text from which [`SqlError::from_text`] makes the error again, in another process.
    pub fn to_text(&self) -> String {
        let (detail, hint) = (self.detail.as_deref().unwrap_or(""), self.hint.as_deref().unwrap_or(""));
        format!("{}{SEPARATOR}{}{SEPARATOR}{detail}{SEPARATOR}{hint}", self.code as i32, self.message)
    }

    /// The error behind a text of [`SqlError::to_text`]; none for the plain text of an engine thread.
    pub fn from_text(text: &str) -> Option<SqlError> {
        let mut fields = text.splitn(4, SEPARATOR);
        let code: i32 = fields.next()?.parse().ok()?;
        let mut field = || fields.next().filter(|text| !text.is_empty()).map(str::to_owned);
        let message = field().unwrap_or_else(|| "the KalamDB engine failed".to_owned());
        Some(SqlError { code: code.into(), message, detail: field(), hint: field() })
    }

    /// Writes the error to the server's log at a level that does not end the transaction.
    pub fn log(&self, level: PgLogLevel) {
        self.report(level);
    }

    fn report(&self, level: PgLogLevel) {
        let mut report = ErrorReport::new(self.code, self.message.clone(), "kalamdb");
        if let Some(detail) = &self.detail {
            report = report.set_detail(detail.clone());
        }
        if let Some(hint) = &self.hint {
            report = report.set_hint(hint.clone());
        }
        report.report(level);
    }
}

impl From<Error> for SqlError {
    fn from(error: Error) -> SqlError {
        SqlError {
            code: sqlstate(error.kind()),
            message: error.message().to_owned(),
            detail: error.detail(),
            hint: error.hint().map(str::to_owned),
        }
    }
}

impl From<SqlError> for Error {
    fn from(error: SqlError) -> Error {
        let mut converted = Error::new(kind(error.code), error.message);
        if let Some(detail) = error.detail {
            converted = converted.with_detail(detail);
        }
        if let Some(hint) = error.hint {
            converted = converted.with_hint(hint);
        }
        converted
    }
}

/// The SQLSTATE of a kind of error of the engine.
fn sqlstate(kind: ErrorKind) -> PgSqlErrorCode {
    match kind {
        ErrorKind::InvalidInput => PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
        ErrorKind::Unsupported => PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        ErrorKind::Unavailable => PgSqlErrorCode::ERRCODE_CANNOT_CONNECT_NOW,
        ErrorKind::Cancelled => PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
        ErrorKind::LimitExceeded => PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
        ErrorKind::DiskFull => PgSqlErrorCode::ERRCODE_DISK_FULL,
        ErrorKind::OutOfMemory => PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY,
        ErrorKind::Io => PgSqlErrorCode::ERRCODE_IO_ERROR,
        ErrorKind::StorageMissing => PgSqlErrorCode::ERRCODE_UNDEFINED_FILE,
        ErrorKind::Corrupt => PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
        ErrorKind::Internal => PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
    }
}

fn kind(code: PgSqlErrorCode) -> ErrorKind {
    match code {
        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED => ErrorKind::Unsupported,
        PgSqlErrorCode::ERRCODE_CANNOT_CONNECT_NOW | PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE => {
            ErrorKind::Unavailable
        }
        PgSqlErrorCode::ERRCODE_QUERY_CANCELED => ErrorKind::Cancelled,
        PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED | PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED => {
            ErrorKind::LimitExceeded
        }
        PgSqlErrorCode::ERRCODE_DISK_FULL => ErrorKind::DiskFull,
        PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY => ErrorKind::OutOfMemory,
        PgSqlErrorCode::ERRCODE_IO_ERROR => ErrorKind::Io,
        PgSqlErrorCode::ERRCODE_UNDEFINED_FILE => ErrorKind::StorageMissing,
        PgSqlErrorCode::ERRCODE_DATA_CORRUPTED => ErrorKind::Corrupt,
        PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE => ErrorKind::InvalidInput,
        _ => ErrorKind::Internal,
    }
}

/// Ends the statement with the error.
#[cold]
pub fn raise(error: impl Into<SqlError>) -> ! {
    let error = error.into();
    if error.code == PgSqlErrorCode::ERRCODE_QUERY_CANCELED {
        // Postgres knows who ended the statement and reports it with the right text.
        crate::ffi::interrupts::check_for_interrupts();
    }
    error.report(PgLogLevel::ERROR);
    unreachable!("a report at level ERROR does not return")
}

/// Ends the statement if a result is an error.
pub trait OrRaise<T> {
    /// The value, or the end of the statement.
    fn or_raise(self) -> T;
}

impl<T, E: Into<SqlError>> OrRaise<T> for Result<T, E> {
    #[inline]
    fn or_raise(self) -> T {
        match self {
            Ok(value) => value,
            Err(error) => raise(error),
        }
    }
}

/// Runs a function that may end in a Postgres ERROR, and returns the ERROR as a value.
///
/// Only for functions that raise no ERROR with a lock of Postgres taken: nobody would release it before the transaction ends.
///
/// # Errors
/// The ERROR, or a panic of the function.
pub fn catching<R>(run: impl FnOnce() -> R) -> Result<R, SqlError> {
    // SAFETY: counters of this process' only thread that runs Postgres code.
    let holdoff = unsafe { (pg_sys::InterruptHoldoffCount, pg_sys::QueryCancelHoldoffCount) };
    let guarded = AssertUnwindSafe(run);
    PgTryBuilder::new(move || Ok(call(guarded)))
        .catch_others(|cause| {
            // An ERROR resets the counters, but whatever raised them around this call will lower them again.
            // SAFETY: as above.
            unsafe { (pg_sys::InterruptHoldoffCount, pg_sys::QueryCancelHoldoffCount) = holdoff };
            Err(describe(&cause))
        })
        .execute()
}

/// As [`catching`], for a process without transactions: locks of Postgres that the function leaves behind are released.
///
/// # Errors
/// As [`catching`].
pub fn catching_all<R>(run: impl FnOnce() -> R) -> Result<R, SqlError> {
    let result = catching(run);
    if result.is_err() {
        // SAFETY: the caller holds no lock itself, so all that are held were taken by the failed function.
        unsafe {
            pg_sys::ConditionVariableCancelSleep();
            pg_sys::LWLockReleaseAll();
        }
    }
    result
}

fn call<R>(run: AssertUnwindSafe<impl FnOnce() -> R>) -> R {
    (run.0)()
}

fn describe(cause: &CaughtError) -> SqlError {
    let (CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) | CaughtError::RustPanic { ereport: report, .. }) =
        cause;
    SqlError {
        code: report.sql_error_code(),
        message: report.message().to_owned(),
        detail: report.detail().map(str::to_owned),
        hint: report.hint().map(str::to_owned),
    }
}
