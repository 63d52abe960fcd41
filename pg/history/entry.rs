//! The form of an entry: what the columns were, and the rows.
//!
//! ```text
//! shape: u16 columns, then for each: u32 type, i32 modifier, i16 length, u8 alignment, u8 by value; type 0 for a dropped one
//! rows:  for each: u32 length, u32 block, u16 offset, u16 zero, the tuple from its header on
//! ```

use kalamdb_engine::ids::Tid;
use kalamdb_engine::{Error, Result};
use pgrx::pg_sys;

use crate::ffi::compat;

const COLUMN: usize = 12;
const ROW_HEAD: usize = 12;

/// What a column was when its row was deleted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Column {
    /// Its type; invalid if it was dropped by then.
    pub type_oid: pg_sys::Oid,
    /// The type's modifier.
    pub modifier: i32,
    /// attlen.
    pub length: i16,
    /// attalign.
    pub align: u8,
    /// attbyval.
    pub by_value: bool,
}

/// The shape of a relation's rows as they are stored now.
pub fn shape_of(rel: pg_sys::Relation) -> Vec<u8> {
    // SAFETY: the relation is open; its descriptor has that many columns.
    unsafe {
        let descriptor = (*rel).rd_att;
        let count = (*descriptor).natts as usize;
        let mut shape = Vec::with_capacity(2 + count * COLUMN);
        shape.extend_from_slice(&(count as u16).to_le_bytes());
        for column in 0..count {
            let form = &*compat::attributes(descriptor).add(column);
            let type_oid = if form.attisdropped { 0 } else { form.atttypid.to_u32() };
            shape.extend_from_slice(&type_oid.to_le_bytes());
            shape.extend_from_slice(&form.atttypmod.to_le_bytes());
            shape.extend_from_slice(&form.attlen.to_le_bytes());
            shape.push(form.attalign as u8);
            shape.push(u8::from(form.attbyval));
        }
        shape
    }
}

/// Appends a row.
pub fn push_row(rows: &mut Vec<u8>, tid: Tid, tuple: &[u8]) {
    rows.reserve(ROW_HEAD + tuple.len());
    rows.extend_from_slice(&(tuple.len() as u32).to_le_bytes());
    rows.extend_from_slice(&tid.block.to_le_bytes());
    rows.extend_from_slice(&tid.offset.to_le_bytes());
    rows.extend_from_slice(&[0; 2]);
    rows.extend_from_slice(tuple);
}

fn damaged() -> Error {
    Error::corrupt("an entry of kalam.deleted_rows is damaged")
        .with_hint("Delete the entry; the table's own rows are not affected.")
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or_else(damaged)
}

/// The columns of a shape.
///
/// # Errors
/// `Corrupt` if it is none.
pub fn columns_of(shape: &[u8]) -> Result<Vec<Column>> {
    let count = usize::from(u16::from_le_bytes(array(shape, 0)?));
    (0..count)
        .map(|column| {
            let at = 2 + column * COLUMN;
            let tail: [u8; 2] = array(shape, at + 10)?;
            Ok(Column {
                type_oid: u32::from_le_bytes(array(shape, at)?).into(),
                modifier: i32::from_le_bytes(array(shape, at + 4)?),
                length: i16::from_le_bytes(array(shape, at + 8)?),
                align: tail[0],
                by_value: tail[1] != 0,
            })
        })
        .collect()
}

/// The rows of an entry.
///
/// # Errors
/// `Corrupt` if they do not fit together.
pub fn rows_of(mut rows: &[u8]) -> Result<Vec<(Tid, &[u8])>> {
    let mut found = Vec::new();
    while !rows.is_empty() {
        let len = u32::from_le_bytes(array(rows, 0)?) as usize;
        let tid = Tid::new(u32::from_le_bytes(array(rows, 4)?), u16::from_le_bytes(array(rows, 8)?));
        let tuple = rows.get(ROW_HEAD..ROW_HEAD + len).ok_or_else(damaged)?;
        found.push((tid, tuple));
        rows = &rows[ROW_HEAD + len..];
    }
    Ok(found)
}
