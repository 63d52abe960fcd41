//! SQL functions, by subject.

mod acting;
mod cold;
mod history;
mod ids;
mod jobs;
mod messages;
mod options;
mod ownership;
mod publications;
mod roles;
mod segments;
mod status;
mod storages;
mod table_stats;
mod table_users;
mod tokens;
mod users;
