//! Small helpers around the `postgres` client: SQLSTATEs, connection loss, digests.

use md5::{Digest, Md5};
use postgres::error::Severity;

/// SQLSTATE of a server error; `None` when the connection itself failed.
pub fn sqlstate(error: &postgres::Error) -> Option<&str> {
    error.code().map(|code| code.code())
}

/// Whether the session is over: the connection broke or the server said FATAL or PANIC.
pub fn session_is_over(error: &postgres::Error) -> bool {
    match error.as_db_error() {
        None => true,
        Some(error) => !matches!(error.parsed_severity(), Some(Severity::Error)),
    }
}

/// An error with everything the server said about it.
pub fn describe(error: &postgres::Error) -> String {
    match error.as_db_error() {
        None => format!("connection: {error}{}", source_of(error)),
        Some(error) => {
            let mut text = format!("{} {}: {}", error.severity(), error.code().code(), error.message());
            for (what, part) in [("detail", error.detail()), ("hint", error.hint()), ("context", error.where_())] {
                if let Some(part) = part {
                    text.push_str(&format!(" | {what}: {part}"));
                }
            }
            text
        }
    }
}

fn source_of(error: &postgres::Error) -> String {
    std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default()
}

/// The first 64 bits of the MD5 of `text`, as `('x' || left(md5(text), 16))::bit(64)::bigint` gives them in SQL.
pub fn digest(text: &str) -> i64 {
    let bytes = Md5::digest(text.as_bytes());
    i64::from_be_bytes(bytes[..8].try_into().expect("an MD5 has 16 bytes"))
}

/// The SQL expression that equals [`digest`] of a text expression.
pub fn digest_sql(expression: &str) -> String {
    format!("('x' || left(md5({expression}), 16))::bit(64)::bigint")
}

/// A string literal.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_the_head_of_md5() {
        assert_eq!(digest(""), 0xd41d8cd98f00b204_u64 as i64);
        assert_eq!(digest("abc"), 0x900150983cd24fb0_u64 as i64);
    }
}
