//! SQL functions, by subject.

mod status;
mod table_stats;
