//! Safe faces of raw Postgres: interrupts, critical sections, memory contexts, utility statements, and what differs between its versions.

pub mod catalog;
pub mod compat;
pub mod extension;
pub mod function;
pub mod interrupts;
pub mod memory;
pub mod plain;
pub mod sql;
pub mod unguarded;
pub mod utility;

// The macro that guards hand-declared functions of Postgres looks for its helper here.
pub use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
