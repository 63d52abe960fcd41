//! Turns errors into Postgres' reports and back; the only file that names SQLSTATEs.

use std::panic::AssertUnwindSafe;

use kalamdb_engine::{Error, ErrorKind};
use pgrx::pg_sys::panic::{CaughtError, ErrorReport};
use pgrx::{PgLogLevel, PgSqlErrorCode, PgTryBuilder, pg_sys};

use crate::ffi::interrupts;

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

    /// What was asked for is not there (P0002).
    #[cold]
    pub fn no_data(message: impl Into<String>) -> SqlError {
        SqlError::new(PgSqlErrorCode::ERRCODE_NO_DATA_FOUND, message)
    }

    /// The transaction is in no state for the operation (25000).
    #[cold]
    pub fn invalid_transaction_state(message: impl Into<String>) -> SqlError {
        SqlError::new(PgSqlErrorCode::ERRCODE_INVALID_TRANSACTION_STATE, message)
    }

    /// Nobody is known for whom the session could act (28000).
    #[cold]
    pub fn invalid_authorization(message: impl Into<String>) -> SqlError {
        SqlError::new(PgSqlErrorCode::ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION, message)
    }

    /// A name, password or token is wrong (28P01).
    #[cold]
    pub fn invalid_password(message: impl Into<String>) -> SqlError {
        SqlError::new(PgSqlErrorCode::ERRCODE_INVALID_PASSWORD, message)
    }

    /// The session may not do this (42501).
    #[cold]
    pub fn insufficient_privilege(message: impl Into<String>) -> SqlError {
        SqlError::new(PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, message)
    }

    /// A table, column or index is not defined as it has to be (42P16).
    #[cold]
    pub fn invalid_definition(message: impl Into<String>) -> SqlError {
        SqlError::new(PgSqlErrorCode::ERRCODE_INVALID_TABLE_DEFINITION, message)
    }

    /// A foreign key is not defined as it has to be (42830).
    #[cold]
    pub fn invalid_foreign_key(message: impl Into<String>) -> SqlError {
        SqlError::new(PgSqlErrorCode::ERRCODE_INVALID_FOREIGN_KEY, message)
    }

    /// A column that cannot be null is (23502).
    #[cold]
    pub fn not_null_violation(message: impl Into<String>) -> SqlError {
        SqlError::new(PgSqlErrorCode::ERRCODE_NOT_NULL_VIOLATION, message)
    }

    /// An argument has a bad value (22023).
    #[cold]
    pub fn invalid_parameter(message: impl Into<String>) -> SqlError {
        SqlError::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message)
    }

    /// There is an object of this name already (42710).
    #[cold]
    pub fn duplicate_object(message: impl Into<String>) -> SqlError {
        SqlError::new(PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT, message)
    }

    /// There is no object of this name (42704).
    #[cold]
    pub fn undefined_object(message: impl Into<String>) -> SqlError {
        SqlError::new(PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT, message)
    }

    /// The statement needs something that is not built (0A000).
    #[cold]
    pub fn unsupported(message: impl Into<String>) -> SqlError {
        SqlError::new(PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED, message)
    }

    /// Others need the object (2BP01).
    #[cold]
    pub fn dependent_objects(message: impl Into<String>) -> SqlError {
        SqlError::new(PgSqlErrorCode::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST, message)
    }

    /// Somebody ended what the statement waited for (57014).
    #[cold]
    pub fn cancelled(message: impl Into<String>) -> SqlError {
        SqlError::new(PgSqlErrorCode::ERRCODE_QUERY_CANCELED, message)
    }

    /// A statement that the extension itself runs failed in the interface and not in Postgres.
    #[cold]
    pub fn from_spi(error: pgrx::spi::SpiError) -> SqlError {
        Error::internal(format!("a statement of the extension: {error}")).into()
    }

    /// The error with a SQLSTATE and a message that were kept as texts.
    pub fn from_parts(sqlstate: &str, message: String) -> SqlError {
        let code = sqlstate.bytes().rev().fold(0i32, |code, letter| code << 6 | (i32::from(letter) - i32::from(b'0')) & 0x3F);
        SqlError::new(code.into(), message)
    }

    /// The SQLSTATE.
    pub fn sqlstate(&self) -> String {
        let code = self.code as i32;
        (0..5).map(|place| char::from((code >> (6 * place) & 0x3F) as u8 + b'0')).collect()
    }

    /// Message and detail in one text.
    pub fn full_text(&self) -> String {
        match &self.detail {
            Some(detail) => format!("{}: {detail}", self.message),
            None => self.message.clone(),
        }
    }

    /// Whether the statement was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.code == PgSqlErrorCode::ERRCODE_QUERY_CANCELED
    }

    /// Whether doing the same again may end better.
    pub fn may_pass(&self) -> bool {
        !matches!(
            self.code,
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED
                | PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE
                | PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE
                | PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT
                | PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE
                | PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED
        )
    }

    /// What goes on, but not as the user may think (01000).
    #[cold]
    pub fn warning(message: impl Into<String>) -> SqlError {
        SqlError::new(PgSqlErrorCode::ERRCODE_WARNING, message)
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

    /// Whether somebody else has a lock for too long.
    pub fn is_lock_not_available(&self) -> bool {
        self.code == PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE
    }

    /// Whether a relation that a statement names is not there.
    pub fn is_undefined_relation(&self) -> bool {
        matches!(self.code, PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE | PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT)
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
    let mut error = error.into();
    if error.code == PgSqlErrorCode::ERRCODE_QUERY_CANCELED {
        if interrupts::interrupt_ends_session() {
            // Leaving the process from here would leave the pins of the frames below behind. The end of the session comes as soon
            // as this error has released them.
            error = SqlError::new(PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN, "terminating connection due to administrator command");
        } else {
            // Postgres knows who ended the statement and reports it with the right text.
            interrupts::check_for_interrupts();
        }
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
