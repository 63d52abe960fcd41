//! The least and greatest values of columns, as text.

use chrono::{DateTime, Datelike, Duration, NaiveDate, NaiveDateTime};
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use parquet::file::statistics::Statistics;

use super::{Column, ColumnKind};

/// A bound of a row group's column that can be compared with others of its column.
#[derive(Clone, PartialEq, PartialOrd)]
enum Bound {
    Bool(bool),
    Integer(i64),
    Float(f64),
    Decimal(i128),
    Bytes(Vec<u8>),
}

/// The least and the greatest value of a column, where they are known.
pub fn bounds_of(groups: &[RowGroupMetaData], column: &Column) -> (Option<String>, Option<String>) {
    let (mut min, mut max): (Option<Bound>, Option<Bound>) = (None, None);
    for group in groups {
        let own = |chunk: &&ColumnChunkMetaData| matches!(chunk.column_path().parts(), [name] if *name == column.name);
        let Some(statistics) = group.columns().iter().find(own).and_then(|chunk| chunk.statistics()) else { continue };
        let (least, greatest) = bounds(statistics, &column.kind);
        if let Some(least) = least
            && min.as_ref().is_none_or(|min| least < *min)
        {
            min = Some(least);
        }
        if let Some(greatest) = greatest
            && max.as_ref().is_none_or(|max| greatest > *max)
        {
            max = Some(greatest);
        }
    }
    let text = |bound: Option<Bound>| bound.and_then(|bound| to_text(&bound, &column.kind));
    (text(min), text(max))
}

fn bounds(statistics: &Statistics, kind: &ColumnKind) -> (Option<Bound>, Option<Bound>) {
    macro_rules! of {
        ($typed:expr, $bound:expr) => {
            ($typed.min_opt().map($bound), $typed.max_opt().map($bound))
        };
    }
    match statistics {
        Statistics::Boolean(typed) => of!(typed, |value| Bound::Bool(*value)),
        Statistics::Int32(typed) => of!(typed, |value| Bound::Integer((*value).into())),
        Statistics::Int64(typed) => of!(typed, |value| Bound::Integer(*value)),
        Statistics::Float(typed) => of!(typed, |value| Bound::Float((*value).into())),
        Statistics::Double(typed) => of!(typed, |value| Bound::Float(*value)),
        Statistics::ByteArray(typed) => of!(typed, |value| Bound::Bytes(value.data().to_vec())),
        Statistics::FixedLenByteArray(typed) if matches!(kind, ColumnKind::Numeric { .. }) => {
            of!(typed, |value| Bound::Decimal(big_endian(value.data())))
        }
        Statistics::FixedLenByteArray(typed) => of!(typed, |value| Bound::Bytes(value.data().to_vec())),
        Statistics::Int96(_) => (None, None),
    }
}

fn big_endian(bytes: &[u8]) -> i128 {
    let sign = if bytes.first().is_some_and(|byte| *byte >= 0x80) { -1 } else { 0 };
    bytes.iter().fold(sign, |value, byte| value << 8 | i128::from(*byte))
}

/// Nothing for years that Postgres prints in another way than ISO 8601 has it.
fn printable(year: i32) -> Option<()> {
    (1..=9999).contains(&year).then_some(())
}

fn to_text(bound: &Bound, kind: &ColumnKind) -> Option<String> {
    Some(match (kind, bound) {
        (_, Bound::Bool(value)) => value.to_string(),
        (ColumnKind::Date, Bound::Integer(day)) => {
            let date = NaiveDate::default().checked_add_signed(Duration::try_days(*day)?)?;
            printable(date.year())?;
            date.format("%Y-%m-%d").to_string()
        }
        (ColumnKind::Time, Bound::Integer(micros)) => {
            (NaiveDateTime::default() + Duration::microseconds(*micros)).format("%H:%M:%S%.f").to_string()
        }
        (ColumnKind::Timestamp | ColumnKind::TimestampTz, Bound::Integer(micros)) => {
            let time = DateTime::from_timestamp_micros(*micros)?;
            printable(time.year())?;
            let zone = if *kind == ColumnKind::TimestampTz { "+00" } else { "" };
            format!("{}{zone}", time.format("%Y-%m-%d %H:%M:%S%.f"))
        }
        (ColumnKind::Numeric { scale, .. }, bound) => {
            let digits = match bound {
                Bound::Integer(value) => i128::from(*value),
                Bound::Decimal(value) => *value,
                _ => return None,
            };
            super::numeric::to_text(&super::numeric::from_i128(digits, u8::try_from(*scale).ok()?))?
        }
        (_, Bound::Integer(value)) => value.to_string(),
        (_, Bound::Float(value)) => value.to_string().replace("inf", "Infinity"),
        // Their order is not that of their texts.
        (ColumnKind::Json | ColumnKind::Jsonb | ColumnKind::NumericText | ColumnKind::Opaque | ColumnKind::Bytea, _) => {
            return None;
        }
        (ColumnKind::Uuid, Bound::Bytes(bytes)) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{}-{}-{}-{}-{}", hex.get(..8)?, hex.get(8..12)?, hex.get(12..16)?, hex.get(16..20)?, hex.get(20..)?)
        }
        (_, Bound::Bytes(bytes)) => String::from_utf8(bytes.clone()).ok()?,
        (_, Bound::Decimal(_)) => return None,
    })
}
