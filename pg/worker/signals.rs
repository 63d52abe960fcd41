//! Signals of the worker: what they mean, and how engine threads are kept from receiving them.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::pg_sys;

use crate::ffi::compat;

static TERMINATE: AtomicBool = AtomicBool::new(false);
static RELOAD: AtomicBool = AtomicBool::new(false);

unsafe extern "C-unwind" fn on_terminate(_signal: c_int) {
    TERMINATE.store(true, Ordering::Relaxed);
}

unsafe extern "C-unwind" fn on_reload(_signal: c_int) {
    RELOAD.store(true, Ordering::Relaxed);
}

unsafe extern "C-unwind" fn on_nothing(_signal: c_int) {}

/// Installs the worker's handlers and lets signals through. The timed waits of the main loop return on every signal.
pub fn install() {
    // SAFETY: the handlers only store to atomics; called before any other thread exists.
    unsafe {
        compat::handle_signal(libc::SIGTERM, Some(on_terminate));
        compat::handle_signal(libc::SIGHUP, Some(on_reload));
        // There is no statement to cancel.
        compat::handle_signal(libc::SIGINT, Some(on_nothing));
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// Whether the process was asked to leave.
pub fn terminate_requested() -> bool {
    TERMINATE.load(Ordering::Relaxed)
}

/// Forgets the request to leave.
pub fn forget_terminate_request() {
    TERMINATE.store(false, Ordering::Relaxed);
}

/// Whether the configuration file is to be read again; asks once.
pub fn take_reload_request() -> bool {
    RELOAD.swap(false, Ordering::Relaxed)
}

/// Runs a function with all signals blocked, so that threads it creates inherit that and leave them to the main thread.
pub fn with_all_blocked<R>(run: impl FnOnce() -> R) -> R {
    let _guard = BlockedSignals::new();
    run()
}

struct BlockedSignals {
    previous: libc::sigset_t,
}

impl BlockedSignals {
    fn new() -> BlockedSignals {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        let mut previous = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: both sets are written by the calls before they are read; they cannot fail with these arguments.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), previous.as_mut_ptr());
            BlockedSignals { previous: previous.assume_init() }
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: restores the mask saved at construction.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.previous, std::ptr::null_mut()) };
    }
}
