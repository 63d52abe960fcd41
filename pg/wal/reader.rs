//! Reads our records back from Postgres' log.

use std::ffi::CStr;

use kalamdb_engine::ids::Lsn;
use kalamdb_engine::{Error, ErrorKind, sentence};
use pgrx::pg_sys;

use super::{MessageHead, PREFIX, RM_LOGICALMSG, XLOG_LOGICAL_MESSAGE};
use crate::error::{SqlError, catching_all};

// pgrx wraps these functions for its guard, and a wrapper is no C function that can be handed to Postgres.
unsafe extern "C-unwind" {
    fn read_local_xlog_page_no_wait(
        state: *mut pg_sys::XLogReaderState,
        target_page: pg_sys::XLogRecPtr,
        required: std::ffi::c_int,
        target_record: pg_sys::XLogRecPtr,
        page: *mut std::ffi::c_char,
    ) -> std::ffi::c_int;
    fn wal_segment_open(state: *mut pg_sys::XLogReaderState, segment: pg_sys::XLogSegNo, timeline: *mut pg_sys::TimeLineID);
    fn wal_segment_close(state: *mut pg_sys::XLogReaderState);
}

/// One of our records.
pub struct LoggedRecord<'a> {
    /// Where it ends: the LSN of the pages it describes.
    pub end: Lsn,
    /// The bytes given to [`super::insert`].
    pub payload: &'a [u8],
}

/// Walks our records from a position to the end of the flushed log.
pub struct Reader {
    state: *mut pg_sys::XLogReaderState,
    // Boxed, as Postgres' callbacks write to it through a pointer they keep.
    progress: Box<pg_sys::ReadLocalXLogPageNoWaitPrivate>,
    position: Lsn,
    at_end: bool,
}

impl Reader {
    /// A reader that starts at the first record at or behind `from`.
    ///
    /// # Errors
    /// `StorageMissing` (58P01) if the log from there is gone.
    pub fn open(from: Lsn) -> Result<Reader, SqlError> {
        let mut progress = Box::new(pg_sys::ReadLocalXLogPageNoWaitPrivate { end_of_wal: false });
        let mut routine = pg_sys::XLogReaderRoutine {
            page_read: Some(read_local_xlog_page_no_wait),
            segment_open: Some(wal_segment_open),
            segment_close: Some(wal_segment_close),
        };
        let private: *mut pg_sys::ReadLocalXLogPageNoWaitPrivate = &raw mut *progress;
        // SAFETY: the routine is copied; the private data outlives the reader state, which is freed in drop.
        let state =
            unsafe { pg_sys::XLogReaderAllocate(pg_sys::wal_segment_size, std::ptr::null(), &raw mut routine, private.cast()) };
        if state.is_null() {
            return Err(Error::new(ErrorKind::OutOfMemory, "out of memory for a reader of the write-ahead log").into());
        }
        let mut reader = Reader { state, progress, position: from, at_end: false };
        if from >= super::flushed_lsn() {
            reader.at_end = true;
            return Ok(reader);
        }
        // SAFETY: the state was just made.
        let first =
            catching_all(|| unsafe { pg_sys::XLogFindNextRecord(state, from.0) }).map_err(|error| missing(from, error))?;
        if first == 0 {
            if !reader.progress_at_end() {
                return Err(missing_log(from, "No valid record was found there.".to_owned()));
            }
            reader.at_end = true;
        }
        Ok(reader)
    }

    /// The next record of ours; `None` at the end of the flushed log.
    ///
    /// # Errors
    /// `StorageMissing` if a part of the log is gone, `Corrupt` if it cannot be read.
    pub fn next(&mut self) -> Result<Option<LoggedRecord<'_>>, SqlError> {
        while !self.at_end {
            let state = self.state;
            let mut message: *mut std::ffi::c_char = std::ptr::null_mut();
            let target = &raw mut message;
            let record = catching_all(std::panic::AssertUnwindSafe(|| {
                // SAFETY: the state is valid until drop; the message points into it.
                unsafe { pg_sys::XLogReadRecord(state, target) }
            }))
            .map_err(|error| missing(self.position, error))?;
            if record.is_null() {
                if !self.progress_at_end() {
                    return Err(unreadable(self.position, message));
                }
                self.at_end = true;
                break;
            }
            // SAFETY: the state is valid; a record was just read.
            self.position = Lsn(unsafe { (*state).EndRecPtr });
            // SAFETY: the decoded record lives until the next read, which needs `self` mutably.
            if let Some(payload) = unsafe { our_payload(state) } {
                return Ok(Some(LoggedRecord { end: self.position, payload }));
            }
        }
        Ok(None)
    }

    /// Behind the last record that was read, ours or not.
    pub fn position(&self) -> Lsn {
        self.position
    }

    fn progress_at_end(&self) -> bool {
        // SAFETY: a plain flag that Postgres' callback writes through the pointer it was given.
        unsafe { std::ptr::read_volatile(&raw const self.progress.end_of_wal) }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: made by `open`, freed once; after an ERROR its memory goes with the process.
            unsafe { pg_sys::XLogReaderFree(self.state) };
        }
    }
}

/// The payload of the record just read, if it is ours.
///
/// # Safety
/// `state` holds a decoded record that lives as long as the result is used.
unsafe fn our_payload<'a>(state: *mut pg_sys::XLogReaderState) -> Option<&'a [u8]> {
    // SAFETY: the caller vouches for the decoded record and its data.
    unsafe {
        let record = (*state).record;
        let header = &(*record).header;
        // The low four bits of the info belong to the log itself.
        if header.xl_rmid != RM_LOGICALMSG || header.xl_info & 0xf0 != XLOG_LOGICAL_MESSAGE {
            return None;
        }
        let data = std::slice::from_raw_parts((*record).main_data.cast::<u8>(), (*record).main_data_len as usize);
        if data.len() < size_of::<MessageHead>() {
            return None;
        }
        let head = data.as_ptr().cast::<MessageHead>().read_unaligned();
        let ours = head.database == 0 && head.prefix_size == PREFIX.len() && head.prefix == PREFIX;
        let payload = &data[size_of::<MessageHead>()..];
        (ours && payload.len() == head.message_size).then_some(payload)
    }
}

#[cold]
fn missing(position: Lsn, error: SqlError) -> SqlError {
    if error.is_missing_file() { missing_log(position, error.message().to_owned()) } else { error }
}

#[cold]
fn missing_log(position: Lsn, detail: String) -> SqlError {
    Error::new(ErrorKind::StorageMissing, format!("write-ahead log from {position} on is missing, which the KalamDB store needs"))
        .with_detail(sentence(detail))
        .with_hint("Restore the cluster from a backup, or put the missing segments back into pg_wal and restart the server.")
        .into()
}

#[cold]
fn unreadable(position: Lsn, message: *const std::ffi::c_char) -> SqlError {
    let detail = if message.is_null() {
        "The reader of the log gave no reason.".to_owned()
    } else {
        // SAFETY: Postgres' message buffer is a string that ends with a zero byte.
        unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()
    };
    Error::corrupt(format!("could not read the write-ahead log behind {position}"))
        .with_detail(sentence(detail))
        .with_hint("Restore the cluster from a backup, or put sound segments into pg_wal and restart the server.")
        .into()
}
