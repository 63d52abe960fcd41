//! Random statements over tables that the generator remembers, with transactions, savepoints and errors among them.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use crate::pair::Statement;
use crate::values::{self, Kind};

const TABLES: usize = 4;

#[derive(Debug, Clone)]
struct Column {
    name: String,
    kind: Kind,
}

#[derive(Debug, Clone)]
struct Table {
    name: String,
    /// Without the key column `id`.
    columns: Vec<Column>,
    indexes: Vec<String>,
    keyed: bool,
    /// Something besides the key is, or once was, unique.
    unique: bool,
}

/// What the generator believes to exist. It may be wrong after an error: then statements fail on both sides alike.
pub struct Generator {
    tables: Vec<Table>,
    last_name: u32,
    /// The tables at BEGIN and at each savepoint; empty outside of a transaction block.
    marks: Vec<Vec<Table>>,
    aborted: bool,
    cursor_open: bool,
}

/// A statement, the table it may have changed, and what it does to the generator's memory when it succeeds.
pub struct Generated {
    pub statement: Statement,
    pub touches: Option<String>,
    after: After,
}

enum After {
    Nothing,
    Begin,
    Savepoint,
    RollbackTo,
    Release,
    End { commit: bool },
    Tables(Vec<Table>),
    Cursor(bool),
}

impl Generator {
    pub fn new() -> Self {
        Generator { tables: Vec::new(), last_name: 0, marks: Vec::new(), aborted: false, cursor_open: false }
    }

    pub fn in_transaction(&self) -> bool {
        !self.marks.is_empty()
    }

    pub fn is_aborted(&self) -> bool {
        self.aborted
    }

    pub fn table_names(&self) -> Vec<String> {
        self.tables.iter().map(|table| table.name.clone()).collect()
    }

    /// Takes note of how the statement went.
    pub fn note(&mut self, generated: Generated, done: bool) {
        if !done {
            self.aborted = self.in_transaction();
            return;
        }
        match generated.after {
            After::Nothing => {}
            After::Begin => self.marks.push(self.tables.clone()),
            After::Savepoint => self.marks.push(self.tables.clone()),
            After::RollbackTo => {
                self.tables = self.marks.last().expect("a savepoint exists").clone();
                self.aborted = false;
                self.cursor_open = false;
            }
            After::Release => drop(self.marks.pop()),
            // COMMIT of a failed transaction rolls back.
            After::End { commit } => self.end(commit && !self.aborted),
            After::Tables(tables) => self.tables = tables,
            After::Cursor(open) => self.cursor_open = open,
        }
    }

    /// The transaction block was ended.
    pub fn end(&mut self, commit: bool) {
        if !commit && let Some(before) = self.marks.first() {
            self.tables = before.clone();
        }
        self.marks.clear();
        self.aborted = false;
        self.cursor_open = false;
    }

    pub fn next(&mut self, rng: &mut ChaCha8Rng) -> Generated {
        if self.aborted && rng.random_ratio(9, 10) {
            return if self.marks.len() > 1 && rng.random() { self.rollback_to() } else { end(rng.random_ratio(1, 3)) };
        }
        if self.tables.is_empty() {
            return self.create_table(rng);
        }
        match rng.random_range(0..100) {
            0..12 => self.transaction_control(rng),
            12..34 => self.insert(rng),
            34..37 => self.copy(rng),
            37..54 => self.update(rng),
            54..62 => self.delete(rng),
            62..80 => self.select(rng),
            80..83 => self.block_with_exception(rng),
            83..86 => self.index(rng),
            86..90 => self.alter(rng),
            90..94 if !self.in_transaction() => self.maintain(rng),
            94..96 => self.truncate(rng),
            96..99 if self.tables.len() < TABLES => self.create_table(rng),
            99 => self.drop_table(rng),
            _ => self.select(rng),
        }
    }

    fn table<'a>(&'a self, rng: &mut ChaCha8Rng) -> &'a Table {
        self.tables.choose(rng).expect("there is a table")
    }

    fn fresh_name(&mut self, prefix: &str) -> String {
        self.last_name += 1;
        format!("{prefix}{}", self.last_name)
    }

    fn transaction_control(&mut self, rng: &mut ChaCha8Rng) -> Generated {
        if !self.in_transaction() {
            let text = *["BEGIN", "BEGIN", "BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ"].choose(rng).expect("not empty");
            return Generated { statement: Statement::sql(text), touches: None, after: After::Begin };
        }
        match rng.random_range(0..10) {
            0..4 => Generated {
                statement: Statement::sql(format!("SAVEPOINT s{}", self.marks.len())),
                touches: None,
                after: After::Savepoint,
            },
            4..6 if self.marks.len() > 1 => self.rollback_to(),
            6 if self.marks.len() > 1 => {
                let text = format!("RELEASE SAVEPOINT s{}", self.marks.len() - 1);
                Generated { statement: Statement::sql(text), touches: None, after: After::Release }
            }
            _ => end(rng.random_ratio(2, 3)),
        }
    }

    fn rollback_to(&self) -> Generated {
        let text = format!("ROLLBACK TO SAVEPOINT s{}", self.marks.len() - 1);
        Generated { statement: Statement::sql(text), touches: None, after: After::RollbackTo }
    }

    fn create_table(&mut self, rng: &mut ChaCha8Rng) -> Generated {
        let name = self.fresh_name("t");
        let mut tables = self.tables.clone();
        if !tables.is_empty() && rng.random_ratio(1, 4) {
            let source = self.table(rng).clone();
            tables.push(Table { name: name.clone(), indexes: Vec::new(), keyed: false, unique: false, ..source.clone() });
            let text = format!("CREATE TABLE {name} AS SELECT * FROM {} WHERE {}", source.name, predicate(rng, &source));
            return Generated { statement: Statement::sql(text), touches: Some(name), after: After::Tables(tables) };
        }
        let keyed = rng.random_ratio(5, 6);
        let columns: Vec<Column> =
            (0..rng.random_range(1..7)).map(|number| Column { name: format!("c{number}"), kind: Kind::random(rng) }).collect();
        let mut unique = false;
        let mut definitions = vec![format!("id int{}", if keyed { " PRIMARY KEY" } else { "" })];
        for column in &columns {
            let extra = match rng.random_range(0..20) {
                0 => " NOT NULL".to_string(),
                1 => format!(" DEFAULT {}", values::short_value(rng, column.kind)),
                2 if !column.kind.is_long() => {
                    unique = true;
                    " UNIQUE".to_string()
                }
                3 if column.kind.is_number() => format!(" CHECK ({} < 35)", column.name),
                _ => String::new(),
            };
            definitions.push(format!("{} {}{extra}", column.name, column.kind.0));
        }
        if rng.random_ratio(1, 6) {
            definitions.push("generated int GENERATED ALWAYS AS (id * 2) STORED".into());
        }
        tables.push(Table { name: name.clone(), columns, indexes: Vec::new(), keyed, unique });
        let text = format!("CREATE TABLE {name} ({})", definitions.join(", "));
        Generated { statement: Statement::sql(text), touches: Some(name), after: After::Tables(tables) }
    }

    fn drop_table(&mut self, rng: &mut ChaCha8Rng) -> Generated {
        let name = self.table(rng).name.clone();
        let tables = self.tables.iter().filter(|table| table.name != name).cloned().collect();
        Generated { statement: Statement::sql(format!("DROP TABLE {name}")), touches: None, after: After::Tables(tables) }
    }

    fn truncate(&mut self, rng: &mut ChaCha8Rng) -> Generated {
        changing(self.table(rng), |name| format!("TRUNCATE {name}"))
    }

    fn insert(&mut self, rng: &mut ChaCha8Rng) -> Generated {
        let table = self.table(rng).clone();
        let names: Vec<&str> = std::iter::once("id").chain(table.columns.iter().map(|column| column.name.as_str())).collect();
        let names = names.join(", ");
        let text = match rng.random_range(0..10) {
            0..2 => {
                // The expressions do not depend on the row but for the key: long values are built once.
                let first = rng.random_range(1..150);
                let last = first + rng.random_range(0..120);
                let row: Vec<String> = table.columns.iter().map(|column| values::value(rng, column.kind)).collect();
                let values: String = row.iter().map(|value| format!(", {value}")).collect();
                format!(
                    "INSERT INTO {} ({names}) SELECT i{values} FROM generate_series({first}, {last}) i ON CONFLICT DO NOTHING",
                    table.name
                )
            }
            _ => {
                let many = if rng.random_ratio(1, 3) { rng.random_range(2..12) } else { 1 };
                let rows: Vec<String> = (0..many)
                    .map(|_| {
                        let row: Vec<String> = table.columns.iter().map(|column| values::value(rng, column.kind)).collect();
                        let values: String = row.iter().map(|value| format!(", {value}")).collect();
                        format!("({}{values})", key(rng))
                    })
                    .collect();
                let conflict = match rng.random_range(0..6) {
                    0 => " ON CONFLICT DO NOTHING".to_string(),
                    1 if table.keyed && many == 1 => {
                        let column = table.columns.choose(rng).expect("not empty");
                        format!(" ON CONFLICT (id) DO UPDATE SET {0} = excluded.{0}", column.name)
                    }
                    _ => String::new(),
                };
                let returning = if rng.random_ratio(1, 4) { " RETURNING *" } else { "" };
                format!("INSERT INTO {} ({names}) VALUES {}{conflict}{returning}", table.name, rows.join(", "))
            }
        };
        changing(&table, |_| text.clone())
    }

    fn copy(&mut self, rng: &mut ChaCha8Rng) -> Generated {
        let table = self.table(rng).clone();
        let copied: Vec<&Column> = table.columns.iter().filter(|column| values::copy_value(rng, column.kind).is_some()).collect();
        let names: Vec<&str> = std::iter::once("id").chain(copied.iter().map(|column| column.name.as_str())).collect();
        // High keys seldom collide, so that most COPYs succeed.
        let first = rng.random_range(1_000..1_000_000);
        let mut data = String::new();
        for id in first..first + rng.random_range(1..80) {
            data.push_str(&id.to_string());
            for column in &copied {
                data.push('\t');
                data.push_str(&values::copy_value(rng, column.kind).unwrap_or_else(|| "\\N".into()));
            }
            data.push('\n');
        }
        let target = format!("{} ({})", table.name, names.join(", "));
        Generated { statement: Statement::Copy { table: target, data }, touches: Some(table.name), after: After::Nothing }
    }

    fn update(&mut self, rng: &mut ChaCha8Rng) -> Generated {
        let table = self.table(rng).clone();
        // A key moves alone: with several rows it would depend on their order whether one meets another.
        if rng.random_ratio(1, 10) {
            let (from, to) = (key(rng), key(rng));
            return changing(&table, |name| format!("UPDATE {name} SET id = {to} WHERE id = {from}"));
        }
        let filter = predicate(rng, &table);
        // Where several rows change, their order must not decide which of two errors comes first, or whether a unique value is met.
        let one_row = table.keyed && filter.starts_with("id = ");
        let many = if one_row { rng.random_range(1..=2.min(table.columns.len())) } else { 1 };
        let columns: Vec<&Column> = table.columns.choose_multiple(rng, many).collect();
        let set: Vec<String> = columns
            .iter()
            .map(|column| {
                let increment = column.kind.is_number() && (one_row || !table.unique) && rng.random_ratio(1, 3);
                let new = if increment { format!("{} + 1", column.name) } else { values::value(rng, column.kind) };
                format!("{} = {new}", column.name)
            })
            .collect();
        let returning = if rng.random_ratio(1, 5) { " RETURNING *" } else { "" };
        changing(&table, |name| format!("UPDATE {name} SET {} WHERE {filter}{returning}", set.join(", ")))
    }

    fn delete(&mut self, rng: &mut ChaCha8Rng) -> Generated {
        let table = self.table(rng).clone();
        let filter = predicate(rng, &table);
        let returning = if rng.random_ratio(1, 5) { " RETURNING *" } else { "" };
        changing(&table, |name| format!("DELETE FROM {name} WHERE {filter}{returning}"))
    }

    fn select(&mut self, rng: &mut ChaCha8Rng) -> Generated {
        let table = self.table(rng).clone();
        let other = self.table(rng).clone();
        let name = &table.name;
        let filter = predicate(rng, &table);
        let statement = match rng.random_range(0..13) {
            0 => Statement::ordered(format!(
                "SELECT * FROM {name} t WHERE {filter} ORDER BY id, t::text LIMIT {}",
                rng.random_range(1..30)
            )),
            1 => Statement::ordered(format!(
                "SELECT * FROM {name} t WHERE {filter} ORDER BY id DESC, t::text DESC OFFSET 3 LIMIT 20"
            )),
            2 => Statement::sql(format!(
                "SELECT count(*), count(DISTINCT id), min(id), max(id), sum(id) FROM {name} WHERE {filter}"
            )),
            3 => {
                let column = &table.columns.choose(rng).expect("not empty").name;
                Statement::sql(format!("SELECT {column}, count(*) FROM {name} GROUP BY {column}"))
            }
            4 => Statement::sql(format!("SELECT a.id, b.* FROM {name} a JOIN {} b USING (id) WHERE a.id < 60", other.name)),
            5 => Statement::sql(format!(
                "SELECT id FROM {name} WHERE id NOT IN (SELECT id FROM {} WHERE id IS NOT NULL)",
                other.name
            )),
            6 => Statement::sql(format!("SELECT * FROM {name} WHERE {filter} FOR UPDATE")),
            7 => Statement::sql(format!("SELECT * FROM {name} WHERE id = {} FOR SHARE", key(rng))),
            8 if self.in_transaction() && !self.cursor_open => {
                let text = format!("DECLARE c CURSOR FOR SELECT * FROM {name} t ORDER BY id, t::text");
                return Generated { statement: Statement::sql(text), touches: None, after: After::Cursor(true) };
            }
            8..10 if self.cursor_open => Statement::ordered(format!("FETCH {} FROM c", rng.random_range(1..20))),
            10 => {
                let scan = *["seqscan", "indexscan", "bitmapscan", "indexonlyscan"].choose(rng).expect("not empty");
                let on = if rng.random() { "on" } else { "off" };
                Statement::sql(format!("SET enable_{scan} = {on}"))
            }
            _ => Statement::sql(format!("SELECT * FROM {name} WHERE {filter}")),
        };
        Generated { statement, touches: None, after: After::Nothing }
    }

    /// PL/pgSQL's exception blocks are subtransactions.
    fn block_with_exception(&mut self, rng: &mut ChaCha8Rng) -> Generated {
        let table = self.table(rng).clone();
        let (first, second) = (key(rng), key(rng));
        let filter = predicate(rng, &table);
        changing(&table, |name| {
            format!(
                "DO $$ BEGIN
                   BEGIN INSERT INTO {name} (id) VALUES ({first}); INSERT INTO {name} (id) VALUES ({second}), ({first});
                   EXCEPTION WHEN unique_violation OR not_null_violation THEN DELETE FROM {name} WHERE id = {second}; END;
                   BEGIN DELETE FROM {name} WHERE {filter}; RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN NULL; END;
                 END $$"
            )
        })
    }

    fn index(&mut self, rng: &mut ChaCha8Rng) -> Generated {
        let position = rng.random_range(0..self.tables.len());
        let table = self.tables[position].clone();
        let mut tables = self.tables.clone();
        if !table.indexes.is_empty() && rng.random_ratio(1, 3) {
            let which = rng.random_range(0..table.indexes.len());
            let name = tables[position].indexes.remove(which);
            if rng.random() {
                return changing(&table, |_| format!("REINDEX INDEX {name}"));
            }
            let statement = Statement::sql(format!("DROP INDEX {name}"));
            return Generated { statement, touches: Some(table.name), after: After::Tables(tables) };
        }
        let name = self.fresh_name("i");
        let column = table.columns.choose(rng).expect("not empty");
        let key_column = if column.kind.is_long() { format!("md5({}::text)", column.name) } else { column.name.clone() };
        let long = column.kind.is_long() && column.kind.0 != "text" && column.kind.0 != "jsonb";
        // md5() of a bytea's or array's text is not immutable in Postgres' eyes: those are indexed by their length.
        let key_column = match column.kind.0 {
            "bytea" => format!("length({})", column.name),
            "int[]" => format!("cardinality({})", column.name),
            _ if long => "id".into(),
            _ => key_column,
        };
        let text = match rng.random_range(0..6) {
            0 => format!("CREATE UNIQUE INDEX {name} ON {} (({key_column}), id)", table.name),
            1 => format!("CREATE UNIQUE INDEX {name} ON {} (({key_column}))", table.name),
            2 => format!("CREATE INDEX {name} ON {} USING hash (({key_column}))", table.name),
            3 => format!("CREATE INDEX {name} ON {} (({key_column})) WHERE id % 2 = 0", table.name),
            4 => format!("CREATE INDEX {name} ON {} (({key_column}) DESC NULLS LAST) INCLUDE (id)", table.name),
            _ => format!("CREATE INDEX {name} ON {} (({key_column}))", table.name),
        };
        tables[position].indexes.push(name);
        tables[position].unique |= text.contains("UNIQUE");
        Generated { statement: Statement::sql(text), touches: Some(table.name), after: After::Tables(tables) }
    }

    fn alter(&mut self, rng: &mut ChaCha8Rng) -> Generated {
        let position = rng.random_range(0..self.tables.len());
        let mut tables = self.tables.clone();
        let table = &mut tables[position];
        let which = rng.random_range(0..table.columns.len());
        let column = table.columns[which].clone();
        let change = match rng.random_range(0..8) {
            0..3 => {
                let (name, kind) = (self.fresh_name("a"), Kind::random(rng));
                let default = if rng.random() { format!(" DEFAULT {}", values::short_value(rng, kind)) } else { String::new() };
                let change = format!("ADD COLUMN {name} {}{default}", kind.0);
                table.columns.push(Column { name, kind });
                change
            }
            3..5 if table.columns.len() > 1 => {
                table.columns.remove(which);
                format!("DROP COLUMN {}", column.name)
            }
            5 if column.kind.0 == "int" => {
                table.columns[which].kind = Kind("bigint");
                format!("ALTER COLUMN {} TYPE bigint", column.name)
            }
            6 => format!("ALTER COLUMN {} SET NOT NULL", column.name),
            7 => format!("ALTER COLUMN {} DROP NOT NULL", column.name),
            _ => {
                let name = self.fresh_name("r");
                table.columns[which].name = name.clone();
                format!("RENAME COLUMN {} TO {name}", column.name)
            }
        };
        let name = table.name.clone();
        let statement = Statement::sql(format!("ALTER TABLE {name} {change}"));
        Generated { statement, touches: Some(name), after: After::Tables(tables) }
    }

    fn maintain(&mut self, rng: &mut ChaCha8Rng) -> Generated {
        let table = self.table(rng).clone();
        let verbs = ["VACUUM", "VACUUM", "VACUUM (FREEZE)", "VACUUM (ANALYZE)", "ANALYZE", "VACUUM (FULL)", "REINDEX TABLE"];
        let verb = *verbs.choose(rng).expect("not empty");
        changing(&table, |name| format!("{verb} {name}"))
    }
}

fn end(commit: bool) -> Generated {
    let text = if commit { "COMMIT" } else { "ROLLBACK" };
    Generated { statement: Statement::sql(text), touches: None, after: After::End { commit } }
}

fn changing(table: &Table, text: impl Fn(&str) -> String) -> Generated {
    Generated { statement: Statement::sql(text(&table.name)), touches: Some(table.name.clone()), after: After::Nothing }
}

fn key(rng: &mut ChaCha8Rng) -> i32 {
    rng.random_range(1..200)
}

fn predicate(rng: &mut ChaCha8Rng, table: &Table) -> String {
    let column = table.columns.choose(rng).expect("not empty");
    match rng.random_range(0..10) {
        0..5 => format!("id = {}", key(rng)),
        5..7 => {
            let low = key(rng);
            format!("id BETWEEN {low} AND {}", low + rng.random_range(0..40))
        }
        7 => format!("{} IS NULL", column.name),
        8 => format!("{} = {}", column.name, values::short_value(rng, column.kind)),
        _ => format!("{} < {} AND id % 3 = 0", column.name, values::short_value(rng, column.kind)),
    }
}
