//! Deleted rows as rows of the table as it is now.

use kalamdb_engine::ids::Tid;
use pgrx::pg_sys;

use super::buffer;
use super::entry::{self, Column};
use super::table::{self, Entry};
use crate::error::OrRaise;
use crate::ffi::compat;
use crate::ffi::memory::in_new_context;
use crate::ffi::plain;
use crate::gate;
use crate::tableam::slot::item_pointer;

/// A deleted row.
pub struct KeptRow {
    /// When the deleting transaction began.
    pub deleted_at: pg_sys::TimestampTz,
    /// The deleting transaction.
    pub xid: u64,
    /// Where the row stood.
    pub tid: Tid,
    /// Its values, as the table's columns are now.
    pub row: Restored,
}

/// The values of a deleted row for the columns that the table has now; NULL for dropped ones.
pub struct Restored {
    /// The values; their memory goes when the next row is read.
    pub values: Vec<pg_sys::Datum>,
    /// Which of them are NULL.
    pub nulls: Vec<bool>,
}

/// Calls `visit` with the deleted rows of a table, the oldest first; those that the running transaction deleted come last.
///
/// Of a user table, the rows of the statement's user.
pub fn kept_rows(rel: pg_sys::Relation, visit: &mut dyn FnMut(KeptRow)) {
    // SAFETY: the relation is open.
    let (relation, row_type) = unsafe { ((*rel).rd_id, (*(*rel).rd_rel).reltype) };
    let user = gate::user_for_function(rel);
    let is_wanted = |found: &Option<Box<[u8]>>| {
        user.as_ref().is_none_or(|user| found.as_deref().is_some_and(|found| found == user.name().as_bytes()))
    };
    table::each_entry(relation, row_type, &mut |entry| {
        if is_wanted(&entry.user) {
            each_row(rel, &entry, visit);
        }
    });
    let mut pending = Vec::new();
    buffer::each_pending(relation, &mut |entry| {
        if is_wanted(&entry.user) {
            // SAFETY: reads the backend's own state; a transaction that deleted has an id.
            let (deleted_at, xid) =
                unsafe { (plain::GetCurrentTransactionStartTimestamp(), pg_sys::GetTopFullTransactionId().value) };
            let (shape, rows) = (entry.shape.clone(), entry.rows.clone());
            pending.push(Entry { user: entry.user.clone(), deleted_at, xid, shape, rows });
        }
    });
    pending.iter().for_each(|entry| each_row(rel, entry, visit));
}

fn each_row(rel: pg_sys::Relation, entry: &Entry, visit: &mut dyn FnMut(KeptRow)) {
    let columns = entry::columns_of(&entry.shape).or_raise();
    let descriptor = OldDescriptor::of(&columns);
    in_new_context(c"kalamdb deleted row", |context| {
        for (tid, tuple) in entry::rows_of(&entry.rows).or_raise() {
            let row = descriptor.restore(rel, &columns, tuple);
            visit(KeptRow { deleted_at: entry.deleted_at, xid: entry.xid, tid, row });
            // SAFETY: what is allocated for a row goes before the next.
            unsafe { pg_sys::MemoryContextReset(context) };
        }
    });
    descriptor.free();
}

/// The descriptor of the rows of an entry.
struct OldDescriptor {
    descriptor: pg_sys::TupleDesc,
}

impl OldDescriptor {
    /// Made from what the entry says: a type may be gone by now, but its values can still be stepped over.
    fn of(columns: &[Column]) -> OldDescriptor {
        // SAFETY: a fresh descriptor with that many columns, each filled in.
        unsafe {
            let descriptor = pg_sys::CreateTemplateTupleDesc(columns.len() as i32);
            for (place, column) in columns.iter().enumerate() {
                let form = compat::attributes(descriptor).cast_mut().add(place);
                // Postgres leaves them as they were in memory. A tuple of fewer columns has NULL in the others, and no missing values.
                form.write_bytes(0, 1);
                let form = &mut *form;
                form.attnum = (place + 1) as i16;
                form.atttypid = column.type_oid;
                form.atttypmod = column.modifier;
                form.attlen = column.length;
                form.attalign = column.align as std::ffi::c_char;
                form.attbyval = column.by_value;
                form.attstorage = pg_sys::TYPSTORAGE_PLAIN as std::ffi::c_char;
                form.attisdropped = column.type_oid == pg_sys::InvalidOid;
                compat::complete_attribute(descriptor, place);
            }
            OldDescriptor { descriptor }
        }
    }

    fn free(self) {
        // SAFETY: made by `of`; nothing refers to it.
        unsafe { pg_sys::FreeTupleDesc(self.descriptor) };
    }

    fn restore(&self, rel: pg_sys::Relation, columns: &[Column], tuple: &[u8]) -> Restored {
        let mut old = Restored::empty(columns.len());
        // SAFETY: the copy is aligned, as allocated memory is, and lives as long as the values that point into it.
        unsafe {
            let copy = pg_sys::palloc(tuple.len()).cast::<u8>();
            std::ptr::copy_nonoverlapping(tuple.as_ptr(), copy, tuple.len());
            // A tuple that was formed anew for its large values calls itself a composite value of the table's row type, which may have
            // changed since.
            (*copy.cast::<pg_sys::HeapTupleHeaderData>()).t_choice = std::mem::zeroed();
            (*copy.cast::<pg_sys::HeapTupleHeaderData>()).t_ctid = item_pointer(Tid::new(0, 1));
            let mut whole =
                pg_sys::HeapTupleData { t_len: tuple.len() as u32, t_data: copy.cast(), ..pg_sys::HeapTupleData::default() };
            pg_sys::heap_deform_tuple(&mut whole, self.descriptor, old.values.as_mut_ptr(), old.nulls.as_mut_ptr());
            let natts = usize::from((*whole.t_data).t_infomask2 & pg_sys::HEAP_NATTS_MASK as u16);
            fit(rel, columns, &old, natts)
        }
    }
}

impl Restored {
    fn empty(columns: usize) -> Restored {
        Restored { values: vec![pg_sys::Datum::from(0); columns], nulls: vec![true; columns] }
    }
}

/// The values for the columns of the relation.
///
/// # Safety
/// `old` are values of those columns; the tuple had `natts` of them.
#[allow(clippy::needless_range_loop, reason = "several arrays are indexed by the column")]
unsafe fn fit(rel: pg_sys::Relation, columns: &[Column], old: &Restored, natts: usize) -> Restored {
    // SAFETY: the descriptor belongs to the open relation.
    unsafe {
        let descriptor = (*rel).rd_att;
        let count = (*descriptor).natts as usize;
        let mut row = Restored::empty(count);
        for place in 0..count {
            let form = &*compat::attributes(descriptor).add(place);
            if form.attisdropped {
                continue;
            }
            if place >= natts {
                // The column came later: its first default counts, as for rows that stayed.
                row.values[place] = pg_sys::getmissingattr(descriptor, (place + 1) as i32, &mut row.nulls[place]);
                continue;
            }
            let column = &columns[place];
            if old.nulls[place] || column.type_oid == pg_sys::InvalidOid {
                continue;
            }
            row.nulls[place] = false;
            row.values[place] = if column.type_oid == form.atttypid {
                old.values[place]
            } else {
                convert(old.values[place], column.type_oid, form.atttypid, form.atttypmod)
            };
        }
        row
    }
}

/// A value in another type, by way of its text.
unsafe fn convert(value: pg_sys::Datum, from: pg_sys::Oid, to: pg_sys::Oid, modifier: i32) -> pg_sys::Datum {
    let (mut output, mut input, mut parameter, mut is_varlena) =
        (pg_sys::InvalidOid, pg_sys::InvalidOid, pg_sys::InvalidOid, false);
    // SAFETY: looks up functions of types; an ERROR tells of a type that is gone or of a text the new type does not take.
    unsafe {
        pg_sys::getTypeOutputInfo(from, &mut output, &mut is_varlena);
        let text = pg_sys::OidOutputFunctionCall(output, value);
        pg_sys::getTypeInputInfo(to, &mut input, &mut parameter);
        pg_sys::OidInputFunctionCall(input, text, parameter, modifier)
    }
}

/// The row as jsonb.
///
/// # Safety
/// The row was read for this relation, in a memory context that still lives.
pub unsafe fn to_jsonb(rel: pg_sys::Relation, row: &mut Restored) -> pg_sys::Datum {
    // SAFETY: values and nulls are as many as the descriptor's columns; dropped ones are NULL.
    unsafe {
        let tuple = pg_sys::heap_form_tuple((*rel).rd_att, row.values.as_mut_ptr(), row.nulls.as_mut_ptr());
        let composite = pg_sys::heap_copy_tuple_as_datum(tuple, (*rel).rd_att);
        let json = pg_sys::OidFunctionCall1Coll(pg_sys::F_ROW_TO_JSON_RECORD.into(), pg_sys::InvalidOid, composite);
        let text = pg_sys::text_to_cstring(json.cast_mut_ptr());
        pg_sys::OidInputFunctionCall(pg_sys::F_JSONB_IN.into(), text, pg_sys::InvalidOid, -1)
    }
}
