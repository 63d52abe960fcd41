//! SQL functions with Postgres' own signature, without the layer that pgrx puts between Postgres and a function: handlers, event triggers,
//! functions of sets of rows, and what short statements call.

use pgrx::pg_sys;

/// Describes to Postgres the calling convention of the functions whose symbols follow `pg_finfo_`.
macro_rules! version_1 {
    ($($info:ident),+ $(,)?) => {$(
        #[unsafe(no_mangle)]
        #[doc(hidden)]
        pub extern "C" fn $info() -> &'static pgrx::pg_sys::Pg_finfo_record {
            const RECORD: pgrx::pg_sys::Pg_finfo_record = pgrx::pg_sys::Pg_finfo_record { api_version: 1 };
            &RECORD
        }
    )+};
}
pub(crate) use version_1;

/// A text as the result of a function, in the memory of the expression that calls it.
pub fn return_text(text: &str) -> pg_sys::Datum {
    // SAFETY: the bytes are copied.
    pg_sys::Datum::from(unsafe { pg_sys::cstring_to_text_with_len(text.as_ptr().cast(), text.len() as i32) })
}

/// Null as the result of a function.
///
/// # Safety
/// What Postgres passed to the function.
pub unsafe fn return_null(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: see above.
    unsafe { (*call).isnull = true };
    pg_sys::Datum::from(0)
}
