//! Safe faces of raw Postgres: interrupts, critical sections, and what differs between its versions.

pub mod compat;
pub mod interrupts;
