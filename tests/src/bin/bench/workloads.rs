//! What is measured: each workload with its target, and how one turn of it runs on one side.

mod users;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kalamdb_tests::{Cluster, measure, sql};
use postgres::Client;

use crate::data;

/// One of the two access methods that are compared; each has its own schema in one database.
#[derive(Debug, Clone)]
pub struct Side {
    pub schema: &'static str,
    pub method: String,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// Our speed divided by heap's is at least this.
    Speed(f64),
    /// Our size divided by heap's is at most this.
    Size(f64),
    /// Shown for information.
    None,
}

pub struct Workload {
    pub name: &'static str,
    pub title: &'static str,
    pub unit: &'static str,
    pub target: Target,
    kind: Kind,
}

enum Kind {
    Insert {
        clients: u32,
        synchronous: bool,
    },
    Copy {
        indexed: bool,
    },
    Size,
    Query(&'static str),
    Script {
        text: &'static str,
        clients: u32,
        synchronous: bool,
    },
    Update {
        clients: u32,
        synchronous: bool,
    },
    TpcB,
    /// Empties a table, then runs a script with asynchronous commits: what the disk costs is the same for both.
    Fill {
        table: &'static str,
        text: &'static str,
    },
    /// A query with two parallel workers.
    ParallelQuery(&'static str),
    /// Runs a script on rows that were loaded and flushed a moment ago, as the default policy does with every load.
    Flushed(&'static str),
    /// Changes every tenth row of a freshly loaded table by one statement.
    BulkUpdate,
    BuildIndex(&'static str),
    /// Many users' rows by one statement.
    UsersLoad,
    /// A script in a session of any user or of one.
    Users {
        who: users::Who,
        text: &'static str,
        end: &'static str,
    },
    /// Events that come and go.
    Stream,
}

const UPSERT: &str = "\\set k random(1, 20000)
INSERT INTO counted (key, hits, note) VALUES (:k, 1, 'first') ON CONFLICT (key) DO UPDATE SET hits = counted.hits + 1, note = 'again';\n";
const FOR_UPDATE: &str = "\\set id random(1, :rows)
BEGIN;\nSELECT body FROM history WHERE id = :id FOR UPDATE;\nEND;\n";
const REFERENCE: &str = "\\set k random(1, 10000)\nINSERT INTO referencing (parent) VALUES (:k);\n";

const CHANGE_FLUSHED: &str =
    "\\set id random(1, :rows)\nUPDATE copied_indexed SET body = substr(body, 2) || 'x' WHERE id = :id;\n";
const DELETE_FLUSHED: &str = "\\set id random(1, :rows)\nDELETE FROM copied_indexed WHERE id = :id;\n";

const LOOKUP: &str = "\\set id random(1, :rows)\nSELECT * FROM history WHERE id = :id;\n";
const RECENT: &str = "\\set c random(1, :conversations)
SELECT id, body, created_at, metadata FROM history WHERE conversation_id = :c ORDER BY id DESC LIMIT 50;\n";

pub fn all() -> Vec<Workload> {
    let workload = |name, title, unit, target, kind| Workload { name, title, unit, target, kind };
    let insert = |clients, synchronous| Kind::Insert { clients, synchronous };
    let update = |clients, synchronous| Kind::Update { clients, synchronous };
    let script = |text, clients| Kind::Script { text, clients, synchronous: true };
    vec![
        workload("insert-1", "INSERT of one row, 1 client", "tx/s", Target::Speed(0.9), insert(1, true)),
        workload("insert-8", "INSERT of one row, 8 clients", "tx/s", Target::Speed(0.9), insert(8, true)),
        workload(
            "insert-1-async",
            "INSERT of one row, 1 client, synchronous_commit off",
            "tx/s",
            Target::Speed(0.9),
            insert(1, false),
        ),
        workload(
            "insert-8-async",
            "INSERT of one row, 8 clients, synchronous_commit off",
            "tx/s",
            Target::Speed(0.9),
            insert(8, false),
        ),
        workload("copy", "COPY without indexes", "rows/s", Target::Speed(0.9), Kind::Copy { indexed: false }),
        workload(
            "copy-indexed",
            "COPY with primary key and one index",
            "rows/s",
            Target::Speed(0.9),
            Kind::Copy { indexed: true },
        ),
        workload("size", "table on disk after a checkpoint", "bytes", Target::Size(0.6), Kind::Size),
        workload("count", "count(*), serial", "rows/s", Target::Speed(0.7), Kind::Query("SELECT count(*) FROM history")),
        workload(
            "sum",
            "sum over one column, serial",
            "rows/s",
            Target::Speed(0.7),
            Kind::Query("SELECT sum(conversation_id) FROM history"),
        ),
        workload("lookup-1", "lookup by primary key, 1 client", "tx/s", Target::Speed(0.85), script(LOOKUP, 1)),
        workload("lookup-8", "lookup by primary key, 8 clients", "tx/s", Target::Speed(0.85), script(LOOKUP, 8)),
        workload("recent-1", "last 50 messages of a conversation, 1 client", "tx/s", Target::Speed(0.85), script(RECENT, 1)),
        workload("recent-8", "last 50 messages of a conversation, 8 clients", "tx/s", Target::Speed(0.85), script(RECENT, 8)),
        workload("update-1", "UPDATE of one row by key, 1 client", "tx/s", Target::Speed(0.8), update(1, true)),
        workload("update-8", "UPDATE of one row by key, 8 clients", "tx/s", Target::Speed(0.8), update(8, true)),
        workload(
            "update-1-async",
            "UPDATE of one row by key, 1 client, synchronous_commit off",
            "tx/s",
            Target::Speed(0.8),
            update(1, false),
        ),
        workload(
            "update-8-async",
            "UPDATE of one row by key, 8 clients, synchronous_commit off",
            "tx/s",
            Target::Speed(0.8),
            update(8, false),
        ),
    ]
    .into_iter()
    .chain(statements())
    .chain(users::all())
    .collect()
}

/// What other statements cost.
fn statements() -> [Workload; 10] {
    let workload = |name, title, unit, target, kind| Workload { name, title, unit, target, kind };
    [
        workload(
            "filter",
            "filter on text and sum of its length, serial",
            "rows/s",
            Target::None,
            Kind::Query("SELECT count(*), sum(length(body)) FROM history WHERE body LIKE '%transaction%'"),
        ),
        workload(
            "upsert",
            "INSERT ... ON CONFLICT DO UPDATE of 20,000 keys, 1 client, synchronous_commit off",
            "tx/s",
            Target::Speed(0.85),
            Kind::Fill { table: "counted", text: UPSERT },
        ),
        workload(
            "for-update",
            "SELECT ... FOR UPDATE of one row by key, 1 client, synchronous_commit off",
            "tx/s",
            Target::Speed(0.85),
            Kind::Script { text: FOR_UPDATE, clients: 1, synchronous: false },
        ),
        workload(
            "foreign-key",
            "INSERT of one row that references another, 1 client, synchronous_commit off",
            "tx/s",
            Target::Speed(0.85),
            Kind::Fill { table: "referencing", text: REFERENCE },
        ),
        workload(
            "flushed-update",
            "UPDATE of one row by key, 1 client, rows just flushed",
            "tx/s",
            Target::Speed(0.8),
            Kind::Flushed(CHANGE_FLUSHED),
        ),
        workload(
            "flushed-delete",
            "DELETE of one row by key, 1 client, rows just flushed and deleted ones kept",
            "tx/s",
            Target::Speed(0.8),
            Kind::Flushed(DELETE_FLUSHED),
        ),
        workload("bulk-update", "UPDATE of every tenth row by one statement", "rows/s", Target::Speed(0.9), Kind::BulkUpdate),
        workload(
            "parallel",
            "sum over one column, two parallel workers",
            "rows/s",
            Target::Speed(0.8),
            Kind::ParallelQuery("SELECT sum(conversation_id) FROM history"),
        ),
        workload(
            "index-build",
            "CREATE INDEX on two columns",
            "rows/s",
            Target::Speed(0.8),
            Kind::BuildIndex("created_at, conversation_id"),
        ),
        workload("tpcb", "pgbench TPC-B, 8 clients", "tx/s", Target::Speed(0.85), Kind::TpcB),
    ]
}

/// Sizes of a run.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    pub rows: u64,
    pub users: u64,
    pub seconds: u32,
    pub tpcb_scale: u32,
    pub seed: u64,
}

const DATABASE: &str = "bench";

/// How long a server may take to come back when a workload crashed it.
const RECOVERY: Duration = Duration::from_secs(60);

/// The private server with its tables, filled as the workloads need them.
pub struct Bench<'a> {
    cluster: &'a Cluster,
    pub client: Client,
    scale: Scale,
    pub sides: [Side; 2],
    /// Size of the history table on disk, measured when it is loaded.
    history_bytes: [Option<u64>; 2],
    tpcb_ready: [bool; 2],
    users_ready: [bool; 2],
    /// The rate of a side that was measured together with the other one, for its own turn.
    measured: Option<(usize, f64)>,
    pub data_bytes: u64,
}

impl<'a> Bench<'a> {
    pub fn create(cluster: &'a Cluster, scale: Scale) -> Result<Self> {
        let mut client = cluster.create_database(DATABASE)?;
        let method = cluster.installation().method.clone();
        let sides = [Side { schema: "heap_side", method: "heap".into() }, Side { schema: "our_side", method }];
        for Side { schema, method } in &sides {
            let columns =
                "conversation_id bigint NOT NULL, body text NOT NULL, created_at timestamptz NOT NULL, metadata jsonb NOT NULL";
            client.batch_execute(&format!(
                "CREATE SCHEMA {schema};
                 CREATE TABLE {schema}.inserted (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, {columns}) USING {method};
                 CREATE TABLE {schema}.copied (id bigint, {columns}) USING {method};
                 CREATE TABLE {schema}.copied_indexed (id bigint PRIMARY KEY, {columns}) USING {method};
                 CREATE INDEX ON {schema}.copied_indexed (conversation_id, id);
                 CREATE TABLE {schema}.history (id bigint PRIMARY KEY, {columns}) USING {method};
                 CREATE INDEX ON {schema}.history (conversation_id, id);
                 CREATE TABLE {schema}.counted (key bigint PRIMARY KEY, hits bigint NOT NULL, note text) USING {method};
                 CREATE TABLE {schema}.referenced (id bigint PRIMARY KEY) USING {method};
                 INSERT INTO {schema}.referenced SELECT generate_series(1, 10000);
                 CREATE TABLE {schema}.referencing (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                     parent bigint NOT NULL REFERENCES {schema}.referenced) USING {method};"
            ))?;
        }
        let data_bytes = data::write_messages(&cluster.directory().join("messages.copy"), scale.rows, scale.seed)?;
        Ok(Bench {
            cluster,
            client,
            scale,
            sides,
            history_bytes: [None; 2],
            tpcb_ready: [false; 2],
            users_ready: [false; 2],
            measured: None,
            data_bytes,
        })
    }

    pub fn reconnect(&mut self) -> Result<()> {
        let deadline = Instant::now() + RECOVERY;
        loop {
            match self.cluster.connect(DATABASE) {
                Ok(client) => break self.client = client,
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
        Ok(())
    }

    /// One turn of a workload on one side: its rate, or its size. `seconds` is the length of timed loads.
    pub fn turn(&mut self, workload: &Workload, side: usize, seconds: u32) -> Result<f64> {
        match &workload.kind {
            Kind::Insert { clients, synchronous } => {
                let schema = self.sides[side].schema;
                self.client.batch_execute(&format!("TRUNCATE {schema}.inserted RESTART IDENTITY"))?;
                self.settle()?;
                self.pgbench(side, &insert_script(), *clients, *synchronous, seconds)
            }
            Kind::Copy { indexed } => {
                let table = format!("{}.{}", self.sides[side].schema, if *indexed { "copied_indexed" } else { "copied" });
                self.client.batch_execute(&format!("TRUNCATE {table}"))?;
                self.settle()?;
                let elapsed = self.copy_into(&table)?;
                self.client.batch_execute(&format!("TRUNCATE {table}"))?;
                Ok(self.scale.rows as f64 / elapsed)
            }
            Kind::Size => {
                self.load_history(side)?;
                Ok(self.history_bytes[side].context("the size of the history table was not measured")? as f64)
            }
            Kind::Query(query) => {
                self.load_history(side)?;
                self.time_query(side, query, seconds)
            }
            Kind::Script { text, clients, synchronous } => {
                self.load_history(side)?;
                self.pgbench(side, text, *clients, *synchronous, seconds)
            }
            Kind::Fill { table, text } => {
                self.client.batch_execute(&format!("TRUNCATE {}.{table}", self.sides[side].schema))?;
                self.settle()?;
                self.pgbench(side, text, 1, false, seconds)
            }
            Kind::ParallelQuery(query) => {
                self.load_history(side)?;
                self.client.batch_execute("SET max_parallel_workers_per_gather = 2; SET min_parallel_table_scan_size = 0")?;
                let rate = self.time_query(side, query, seconds);
                self.client.batch_execute("RESET max_parallel_workers_per_gather; RESET min_parallel_table_scan_size")?;
                rate
            }
            Kind::Flushed(text) => self.change_flushed(side, text, seconds),
            Kind::BulkUpdate => self.bulk_update(side),
            Kind::BuildIndex(columns) => self.build_index(side, columns),
            Kind::Update { clients, synchronous } => {
                self.load_history(side)?;
                self.client.batch_execute(&format!("VACUUM {}.history", self.sides[side].schema))?;
                self.settle()?;
                self.pgbench(side, &update_script(), *clients, *synchronous, seconds)
            }
            Kind::TpcB => self.tpcb(side, seconds),
            Kind::UsersLoad => self.time_users_load(side),
            Kind::Users { who, text, end } => {
                self.load_users(0)?;
                self.load_users(1)?;
                self.run_users(side, who, text, end, seconds)
            }
            Kind::Stream => self.time_stream(side),
        }
    }

    fn change_flushed(&mut self, side: usize, text: &str, seconds: u32) -> Result<f64> {
        let Side { schema, method } = self.sides[side].clone();
        let table = format!("{schema}.copied_indexed");
        self.client.batch_execute(&format!("TRUNCATE {table}"))?;
        self.copy_into(&table)?;
        self.client.batch_execute(&format!("VACUUM ANALYZE {table}"))?;
        if method != "heap" {
            self.client.batch_execute(&format!("SELECT kalam.flush({}, wait => true)", sql::literal(&table)))?;
        }
        self.settle()?;
        let rate = self.pgbench(side, text, 1, true, seconds);
        self.client.batch_execute(&format!("TRUNCATE {table}"))?;
        rate
    }

    fn bulk_update(&mut self, side: usize) -> Result<f64> {
        let table = format!("{}.copied_indexed", self.sides[side].schema);
        self.client.batch_execute(&format!("TRUNCATE {table}"))?;
        self.copy_into(&table)?;
        self.client.batch_execute(&format!("VACUUM ANALYZE {table}"))?;
        self.settle()?;
        let started = Instant::now();
        let rows = self.client.execute(&format!("UPDATE {table} SET body = body || '!' WHERE id % 10 = 3"), &[])?;
        let elapsed = started.elapsed().as_secs_f64();
        self.client.batch_execute(&format!("TRUNCATE {table}"))?;
        Ok(rows as f64 / elapsed)
    }

    fn build_index(&mut self, side: usize, columns: &str) -> Result<f64> {
        self.load_history(side)?;
        self.settle()?;
        let schema = self.sides[side].schema;
        let started = Instant::now();
        self.client.batch_execute(&format!("CREATE INDEX built ON {schema}.history ({columns})"))?;
        let elapsed = started.elapsed().as_secs_f64();
        self.client.batch_execute(&format!("DROP INDEX {schema}.built"))?;
        Ok(self.scale.rows as f64 / elapsed)
    }

    /// Writes out what earlier turns left behind, so that no turn pays for another.
    fn settle(&mut self) -> Result<()> {
        self.client.batch_execute("CHECKPOINT")?;
        if self.has_function("checkpoint")? {
            self.client.batch_execute("SELECT kalam.checkpoint()")?;
        }
        Ok(())
    }

    fn has_function(&mut self, name: &str) -> Result<bool> {
        let query = "SELECT EXISTS (SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace WHERE nspname = 'kalam' AND proname = $1)";
        Ok(self.client.query_one(query, &[&name])?.get(0))
    }

    fn copy_into(&mut self, table: &str) -> Result<f64> {
        let path = self.cluster.directory().join("messages.copy");
        let started = Instant::now();
        // The server reads the file itself: the measurement has no client in it.
        let rows = self.client.execute(&format!("COPY {table} FROM {}", sql::literal(&path.display().to_string())), &[])?;
        let elapsed = started.elapsed().as_secs_f64();
        ensure!(rows == self.scale.rows, "COPY wrote {rows} rows");
        Ok(elapsed)
    }

    fn load_history(&mut self, side: usize) -> Result<()> {
        if self.history_bytes[side].is_some() {
            return Ok(());
        }
        let Side { schema, method } = self.sides[side].clone();
        let table = format!("{schema}.history");
        self.settle()?;
        let before = self.store_bytes();
        self.copy_into(&table)?;
        self.client.batch_execute(&format!("VACUUM (FREEZE, ANALYZE) {table}"))?;
        self.settle()?;
        let bytes = if method == "heap" {
            self.client.query_one("SELECT pg_table_size($1::text::regclass)", &[&table])?.get::<_, i64>(0) as u64
        } else if self.has_function("table_stats")? {
            let query = format!("SELECT hot_bytes::bigint FROM kalam.table_stats({})", sql::literal(&table));
            self.client.query_one(&query, &[])?.get::<_, i64>(0) as u64
        } else {
            self.store_bytes().saturating_sub(before)
        };
        self.history_bytes[side] = Some(bytes);
        Ok(())
    }

    /// Bytes of the engine's store, all tables together.
    fn store_bytes(&self) -> u64 {
        directory_bytes(&self.cluster.data().join("pgsql_tmp_kalamdb"))
    }

    /// The median of at least three executions, as rows per second.
    fn time_query(&mut self, side: usize, query: &str, seconds: u32) -> Result<f64> {
        let schema = self.sides[side].schema;
        self.client.batch_execute(&format!("SET search_path = {schema}"))?;
        let mut times: Vec<f64> = Vec::new();
        while times.len() < 3 || times.iter().sum::<f64>() < f64::from(seconds) / 2.0 {
            let started = Instant::now();
            let rows = self.client.query(query, &[])?;
            times.push(started.elapsed().as_secs_f64());
            ensure!(rows.len() == 1, "{query}: {} rows", rows.len());
        }
        self.client.batch_execute("RESET search_path")?;
        Ok(self.scale.rows as f64 / measure::median(&times))
    }

    /// The machine's own limits where the server writes: flushes of 8 kB per second, and sequentially written bytes per second.
    pub fn raw_limits(&self) -> Result<(f64, f64)> {
        let path = self.cluster.directory().join("limit");
        let mut file = fs::File::create(&path)?;
        let block = [0x5a_u8; 8192];
        let (started, mut flushes) = (Instant::now(), 0);
        while started.elapsed().as_secs_f64() < 1.0 {
            file.write_all(&block)?;
            file.sync_data()?;
            flushes += 1;
        }
        let flush_rate = f64::from(flushes) / started.elapsed().as_secs_f64();
        let started = Instant::now();
        for _ in 0..32 * 1024 {
            file.write_all(&block)?;
        }
        file.sync_data()?;
        let write_rate = 32.0 * 1024.0 * 8192.0 / started.elapsed().as_secs_f64();
        fs::remove_file(&path)?;
        Ok((flush_rate, write_rate))
    }

    fn pgbench(&self, side: usize, script: &str, clients: u32, synchronous: bool, seconds: u32) -> Result<f64> {
        self.pgbench_with(side, script, clients, synchronous, seconds, "")
    }

    /// As [`Bench::pgbench`] with more options of the sessions.
    fn pgbench_with(&self, side: usize, script: &str, clients: u32, synchronous: bool, seconds: u32, more: &str) -> Result<f64> {
        measure::transactions_per_second(self.start_pgbench(side, script, clients, synchronous, seconds, more)?)
    }

    fn start_pgbench(
        &self,
        side: usize,
        script: &str,
        clients: u32,
        synchronous: bool,
        seconds: u32,
        more: &str,
    ) -> Result<Child> {
        let path = self.cluster.directory().join(format!("script{side}.sql"));
        fs::write(&path, script)?;
        let conversations = (self.scale.rows / data::MESSAGES_PER_CONVERSATION).max(1);
        let arguments = [
            "-f".into(),
            path.display().to_string(),
            format!("-Drows={}", self.scale.rows),
            format!("-Dconversations={conversations}"),
            format!("-Dusers={}", self.scale.users),
        ];
        let commit = if synchronous { "on" } else { "off" };
        let options = format!("-c search_path={} -c synchronous_commit={commit} {more}", self.sides[side].schema);
        let arguments: Vec<String> = arguments.into_iter().chain([self.seed()]).collect();
        measure::start_pgbench(self.cluster, DATABASE, &options, &arguments, clients, seconds)
    }

    fn seed(&self) -> String {
        format!("--random-seed={}", self.scale.seed)
    }

    fn tpcb(&mut self, side: usize, seconds: u32) -> Result<f64> {
        let Side { schema, method } = self.sides[side].clone();
        let database = format!("tpcb_{schema}");
        if !self.tpcb_ready[side] {
            self.cluster.create_database(&database)?;
            let output = self
                .cluster
                .client_command("pgbench", &database)
                .env("PGOPTIONS", format!("-c default_table_access_method={method}"))
                .args(["-i", "-q", &format!("-s{}", self.scale.tpcb_scale)])
                .output()?;
            if !output.status.success() {
                bail!("pgbench -i: {}", String::from_utf8_lossy(&output.stderr));
            }
            let query = "SELECT amname::text FROM pg_class c JOIN pg_am a ON a.oid = relam WHERE relname = 'pgbench_accounts'";
            let made: String = self.cluster.connect(&database)?.query_one(query, &[])?.get(0);
            ensure!(made == method, "pgbench made a table of {made}");
            self.tpcb_ready[side] = true;
        }
        self.cluster.connect(&database)?.batch_execute("VACUUM ANALYZE")?;
        self.settle()?;
        measure::transactions_per_second(measure::start_pgbench(self.cluster, &database, "", &[self.seed()], 8, seconds)?)
    }
}

/// Draws where a script cuts its message of 20 to 220 bytes out of the sample text.
const DRAW_CUT: &str = "\\set o random(1, 400)\n\\set l random(20, 220)\n";

fn insert_script() -> String {
    format!(
        "\\set c random(1, :conversations)\n{}INSERT INTO inserted (conversation_id, body, created_at, metadata) \
         VALUES (:c, substr('{}'::text, :o::int, :l::int), now(), '{{\"role\": \"user\", \"model\": \"m-3\", \"tokens\": 57}}');\n",
        DRAW_CUT,
        data::sample(640)
    )
}

fn update_script() -> String {
    format!(
        "\\set id random(1, :rows)\n{}UPDATE history SET body = substr('{}'::text, :o::int, :l::int) WHERE id = :id;\n",
        DRAW_CUT,
        data::sample(640)
    )
}

fn directory_bytes(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => directory_bytes(&entry.path()),
            Ok(metadata) => metadata.len(),
            // A file may vanish between listing and asking.
            Err(_) => 0,
        })
        .sum()
}
