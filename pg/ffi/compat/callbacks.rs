//! Hooks and callbacks whose signatures differ between versions of Postgres: each macro defines one that calls the same functions in all of them.

/// Asks before each check of rights: `refuses` says, given the tables and whether a refusal is an error, whether they are refused.
macro_rules! permissions_hook {
    ($name:ident, $previous:ident, $refuses:expr) => {
        #[cfg(feature = "pg15")]
        #[pgrx::pg_guard]
        unsafe extern "C-unwind" fn $name(tables: *mut pgrx::pg_sys::List, raises: bool) -> bool {
            // SAFETY: the hook gets what Postgres checks.
            unsafe { !$refuses(tables, raises) && $previous.is_none_or(|previous| previous(tables, raises)) }
        }
        #[cfg(not(feature = "pg15"))]
        #[pgrx::pg_guard]
        unsafe extern "C-unwind" fn $name(
            tables: *mut pgrx::pg_sys::List,
            rights: *mut pgrx::pg_sys::List,
            raises: bool,
        ) -> bool {
            // SAFETY: the hook gets what Postgres checks.
            unsafe { !$refuses(tables, raises) && $previous.is_none_or(|previous| previous(tables, rights, raises)) }
        }
    };
}
pub(crate) use permissions_hook;

/// Runs a query by what the hook replaces, within a function that gets the query and how to run it.
macro_rules! run_hook {
    ($name:ident, $previous:ident, $within:ident) => {
        #[cfg(not(feature = "pg18"))]
        unsafe extern "C-unwind" fn $name(
            query: *mut pgrx::pg_sys::QueryDesc,
            direction: pgrx::pg_sys::ScanDirection::Type,
            count: u64,
            once: bool,
        ) {
            // SAFETY: the hook gets what the executor gets.
            unsafe {
                let run = $previous.unwrap_or($crate::ffi::unguarded::standard_ExecutorRun);
                $within(query, || run(query, direction, count, once));
            }
        }
        #[cfg(feature = "pg18")]
        unsafe extern "C-unwind" fn $name(
            query: *mut pgrx::pg_sys::QueryDesc,
            direction: pgrx::pg_sys::ScanDirection::Type,
            count: u64,
        ) {
            // SAFETY: the hook gets what the executor gets.
            unsafe {
                let run = $previous.unwrap_or($crate::ffi::unguarded::standard_ExecutorRun);
                $within(query, || run(query, direction, count));
            }
        }
    };
}
pub(crate) use run_hook;

/// Defines a slot's callback that copies its row, which a function gives as a heap tuple.
macro_rules! copy_minimal_tuple {
    ($name:ident, $tuple:ident) => {
        #[cfg(not(feature = "pg18"))]
        #[pgrx::pg_guard]
        unsafe extern "C-unwind" fn $name(slot: *mut pgrx::pg_sys::TupleTableSlot) -> pgrx::pg_sys::MinimalTuple {
            // SAFETY: the slot is one of those with this callback.
            unsafe { pgrx::pg_sys::minimal_tuple_from_heap_tuple($tuple(slot)) }
        }
        #[cfg(feature = "pg18")]
        #[pgrx::pg_guard]
        unsafe extern "C-unwind" fn $name(
            slot: *mut pgrx::pg_sys::TupleTableSlot,
            extra: pgrx::pg_sys::Size,
        ) -> pgrx::pg_sys::MinimalTuple {
            // SAFETY: the slot is one of those with this callback.
            unsafe { pgrx::pg_sys::minimal_tuple_from_heap_tuple($tuple(slot), extra) }
        }
    };
}
pub(crate) use copy_minimal_tuple;

/// Defines the callback by which ANALYZE goes to the next of the blocks that it chose; a function reads it.
macro_rules! analyze_next_block {
    ($name:ident, $read:ident) => {
        /// Goes to the next block that ANALYZE chose.
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        #[pgrx::pg_guard]
        pub unsafe extern "C-unwind" fn $name(
            scan: pgrx::pg_sys::TableScanDesc,
            block: pgrx::pg_sys::BlockNumber,
            _strategy: pgrx::pg_sys::BufferAccessStrategy,
        ) -> bool {
            // SAFETY: Postgres keeps the contract of the callback.
            unsafe { $read(scan, block) };
            true
        }
        /// Goes to the next block that ANALYZE chose.
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        #[pgrx::pg_guard]
        pub unsafe extern "C-unwind" fn $name(scan: pgrx::pg_sys::TableScanDesc, stream: *mut pgrx::pg_sys::ReadStream) -> bool {
            // SAFETY: Postgres keeps the contract of the callback; the stream gives numbers of blocks and reads none.
            unsafe {
                let mut strategy = std::ptr::null_mut();
                let block = pgrx::pg_sys::read_stream_next_block(stream, &mut strategy);
                if block == pgrx::pg_sys::InvalidBlockNumber {
                    return false;
                }
                $read(scan, block);
            }
            true
        }
    };
}
pub(crate) use analyze_next_block;

/// Defines the callbacks of bitmap scans and a function that puts them into the table of callbacks; one function enters a page of the
/// bitmap, another one gives its next row.
macro_rules! bitmap_callbacks {
    ($set:ident, $enter:ident, $next:ident) => {
        /// Puts the callbacks of bitmap scans into the table of callbacks.
        pub fn $set(routine: &mut pgrx::pg_sys::TableAmRoutine) {
            #[cfg(not(feature = "pg18"))]
            {
                routine.scan_bitmap_next_block = Some(next_block);
            }
            routine.scan_bitmap_next_tuple = Some(next_tuple);

            #[cfg(not(feature = "pg18"))]
            #[pgrx::pg_guard]
            unsafe extern "C-unwind" fn next_block(
                scan: pgrx::pg_sys::TableScanDesc,
                bitmap: *mut pgrx::pg_sys::TBMIterateResult,
            ) -> bool {
                // SAFETY: Postgres keeps the contract of the callback, and passes a filled result.
                unsafe {
                    let count = usize::try_from((*bitmap).ntuples).ok();
                    let offsets = count.map(|count| std::slice::from_raw_parts((*bitmap).offsets.as_ptr(), count));
                    $enter(scan, (*bitmap).blockno, offsets)
                }
            }

            #[cfg(not(feature = "pg18"))]
            #[pgrx::pg_guard]
            unsafe extern "C-unwind" fn next_tuple(
                scan: pgrx::pg_sys::TableScanDesc,
                _bitmap: *mut pgrx::pg_sys::TBMIterateResult,
                slot: *mut pgrx::pg_sys::TupleTableSlot,
            ) -> bool {
                // SAFETY: Postgres keeps the contract of the callback.
                unsafe { $next(scan, slot) }
            }

            #[cfg(feature = "pg18")]
            #[pgrx::pg_guard]
            unsafe extern "C-unwind" fn next_tuple(
                scan: pgrx::pg_sys::TableScanDesc,
                slot: *mut pgrx::pg_sys::TupleTableSlot,
                recheck: *mut bool,
                lossy_pages: *mut u64,
                exact_pages: *mut u64,
            ) -> bool {
                const OFFSETS: usize = kalamdb_engine::page::MAX_OFFSET as usize;
                // SAFETY: Postgres keeps the contract of the callback; the scan's iterator is at its place.
                unsafe {
                    while !$next(scan, slot) {
                        let mut page = pgrx::pg_sys::TBMIterateResult::default();
                        if !pgrx::pg_sys::tbm_iterate(&mut (*scan).st.rs_tbmiterator, &mut page) {
                            return false;
                        }
                        *recheck = page.recheck;
                        *if page.lossy { lossy_pages } else { exact_pages } += 1;
                        let mut offsets = [0; OFFSETS];
                        let count = if page.lossy {
                            0
                        } else {
                            pgrx::pg_sys::tbm_extract_page_tuple(&mut page, offsets.as_mut_ptr(), OFFSETS as u32)
                        };
                        let offsets = (!page.lossy).then(|| &offsets[..count as usize]);
                        $enter(scan, page.blockno, offsets);
                    }
                }
                true
            }
        }
    };
}
pub(crate) use bitmap_callbacks;
