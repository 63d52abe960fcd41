//! Names the bits of a tuple header's two masks; they have Postgres' values and meaning.

/// Some attribute is null: a null bitmap follows the fixed header.
pub const HEAP_HASNULL: u16 = 0x0001;
/// Some attribute is stored elsewhere.
pub const HEAP_HASEXTERNAL: u16 = 0x0004;
/// xmax is a key-shared locker.
pub const HEAP_XMAX_KEYSHR_LOCK: u16 = 0x0010;
/// xmax is an exclusive locker.
pub const HEAP_XMAX_EXCL_LOCK: u16 = 0x0040;
/// xmax, if valid, only locks.
pub const HEAP_XMAX_LOCK_ONLY: u16 = 0x0080;
/// xmax is a shared locker.
pub const HEAP_XMAX_SHR_LOCK: u16 = HEAP_XMAX_EXCL_LOCK | HEAP_XMAX_KEYSHR_LOCK;
/// The bits that tell the strength of a lock.
pub const HEAP_LOCK_MASK: u16 = HEAP_XMAX_SHR_LOCK | HEAP_XMAX_EXCL_LOCK | HEAP_XMAX_KEYSHR_LOCK;
/// xmin is known to have committed.
pub const HEAP_XMIN_COMMITTED: u16 = 0x0100;
/// xmin is known to have aborted.
pub const HEAP_XMIN_INVALID: u16 = 0x0200;
/// Every snapshot sees xmin as committed.
pub const HEAP_XMIN_FROZEN: u16 = HEAP_XMIN_COMMITTED | HEAP_XMIN_INVALID;
/// xmax is known to have committed.
pub const HEAP_XMAX_COMMITTED: u16 = 0x0400;
/// xmax is known to have aborted, or there is none.
pub const HEAP_XMAX_INVALID: u16 = 0x0800;
/// xmax is a multixact id.
pub const HEAP_XMAX_IS_MULTI: u16 = 0x1000;
/// The version is the new side of an update.
pub const HEAP_UPDATED: u16 = 0x2000;
/// Every bit that says something of xmax.
pub const HEAP_XMAX_BITS: u16 =
    HEAP_XMAX_COMMITTED | HEAP_XMAX_INVALID | HEAP_XMAX_IS_MULTI | HEAP_LOCK_MASK | HEAP_XMAX_LOCK_ONLY;
/// The bits that readers may set without a log record.
pub const HINT_BITS: u16 = HEAP_XMIN_COMMITTED | HEAP_XMIN_INVALID | HEAP_XMAX_COMMITTED | HEAP_XMAX_INVALID;

/// The number of attributes in the second mask.
pub const HEAP_NATTS_MASK: u16 = 0x07ff;
/// The version was updated in its key, or deleted.
pub const HEAP_KEYS_UPDATED: u16 = 0x2000;
/// The next version is a heap-only one in the same page.
pub const HEAP_HOT_UPDATED: u16 = 0x4000;
/// No index names this version.
pub const HEAP_ONLY_TUPLE: u16 = 0x8000;

/// The offset in a ctid that carries a speculative insertion's token in its block number.
pub const SPECULATIVE_OFFSET: u16 = 0xfffe;
/// The offset in a ctid that says the row went to another partition.
pub const MOVED_PARTITIONS_OFFSET: u16 = 0xfffd;
