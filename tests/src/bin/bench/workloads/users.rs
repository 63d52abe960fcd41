//! Tables in which every user has rows of their own: a user table beside heap with row level security, a stream beside DELETE.

use std::time::Instant;

use anyhow::Result;
use kalamdb_tests::measure;

use super::{Bench, Kind, Target, Workload};

/// Messages of each user but the one with many.
const MESSAGES_PER_USER: u64 = 20;

/// Who the benchmark's sessions are: policies do not hold for superusers.
const ROLE: &str = "bench_member";

/// How long the events of the stream live, in milliseconds.
const LIFETIME_MS: u64 = 1_000;

const BEGIN: &str = "\\set u random(1, :users)\nBEGIN;\nSELECT set_config('kalam.user_id', 'user' || :u, true);\n";
const INSERT: &str = "INSERT INTO messages (room, body) VALUES (:u % 7, repeat(md5('message'), 3));\n";
const RECENT: &str = "SELECT id, body FROM messages ORDER BY id DESC LIMIT 50;\n";
const LOOKUP: &str = "\\set id :u + :users * random(0, 19)\nSELECT * FROM messages WHERE id = :id;\n";

/// A script of one transaction of a random user, or of one session's user.
pub enum Who {
    Anybody,
    One(&'static str),
}

/// What is measured of users.
pub fn all() -> [Workload; 7] {
    let workload = |name, title, target, kind| Workload { name, title, unit: "tx/s", target, kind };
    let anybody = |text| Kind::Users { who: Who::Anybody, text, end: "END;\n" };
    let one = |name, text| Kind::Users { who: Who::One(name), text, end: "" };
    [
        Workload {
            name: "users-load",
            title: "many users' messages in turns by one statement, heap with row level security",
            unit: "rows/s",
            target: Target::None,
            kind: Kind::UsersLoad,
        },
        workload(
            "users-insert",
            "INSERT of one row for any of many users, synchronous_commit off, heap with row level security",
            Target::Speed(1.0),
            anybody(INSERT),
        ),
        workload(
            "users-insert-own",
            "INSERT of one row in the session of one user, synchronous_commit off, heap with row level security",
            Target::Speed(1.0),
            one("user7", INSERT),
        ),
        workload(
            "users-recent",
            "last 50 messages of any of many users, heap with row level security",
            Target::Speed(1.0),
            anybody(RECENT),
        ),
        workload(
            "users-recent-many",
            "last 50 messages of the user who has many, heap with row level security",
            Target::Speed(1.0),
            one("many", RECENT),
        ),
        workload(
            "users-lookup",
            "lookup by key for any of many users, heap with row level security",
            Target::Speed(1.0),
            anybody(LOOKUP),
        ),
        Workload {
            name: "stream",
            title: "events of many users inserted and, when their time has come, removed; heap by DELETE and VACUUM",
            unit: "rows/s",
            target: Target::None,
            kind: Kind::Stream,
        },
    ]
}

impl Bench<'_> {
    /// The messages of all users in turns, and many of one user; once on each side.
    pub fn load_users(&mut self, side: usize) -> Result<()> {
        if !self.users_ready[side] {
            self.fill_messages(side)?;
            let schema = self.sides[side].schema;
            let many = self.scale.rows / 10;
            self.as_everybody(&format!(
                "INSERT INTO {schema}.messages (id, room, body, {user}) \
                 SELECT i, 1, repeat(md5(i::text), 3), 'many' FROM generate_series(1, {many}) i",
                user = self.user_column(side),
            ))?;
            self.client.batch_execute(&format!("VACUUM (FREEZE, ANALYZE) {schema}.messages"))?;
            self.settle()?;
            self.users_ready[side] = true;
        }
        Ok(())
    }

    /// Loads the messages of many users in turns; rows per second.
    pub fn time_users_load(&mut self, side: usize) -> Result<f64> {
        self.users_ready[side] = false;
        let elapsed = self.fill_messages(side)?;
        Ok((self.scale.users * MESSAGES_PER_USER) as f64 / elapsed)
    }

    /// Inserts events and removes them; rows per second of the time that both take.
    pub fn time_stream(&mut self, side: usize) -> Result<f64> {
        let table = format!("{}.events", self.sides[side].schema);
        let is_stream = self.user_column(side) == "_user_id";
        let (user, users, rows) = (self.user_column(side), self.scale.users, self.scale.rows / 5);
        self.client.batch_execute(&format!("DROP TABLE IF EXISTS {table}"))?;
        self.client.batch_execute(&if is_stream {
            format!(
                "CREATE TABLE {table} (id bigint PRIMARY KEY, body text) USING kalam_stream WITH (kalam.ttl = '{LIFETIME_MS} ms')"
            )
        } else {
            format!(
                "CREATE TABLE {table} (id bigint, body text, at timestamptz NOT NULL DEFAULT clock_timestamp(),
                     user_id text COLLATE \"C\" NOT NULL, PRIMARY KEY (user_id, id));
                 CREATE INDEX ON {table} (at)"
            )
        })?;
        self.settle()?;
        let started = Instant::now();
        self.as_everybody(&format!(
            "INSERT INTO {table} (id, body, {user}) SELECT i, md5(i::text), 'user' || i % {users} FROM generate_series(1, {rows}) i"
        ))?;
        let inserted = started.elapsed();
        // Waiting is no work: it is the same on both sides, and not counted.
        std::thread::sleep(std::time::Duration::from_millis(LIFETIME_MS + 100));
        let started = Instant::now();
        if !is_stream {
            self.client
                .batch_execute(&format!("DELETE FROM {table} WHERE at < clock_timestamp() - interval '{LIFETIME_MS} ms'"))?;
        }
        self.client.batch_execute(&format!("VACUUM {table}"))?;
        Ok(rows as f64 / (inserted + started.elapsed()).as_secs_f64())
    }

    fn fill_messages(&mut self, side: usize) -> Result<f64> {
        self.make_messages(side)?;
        self.settle()?;
        let (schema, users) = (self.sides[side].schema, self.scale.users);
        let started = Instant::now();
        self.as_everybody(&format!(
            "INSERT INTO {schema}.messages (id, room, body, {user}) \
             SELECT i, i % 7, repeat(md5(i::text), 3), 'user' || 1 + (i - 1) % {users} FROM generate_series(1, {rows}) i",
            user = self.user_column(side),
            rows = users * MESSAGES_PER_USER,
        ))?;
        let elapsed = started.elapsed().as_secs_f64();
        self.client.batch_execute(&format!("ANALYZE {schema}.messages"))?;
        Ok(elapsed)
    }

    fn make_messages(&mut self, side: usize) -> Result<()> {
        let schema = self.sides[side].schema;
        // New ids are above those of all messages that were loaded.
        let first = self.scale.users * MESSAGES_PER_USER + self.scale.rows + 1;
        let id = format!("id bigint GENERATED BY DEFAULT AS IDENTITY (START {first})");
        self.client.batch_execute(&format!(
            "DO $$ BEGIN CREATE ROLE {ROLE}; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
             DROP TABLE IF EXISTS {schema}.messages"
        ))?;
        self.client.batch_execute(&if self.user_column(side) == "_user_id" {
            format!("CREATE TABLE {schema}.messages ({id} PRIMARY KEY, room int, body text) USING kalam_user")
        } else {
            format!(
                "CREATE TABLE {schema}.messages ({id}, room int, body text,
                     user_id text COLLATE \"C\" NOT NULL DEFAULT current_setting('kalam.user_id', true), PRIMARY KEY (user_id, id));
                 ALTER TABLE {schema}.messages ENABLE ROW LEVEL SECURITY;
                 CREATE POLICY own ON {schema}.messages USING (user_id = current_setting('kalam.user_id', true))
                     WITH CHECK (user_id = current_setting('kalam.user_id', true))"
            )
        })?;
        self.client.batch_execute(&format!(
            "GRANT SET ON PARAMETER kalam.user_id TO {ROLE};
             GRANT USAGE ON SCHEMA {schema} TO {ROLE}; GRANT ALL ON {schema}.messages TO {ROLE};
             GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {ROLE}"
        ))?;
        Ok(())
    }

    /// A statement of the superuser about the rows of all users.
    fn as_everybody(&mut self, statement: &str) -> Result<()> {
        self.client.batch_execute("SET row_security = off")?;
        let done = self.client.batch_execute(statement);
        self.client.batch_execute("RESET row_security")?;
        Ok(done?)
    }

    fn user_column(&self, side: usize) -> &'static str {
        if self.sides[side].method == "heap" { "user_id" } else { "_user_id" }
    }

    /// Runs the script of a user's transaction on both sides by turns, in sessions that stay; the other side's rate is kept for its turn.
    pub fn run_users(&mut self, side: usize, who: &Who, text: &str, end: &str, seconds: u32) -> Result<f64> {
        if let Some((_, rate)) = self.measured.take().filter(|(other, _)| *other == side) {
            return Ok(rate);
        }
        let (begin, user) = match who {
            Who::Anybody => (BEGIN, String::new()),
            Who::One(name) => ("\\set u random(1, :users)\n", format!("-c kalam.user_id={name}")),
        };
        let (script, options) = (format!("{begin}{text}{end}"), format!("-c role={ROLE} {user}"));
        let start = |side| self.start_pgbench(side, &script, 1, false, 2 * seconds, &options);
        let rates = measure::in_slices([start(0)?, start(1)?])?;
        self.measured = Some((1 - side, rates[1 - side]));
        Ok(rates[side])
    }
}
