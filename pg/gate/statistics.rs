//! What ANALYZE learns of a user table: how many values a column has, how wide and how different they are, and none of them.
//!
//! ANALYZE keeps the commonest values of a column and bounds of the others, which whoever may read the table finds in pg_stats, and an
//! operator of theirs in what the planner asks it. So it gets no rows of user tables. They are collected here instead, Postgres' own
//! functions look at them, and what they find goes into pg_statistic without the values. How different values are, and how their order
//! follows that of the rows, is asked for the rows of single users: where those of several were compared, a user could find out about
//! the values of another by changing the own ones. A statement reads the rows of one user, too.

use std::ffi::{CStr, c_int};
use std::ops::Range;

use pgrx::{pg_guard, pg_sys};

use crate::error::OrRaise;
use crate::ffi::compat;
use crate::ffi::interrupts::BackendWait;
use crate::ffi::memory::{in_context, in_new_context, new_context};
use crate::ffi::pg_guard_ffi_boundary;
use crate::ffi::plain;
use crate::tableam::partition;
use crate::tableam::slot::tid_of;
use crate::tableam::storage::Storage;

use super::planner::nodes;
use super::{text_bytes, user_column};

/// Rows of a table as ANALYZE meets them, of which a bounded number is kept, each row with the same chance.
///
/// A struct without anything to drop: it lives in the memory context of a scan.
pub struct Sample {
    /// Where the rows and what is computed of them live.
    memory: pg_sys::MemoryContext,
    rows: *mut pg_sys::HeapTuple,
    capacity: usize,
    count: usize,
    /// Rows that were offered.
    seen: u64,
    /// Blocks that they come from.
    blocks: u32,
}

/// A row of pg_statistic without values.
pub struct Shape {
    /// Share of the rows in which the column is null.
    pub null_share: f32,
    /// Mean width of the others, in bytes.
    pub width: i32,
    /// Number of different values, or, below zero, their share of the rows.
    pub distinct: f32,
    /// How the order of the values follows that of the rows: operator, collation, and the correlation.
    pub correlation: Option<(pg_sys::Oid, pg_sys::Oid, f32)>,
}

impl Sample {
    /// An empty sample in the current memory context, as large as the columns' targets want it.
    pub fn new(rel: pg_sys::Relation) -> *mut Sample {
        /// Fewer rows than that are no sample, whatever the targets.
        const LEAST: usize = 100;
        // SAFETY: an open relation; the chunks live as long as the context.
        unsafe {
            let memory = new_context(c"kalamdb sample of a user table");
            let wanted = in_new_context(c"kalamdb size of a sample", |_| {
                columns(rel).filter_map(|column| begin(rel, column)).map(|statistics| (*statistics).minrows).max()
            });
            let capacity = wanted.and_then(|rows| usize::try_from(rows).ok()).unwrap_or(0).max(LEAST);
            let rows = pg_sys::MemoryContextAllocHuge(memory, capacity * size_of::<pg_sys::HeapTuple>()).cast();
            let sample = pg_sys::MemoryContextAlloc(memory, size_of::<Sample>()).cast::<Sample>();
            sample.write(Sample { memory, rows, capacity, count: 0, seen: 0, blocks: 0 });
            sample
        }
    }

    /// Counts a block of which every row is offered.
    pub fn note_block(&mut self) {
        self.blocks += 1;
    }

    /// Offers a row.
    ///
    /// # Safety
    /// The slot has one.
    pub unsafe fn offer(&mut self, slot: *mut pg_sys::TupleTableSlot) {
        self.seen += 1;
        let place = if self.count < self.capacity {
            self.count += 1;
            self.count - 1
        } else {
            // SAFETY: the generator is the process' own.
            let chosen = unsafe { pg_sys::pg_prng_uint64_range(&raw mut pg_sys::pg_global_prng_state, 0, self.seen - 1) };
            match usize::try_from(chosen) {
                Ok(chosen) if chosen < self.capacity => {
                    // SAFETY: every place below the capacity has a row by now.
                    unsafe { plain::pfree((*self.rows.add(chosen)).cast()) };
                    chosen
                }
                _ => return,
            }
        };
        // SAFETY: the caller's slot; the place is below the capacity.
        unsafe {
            *self.rows.add(place) =
                in_context(self.memory, || (*(*slot).tts_ops).copy_heap_tuple.expect("every slot kind can be copied")(slot));
        }
    }

    /// Puts what the rows say of the table into pg_statistic, if the caller may write it: who analyses a whole tree holds a weaker
    /// lock on the tables below its root, which are analysed by themselves too.
    ///
    /// # Safety
    /// `rel` is the relation of the rows, open in an ANALYZE.
    pub unsafe fn store(&self, rel: pg_sys::Relation, blocks: u32) {
        let lock = pg_sys::ShareUpdateExclusiveLock as pg_sys::LOCKMODE;
        // SAFETY: the caller's; the rows live in our context.
        unsafe {
            if self.count == 0 || !pg_sys::CheckRelationLockedByMe(rel, lock, true) {
                return;
            }
            let total = (self.seen as f64 / f64::from(self.blocks.max(1)) * f64::from(blocks) + 0.5).floor();
            let of_users = self.sort_by_user(rel);
            let catalog = pg_sys::table_open(pg_sys::StatisticRelationId, pg_sys::RowExclusiveLock as pg_sys::LOCKMODE);
            in_new_context(c"kalamdb statistics of a column", |context| {
                for column in columns(rel) {
                    if let Some(mut shape) = self.compute(rel, column, 0..self.count, total) {
                        self.compare(rel, column, &of_users, total, &mut shape);
                        write(catalog, (*rel).rd_id, column, &shape);
                    }
                    pg_sys::MemoryContextReset(context);
                }
            });
            pg_sys::table_close(catalog, pg_sys::RowExclusiveLock as pg_sys::LOCKMODE);
            // The same ANALYZE may come back for the tables that inherit from this one.
            pg_sys::CommandCounterIncrement();
        }
    }

    /// Puts the rows of each user together, in the order in which they are stored; returns the places of the rows of those users who have
    /// the most.
    unsafe fn sort_by_user(&self, rel: pg_sys::Relation) -> Vec<Range<usize>> {
        /// Users whose rows are looked at.
        const USERS_MAX: usize = 200;
        // SAFETY: the rows fit the relation; the names live as long as they.
        unsafe {
            let rows = std::slice::from_raw_parts_mut(self.rows, self.count);
            let user = |row: pg_sys::HeapTuple| {
                let mut is_null = false;
                let value = pg_sys::heap_getattr(row, user_column(rel), (*rel).rd_att, &mut is_null);
                if is_null { &[][..] } else { text_bytes(value) }
            };
            in_context(self.memory, || rows.sort_by_cached_key(|row| (user(*row), tid_of(&(**row).t_self))));
            let mut places = 0..0;
            let groups = rows.chunk_by(|row, next| user(*row) == user(*next)).map(|group| {
                places = places.end..places.end + group.len();
                places.clone()
            });
            let mut groups: Vec<Range<usize>> = groups.collect();
            groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
            groups.truncate(USERS_MAX);
            groups
        }
    }

    /// Says how different the values of a column are for each user, and how their order follows that of the rows.
    unsafe fn compare(&self, rel: pg_sys::Relation, column: i16, of_users: &[Range<usize>], total: f64, shape: &mut Shape) {
        /// From this share of the rows on, the number of different values grows with the rows.
        const GROWING: f64 = 0.8;
        let all = of_users.iter().map(Range::len).sum::<usize>() as f64;
        let (mut values, mut rows, mut weighted) = (0.0, 0.0, 0.0);
        let (mut correlation, mut correlated) = (0.0, 0.0);
        let mut is_known = true;
        shape.correlation = None;
        for group in of_users {
            let size = group.len() as f64;
            let own = (size * total / self.count as f64).max(size).floor();
            // SAFETY: the caller's.
            let Some(found) = (unsafe { self.compute(rel, column, group.clone(), own) }) else { continue };
            let distinct = f64::from(found.distinct);
            let distinct = if distinct < 0.0 { -distinct * own } else { distinct };
            // Nothing but nulls has no values; what cannot be compared has an unknown number.
            is_known &= distinct > 0.0 || found.null_share >= 1.0;
            (values, rows, weighted) = (values + distinct, rows + own, weighted + size * distinct);
            if let Some((operator, collation, own)) = found.correlation.filter(|_| group.len() > 1) {
                (correlation, correlated) = (correlation + size * f64::from(own), correlated + size);
                shape.correlation = Some((operator, collation, (correlation / correlated) as f32));
            }
        }
        // SAFETY: the caller's.
        let stated = unsafe { stated_distinct((*rel).rd_id, column.into()) };
        shape.distinct = match stated {
            Some(stated) => stated,
            // Who sees the rows of all asks for one user's among them; a statement for one user has a row of its own.
            None if c_int::from(column) == user_column(rel) => {
                let storage = Storage::of(rel);
                let users = partition::count(&storage, &BackendWait::new(storage.cache)).or_raise();
                users.max(1) as f32
            }
            None if !is_known || values == 0.0 => 0.0,
            None if values / rows >= GROWING => -(values / rows).min(1.0) as f32,
            None => (weighted / all).max(1.0) as f32,
        };
    }

    /// Has Postgres look at some rows of a column, out of a number of rows, and takes what is no value.
    unsafe fn compute(&self, rel: pg_sys::Relation, column: i16, rows: Range<usize>, total: f64) -> Option<Shape> {
        // SAFETY: the rows are there; Postgres' function raises errors, and may call a type's own.
        unsafe {
            let statistics = begin(rel, column)?;
            (*statistics).rows = self.rows.add(rows.start);
            (*statistics).tupDesc = (*rel).rd_att;
            let compute = (*statistics).compute_stats?;
            pg_guard_ffi_boundary(|| compute(statistics, Some(value_of), rows.len() as c_int, total));
            if !(*statistics).stats_valid {
                return None;
            }
            let correlation = (0..pg_sys::STATISTIC_NUM_SLOTS as usize)
                .find(|slot| (*statistics).stakind[*slot] as u32 == pg_sys::STATISTIC_KIND_CORRELATION)
                .map(|slot| ((*statistics).staop[slot], (*statistics).stacoll[slot], *(*statistics).stanumbers[slot]));
            Some(Shape {
                null_share: (*statistics).stanullfrac,
                width: (*statistics).stawidth,
                distinct: (*statistics).stadistinct,
                correlation,
            })
        }
    }

    /// Forgets the rows.
    pub fn end(&mut self) {
        // SAFETY: the sample lives in this context and is used no more.
        unsafe { pg_sys::MemoryContextDelete(self.memory) };
    }
}

/// The columns of a relation.
unsafe fn columns(rel: pg_sys::Relation) -> impl Iterator<Item = i16> {
    // SAFETY: an open relation.
    let count = unsafe { (*(*rel).rd_att).natts };
    1..=count as i16
}

/// What ANALYZE begins with for a column; nothing if it leaves the column out.
unsafe fn begin(rel: pg_sys::Relation, column: i16) -> Option<*mut pg_sys::VacAttrStats> {
    // SAFETY: a column of an open relation; a type's row is a struct of that kind. Allocated in the current context.
    unsafe {
        let attribute = &*compat::attributes((*rel).rd_att).add(column as usize - 1);
        // Generated columns that are computed when they are read have no statistics.
        if attribute.attisdropped || attribute.attgenerated as u8 == b'v' {
            return None;
        }
        let statistics = pg_sys::palloc0(size_of::<pg_sys::VacAttrStats>()).cast::<pg_sys::VacAttrStats>();
        if !compat::begin_statistics(&mut *statistics, (*rel).rd_id, attribute) {
            return None;
        }
        let row = pg_sys::SearchSysCacheCopy(
            pg_sys::SysCacheIdentifier::TYPEOID as c_int,
            attribute.atttypid.into(),
            pg_sys::Datum::null(),
            pg_sys::Datum::null(),
            pg_sys::Datum::null(),
        );
        if row.is_null() {
            return None;
        }
        let kind = pg_sys::GETSTRUCT(row).cast::<pg_sys::FormData_pg_type>();
        (*statistics).attrtypid = attribute.atttypid;
        (*statistics).attrtypmod = attribute.atttypmod;
        (*statistics).attrtype = kind;
        (*statistics).attrcollid = attribute.attcollation;
        (*statistics).anl_context = pg_sys::CurrentMemoryContext;
        (*statistics).tupattnum = c_int::from(column);
        for slot in 0..pg_sys::STATISTIC_NUM_SLOTS as usize {
            (*statistics).statypid[slot] = attribute.atttypid;
            (*statistics).statyplen[slot] = (*kind).typlen;
            (*statistics).statypbyval[slot] = (*kind).typbyval;
            (*statistics).statypalign[slot] = (*kind).typalign;
        }
        // What types have for themselves finds elements of values, which are values too.
        pg_sys::std_typanalyze(statistics).then_some(statistics)
    }
}

/// A value of the sample, for Postgres' functions.
#[pg_guard]
unsafe extern "C-unwind" fn value_of(statistics: pg_sys::VacAttrStatsP, row: c_int, is_null: *mut bool) -> pg_sys::Datum {
    // SAFETY: Postgres asks for rows below the number that it got.
    unsafe {
        let tuple = *(*statistics).rows.add(row as usize);
        pg_sys::heap_getattr(tuple, (*statistics).tupattnum, (*statistics).tupDesc, &mut *is_null)
    }
}

/// The number of different values as ALTER TABLE ... SET (n_distinct = ...) states it for a column.
unsafe fn stated_distinct(table: pg_sys::Oid, column: c_int) -> Option<f32> {
    // SAFETY: the options are read before the row is released.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::ATTNUM as c_int;
        let row = pg_sys::SearchSysCache2(cache, table.into(), pg_sys::Datum::from(column as i16));
        if row.is_null() {
            return None;
        }
        let mut is_null = false;
        let options = pg_sys::SysCacheGetAttr(cache, row, pg_sys::Anum_pg_attribute_attoptions as i16, &mut is_null);
        let options = if is_null { std::ptr::null_mut() } else { pg_sys::untransformRelOptions(options) };
        let stated = nodes::<pg_sys::DefElem>(options)
            .find(|option| CStr::from_ptr((**option).defname) == c"n_distinct")
            .and_then(|option| CStr::from_ptr(pg_sys::defGetString(option)).to_str().ok()?.parse().ok());
        pg_sys::ReleaseSysCache(row);
        stated.filter(|distinct| *distinct != 0.0)
    }
}

/// A row of pg_statistic.
///
/// # Safety
/// `catalog` is pg_statistic, open.
pub unsafe fn row(catalog: pg_sys::Relation, table: pg_sys::Oid, column: i16, shape: &Shape) -> pg_sys::HeapTuple {
    /// Columns of pg_statistic.
    const COLUMNS: usize = pg_sys::Anum_pg_statistic_stavalues5 as usize;
    let place = |number: u32| number as usize - 1;
    let mut values = [pg_sys::Datum::from(0); COLUMNS];
    let mut nulls = [false; COLUMNS];
    values[place(pg_sys::Anum_pg_statistic_starelid)] = table.into();
    values[place(pg_sys::Anum_pg_statistic_staattnum)] = column.into();
    values[place(pg_sys::Anum_pg_statistic_stanullfrac)] = float(shape.null_share);
    values[place(pg_sys::Anum_pg_statistic_stawidth)] = shape.width.into();
    values[place(pg_sys::Anum_pg_statistic_stadistinct)] = float(shape.distinct);
    nulls[place(pg_sys::Anum_pg_statistic_stanumbers1)..].fill(true);
    // SAFETY: an array of one number of four bytes, passed by value; the values fit the catalog's columns.
    unsafe {
        if let Some((operator, collation, correlation)) = shape.correlation {
            let mut number = float(correlation);
            let numbers =
                pg_sys::construct_array(&raw mut number, 1, pg_sys::FLOAT4OID, size_of::<f32>() as c_int, true, b'i' as _);
            values[place(pg_sys::Anum_pg_statistic_stakind1)] = (pg_sys::STATISTIC_KIND_CORRELATION as i16).into();
            values[place(pg_sys::Anum_pg_statistic_staop1)] = operator.into();
            values[place(pg_sys::Anum_pg_statistic_stacoll1)] = collation.into();
            values[place(pg_sys::Anum_pg_statistic_stanumbers1)] = pg_sys::Datum::from(numbers);
            nulls[place(pg_sys::Anum_pg_statistic_stanumbers1)] = false;
        }
        pg_sys::heap_form_tuple((*catalog).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr())
    }
}

fn float(value: f32) -> pg_sys::Datum {
    pg_sys::Datum::from(value.to_bits() as i32)
}

/// Puts a column's row into the catalog, in the place of the one that is there.
unsafe fn write(catalog: pg_sys::Relation, table: pg_sys::Oid, column: i16, shape: &Shape) {
    // SAFETY: the catalog is open and locked for writing; the old row is read before it is released.
    unsafe {
        let new = row(catalog, table, column, shape);
        let cache = pg_sys::SysCacheIdentifier::STATRELATTINH as c_int;
        let old = pg_sys::SearchSysCache3(cache, table.into(), column.into(), false.into());
        if old.is_null() {
            pg_sys::CatalogTupleInsert(catalog, new);
        } else {
            let mut place = (*old).t_self;
            pg_sys::ReleaseSysCache(old);
            pg_sys::CatalogTupleUpdate(catalog, &raw mut place, new);
        }
        pg_sys::heap_freetuple(new);
    }
}
