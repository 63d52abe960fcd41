//! Memory contexts of Postgres.

use std::ffi::CStr;

use pgrx::pg_sys;

/// A new context below the current one, which ends it if nobody does before.
pub fn new_context(name: &'static CStr) -> pg_sys::MemoryContext {
    // SAFETY: the name is never freed.
    unsafe {
        pg_sys::AllocSetContextCreateExtended(
            pg_sys::CurrentMemoryContext,
            name.as_ptr(),
            pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
        )
    }
}

/// Runs a function that allocates in a context. Postgres itself puts the context back where an ERROR ends it.
///
/// # Safety
/// The context lives.
pub unsafe fn in_context<R>(context: pg_sys::MemoryContext, run: impl FnOnce() -> R) -> R {
    // SAFETY: the caller's.
    unsafe {
        let before = pg_sys::MemoryContextSwitchTo(context);
        let result = run();
        pg_sys::MemoryContextSwitchTo(before);
        result
    }
}

/// Runs a function that allocates in a context of its own, which gets the context, to empty it, and may keep nothing.
pub fn in_new_context<R>(name: &'static CStr, run: impl FnOnce(pg_sys::MemoryContext) -> R) -> R {
    let context = new_context(name);
    // SAFETY: made here, and deleted here.
    unsafe {
        let result = in_context(context, || run(context));
        pg_sys::MemoryContextDelete(context);
        result
    }
}
