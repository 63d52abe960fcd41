//! The extension's entry: the module's magic block and what happens when a process loads the library.

use pgrx::prelude::*;

mod error;
mod ffi;
mod functions;
mod settings;
mod shmem;
mod wal;
mod worker;

pgrx::pg_module_magic!();

/// Called by Postgres once per process that loads the library, or once in the postmaster when it is preloaded.
#[allow(non_snake_case)]
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    settings::define();
    shmem::init();
    worker::start::init();
}
