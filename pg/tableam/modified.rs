//! Tells which indexed columns an update changes.

use pgrx::pg_sys;

use super::raw;

/// Attribute numbers in Postgres' column bitmaps start here, so that system columns fit.
const FIRST_LOW: i32 = pg_sys::FirstLowInvalidHeapAttributeNumber;

/// What an update does to the indexed columns.
#[derive(Clone, Copy)]
pub struct Modified {
    /// A column of a key that foreign keys can reference changes: the update needs the strongest row lock.
    pub key: bool,
    /// A column of some index changes: the new version needs index entries of its own.
    pub indexed: bool,
}

/// Compares the indexed columns of two tuples of a relation.
///
/// # Safety
/// Both tuples are rows of `rel`; the old one lies in a latched page.
pub unsafe fn modified_columns(
    rel: pg_sys::Relation,
    columns: &IndexedColumns,
    old: pg_sys::HeapTuple,
    new: pg_sys::HeapTuple,
) -> Modified {
    let mut modified = Modified { key: false, indexed: false };
    let mut member = -1;
    // SAFETY: the bitmaps live as long as `columns`; the tuples fit the relation's descriptor.
    unsafe {
        loop {
            member = pg_sys::bms_next_member(columns.indexed, member);
            if member < 0 {
                break;
            }
            if !is_modified(rel, member + FIRST_LOW, old, new) {
                continue;
            }
            modified.indexed = true;
            modified.key |= pg_sys::bms_is_member(member, columns.key);
        }
    }
    modified
}

unsafe fn is_modified(rel: pg_sys::Relation, attribute: i32, old: pg_sys::HeapTuple, new: pg_sys::HeapTuple) -> bool {
    if attribute == 0 {
        // A whole-row reference: taken as changed.
        return true;
    }
    if attribute < 0 {
        return attribute != pg_sys::TableOidAttributeNumber;
    }
    // SAFETY: the caller's tuples fit the descriptor; the attribute is one of its columns.
    unsafe {
        let descriptor = (*rel).rd_att;
        let (mut old_null, mut new_null) = (false, false);
        let old_value = attribute_of(old, attribute, descriptor, &mut old_null);
        let new_value = attribute_of(new, attribute, descriptor, &mut new_null);
        if old_null || new_null {
            return old_null != new_null;
        }
        let column = super::values::attribute(descriptor, attribute as usize - 1);
        !raw::datumIsEqual(old_value, new_value, column.by_value, column.length)
    }
}

unsafe fn attribute_of(
    tuple: pg_sys::HeapTuple,
    attribute: i32,
    descriptor: pg_sys::TupleDesc,
    is_null: &mut bool,
) -> pg_sys::Datum {
    // SAFETY: the caller's.
    unsafe {
        if attribute > i32::from((*(*tuple).t_data).t_infomask2 & pg_sys::HEAP_NATTS_MASK as u16) {
            return pg_sys::getmissingattr(descriptor, attribute, is_null);
        }
        let has_nulls = (*(*tuple).t_data).t_infomask & pg_sys::HEAP_HASNULL as u16 != 0;
        if has_nulls {
            let bits = (&raw const (*(*tuple).t_data).t_bits).cast::<u8>();
            let place = (attribute - 1) as usize;
            if *bits.add(place / 8) & (1 << (place % 8)) == 0 {
                *is_null = true;
                return pg_sys::Datum::from(0);
            }
        }
        *is_null = false;
        pg_sys::nocachegetattr(tuple, attribute, descriptor)
    }
}

/// The indexed columns of a relation. Errors of waits for row locks jump over them: then they go with their memory context.
pub struct IndexedColumns {
    indexed: *mut pg_sys::Bitmapset,
    key: *mut pg_sys::Bitmapset,
}

impl IndexedColumns {
    /// Looks them up; must happen before any latch is taken, as it may read catalogs.
    pub fn of(rel: pg_sys::Relation) -> IndexedColumns {
        use pg_sys::IndexAttrBitmapKind::*;
        // SAFETY: the relation is open; the bitmaps are copies in the current memory context.
        unsafe {
            IndexedColumns {
                indexed: pg_sys::RelationGetIndexAttrBitmap(rel, crate::ffi::compat::ALL_INDEXED_COLUMNS),
                key: pg_sys::RelationGetIndexAttrBitmap(rel, INDEX_ATTR_BITMAP_KEY),
            }
        }
    }

    /// Frees them.
    pub fn free(self) {
        // SAFETY: both are ours; bms_free accepts null.
        unsafe {
            pg_sys::bms_free(self.indexed);
            pg_sys::bms_free(self.key);
        }
    }
}
