//! Options of tables: what they are called, what they may be, where they are kept, and the statements that set them.
//!
//! They stand in the table `kalam.table_options`, which pg_dump dumps. What a table does not set itself comes from the setting
//! `kalam.*` of the same name.

pub mod defaults;
pub mod definition;
pub mod statement;
pub mod stored;

use std::rc::Rc;

use kalamdb_engine::cache::FlushLimits;
use pgrx::pg_sys;

/// What a process registers with Postgres when it loads the library.
pub fn init() {
    stored::init();
}

/// The options of a table: what it sets itself, over the defaults.
pub struct TableOptions {
    own: Rc<Vec<(String, String)>>,
}

/// The options of a table.
pub fn of(relation: pg_sys::Oid) -> TableOptions {
    TableOptions { own: stored::own_options(relation) }
}

/// The options of a table as they stand in its rows now.
///
/// Whoever changed them wakes others when it has committed, a moment before it tells them that what they have cached is outdated.
pub fn read(relation: pg_sys::Oid) -> TableOptions {
    TableOptions { own: Rc::new(stored::read(relation)) }
}

#[allow(dead_code, reason = "what moves rows into segments reads them")]
impl TableOptions {
    /// What the table itself sets.
    pub fn own(&self, name: &str) -> Option<&str> {
        self.own.iter().find(|(option, _)| option == name).map(|(_, value)| value.as_str())
    }

    /// The value of an option; empty when neither the table nor a setting says something.
    pub fn value(&self, name: &str) -> String {
        self.own(name).map_or_else(|| defaults::of(name), str::to_owned)
    }

    /// When rows are to be flushed: a number of rows and a time, each either set alone or as a part of the policy.
    pub fn flush_limits(&self) -> FlushLimits {
        let policy = definition::parse_policy(&self.value("flush_policy")).unwrap_or_default();
        let number = |name: &str| self.value(name).parse::<u32>().ok().filter(|value| *value > 0);
        // What the table says beats what a setting says, whichever of the two forms it has.
        let own_policy = self.own("flush_policy").is_some();
        let single = |name: &str| number(name).filter(|_| !own_policy || self.own(name).is_some());
        FlushLimits {
            rows: single("flush_rows").unwrap_or(policy.rows),
            seconds: single("flush_interval").unwrap_or(policy.seconds),
        }
    }

    /// The name of the storage that segments go to.
    pub fn storage(&self) -> String {
        self.value("storage")
    }

    /// Name and, if it has one, level of the compression of segments.
    pub fn compression(&self) -> (String, Option<i32>) {
        let value = self.value("compression");
        match value.split_once(':') {
            Some((name, level)) => (name.to_owned(), level.parse().ok()),
            None => (value, None),
        }
    }

    /// Rows in a row group of a segment.
    pub fn row_group_rows(&self) -> usize {
        self.value("row_group_rows").parse().unwrap_or(131_072)
    }

    /// The columns with bloom filters; none stands for the primary key.
    pub fn bloom_columns(&self) -> Option<Vec<String>> {
        let columns = definition::names(&self.value("bloom_columns"));
        (!columns.is_empty()).then_some(columns)
    }

    /// The columns that order the rows of a segment.
    pub fn cluster_by(&self) -> Vec<String> {
        definition::names(&self.value("cluster_by"))
    }

    /// How long deleted rows are kept, in microseconds; 0 for not at all.
    pub fn deleted_retention_us(&self) -> i64 {
        // Nothing is erased on account of a setting that cannot be read.
        definition::stored_microseconds(&self.value("deleted_retention")).unwrap_or(i64::MAX)
    }

    /// How long rows of a stream live, in microseconds.
    pub fn ttl_us(&self) -> Option<i64> {
        definition::stored_microseconds(&self.value("ttl")).filter(|ttl| *ttl > 0)
    }

    /// How many bytes a stream may have.
    pub fn max_bytes(&self) -> Option<u64> {
        self.value("max_bytes").parse().ok().filter(|bytes| *bytes > 0)
    }

    /// The name of the key that encrypts the table.
    pub fn encryption_key(&self) -> Option<String> {
        Some(self.value("encryption_key")).filter(|key| !key.is_empty())
    }
}
