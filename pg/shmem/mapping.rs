//! The memory of the cache when the library is preloaded: a mapping that the postmaster makes and its children inherit.
//!
//! It is longer than the memory it takes: what nobody has touched costs nothing, and the cache gives back what it needs no more. That
//! cannot be had of Postgres' own shared memory, which may be made of huge pages and is reserved as a whole.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use kalamdb_engine::cache::MEMORY_UNIT;

static START: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static LENGTH: AtomicUsize = AtomicUsize::new(0);
static USED: AtomicBool = AtomicBool::new(false);

/// The mapping of this server.
pub struct Mapping {
    /// Where it begins, at the start of an operating system's page.
    pub start: *mut u8,
    /// Its length in bytes.
    pub len: usize,
}

impl Mapping {
    /// Makes the mapping; false when the system does not allow it, or counts memory in other units.
    pub fn make(len: usize) -> bool {
        // SAFETY: reads the system's configuration.
        if unsafe { libc::sysconf(libc::_SC_PAGESIZE) } != MEMORY_UNIT as libc::c_long {
            return false;
        }
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh mapping that nothing else knows.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return false;
        }
        // Without a way to give memory back the cache would outgrow its limit.
        // SAFETY: the mapping just made, which goes if it is of no use.
        unsafe {
            if libc::madvise(start, MEMORY_UNIT, libc::MADV_REMOVE) != 0 {
                libc::munmap(start, len);
                return false;
            }
        }
        // A refusal does no harm: the system has no huge pages for such memory then. SAFETY: the mapping just made.
        unsafe { libc::madvise(start, len, libc::MADV_NOHUGEPAGE) };
        START.store(start.cast(), Ordering::Relaxed);
        LENGTH.store(len, Ordering::Relaxed);
        true
    }

    /// The mapping with nothing in it, if there is one: at each start of the server's life, when no other process uses it.
    pub fn emptied() -> Option<Mapping> {
        let len = LENGTH.load(Ordering::Relaxed);
        if len == 0 {
            return None;
        }
        if USED.swap(true, Ordering::Relaxed) {
            let start = START.load(Ordering::Relaxed);
            // A process that outlives a crash of others, as the log's collector, has the memory as long as it is not given back.
            // SAFETY: the mapping is whole; nobody uses it, as said above.
            if unsafe { libc::madvise(start.cast(), len, libc::MADV_REMOVE) } != 0 {
                // SAFETY: as above; all bytes lie in the mapping.
                unsafe { ptr::write_bytes(start, 0, len) };
            }
        }
        Some(Mapping { start: START.load(Ordering::Relaxed), len })
    }
}
