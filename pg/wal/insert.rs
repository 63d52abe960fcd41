//! Writes one of our records to Postgres' log.

use kalamdb_engine::ids::Lsn;
use pgrx::pg_sys;

use super::{MessageHead, PREFIX, RM_LOGICALMSG, XLOG_LOGICAL_MESSAGE};

// Declared here without pgrx's guard, which costs more than these calls on the path of every row: they are only made in a
// critical section, where an ERROR is a PANIC and never unwinds.
unsafe extern "C-unwind" {
    fn XLogBeginInsert();
    fn XLogRegisterData(data: *const std::ffi::c_char, len: u32);
    fn XLogInsert(resource_manager: u8, info: u8) -> u64;
}

/// Writes a record and returns where it ends, which is the new LSN of the pages it describes.
///
/// Before the first record of a (sub)transaction the caller assigns its transaction id, so that recovery cannot give it out
/// again.
///
/// # Safety
/// A critical section is open, the server is not in recovery, and no other record is under construction.
pub unsafe fn insert(record: &[u8]) -> Lsn {
    // SAFETY: reads a counter of this process.
    debug_assert!(unsafe { pg_sys::CritSectionCount } > 0);
    let head = MessageHead {
        database: 0,
        transactional: false,
        padding: [0; 3],
        prefix_size: PREFIX.len(),
        message_size: record.len(),
        prefix: PREFIX,
    };
    // SAFETY: both chunks live until XLogInsert has copied them; their number is far below Postgres' limit.
    unsafe {
        XLogBeginInsert();
        XLogRegisterData((&raw const head).cast(), size_of::<MessageHead>() as u32);
        XLogRegisterData(record.as_ptr().cast(), record.len() as u32);
        Lsn(XLogInsert(RM_LOGICALMSG, XLOG_LOGICAL_MESSAGE))
    }
}
