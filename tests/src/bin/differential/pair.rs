//! One logical session that runs every statement twice: on the tables of the access method under test and on heap's, and compares.

use std::io::Write;

use anyhow::{Context, Result, bail, ensure};
use kalamdb_tests::{Cluster, sql};
use postgres::{Client, SimpleQueryMessage};

pub const DATABASE: &str = "differential";

/// Where the tables of each side live; the statements name no schema and are the same on both.
pub const SCHEMAS: [&str; 2] = ["heap_side", "our_side"];
const HEAP: usize = 0;
const OURS: usize = 1;

#[derive(Debug, Clone)]
pub enum Statement {
    /// `ordered`: the order of the rows is part of the answer.
    Sql {
        text: String,
        ordered: bool,
    },
    Copy {
        table: String,
        data: String,
    },
}

impl Statement {
    pub fn sql(text: impl Into<String>) -> Self {
        Statement::Sql { text: text.into(), ordered: false }
    }

    pub fn ordered(text: impl Into<String>) -> Self {
        Statement::Sql { text: text.into(), ordered: true }
    }

    /// The statement as psql would read it.
    pub fn script(&self) -> String {
        match self {
            Statement::Sql { text, .. } => format!("{text};"),
            Statement::Copy { table, data } => format!("COPY {table} FROM STDIN;\n{data}\\."),
        }
    }
}

/// Everything a client sees of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done { rows: Vec<Vec<Option<String>>>, counts: Vec<u64> },
    Error { state: String, text: String },
}

impl Outcome {
    pub fn is_done(&self) -> bool {
        matches!(self, Outcome::Done { .. })
    }

    /// The access method says that it does not have this yet.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Outcome::Error { state, .. } if state == "0A000")
    }

    pub fn text(&self) -> String {
        match self {
            Outcome::Error { text, .. } => text.clone(),
            Outcome::Done { rows, counts } => {
                let shown: Vec<String> = rows.iter().take(12).map(|row| clip(&format!("{row:?}"), 200)).collect();
                format!("{} rows, counts {counts:?}\n      {}", rows.len(), shown.join("\n      "))
            }
        }
    }

    /// Messages name schemas and are not compared; the SQLSTATE is.
    fn same(&self, other: &Outcome) -> bool {
        match (self, other) {
            (Outcome::Error { state: one, .. }, Outcome::Error { state: other, .. }) => one == other,
            _ => self == other,
        }
    }
}

fn clip(text: &str, length: usize) -> String {
    if text.chars().count() <= length { text.into() } else { text.chars().take(length).collect::<String>() + "…" }
}

/// Runs a statement; an error that ends the session is an error of this function.
pub fn execute(client: &mut Client, statement: &Statement) -> Result<Outcome> {
    let result = match statement {
        Statement::Sql { text, ordered } => client.simple_query(text).map(|messages| collect(&messages, *ordered)),
        Statement::Copy { table, data } => copy(client, table, data),
    };
    match result {
        Ok(outcome) => Ok(outcome),
        Err(error) if sql::session_is_over(&error) => {
            bail!("the session ended: {}\nin: {}", sql::describe(&error), clip(&statement.script(), 400))
        }
        Err(error) => {
            Ok(Outcome::Error { state: sql::sqlstate(&error).unwrap_or_default().to_string(), text: sql::describe(&error) })
        }
    }
}

fn copy(client: &mut Client, table: &str, data: &str) -> Result<Outcome, postgres::Error> {
    let mut writer = client.copy_in(&format!("COPY {table} FROM STDIN"))?;
    // The data is small, so that it is all taken before the server can refuse it; a refusal comes with the end.
    writer.write_all(data.as_bytes()).ok();
    let count = writer.finish()?;
    // Errors of the commit come after COPY's own answer.
    client.batch_execute("")?;
    Ok(Outcome::Done { rows: Vec::new(), counts: vec![count] })
}

fn collect(messages: &[SimpleQueryMessage], ordered: bool) -> Outcome {
    let (mut rows, mut counts) = (Vec::new(), Vec::new());
    for message in messages {
        match message {
            SimpleQueryMessage::Row(row) => rows.push((0..row.len()).map(|column| row.get(column).map(str::to_string)).collect()),
            SimpleQueryMessage::CommandComplete(count) => counts.push(*count),
            _ => {}
        }
    }
    if !ordered {
        rows.sort();
    }
    Outcome::Done { rows, counts }
}

/// Fails when the two sides do not agree.
pub fn compare(statement: &Statement, heap: &Outcome, ours: &Outcome) -> Result<()> {
    ensure!(
        heap.same(ours),
        "different outcomes of: {}\n    heap: {}\n    ours: {}",
        clip(&statement.script(), 1500),
        heap.text(),
        ours.text()
    );
    Ok(())
}

/// Opens a session on one side.
pub fn connect(cluster: &Cluster, side: usize) -> Result<Client> {
    let mut client = cluster.connect(DATABASE)?;
    let method = if side == HEAP { "heap" } else { &cluster.installation().method };
    client.batch_execute(&format!(
        "SET search_path = {}; SET default_table_access_method = {method}; SET timezone = 'UTC'; SET extra_float_digits = 1; SET deadlock_timeout = '1h'",
        SCHEMAS[side]
    ))?;
    Ok(client)
}

/// Makes both schemas anew.
pub fn reset_schemas(cluster: &Cluster) -> Result<()> {
    let mut client = cluster.connect(DATABASE)?;
    for schema in SCHEMAS {
        client
            .batch_execute(&format!("DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}"))
            .context("new schemas")?;
    }
    Ok(())
}

/// How a statement went on both sides.
pub enum Agreed {
    Done,
    /// Both failed with the same SQLSTATE.
    Failed,
    /// Ours is not able to do it; heap was not asked.
    Unsupported(String),
}

/// A session on each side.
pub struct Pair {
    sides: [Client; 2],
    method: String,
    /// Everything executed so far, for reproduction.
    pub script: Vec<String>,
}

impl Pair {
    pub fn connect(cluster: &Cluster) -> Result<Self> {
        Ok(Pair {
            sides: [connect(cluster, HEAP)?, connect(cluster, OURS)?],
            method: cluster.installation().method.clone(),
            script: Vec::new(),
        })
    }

    /// Runs the statement on both sides and compares all that can be seen of it.
    pub fn run(&mut self, statement: &Statement) -> Result<Agreed> {
        self.script.push(statement.script());
        let ours = execute(&mut self.sides[OURS], statement)?;
        // Ours goes first: what it cannot do yet must not happen on heap either.
        if ours.is_unsupported() {
            return Ok(Agreed::Unsupported(ours.text()));
        }
        let heap = execute(&mut self.sides[HEAP], statement)?;
        compare(statement, &heap, &ours)?;
        Ok(if ours.is_done() { Agreed::Done } else { Agreed::Failed })
    }

    /// Runs a statement that only tidies up; its outcome does not matter.
    pub fn run_anyway(&mut self, text: &str) -> Result<()> {
        self.script.push(format!("{text};"));
        for client in &mut self.sides {
            execute(client, &Statement::sql(text))?;
        }
        Ok(())
    }

    /// The tables really are what is compared.
    pub fn check_methods(&mut self) -> Result<()> {
        for (side, method) in [(HEAP, "heap"), (OURS, self.method.as_str())] {
            let query = "SELECT relname::text FROM pg_class c JOIN pg_am a ON a.oid = relam
                         WHERE relkind = 'r' AND relnamespace = $1::text::regnamespace AND amname <> $2";
            let others = self.sides[side].query(query, &[&SCHEMAS[side], &method])?;
            ensure!(others.is_empty(), "table {} is not a table of {method}", others[0].get::<_, String>(0));
        }
        Ok(())
    }

    /// Damages our side alone, to show that the comparison notices.
    pub fn run_on_ours_only(&mut self, text: &str) -> Result<Outcome> {
        execute(&mut self.sides[OURS], &Statement::sql(text))
    }

    /// Count and content of a table must be the same on both sides, by whatever scan the current settings choose.
    pub fn compare_table(&mut self, table: &str) -> Result<()> {
        let summary = Statement::sql(format!("SELECT count(*), sum(hashtextextended(t::text, 0)::numeric) FROM {table} t"));
        let heap = execute(&mut self.sides[HEAP], &summary)?;
        let ours = execute(&mut self.sides[OURS], &summary)?;
        if heap == ours || (!heap.is_done() && heap.same(&ours)) {
            return Ok(());
        }
        let all = Statement::sql(format!("SELECT left(t::text, 300), md5(t::text) FROM {table} t"));
        let heap = execute(&mut self.sides[HEAP], &all)?;
        let ours = execute(&mut self.sides[OURS], &all)?;
        let (Outcome::Done { rows: heap, .. }, Outcome::Done { rows: ours, .. }) = (&heap, &ours) else {
            bail!("table {table} can not be read: heap: {}, ours: {}", heap.text(), ours.text());
        };
        let missing: Vec<_> = heap.iter().filter(|row| !ours.contains(row)).take(5).collect();
        let extra: Vec<_> = ours.iter().filter(|row| !heap.contains(row)).take(5).collect();
        bail!(
            "table {table} differs: {} rows on heap, {} in ours; only on heap: {missing:?}; only in ours: {extra:?}",
            heap.len(),
            ours.len()
        );
    }
}
