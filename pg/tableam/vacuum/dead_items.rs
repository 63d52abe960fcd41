//! Keeps the TIDs of dead line pointers between the first pass, the indexes and the second pass.
//!
//! The list lies in the form that Postgres' index cleanup reads, in shared memory if parallel workers help with the indexes.

use pgrx::pg_sys;

use super::super::storage::relation_name;
use super::compat;

pub use list::{Cursor, DeadItems};

/// Starts a parallel index cleanup if it is allowed and worth it.
///
/// # Safety
/// The relations are open and locked.
unsafe fn start_workers(
    rel: pg_sys::Relation,
    indexes: &[pg_sys::Relation],
    workers: i32,
    room: i32,
    verbose: bool,
    strategy: pg_sys::BufferAccessStrategy,
) -> *mut pg_sys::ParallelVacuumState {
    if workers < 0 || indexes.len() < 2 {
        return std::ptr::null_mut();
    }
    // Other processes cannot see the indexes of a temporary table: their pages lie in this one's local buffers.
    // SAFETY: the relation is open.
    if unsafe { (*(*rel).rd_rel).relpersistence } as u8 == pg_sys::RELPERSISTENCE_TEMP {
        // Who asked for workers is told, as by heap.
        if workers > 0 {
            pgrx::warning!(
                "disabling parallel option of vacuum on \"{}\" --- cannot vacuum temporary tables in parallel",
                relation_name(rel)
            );
        }
        return std::ptr::null_mut();
    }
    let level = if verbose { pg_sys::INFO } else { pg_sys::DEBUG2 } as i32;
    // SAFETY: the array of indexes is only read.
    unsafe {
        pg_sys::parallel_vacuum_init(rel, indexes.as_ptr().cast_mut(), indexes.len() as i32, workers, room, level, strategy)
    }
}

#[cfg(any(feature = "pg15", feature = "pg16"))]
mod list {
    use kalamdb_engine::page::MAX_OFFSET;
    use pgrx::pg_sys;

    use super::super::super::slot::{item_pointer, tid_of};
    use super::{compat, start_workers};
    use kalamdb_engine::ids::Tid;

    /// The longest chunk that Postgres allocates.
    const ALLOCATION_MAX: usize = 0x3fff_ffff;

    /// The TIDs of dead line pointers, in their order.
    pub struct DeadItems {
        items: *mut pg_sys::VacDeadItems,
        workers: *mut pg_sys::ParallelVacuumState,
    }

    /// A place in the list.
    #[derive(Default)]
    pub struct Cursor(usize);

    /// How many TIDs fit into so many bytes.
    fn fitting(bytes: usize) -> usize {
        bytes.saturating_sub(std::mem::offset_of!(pg_sys::VacDeadItems, items)) / size_of::<pg_sys::ItemPointerData>()
    }

    /// How many TIDs the list takes, for a table of so many blocks.
    fn capacity(work_mem: i32, blocks: u32) -> i32 {
        let page = usize::from(MAX_OFFSET);
        let affordable = fitting(work_mem.max(0) as usize * 1024).min(fitting(ALLOCATION_MAX));
        affordable.min(blocks as usize * page).max(page) as i32
    }

    impl DeadItems {
        /// An empty list; with `workers` of 0 or more, parallel workers may be started for the indexes.
        ///
        /// # Safety
        /// The relations are open and locked.
        pub unsafe fn new(
            rel: pg_sys::Relation,
            indexes: &[pg_sys::Relation],
            blocks: u32,
            workers: i32,
            verbose: bool,
            strategy: pg_sys::BufferAccessStrategy,
        ) -> DeadItems {
            let room = if indexes.is_empty() { i32::from(MAX_OFFSET) } else { capacity(compat::work_mem(), blocks) };
            // SAFETY: see above; the list has room for as many items as it says.
            unsafe {
                let state = start_workers(rel, indexes, workers, room, verbose, strategy);
                let items = if state.is_null() {
                    let items: *mut pg_sys::VacDeadItems = pg_sys::palloc(pg_sys::vac_max_items_to_alloc_size(room)).cast();
                    (*items).max_items = room;
                    (*items).num_items = 0;
                    items
                } else {
                    pg_sys::parallel_vacuum_get_dead_items(state)
                };
                DeadItems { items, workers: state }
            }
        }

        fn taken(&self) -> &[pg_sys::ItemPointerData] {
            // SAFETY: `num_items` entries are filled.
            unsafe { (*self.items).items.as_slice((*self.items).num_items as usize) }
        }

        /// Number of TIDs.
        pub fn len(&self) -> i64 {
            self.taken().len() as i64
        }

        /// Reports the room there is.
        pub fn report_room(&self) {
            // SAFETY: the list lives as long as this value.
            compat::progress(pg_sys::PROGRESS_VACUUM_MAX_DEAD_TUPLES, i64::from(unsafe { (*self.items).max_items }));
        }

        /// Whether every line pointer of one more page fits.
        pub fn has_room_for_page(&self) -> bool {
            // SAFETY: as above.
            unsafe { (*self.items).max_items - (*self.items).num_items >= i32::from(MAX_OFFSET) }
        }

        /// Appends line pointers of a block behind all others; the caller has seen that there is room.
        pub fn add(&mut self, block: u32, offsets: &[u16]) {
            // SAFETY: the list is only reached through this value; the index stays below `max_items`.
            unsafe {
                let list = &mut *self.items;
                assert!(offsets.len() <= (list.max_items - list.num_items) as usize, "the list has room for a page");
                let end = list.items.as_mut_ptr().add(list.num_items as usize);
                for (place, &offset) in offsets.iter().enumerate() {
                    end.add(place).write(item_pointer(Tid::new(block, offset)));
                }
                list.num_items += offsets.len() as i32;
            }
            compat::progress(pg_sys::PROGRESS_VACUUM_NUM_DEAD_TUPLES, self.len());
        }

        /// Forgets all.
        pub fn clear(&mut self) {
            // SAFETY: as above.
            unsafe { (*self.items).num_items = 0 };
        }

        /// The next block and its line pointers, which replace the contents of `offsets`.
        pub fn next_block(&self, cursor: &mut Cursor, offsets: &mut Vec<u16>) -> Option<u32> {
            let rest = &self.taken()[cursor.0..];
            let block = tid_of(rest.first()?).block;
            offsets.clear();
            offsets.extend(rest.iter().map(tid_of).take_while(|tid| tid.block == block).map(|tid| tid.offset));
            cursor.0 += offsets.len();
            Some(block)
        }

        /// The parallel workers' state; null if there are none.
        pub fn workers(&self) -> *mut pg_sys::ParallelVacuumState {
            self.workers
        }

        /// Ends the parallel work and fetches what it learnt of the indexes. The list is gone with it.
        ///
        /// # Safety
        /// `statistics` has a place for each index; the list is not used again.
        pub unsafe fn end_workers(&mut self, statistics: *mut *mut pg_sys::IndexBulkDeleteResult) {
            if !self.workers.is_null() {
                // SAFETY: see above.
                unsafe { pg_sys::parallel_vacuum_end(self.workers, statistics) };
                self.workers = std::ptr::null_mut();
            }
        }

        /// Deletes the entries of one index that name a TID of the list.
        ///
        /// # Safety
        /// The pointers are valid for the index' access method.
        pub unsafe fn delete_from(
            &self,
            info: &mut pg_sys::IndexVacuumInfo,
            statistics: *mut pg_sys::IndexBulkDeleteResult,
        ) -> *mut pg_sys::IndexBulkDeleteResult {
            // SAFETY: see above.
            unsafe { pg_sys::vac_bulkdel_one_index(info, statistics, self.items) }
        }
    }
}

#[cfg(any(feature = "pg17", feature = "pg18"))]
mod list {
    use kalamdb_engine::page::MAX_OFFSET;
    use pgrx::pg_sys;

    use super::{compat, start_workers};

    /// The TIDs of dead line pointers.
    pub struct DeadItems {
        store: *mut pg_sys::TidStore,
        info: *mut pg_sys::VacDeadItemsInfo,
        workers: *mut pg_sys::ParallelVacuumState,
        memory: usize,
    }

    /// A place in the list.
    pub struct Cursor(*mut pg_sys::TidStoreIter);

    impl Default for Cursor {
        fn default() -> Cursor {
            Cursor(std::ptr::null_mut())
        }
    }

    impl DeadItems {
        /// An empty list; with `workers` of 0 or more, parallel workers may be started for the indexes.
        ///
        /// # Safety
        /// The relations are open and locked.
        pub unsafe fn new(
            rel: pg_sys::Relation,
            indexes: &[pg_sys::Relation],
            _blocks: u32,
            workers: i32,
            verbose: bool,
            strategy: pg_sys::BufferAccessStrategy,
        ) -> DeadItems {
            let memory = compat::work_mem();
            // SAFETY: see above.
            unsafe {
                let state = start_workers(rel, indexes, workers, memory, verbose, strategy);
                let memory = memory as usize * 1024;
                let mut info: *mut pg_sys::VacDeadItemsInfo = std::ptr::null_mut();
                let store = if state.is_null() {
                    info = pg_sys::palloc0(size_of::<pg_sys::VacDeadItemsInfo>()).cast();
                    (*info).max_bytes = memory;
                    pg_sys::TidStoreCreateLocal(memory, true)
                } else {
                    pg_sys::parallel_vacuum_get_dead_items(state, &mut info)
                };
                DeadItems { store, info, workers: state, memory }
            }
        }

        /// Number of TIDs.
        pub fn len(&self) -> i64 {
            // SAFETY: the list lives as long as this value.
            unsafe { (*self.info).num_items }
        }

        /// Reports the room there is.
        pub fn report_room(&self) {
            compat::progress(pg_sys::PROGRESS_VACUUM_MAX_DEAD_TUPLE_BYTES, self.memory as i64);
        }

        fn bytes(&self) -> usize {
            // SAFETY: as above.
            unsafe { pg_sys::TidStoreMemoryUsage(self.store) }
        }

        /// Whether the line pointers of one more page may be added.
        pub fn has_room_for_page(&self) -> bool {
            self.len() == 0 || self.bytes() <= self.memory
        }

        /// Adds line pointers of a block that has none in the list.
        pub fn add(&mut self, block: u32, offsets: &[u16]) {
            assert!(offsets.len() <= usize::from(MAX_OFFSET), "a page has that many line pointers at most");
            // SAFETY: the offsets are only read; nobody else changes the list.
            unsafe {
                pg_sys::TidStoreSetBlockOffsets(self.store, block, offsets.as_ptr().cast_mut(), offsets.len() as i32);
                (*self.info).num_items += offsets.len() as i64;
            }
            compat::progress(pg_sys::PROGRESS_VACUUM_NUM_DEAD_ITEM_IDS, self.len());
            compat::progress(pg_sys::PROGRESS_VACUUM_DEAD_TUPLE_BYTES, self.bytes() as i64);
        }

        /// Forgets all.
        pub fn clear(&mut self) {
            // SAFETY: no iteration is open when a round ends.
            unsafe {
                if self.workers.is_null() {
                    pg_sys::TidStoreDestroy(self.store);
                    self.store = pg_sys::TidStoreCreateLocal(self.memory, true);
                } else {
                    pg_sys::parallel_vacuum_reset_dead_items(self.workers);
                    self.store = pg_sys::parallel_vacuum_get_dead_items(self.workers, &mut self.info);
                }
                (*self.info).num_items = 0;
            }
        }

        /// The next block and its line pointers, which replace the contents of `offsets`.
        pub fn next_block(&self, cursor: &mut Cursor, offsets: &mut Vec<u16>) -> Option<u32> {
            // SAFETY: the iterator is opened at the first call and closed at the last; the result lives until the next step.
            unsafe {
                if cursor.0.is_null() {
                    cursor.0 = pg_sys::TidStoreBeginIterate(self.store);
                }
                let found = pg_sys::TidStoreIterateNext(cursor.0);
                if found.is_null() {
                    pg_sys::TidStoreEndIterate(cursor.0);
                    cursor.0 = std::ptr::null_mut();
                    return None;
                }
                offsets.clear();
                #[cfg(feature = "pg17")]
                offsets.extend_from_slice(std::slice::from_raw_parts((*found).offsets, (*found).num_offsets as usize));
                #[cfg(feature = "pg18")]
                {
                    offsets.resize(usize::from(MAX_OFFSET), 0);
                    let count = pg_sys::TidStoreGetBlockOffsets(found, offsets.as_mut_ptr(), i32::from(MAX_OFFSET));
                    offsets.truncate(count as usize);
                }
                Some((*found).blkno)
            }
        }

        /// The parallel workers' state; null if there are none.
        pub fn workers(&self) -> *mut pg_sys::ParallelVacuumState {
            self.workers
        }

        /// Ends the parallel work and fetches what it learnt of the indexes. The list is gone with it.
        ///
        /// # Safety
        /// `statistics` has a place for each index; the list is not used again.
        pub unsafe fn end_workers(&mut self, statistics: *mut *mut pg_sys::IndexBulkDeleteResult) {
            if !self.workers.is_null() {
                // SAFETY: see above.
                unsafe { pg_sys::parallel_vacuum_end(self.workers, statistics) };
                self.workers = std::ptr::null_mut();
            }
        }

        /// Deletes the entries of one index that name a TID of the list.
        ///
        /// # Safety
        /// The pointers are valid for the index' access method.
        pub unsafe fn delete_from(
            &self,
            info: &mut pg_sys::IndexVacuumInfo,
            statistics: *mut pg_sys::IndexBulkDeleteResult,
        ) -> *mut pg_sys::IndexBulkDeleteResult {
            // SAFETY: see above.
            unsafe { pg_sys::vac_bulkdel_one_index(info, statistics, self.store, self.info) }
        }
    }
}
