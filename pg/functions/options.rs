//! Setting and showing options of tables.

use pgrx::prelude::*;

use crate::error::OrRaise;
use crate::options::{self, definition, stored};

/// Sets the options whose values are not null; names and values have the same length.
#[pg_extern]
fn set_table_options(relation: pg_sys::Oid, names: Vec<String>, values: Vec<Option<String>>) {
    stored::require_settable(relation);
    for (name, value) in names.iter().zip(&values) {
        if value.is_some() {
            stored::set(relation, name, value.as_deref());
        }
    }
}

/// Takes options of a table back, all of them if none is named.
#[pg_extern]
fn reset_table_options(relation: pg_sys::Oid, names: Vec<String>) {
    stored::require_settable(relation);
    let all = || stored::own_options(relation).iter().map(|(name, _)| name.clone()).collect();
    let names: Vec<String> = if names.is_empty() { all() } else { names };
    for name in &names {
        definition::find(name).or_raise();
    }
    for name in &names {
        stored::set(relation, name, None);
    }
}

/// The value of an option in its normal form; raises an error for one that it may not have.
#[pg_extern]
fn normalize_option(option: &str, value: &str) -> String {
    definition::find(option).and_then(|definition| definition.normalize(value)).or_raise()
}

/// Tells sessions and the engine that options of a table change.
#[pg_extern]
fn note_option_change(relation: pg_sys::Oid) {
    stored::note_change(relation);
}

/// Every option of a table with the value that it has, and whether the table sets it.
#[pg_extern]
fn effective_options(
    relation: pg_sys::Oid,
) -> TableIterator<'static, (name!(option, &'static str), name!(value, Option<String>), name!(source, &'static str))> {
    stored::require_table(relation);
    let table = options::of(relation);
    let rows: Vec<_> = definition::DEFINITIONS
        .iter()
        .map(|definition| {
            let value = Some(table.value(definition.name)).filter(|value| !value.is_empty());
            let source = if table.own(definition.name).is_some() { "table" } else { "default" };
            (definition.name, value, source)
        })
        .collect();
    TableIterator::new(rows)
}
