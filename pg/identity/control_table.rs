//! Reads and appends rows of the extension's control tables without the executor, thus without anybody's privileges, triggers
//! or search path in the way.

use std::ffi::CStr;
use std::ptr;

use kalamdb_engine::Error;
use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::error::SqlError;
use crate::ffi::catalog::oids;
use crate::ffi::extension;

/// The most columns of a control table.
const MOST_COLUMNS: usize = 16;

/// Number of the function behind `=` of type text.
const TEXT_EQUAL: u32 = 67;

/// What becomes of a new row when its transaction rolls back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasts {
    /// It goes too.
    WithTransaction,
    /// It stays, and is visible at once. The row is frozen, as COPY FREEZE makes rows: no commit log is asked about it. Readers
    /// with older snapshots see it too, which is right for a log.
    ForGood,
}

/// An open control table.
pub struct ControlTable {
    rel: pg_sys::Relation,
    lock: pg_sys::LOCKMODE,
}

/// A row's values, null where there is none.
pub struct Row {
    values: [pg_sys::Datum; MOST_COLUMNS],
    nulls: [bool; MOST_COLUMNS],
}

impl Row {
    /// The text in a column, counted from zero.
    pub fn text(&self, column: usize) -> Option<String> {
        // SAFETY: the callers know their tables' columns; the value lies in a copy of the row.
        unsafe { String::from_datum(self.values[column], self.nulls[column]) }
    }

    /// The 32-bit integer in a column, counted from zero.
    pub fn integer(&self, column: usize) -> i32 {
        self.values[column].value() as i32
    }

    /// The timestamp in a column, counted from zero: microseconds since 2000, none if null.
    pub fn timestamp(&self, column: usize) -> Option<i64> {
        (!self.nulls[column]).then(|| self.values[column].value() as i64)
    }
}

impl ControlTable {
    /// Opens a table for reading; none if the extension is not installed in this database.
    pub fn read(name: &CStr) -> Option<ControlTable> {
        ControlTable::open(name, pg_sys::AccessShareLock as pg_sys::LOCKMODE)
    }

    /// Opens a table for appending.
    ///
    /// # Errors
    /// 55000 if the extension is not installed in this database; 25006 on a replica.
    pub fn append(name: &CStr) -> Result<ControlTable, SqlError> {
        // SAFETY: raises an ERROR, or returns.
        unsafe { pg_sys::PreventCommandDuringRecovery(c"KalamDB's audit".as_ptr()) };
        ControlTable::open(name, pg_sys::RowExclusiveLock as pg_sys::LOCKMODE)
            .ok_or_else(|| extension::missing().with_detail(format!("Table \"kalam.{}\" is missing.", name.to_string_lossy())))
    }

    fn open(name: &CStr, lock: pg_sys::LOCKMODE) -> Option<ControlTable> {
        // SAFETY: after an ERROR the resource owner closes the table.
        extension::relation(name).map(|oid| unsafe { ControlTable { rel: pg_sys::table_open(oid, lock), lock } })
    }

    /// Appends a row.
    ///
    /// # Errors
    /// When the table has another shape than this library knows.
    pub fn append_row(&self, values: &mut [pg_sys::Datum], nulls: &mut [bool], lasts: Lasts) -> Result<(), SqlError> {
        // SAFETY: the table is open; values and nulls have one entry for each of its columns, as checked.
        unsafe {
            let descriptor = (*self.rel).rd_att;
            if (*descriptor).natts as usize != values.len() || values.len() != nulls.len() {
                return Err(Error::internal("a control table has another number of columns than this library knows").into());
            }
            let tuple = pg_sys::heap_form_tuple(descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
            let options = if lasts == Lasts::ForGood { pg_sys::TABLE_INSERT_FROZEN as i32 } else { 0 };
            pg_sys::heap_insert(self.rel, tuple, pg_sys::GetCurrentCommandId(true), options, ptr::null_mut());
            self.insert_into_indexes(tuple);
        }
        Ok(())
    }

    /// Gives a new row its entries in the table's indexes.
    ///
    /// # Safety
    /// The tuple was inserted into this table. Its indexes are over plain columns.
    unsafe fn insert_into_indexes(&self, tuple: pg_sys::HeapTuple) {
        // SAFETY: the table is open; each index is opened with a lock and closed here.
        unsafe {
            let slot = pg_sys::MakeSingleTupleTableSlot((*self.rel).rd_att, &raw const pg_sys::TTSOpsHeapTuple);
            pg_sys::ExecStoreHeapTuple(tuple, slot, false);
            (*slot).tts_tid = (*tuple).t_self;
            for oid in oids(pg_sys::RelationGetIndexList(self.rel)) {
                let index = pg_sys::index_open(oid, self.lock);
                let info = pg_sys::BuildIndexInfo(index);
                let mut values = [pg_sys::Datum::from(0); pg_sys::INDEX_MAX_KEYS as usize];
                let mut nulls = [false; pg_sys::INDEX_MAX_KEYS as usize];
                pg_sys::FormIndexDatum(info, slot, ptr::null_mut(), values.as_mut_ptr(), nulls.as_mut_ptr());
                let check = if (*(*index).rd_index).indisunique {
                    pg_sys::IndexUniqueCheck::UNIQUE_CHECK_YES
                } else {
                    pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO
                };
                let tid = &raw mut (*tuple).t_self;
                pg_sys::index_insert(index, values.as_mut_ptr(), nulls.as_mut_ptr(), tid, self.rel, check, false, info);
                pg_sys::index_close(index, self.lock);
            }
            pg_sys::ExecDropSingleTupleTableSlot(slot);
        }
    }

    /// The row that an index whose first column is the table's first column, a text, has last under a key; as of now, not as of
    /// the transaction's snapshot.
    pub fn last_with(&self, index: &CStr, key: &str) -> Option<Row> {
        // SAFETY: index and snapshot are given back below; after an ERROR the resource owner does. The row is copied before.
        unsafe {
            let oid = pg_sys::get_relname_relid(index.as_ptr(), (*(*self.rel).rd_rel).relnamespace);
            let index = pg_sys::index_open(oid, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
            // Always a new one for a table without a cache, in parallel workers too.
            let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetCatalogSnapshot((*self.rel).rd_id));
            let mut scan_key = pg_sys::ScanKeyData::default();
            pg_sys::ScanKeyEntryInitialize(
                &raw mut scan_key,
                0,
                1,
                pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber,
                pg_sys::InvalidOid,
                pg_sys::C_COLLATION_OID,
                TEXT_EQUAL.into(),
                key.into_datum().unwrap_or(pg_sys::Datum::from(0)),
            );
            let scan = pg_sys::systable_beginscan_ordered(self.rel, index, snapshot, 1, &raw mut scan_key);
            let tuple = pg_sys::systable_getnext_ordered(scan, pg_sys::ScanDirection::BackwardScanDirection);
            let row = (!tuple.is_null()).then(|| self.deform(pg_sys::heap_copytuple(tuple)));
            pg_sys::systable_endscan_ordered(scan);
            pg_sys::UnregisterSnapshot(snapshot);
            pg_sys::index_close(index, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
            row
        }
    }

    /// # Safety
    /// A tuple of this table that lives as long as the memory context.
    unsafe fn deform(&self, tuple: pg_sys::HeapTuple) -> Row {
        let mut row = Row { values: [pg_sys::Datum::from(0); MOST_COLUMNS], nulls: [true; MOST_COLUMNS] };
        // SAFETY: the tables are the extension's own and have fewer columns than there is room for.
        unsafe {
            assert!((*(*self.rel).rd_att).natts as usize <= MOST_COLUMNS, "control tables are narrow");
            pg_sys::heap_deform_tuple(tuple, (*self.rel).rd_att, row.values.as_mut_ptr(), row.nulls.as_mut_ptr());
        }
        row
    }
}

impl Drop for ControlTable {
    fn drop(&mut self) {
        // After an ERROR the resource owner closes it.
        if !std::thread::panicking() {
            // SAFETY: opened with this lock.
            unsafe { pg_sys::table_close(self.rel, self.lock) };
        }
    }
}

/// Makes what was logged so far survive a crash, as a commit would.
pub fn flush_log() {
    // Not the insert position: behind a page's header it is no end of a record, and flushing up to it fails.
    crate::wal::flush(crate::wal::end_lsn());
}
