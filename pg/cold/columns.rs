//! Describes a table's columns to the writer of segments.

use std::ffi::CStr;

use kalamdb_engine::segment::{Align, Column, ColumnKind, TableSchema};
use pgrx::pg_sys;

use crate::ffi::compat;
use crate::tableam::storage::relation_name;

/// The columns of an open table; the primary key gets bloom filters unless other columns are named.
pub fn describe(rel: pg_sys::Relation, bloom_columns: Option<&[i16]>) -> TableSchema {
    // SAFETY: the relation is open and locked; its descriptor has that many columns.
    unsafe {
        let descriptor = (*rel).rd_att;
        let columns = (0..(*descriptor).natts as usize).map(|place| column(&*compat::attributes(descriptor).add(place)));
        TableSchema {
            namespace: text(pg_sys::get_namespace_name((*(*rel).rd_rel).relnamespace)),
            table: relation_name(rel),
            table_oid: (*rel).rd_id.to_u32(),
            // Columns are only ever added; a change of type rewrites the table and its segments.
            version: (*descriptor).natts as u32,
            columns: columns.collect(),
            bloom_columns: bloom_columns.map_or_else(|| primary_key(rel), <[i16]>::to_vec),
        }
    }
}

/// A string of Postgres; an empty one for none.
///
/// # Safety
/// The string is none or ends with a zero byte.
pub unsafe fn text(string: *const std::ffi::c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: Postgres' strings end with a zero byte.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}

unsafe fn column(form: &pg_sys::FormData_pg_attribute) -> Column {
    // SAFETY: looks types up; a dropped column has none.
    unsafe {
        let (kind, type_name) = if form.attisdropped {
            (ColumnKind::Opaque, String::new())
        } else {
            (kind_of(form.atttypid, form.atttypmod), text(pg_sys::format_type_with_typemod(form.atttypid, form.atttypmod)))
        };
        Column {
            attnum: form.attnum,
            name: text(form.attname.data.as_ptr()),
            type_name,
            kind,
            len: form.attlen,
            align: Align::from_attalign(form.attalign as u8).unwrap_or(Align::Double),
            by_value: form.attbyval,
            packed: form.attlen == -1 && form.attstorage as u8 != pg_sys::TYPSTORAGE_PLAIN,
            dropped: form.attisdropped,
        }
    }
}

/// What values of a type are to a reader of the file.
unsafe fn kind_of(type_oid: pg_sys::Oid, modifier: i32) -> ColumnKind {
    let mut modifier = modifier;
    // SAFETY: looks up types.
    unsafe {
        let base = pg_sys::getBaseTypeAndTypmod(type_oid, &mut modifier);
        if let Some(kind) = scalar(base, modifier) {
            return kind;
        }
        let element_oid = pg_sys::get_element_type(base);
        // Their values have no lower bound of one, which lists have.
        let is_vector = matches!(base, pg_sys::INT2VECTOROID | pg_sys::OIDVECTOROID);
        if element_oid == pg_sys::InvalidOid || is_vector {
            return ColumnKind::Opaque;
        }
        let mut element_modifier = modifier;
        let element_base = pg_sys::getBaseTypeAndTypmod(element_oid, &mut element_modifier);
        let Some(element) = scalar(element_base, element_modifier) else { return ColumnKind::Opaque };
        let (mut len, mut by_value, mut align) = (0, false, 0);
        pg_sys::get_typlenbyvalalign(element_oid, &mut len, &mut by_value, &mut align);
        let Some(align) = Align::from_attalign(align as u8) else { return ColumnKind::Opaque };
        ColumnKind::Array { element: Box::new(element), element_oid: element_oid.to_u32(), len, align, by_value }
    }
}

fn scalar(type_oid: pg_sys::Oid, modifier: i32) -> Option<ColumnKind> {
    // SAFETY: reads a global of the backend.
    let is_utf8 = unsafe { pg_sys::GetDatabaseEncoding() } == pg_sys::pg_enc::PG_UTF8 as i32;
    Some(match type_oid {
        pg_sys::BOOLOID => ColumnKind::Bool,
        pg_sys::INT2OID => ColumnKind::Int2,
        pg_sys::INT4OID => ColumnKind::Int4,
        pg_sys::INT8OID => ColumnKind::Int8,
        pg_sys::FLOAT4OID => ColumnKind::Float4,
        pg_sys::FLOAT8OID => ColumnKind::Float8,
        pg_sys::BYTEAOID => ColumnKind::Bytea,
        pg_sys::UUIDOID => ColumnKind::Uuid,
        pg_sys::DATEOID => ColumnKind::Date,
        pg_sys::TIMEOID => ColumnKind::Time,
        pg_sys::TIMESTAMPOID => ColumnKind::Timestamp,
        pg_sys::TIMESTAMPTZOID => ColumnKind::TimestampTz,
        pg_sys::NUMERICOID => numeric(modifier),
        pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID | pg_sys::NAMEOID if is_utf8 => ColumnKind::Text,
        pg_sys::JSONOID if is_utf8 => ColumnKind::Json,
        pg_sys::JSONBOID if is_utf8 => ColumnKind::Jsonb,
        _ => return None,
    })
}

/// A modifier of numeric is `precision << 16 | scale`, plus the length of a varlena header; the scale has 11 bits and a sign.
fn numeric(modifier: i32) -> ColumnKind {
    const HEADER: i32 = pg_sys::VARHDRSZ as i32;
    if modifier < HEADER {
        return ColumnKind::NumericText;
    }
    let precision = (modifier - HEADER) >> 16 & 0xffff;
    let scale = (((modifier - HEADER) & 0x7ff) ^ 1024) - 1024;
    if (1..=38).contains(&precision) && (0..=precision).contains(&scale) {
        return ColumnKind::Numeric { precision: precision as u8, scale: scale as i8 };
    }
    ColumnKind::NumericText
}

/// The columns of the primary key.
unsafe fn primary_key(rel: pg_sys::Relation) -> Vec<i16> {
    // SAFETY: the relation is open.
    unsafe {
        let index = pg_sys::RelationGetPrimaryKeyIndex(
            rel,
            #[cfg(feature = "pg18")]
            false,
        );
        if index == pg_sys::InvalidOid {
            return Vec::new();
        }
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let index = pg_sys::index_open(index, lock);
        let form = &*(*index).rd_index;
        let columns = std::slice::from_raw_parts(form.indkey.values.as_ptr(), form.indnkeyatts as usize).to_vec();
        pg_sys::index_close(index, lock);
        columns
    }
}
