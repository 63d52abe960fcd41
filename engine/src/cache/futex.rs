//! Waits on words of shared memory with Linux' futex, across processes.

use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// The longest single wait: Postgres installs its signal handlers with SA_RESTART, so that an unbounded wait would never
/// return to a query cancel.
pub const WAIT_MAX: Duration = Duration::from_millis(100);

/// Sleeps while `word` holds `expected`, at most [`WAIT_MAX`]; may wake without reason.
pub fn wait(word: &AtomicU32, expected: u32) {
    wait_for(word, expected, WAIT_MAX);
}

/// Sleeps while `word` holds `expected`, at most `timeout`.
pub fn wait_for(word: &AtomicU32, expected: u32, timeout: Duration) {
    let timeout = timeout.min(WAIT_MAX);
    let spec = libc::timespec { tv_sec: timeout.as_secs() as libc::time_t, tv_nsec: timeout.subsec_nanos() as libc::c_long };
    // SAFETY: the word outlives the call; the kernel only reads it and the timespec. FUTEX_PRIVATE must not be used, as the
    // waiters are different processes.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, expected, &spec as *const libc::timespec);
    }
}

/// Wakes every waiter of `word`.
pub fn wake_all(word: &AtomicU32) {
    // SAFETY: the kernel uses the address as a key only.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX);
    }
}

/// Wakes one waiter of `word`.
pub fn wake_one(word: &AtomicU32) {
    // SAFETY: the kernel uses the address as a key only.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1);
    }
}
