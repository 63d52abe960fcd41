//! Tests the rules against a truth table, against a model that replays histories, and against themselves with hints set.

mod freeze;
mod hints;
mod history;
mod model;
mod table;
mod world;
