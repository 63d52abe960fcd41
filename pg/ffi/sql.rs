//! Statements that the extension runs itself, with texts for parameters and columns.
//!
//! Postgres converts the texts. The statements run a few times a second at most; what is hot does not come here.

use pgrx::datum::DatumWithOid;
use pgrx::{Spi, pg_sys};

use crate::error::{OrRaise, SqlError};
use crate::ffi::extension;

/// A row: its columns as texts.
pub type Row = Vec<Option<String>>;

/// Runs a statement on the extension's tables whose parameters and columns are texts.
pub fn query(statement: &str, arguments: &[Option<&str>]) -> Vec<Row> {
    extension::require();
    let arguments: Vec<DatumWithOid> = arguments.iter().map(|text| DatumWithOid::from(*text)).collect();
    Spi::connect_mut(|client| rows_of(client.update(statement, None, &arguments)?)).map_err(SqlError::from_spi).or_raise()
}

/// Runs a query on what is committed now, or changed by earlier commands of the transaction, whatever its own snapshot shows: what
/// decides about a definition must not be out of date.
pub fn query_latest(statement: &str, arguments: &[Option<&str>]) -> Vec<Row> {
    let arguments: Vec<DatumWithOid> = arguments.iter().map(|text| DatumWithOid::from(*text)).collect();
    // SAFETY: pushed and popped here; an ERROR in between ends the subtransaction at least, which pops it.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot()) };
    let rows = Spi::connect(|client| rows_of(client.select(statement, None, &arguments)?)).map_err(SqlError::from_spi).or_raise();
    // SAFETY: see above.
    unsafe { pg_sys::PopActiveSnapshot() };
    rows
}

fn rows_of(table: pgrx::spi::SpiTupleTable<'_>) -> pgrx::spi::Result<Vec<Row>> {
    let columns = if table.is_empty() { 0 } else { table.columns().unwrap_or(0) };
    table.map(|row| (1..=columns).map(|column| row.get::<String>(column)).collect()).collect()
}

/// The one text that a statement gives.
pub fn query_one(statement: &str, arguments: &[Option<&str>]) -> Option<String> {
    query(statement, arguments).into_iter().next().and_then(|row| row.into_iter().next().flatten())
}

/// A column of a row.
pub fn text(row: &Row, column: usize) -> Option<&str> {
    row.get(column).and_then(|value| value.as_deref())
}
