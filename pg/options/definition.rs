//! The options there are, and the form of their values.

use std::cell::RefCell;

use kalamdb_engine::cache::FlushLimits;
use pgrx::{IntoDatum, pg_sys};

use crate::error::{SqlError, catching};
use crate::hash::Map;

/// An option of tables.
pub struct Definition {
    /// Its name, without `kalam.`.
    pub name: &'static str,
    /// What its value may be, for people.
    pub form: &'static str,
    /// The value in its normal form; none for a value it may not have.
    normal: fn(&str) -> Option<String>,
}

/// All options, in the order in which they are listed.
pub const DEFINITIONS: [Definition; 12] = [
    Definition {
        name: "flush_policy",
        form: "'rows:N', 'interval:S', 'rows:N,interval:S' or 'off', with N from 1 to 999999 and S from 1 to 86399 seconds",
        normal: |value| parse_policy(value).map(policy_text),
    },
    Definition { name: "flush_rows", form: "a number of rows from 1 to 999999", normal: |value| number(value, 1, MAX_ROWS) },
    Definition {
        name: "flush_interval",
        form: "a time from 1 to 86399 seconds, as a number of seconds or an interval such as '5 min'",
        normal: seconds,
    },
    Definition { name: "storage", form: "the name of a storage", normal: name },
    Definition {
        name: "compression",
        form: "zstd, lz4, snappy or none; zstd with a level as in 'zstd:3', from 1 to 22",
        normal: compression,
    },
    Definition {
        name: "row_group_rows",
        form: "a number of rows from 1024 to 10000000",
        normal: |value| number(value, 1024, 10_000_000),
    },
    Definition { name: "bloom_columns", form: "names of columns, separated by commas", normal: columns },
    Definition { name: "cluster_by", form: "names of columns, separated by commas", normal: columns },
    Definition {
        name: "deleted_retention",
        form: "an interval such as '7 days', or 0 to keep no deleted rows",
        normal: |value| microseconds(value).filter(|us| *us >= 0).map(interval_text),
    },
    Definition {
        name: "ttl",
        form: "an interval above zero such as '10 s'",
        normal: |value| microseconds(value).filter(|us| *us > 0).map(interval_text),
    },
    Definition { name: "max_bytes", form: "a size such as 1000000 or '1 GB'", normal: bytes },
    Definition { name: "encryption_key", form: "the name of a key", normal: name },
];

const MAX_ROWS: u64 = 999_999;
const MAX_SECONDS: u64 = 86_399;

/// The definition of an option.
///
/// # Errors
/// 22023 that lists the options there are.
pub fn find(name: &str) -> Result<&'static Definition, SqlError> {
    DEFINITIONS.iter().find(|definition| definition.name == name).ok_or_else(|| {
        let names: Vec<&str> = DEFINITIONS.iter().map(|definition| definition.name).collect();
        SqlError::invalid_parameter(format!("unrecognized KalamDB option \"{name}\""))
            .with_detail(format!("The options of a KalamDB table are {}.", names.join(", ")))
            .with_hint("The function kalam.effective_options shows those of a table with their values.")
    })
}

impl Definition {
    /// The value in its normal form.
    ///
    /// # Errors
    /// 22023 that says what it may be.
    pub fn normalize(&self, value: &str) -> Result<String, SqlError> {
        (self.normal)(value.trim()).ok_or_else(|| {
            SqlError::invalid_parameter(format!("invalid value for option \"{}\": \"{value}\"", self.name))
                .with_detail(format!("Valid is {}.", self.form))
                .with_hint("The documentation of the table options has examples.")
        })
    }
}

fn number(value: &str, least: u64, most: u64) -> Option<String> {
    value.parse::<u64>().ok().filter(|number| (least..=most).contains(number)).map(|number| number.to_string())
}

/// The limits that a policy states.
pub fn parse_policy(value: &str) -> Option<FlushLimits> {
    let mut limits = FlushLimits::default();
    if value.trim() == "off" {
        return Some(limits);
    }
    for part in value.split(',') {
        let (key, number) = part.split_once(':')?;
        let (place, most) = match key.trim() {
            "rows" => (&mut limits.rows, MAX_ROWS),
            "interval" => (&mut limits.seconds, MAX_SECONDS),
            _ => return None,
        };
        let number: u64 = number.trim().parse().ok()?;
        // Each part may stand once.
        if *place != 0 || number == 0 || number > most {
            return None;
        }
        *place = u32::try_from(number).ok()?;
    }
    Some(limits)
}

fn policy_text(limits: FlushLimits) -> String {
    match (limits.rows, limits.seconds) {
        (0, 0) => "off".to_owned(),
        (rows, 0) => format!("rows:{rows}"),
        (0, seconds) => format!("interval:{seconds}"),
        (rows, seconds) => format!("rows:{rows},interval:{seconds}"),
    }
}

fn seconds(value: &str) -> Option<String> {
    let seconds = match value.parse::<u64>() {
        Ok(seconds) => seconds,
        Err(_) => u64::try_from(microseconds(value)?).ok()? / 1_000_000,
    };
    (1..=MAX_SECONDS).contains(&seconds).then(|| seconds.to_string())
}

fn name(value: &str) -> Option<String> {
    (!value.is_empty() && value.len() < 64 && !value.contains(['/', '\0'])).then(|| value.to_owned())
}

fn compression(value: &str) -> Option<String> {
    let value = value.to_ascii_lowercase();
    let fits = match value.split_once(':') {
        None => matches!(value.as_str(), "zstd" | "lz4" | "snappy" | "none"),
        Some(("zstd", level)) => level.parse::<u32>().is_ok_and(|level| (1..=22).contains(&level)),
        Some(_) => false,
    };
    fits.then_some(value)
}

/// The names in a list separated by commas; one in double quotes may have any character.
pub fn names(value: &str) -> Vec<String> {
    let (mut names, mut current, mut quoted) = (Vec::new(), String::new(), false);
    let mut letters = value.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                current.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => names.push(std::mem::take(&mut current)),
            letter if quoted || !letter.is_whitespace() => current.push(letter),
            _ => {}
        }
    }
    names.push(current);
    names.retain(|name| !name.is_empty());
    names
}

fn columns(value: &str) -> Option<String> {
    let names = names(value);
    let quoted: Vec<String> = names.iter().map(|name| quote(name)).collect();
    (!names.is_empty() && names.iter().all(|name| name.len() < 64)).then(|| quoted.join(", "))
}

fn quote(name: &str) -> String {
    let plain = name.bytes().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == b'_');
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// Whether an option is known and does nothing yet, so that no value but none is taken.
pub fn is_unbuilt(option: &str) -> bool {
    matches!(option, "cluster_by" | "encryption_key")
}

thread_local! {
    /// What [`stored_microseconds`] has read.
    static READ: RefCell<Map<Box<str>, Option<i64>>> = RefCell::default();
}

/// Texts of which a process remembers what they say.
const READ_MAX: usize = 100;

/// As [`microseconds`], for a text as options are kept, which means the same under every setting: each row of a stream asks.
pub fn stored_microseconds(value: &str) -> Option<i64> {
    if let Some(known) = READ.with_borrow(|read| read.get(value).copied()) {
        return known;
    }
    let length = microseconds(value);
    READ.with_borrow_mut(|read| {
        if read.len() >= READ_MAX {
            read.clear();
        }
        read.insert(value.into(), length);
    });
    length
}

/// The length of an interval in microseconds, a month counted as 30 days; none if the text is no interval.
pub fn microseconds(value: &str) -> Option<i64> {
    if value.is_empty() {
        return None;
    }
    let text = std::ffi::CString::new(value).ok()?;
    catching(|| {
        let arguments = [text.as_c_str().into_datum(), pg_sys::InvalidOid.into_datum(), (-1i32).into_datum()];
        // SAFETY: the input function of the type takes a string, a type and a modifier, and gives an allocated interval.
        unsafe {
            let interval: pg_sys::Datum = pgrx::direct_function_call_as_datum(pg_sys::interval_in, &arguments)?;
            let interval = &*interval.cast_mut_ptr::<pg_sys::Interval>();
            let days = i64::from(interval.month).checked_mul(30)?.checked_add(i64::from(interval.day))?;
            days.checked_mul(86_400_000_000)?.checked_add(interval.time)
        }
    })
    .ok()
    .flatten()
}

/// An interval as a text that means the same under every setting of a session.
fn interval_text(microseconds: i64) -> String {
    const DAY: i64 = 86_400_000_000;
    let (days, rest) = (microseconds / DAY, microseconds % DAY);
    let seconds = match (rest / 1_000_000, rest % 1_000_000) {
        (whole, 0) => format!("{whole} s"),
        (whole, part) => format!("{whole}.{part:06} s"),
    };
    match (days, rest) {
        (0, 0) => "0".to_owned(),
        (days, 0) => format!("{days} days"),
        (0, _) => seconds,
        (days, _) => format!("{days} days {seconds}"),
    }
}

fn bytes(value: &str) -> Option<String> {
    let digits = value.trim_end_matches(|letter: char| letter.is_ascii_alphabetic() || letter.is_whitespace());
    let unit = value[digits.len()..].trim().to_ascii_lowercase();
    let factor: u64 = match unit.as_str() {
        "" | "b" | "bytes" => 1,
        "kb" => 1 << 10,
        "mb" => 1 << 20,
        "gb" => 1 << 30,
        "tb" => 1 << 40,
        _ => return None,
    };
    let bytes = digits.parse::<u64>().ok()?.checked_mul(factor)?;
    (bytes > 0 && i64::try_from(bytes).is_ok()).then(|| bytes.to_string())
}
