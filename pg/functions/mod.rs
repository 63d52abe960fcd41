//! SQL functions, by subject.

mod status;
