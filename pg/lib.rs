//! The extension's entry: the module's magic block and what happens when a process loads the library.

use pgrx::prelude::*;

mod cold;
mod error;
mod ffi;
mod functions;
mod gate;
mod hash;
mod history;
mod identity;
mod jobs;
mod options;
mod ownership;
mod settings;
mod shmem;
mod storages;
mod tableam;
mod wal;
mod worker;

pgrx::pg_module_magic!();

/// Called by Postgres once per process that loads the library, or once in the postmaster when it is preloaded.
#[allow(non_snake_case)]
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    keep_backtraces_out_of_errors();
    settings::define();
    shmem::init();
    worker::start::init();
    ffi::extension::init();
    tableam::init();
    history::init();
    cold::explain::init();
    identity::init();
    gate::init();
    jobs::init();
    options::init();
    // The first one sees a statement first. The gate comes last: below it, statements run as what they are.
    ffi::utility::init(
        &[jobs::database::watch, options::statement::watch, identity::session::watch, gate::ddl::watch],
        gate::begin_transaction_statement,
    );
}

/// pgrx would put a backtrace into the detail of every error when the server's environment asks for backtraces of panics.
fn keep_backtraces_out_of_errors() {
    const VARIABLE: &str = "RUST_LIB_BACKTRACE";
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: the process has one thread while it loads libraries.
        unsafe { std::env::set_var(VARIABLE, "0") };
    }
}
