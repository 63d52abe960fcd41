//! Jobs: work on tables that a session asks for or a policy causes, done by short-lived processes with a database connection.
//!
//! A session posts a request to the keeper, the one process of its database that writes the job table, and has the job's id at
//! once: its own transaction neither carries the job nor has to commit first. Runners take jobs from the table and run them, each
//! in transactions of its own. The engine worker starts both kinds of process where they are wanted; they leave when idle.

pub mod database;
mod keeper;
pub mod kinds;
mod launcher;
pub mod limit;
mod policy;
pub mod process;
pub mod request;
mod row_count;
mod runner;
mod snapshot;
pub mod table;
mod table_work;

pub use kinds::{Job, JobId, Kind};
pub use launcher::Launcher;
pub use row_count::count_rows;
pub use runner::Progress;

/// What a process registers with Postgres when it loads the library.
pub fn init() {
    row_count::init();
}
