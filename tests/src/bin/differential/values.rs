//! Random values and columns of many types, as SQL text that means the same wherever it is evaluated.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind(pub &'static str);

/// Types of columns; all have a total order, so that any can be compared and indexed with btree.
pub const KINDS: [Kind; 18] = [
    Kind("int"),
    Kind("int"),
    Kind("bigint"),
    Kind("smallint"),
    Kind("text"),
    Kind("text"),
    Kind("varchar(12)"),
    Kind("char(5)"),
    Kind("numeric"),
    Kind("boolean"),
    Kind("timestamptz"),
    Kind("date"),
    Kind("jsonb"),
    Kind("bytea"),
    Kind("uuid"),
    Kind("float8"),
    Kind("int[]"),
    Kind("interval"),
];

impl Kind {
    pub fn random(rng: &mut ChaCha8Rng) -> Self {
        *KINDS.choose(rng).expect("not empty")
    }

    pub fn is_number(self) -> bool {
        ["int", "bigint", "smallint", "numeric"].contains(&self.0)
    }

    /// Long values are allowed, and never go into an index whole.
    pub fn is_long(self) -> bool {
        ["text", "bytea", "jsonb", "int[]"].contains(&self.0)
    }
}

/// A value as SQL expression, sometimes NULL, sometimes long.
pub fn value(rng: &mut ChaCha8Rng, kind: Kind) -> String {
    if rng.random_ratio(1, 10) {
        return "NULL".into();
    }
    if kind.is_long() && rng.random_ratio(1, 12) {
        return long_value(rng, kind);
    }
    short_value(rng, kind)
}

/// A value from a small domain, so that equal ones meet.
pub fn short_value(rng: &mut ChaCha8Rng, kind: Kind) -> String {
    let n: i64 = rng.random_range(-3..40);
    match kind.0 {
        "int" | "bigint" | "smallint" => match rng.random_range(0..30) {
            // The last one is out of smallint's range: an error on both sides.
            0 => ["0", "-1", "32767", "40000"].choose(rng).expect("not empty").to_string(),
            _ => n.to_string(),
        },
        "text" => format!(
            "'{}'",
            ["", "a", "Ä ö", "chat", "message", "a longer text with some words in it", "z"].choose(rng).expect("not empty")
        ),
        "varchar(12)" => {
            if rng.random_ratio(1, 40) {
                "'more than twelve characters'".into()
            } else {
                format!("'word {n}'")
            }
        }
        "char(5)" => format!("'c{n}'"),
        "numeric" => {
            ["0", "1.50", "-2.25", "12345678901234567890.123456789", "'NaN'", "3"].choose(rng).expect("not empty").to_string()
        }
        "boolean" => rng.random::<bool>().to_string(),
        "timestamptz" => format!("timestamptz '2024-02-28 12:00+00' + {n} * interval '7 hours'"),
        "date" => format!("date '2024-02-28' + {n}"),
        "jsonb" => format!("'{{\"n\": {n}, \"tags\": [\"a\", null, {{\"deep\": true}}]}}'"),
        "bytea" => format!("'\\x{:02x}00ff'", n + 3),
        "uuid" => format!("md5('{n}')::uuid"),
        "float8" => ["0", "-0.0", "1.5", "'NaN'", "'Infinity'", "1e-300", "2"].choose(rng).expect("not empty").to_string(),
        "int[]" => format!("ARRAY[{n}, NULL, {}]", n * 2),
        _ => format!("interval '{n} days 3 hours'"),
    }
}

/// More than 4 KB, more than a page of 32 KB, or well compressible.
fn long_value(rng: &mut ChaCha8Rng, kind: Kind) -> String {
    let start = rng.random_range(0..1000);
    let pieces = *[140, 300, 1_100, 4_000].choose(rng).expect("not empty");
    let noise = format!("(SELECT string_agg(md5(({start} + i)::text), '') FROM generate_series(1, {pieces}) i)");
    match kind.0 {
        "text" if rng.random_ratio(1, 3) => format!("repeat('long {start} ', {})", pieces * 4),
        "text" => noise,
        "bytea" => format!("decode({noise}, 'hex')"),
        "jsonb" => format!("jsonb_build_object('long', {noise})"),
        _ => format!("(SELECT array_agg(hashint4({start} + i)) FROM generate_series(1, {}) i)", pieces * 8),
    }
}

/// A value for COPY's text format, or nothing when the type's text form is not simple enough.
pub fn copy_value(rng: &mut ChaCha8Rng, kind: Kind) -> Option<String> {
    if rng.random_ratio(1, 10) {
        return Some("\\N".into());
    }
    let n: i64 = rng.random_range(0..40);
    Some(match kind.0 {
        "int" | "bigint" | "smallint" | "numeric" | "float8" => n.to_string(),
        "text" if rng.random_ratio(1, 10) => "copied ".repeat(rng.random_range(1..6_000)),
        "text" | "varchar(12)" | "char(5)" => format!("c{n}"),
        "boolean" => "t".into(),
        "date" => "2024-05-06".into(),
        "timestamptz" => "2024-05-06 07:08:09+00".into(),
        "jsonb" => format!("{{\"n\": {n}}}"),
        "int[]" => format!("{{{n},NULL}}"),
        "interval" => format!("{n} days"),
        _ => return None,
    })
}
