//! Writes, reads and erases entries of the table `kalam.deleted_rows`, past privileges and triggers.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::buffer::Pending;
use crate::ffi::extension;
use crate::ffi::memory::in_new_context;
use crate::ffi::plain;

const TABLE: &CStr = c"deleted_rows";
const INDEX: &CStr = c"deleted_rows_by_relation";

/// Columns of the table, counted from 0.
const RELATION: usize = 0;
const ROW_TYPE: usize = 1;
const USER: usize = 2;
const DELETED_AT: usize = 3;
const XID: usize = 4;
const SHAPE: usize = 5;
const ROWS: usize = 6;
const COLUMNS: usize = 7;

/// Columns of the index.
const KEYS: usize = 2;

/// The table and its index, open.
struct Table {
    table: pg_sys::Relation,
    index: pg_sys::Relation,
    lock: pg_sys::LOCKMODE,
}

impl Table {
    /// Opens both; nothing where the extension's script has not made them.
    fn open(lock: u32) -> Option<Table> {
        let lock = lock as pg_sys::LOCKMODE;
        // SAFETY: looks names up in the catalog; the resource owner closes what an ERROR leaves open.
        unsafe {
            let (table, index) = (extension::relation(TABLE)?, extension::relation(INDEX)?);
            Some(Table { table: pg_sys::table_open(table, lock), index: pg_sys::index_open(index, lock), lock })
        }
    }

    /// Closes both; the locks stay until the transaction ends.
    fn close(self) {
        // SAFETY: opened by `open`.
        unsafe {
            pg_sys::index_close(self.index, pg_sys::NoLock as pg_sys::LOCKMODE);
            pg_sys::table_close(self.table, if self.lock == pg_sys::AccessShareLock as i32 { self.lock } else { 0 });
        }
    }
}

fn bytea(bytes: &[u8]) -> pg_sys::Datum {
    let header = pg_sys::VARHDRSZ;
    // SAFETY: a fresh chunk of the right length, in the current memory context.
    unsafe {
        let value = pg_sys::palloc(header + bytes.len()).cast::<pg_sys::varlena>();
        pgrx::set_varsize_4b(value, (header + bytes.len()) as i32);
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), value.cast::<u8>().add(header), bytes.len());
        pg_sys::Datum::from(value)
    }
}

/// Writes entries as the current (sub)transaction.
pub fn write(entries: &[Pending]) {
    let Some(table) = Table::open(pg_sys::RowExclusiveLock) else { return };
    // SAFETY: the relations are open and locked.
    in_new_context(c"kalamdb deleted rows", |_| unsafe {
        let info = pg_sys::BuildIndexInfo(table.index);
        let command = pg_sys::GetCurrentCommandId(true);
        for entry in entries {
            insert(&table, info, command, entry);
        }
    });
    table.close();
}

unsafe fn insert(table: &Table, info: *mut pg_sys::IndexInfo, command: pg_sys::CommandId, entry: &Pending) {
    let mut values = [pg_sys::Datum::from(0); COLUMNS];
    let mut nulls = [false; COLUMNS];
    // SAFETY: the caller has the table open; the tuple is made for its descriptor.
    unsafe {
        values[RELATION] = entry.relation.into();
        values[ROW_TYPE] = entry.row_type.into();
        match &entry.user {
            Some(user) => values[USER] = bytea(user),
            None => nulls[USER] = true,
        }
        values[DELETED_AT] = pg_sys::Datum::from(plain::GetCurrentTransactionStartTimestamp());
        values[XID] = pg_sys::Datum::from(pg_sys::GetTopFullTransactionId().value);
        values[SHAPE] = bytea(&entry.shape);
        values[ROWS] = bytea(&entry.rows);
        let tuple = pg_sys::heap_form_tuple((*table.table).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
        // No subscriber of a publication for all tables knows this one.
        let options = pg_sys::HEAP_INSERT_NO_LOGICAL as i32;
        pg_sys::heap_insert(table.table, tuple, command, options, std::ptr::null_mut());
        let mut keys = [values[RELATION], values[DELETED_AT]];
        let mut nulls = [false; KEYS];
        pg_sys::index_insert(
            table.index,
            keys.as_mut_ptr(),
            nulls.as_mut_ptr(),
            &mut (*tuple).t_self,
            table.table,
            pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO,
            false,
            info,
        );
    }
}

/// One entry as read.
pub struct Entry {
    /// Whose rows they are, in a user table.
    pub user: Option<Box<[u8]>>,
    /// When the deleting transaction began.
    pub deleted_at: pg_sys::TimestampTz,
    /// The deleting transaction.
    pub xid: u64,
    /// What the columns were.
    pub shape: Vec<u8>,
    /// The rows.
    pub rows: Vec<u8>,
}

unsafe fn bytes_of(value: pg_sys::Datum) -> Vec<u8> {
    // SAFETY: the caller passes a bytea; a detoasted copy lives in the current memory context.
    unsafe {
        let flat = pg_sys::pg_detoast_datum_packed(value.cast_mut_ptr());
        let bytes = pgrx::varlena_to_byte_slice(flat).to_vec();
        if !std::ptr::eq(flat, value.cast_mut_ptr()) {
            plain::pfree(flat.cast());
        }
        bytes
    }
}

/// Goes over the entries of a table, in the order of their time, that the snapshot sees; `visit` gets the entry's tuple and
/// the table it stands in.
unsafe fn each_tuple(
    table: &Table,
    relation: pg_sys::Oid,
    before: Option<pg_sys::TimestampTz>,
    visit: &mut dyn FnMut(pg_sys::HeapTuple, pg_sys::Relation),
) {
    // SAFETY: both relations are open; scan keys and scan live as long as this call.
    unsafe {
        let mut keys: [pg_sys::ScanKeyData; KEYS] = std::mem::zeroed();
        let equal = pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber;
        let less = pg_sys::BTLessStrategyNumber as pg_sys::StrategyNumber;
        pg_sys::ScanKeyInit(&mut keys[0], 1, equal, pg_sys::F_OIDEQ.into(), relation.into());
        let mut count = 1;
        if let Some(before) = before {
            let at = (DELETED_AT + 1) as i16;
            pg_sys::ScanKeyInit(&mut keys[1], at, less, pg_sys::F_TIMESTAMPTZ_LT.into(), pg_sys::Datum::from(before));
            count = 2;
        }
        // What is erased is erased whatever the transaction's own snapshot shows.
        let snapshot = if before.is_some() { pg_sys::GetLatestSnapshot() } else { pg_sys::GetTransactionSnapshot() };
        let snapshot = pg_sys::RegisterSnapshot(snapshot);
        let scan = pg_sys::systable_beginscan_ordered(table.table, table.index, snapshot, count, keys.as_mut_ptr());
        loop {
            let tuple = pg_sys::systable_getnext_ordered(scan, pg_sys::ScanDirection::ForwardScanDirection);
            if tuple.is_null() {
                break;
            }
            visit(tuple, table.table);
        }
        pg_sys::systable_endscan_ordered(scan);
        pg_sys::UnregisterSnapshot(snapshot);
    }
}

/// Calls `visit` with every entry of a table that the current snapshot sees, the oldest first.
pub fn each_entry(relation: pg_sys::Oid, row_type: pg_sys::Oid, visit: &mut dyn FnMut(Entry)) {
    let Some(table) = Table::open(pg_sys::AccessShareLock) else { return };
    let mut values = [pg_sys::Datum::from(0); COLUMNS];
    let mut nulls = [false; COLUMNS];
    // SAFETY: the table is open; each tuple has its columns, of which the user alone may be NULL.
    unsafe {
        each_tuple(&table, relation, None, &mut |tuple, rel| {
            pg_sys::heap_deform_tuple(tuple, (*rel).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            if pg_sys::Oid::from(values[ROW_TYPE].value() as u32) != row_type {
                return;
            }
            visit(Entry {
                user: (!nulls[USER]).then(|| bytes_of(values[USER]).into()),
                deleted_at: values[DELETED_AT].value() as i64,
                xid: values[XID].value() as u64,
                shape: bytes_of(values[SHAPE]),
                rows: bytes_of(values[ROWS]),
            });
        });
    }
    table.close();
}

/// Erases the entries of a table that are older than `before`; returns how many.
pub fn erase(relation: pg_sys::Oid, before: pg_sys::TimestampTz) -> u64 {
    let Some(table) = Table::open(pg_sys::RowExclusiveLock) else { return 0 };
    let mut erased = 0;
    // SAFETY: the table is open and locked for writing.
    unsafe {
        let command = pg_sys::GetCurrentCommandId(true);
        each_tuple(&table, relation, Some(before), &mut |tuple, rel| {
            let mut failure = pg_sys::TM_FailureData::default();
            let nobody = std::ptr::null_mut();
            let result = pg_sys::heap_delete(rel, &mut (*tuple).t_self, command, nobody, true, &mut failure, false);
            // Whoever else erases is welcome.
            erased += u64::from(result == pg_sys::TM_Result::TM_Ok);
        });
    }
    table.close();
    erased
}
