//! The message store: a table and two functions that a schema gets on request.

use kalamdb_engine::Error;
use pgrx::prelude::*;
use pgrx::spi::{Spi, quote_identifier};

use crate::error::{OrRaise, SqlError};

/// The statements, with `@schema@` for the schema's quoted name, `@schema_of_format@` where that is within a format, and `@tag@`
/// in what begins and ends a quoted text.
const STATEMENTS: &str = include_str!("messages.sql");

/// Makes the message store in a schema, with the caller's rights.
#[pg_extern]
fn install_messages(schema: Option<&str>) {
    install(schema.unwrap_or_default()).or_raise();
}

fn install(schema: &str) -> Result<(), SqlError> {
    if schema.is_empty() {
        return Err(SqlError::invalid_parameter("the name of the schema is empty")
            .with_detail("The message store is made in a schema that exists.")
            .with_hint("Name a schema, as in kalam.install_messages('app')."));
    }
    let statements = statements(&quote_identifier(schema));
    Spi::run(&statements).map_err(|error| Error::internal(format!("the message store could not be made: {error}")).into())
}

/// The statements for a schema, by its quoted name, which may have what would end a text or be filled in.
fn statements(schema: &str) -> String {
    let mut tag = "_".to_owned();
    while schema.contains(&format!("{tag}$")) {
        tag.push('_');
    }
    let statements = STATEMENTS.replace("@tag@", &tag).replace("@schema_of_format@", &schema.replace('%', "%%"));
    statements.replace("@schema@", schema)
}
