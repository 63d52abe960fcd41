//! The single steps of a writer's transactions: planned first (content drawn, effect known), then executed.

use std::collections::BTreeMap;
use std::io::Write;

use kalamdb_tests::failure::Failure;
use kalamdb_tests::sql;
use postgres::GenericClient;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::schema::{ACCOUNTS, SCRATCH_GROUP, SHARED_KEYS};
use crate::truth::{self, Changes, Key, NOTE_IDS, Row, Table, USERS_PER_CLIENT};

/// Above so many entries a client deletes more than it inserts.
const ENTRIES_PER_CLIENT: usize = 500;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    InsertRow,
    InsertRows,
    Copy,
    Update,
    Delete,
    Transfer,
    Upsert,
    Read,
    Scratch,
    Note,
}

pub struct Entry {
    id: i64,
    client: i32,
    version: i32,
    payload: String,
    remark: String,
}

impl Entry {
    fn row(&self) -> Row {
        Row { version: self.version, payload: sql::digest(&self.payload), remark: sql::digest(&self.remark) }
    }
}

/// What an update changes. A new remark alone leaves a large payload where it is; a new version alone leaves both.
pub enum NewValue {
    Payload(String),
    Remark(String),
    Version,
}

/// A step with its content, ready to be sent.
pub enum Planned {
    Nothing,
    Insert(Vec<Entry>),
    Copy(Vec<Entry>),
    Update { id: i64, new: NewValue, row: Row },
    Delete(Vec<i64>),
    Transfer { id: i64, source: i32, target: i32, amount: i64 },
    Upsert { id: i64, key: String, on_conflict: bool },
    Read { id: i64, expected: Option<Row> },
    Scratch { part: i64 },
    Note(Note),
}

/// A user's row that is written, or deleted if it has no body.
pub struct Note {
    client: i32,
    user: i64,
    id: i64,
    body: Option<String>,
    /// Whether the user has the row already, and the ids of all the user's rows afterwards.
    exists: bool,
    after: Vec<i64>,
}

/// Draws the steps of one client.
pub struct Steps {
    client: i32,
    last_id: i64,
    without_upsert: bool,
    has_users: bool,
}

impl Steps {
    pub fn new(client: u32, without_upsert: bool, has_users: bool) -> Self {
        Steps { client: client as i32, last_id: first_id(client), without_upsert, has_users }
    }

    /// Ids of different clients never meet, and no id is used twice.
    pub fn next_id(&mut self) -> i64 {
        self.last_id += 1;
        self.last_id
    }

    pub fn choose(&self, rng: &mut ChaCha8Rng, entries: usize) -> Step {
        match rng.random_range(0..20) {
            0 => return Step::Scratch,
            1 | 2 if self.has_users => return Step::Note,
            _ => {}
        }
        match rng.random_range(0..100) {
            0..25 => Step::Transfer,
            25..40 => Step::InsertRow,
            40..50 => Step::InsertRows,
            50..54 => Step::Copy,
            54..72 => Step::Update,
            72..80 => Step::Delete,
            80..90 => Step::Upsert,
            _ if entries > ENTRIES_PER_CLIENT => Step::Delete,
            _ => Step::Read,
        }
    }

    pub fn plan(&mut self, step: Step, rng: &mut ChaCha8Rng, current: &BTreeMap<Key, Row>, changes: &Changes) -> Planned {
        match step {
            Step::InsertRow => Planned::Insert(vec![self.entry(rng)]),
            Step::InsertRows => Planned::Insert((0..rng.random_range(2..25)).map(|_| self.entry(rng)).collect()),
            Step::Copy => Planned::Copy((0..rng.random_range(1..80)).map(|_| self.entry(rng)).collect()),
            Step::Update => self.plan_update(rng, current, changes),
            Step::Delete => self.plan_delete(rng, current, changes),
            Step::Transfer => {
                let source = rng.random_range(1..=ACCOUNTS);
                let target = (source + rng.random_range(1..ACCOUNTS) - 1) % ACCOUNTS + 1;
                Planned::Transfer { id: self.next_id(), source, target, amount: rng.random_range(1..100) }
            }
            Step::Upsert => {
                let key = format!("key {}", rng.random_range(0..SHARED_KEYS));
                Planned::Upsert { id: self.next_id(), key, on_conflict: !self.without_upsert }
            }
            Step::Scratch => Planned::Scratch { part: self.next_id() },
            Step::Note => self.plan_note(rng, current, changes),
            Step::Read => {
                let id = rng.random_range(first_id(self.client as u32)..=self.last_id);
                let id = if rng.random_ratio(1, 5) { id } else { self.pick(rng, current, changes).unwrap_or(id) };
                Planned::Read { id, expected: seen(id, current, changes) }
            }
        }
    }

    fn entry(&mut self, rng: &mut ChaCha8Rng) -> Entry {
        let remark = if rng.random_ratio(1, 30) { value(rng) } else { String::new() };
        Entry { id: self.next_id(), client: self.client, version: 1, payload: value(rng), remark }
    }

    /// An entry of this client that its transaction sees, or nothing.
    fn pick(&self, rng: &mut ChaCha8Rng, current: &BTreeMap<Key, Row>, changes: &Changes) -> Option<i64> {
        let start = rng.random_range(first_id(self.client as u32)..=self.last_id);
        let from = (Table::Entry, start)..=(Table::Entry, i64::MAX);
        let own = changes.0.range(from.clone()).find(|(_, row)| row.is_some()).map(|(key, _)| key.1);
        let old = current.range(from).find(|(key, _)| !changes.0.contains_key(*key)).map(|(key, _)| key.1);
        if rng.random_ratio(1, 4) { own.or(old) } else { old.or(own) }
    }

    fn plan_update(&self, rng: &mut ChaCha8Rng, current: &BTreeMap<Key, Row>, changes: &Changes) -> Planned {
        let Some(id) = self.pick(rng, current, changes) else { return Planned::Nothing };
        let mut row = seen(id, current, changes).expect("a picked entry is seen");
        let new = match rng.random_range(0..3) {
            0 => NewValue::Payload(value(rng)),
            1 => NewValue::Remark(value(rng)),
            _ => NewValue::Version,
        };
        match &new {
            NewValue::Payload(text) => row.payload = sql::digest(text),
            NewValue::Remark(text) => row.remark = sql::digest(text),
            NewValue::Version => row.version += 1,
        }
        Planned::Update { id, new, row }
    }

    fn plan_delete(&self, rng: &mut ChaCha8Rng, current: &BTreeMap<Key, Row>, changes: &Changes) -> Planned {
        let Some(first) = self.pick(rng, current, changes) else { return Planned::Nothing };
        let many = if rng.random_ratio(1, 2) { 1 } else { rng.random_range(2..150) };
        let following = current.range((Table::Entry, first + 1)..=(Table::Entry, i64::MAX)).map(|(key, _)| key.1);
        let ids = std::iter::once(first).chain(following.filter(|id| seen(*id, current, changes).is_some())).take(many);
        Planned::Delete(ids.collect())
    }

    fn plan_note(&self, rng: &mut ChaCha8Rng, current: &BTreeMap<Key, Row>, changes: &Changes) -> Planned {
        let user = rng.random_range(0..USERS_PER_CLIENT);
        let id = rng.random_range(1..=NOTE_IDS);
        let mut after = truth::notes(user, current, changes);
        let exists = after.contains(&id);
        let body = rng.random_ratio(3, 4).then(|| value(rng));
        match body {
            Some(_) => after.insert(id),
            None => after.remove(&id),
        };
        Planned::Note(Note { client: self.client, user, id, body, exists, after: after.into_iter().collect() })
    }

    /// Inserts a key that exists, which must fail; the caller rolls the savepoint back.
    pub fn collide(
        &self,
        client: &mut impl GenericClient,
        rng: &mut ChaCha8Rng,
        current: &BTreeMap<Key, Row>,
        changes: &Changes,
    ) -> Result<(), Failure> {
        let Some(id) = self.pick(rng, current, changes) else { return Ok(()) };
        // Thousands of expected errors would hide the unexpected ones in the server's log; the setting ends with the savepoint.
        client.batch_execute("SET LOCAL log_min_messages = fatal")?;
        match client.execute("INSERT INTO entry VALUES ($1, $2, 0, 'duplicate', '')", &[&id, &self.client]) {
            Err(error) if sql::sqlstate(&error) == Some("23505") => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Err(Failure::Wrong(format!("entry {id} was inserted although it exists"))),
        }
    }
}

impl Planned {
    pub fn apply_to(&self, changes: &mut Changes) {
        match self {
            // What an unlogged table has is gone after a crash.
            Planned::Nothing | Planned::Read { .. } | Planned::Scratch { .. } => {}
            Planned::Note(Note { user, id, body: Some(body), .. }) => {
                changes.put(truth::note_key(*user, *id), Row { version: 0, payload: sql::digest(body), remark: 0 });
            }
            Planned::Note(Note { user, id, body: None, .. }) => changes.remove(truth::note_key(*user, *id)),
            Planned::Insert(entries) | Planned::Copy(entries) => {
                entries.iter().for_each(|entry| changes.put((Table::Entry, entry.id), entry.row()));
            }
            Planned::Update { id, row, .. } => changes.put((Table::Entry, *id), *row),
            Planned::Delete(ids) => ids.iter().for_each(|id| changes.remove((Table::Entry, *id))),
            Planned::Transfer { id, source, target, amount } => {
                let row = Row { version: 0, payload: sql::digest(&format!("{source} {target} {amount}")), remark: 0 };
                changes.put((Table::Transfer, *id), row);
            }
            Planned::Upsert { id, key, .. } => {
                changes.put((Table::Hit, *id), Row { version: 0, payload: sql::digest(key), remark: 0 })
            }
        }
    }

    pub fn execute(&self, client: &mut impl GenericClient) -> Result<(), Failure> {
        match self {
            Planned::Nothing => Ok(()),
            Planned::Insert(entries) => insert(client, entries),
            Planned::Copy(entries) => copy(client, entries),
            Planned::Update { id, new, .. } => {
                let count = match new {
                    NewValue::Payload(text) => client.execute("UPDATE entry SET payload = $2 WHERE id = $1", &[id, text]),
                    NewValue::Remark(text) => client.execute("UPDATE entry SET remark = $2 WHERE id = $1", &[id, text]),
                    NewValue::Version => client.execute("UPDATE entry SET version = version + 1 WHERE id = $1", &[id]),
                };
                affected("UPDATE of an entry", count?, 1)
            }
            Planned::Delete(ids) => {
                let count = client.execute("DELETE FROM entry WHERE id = ANY($1)", &[ids])?;
                affected("DELETE of entries", count, ids.len())
            }
            Planned::Transfer { id, source, target, amount } => {
                let change = "UPDATE account SET balance = balance + $2 WHERE id = $1";
                affected("UPDATE of an account", client.execute(change, &[source, &-amount])?, 1)?;
                affected("UPDATE of an account", client.execute(change, &[target, amount])?, 1)?;
                let count = client.execute("INSERT INTO transfer VALUES ($1, $2, $3, $4)", &[id, source, target, amount])?;
                affected("INSERT of a transfer", count, 1)
            }
            Planned::Upsert { id, key, on_conflict } => upsert(client, *id, key, *on_conflict),
            Planned::Read { id, expected } => read(client, *id, *expected),
            Planned::Scratch { part } => {
                let statement =
                    "INSERT INTO scratch SELECT $1, number, repeat('s', number * 100) FROM generate_series(1, $2::int) number";
                affected("INSERT of scratch rows", client.execute(statement, &[part, &SCRATCH_GROUP])?, SCRATCH_GROUP as usize)
            }
            Planned::Note(note) => note.execute(client),
        }
    }
}

impl Note {
    /// As the user; then the user sees the own rows and no others.
    fn execute(&self, client: &mut impl GenericClient) -> Result<(), Failure> {
        client.batch_execute(&format!("SET LOCAL kalam.user_id = {}", sql::literal(&user_name(self.client, self.user))))?;
        let (count, expected) = match &self.body {
            Some(body) => {
                let statement = "INSERT INTO note (id, body) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET body = excluded.body";
                (client.execute(statement, &[&self.id, body])?, 1)
            }
            None => (client.execute("DELETE FROM note WHERE id = $1", &[&self.id])?, usize::from(self.exists)),
        };
        affected("change of a user's row", count, expected)?;
        let found: Vec<i64> = client.query("SELECT id FROM note ORDER BY id", &[])?.iter().map(|row| row.get(0)).collect();
        client.batch_execute("RESET kalam.user_id")?;
        if found == self.after {
            return Ok(());
        }
        Err(Failure::Wrong(format!("user {} of client {} sees {found:?} instead of {:?}", self.user, self.client, self.after)))
    }
}

/// The name of one of a client's users; [`crate::verify`] takes it apart.
pub fn user_name(client: i32, user: i64) -> String {
    format!("writer {client} {user}")
}

fn insert(client: &mut impl GenericClient, entries: &[Entry]) -> Result<(), Failure> {
    let count = if let [entry] = entries {
        let Entry { id, client: owner, version, payload, remark } = entry;
        client.execute("INSERT INTO entry VALUES ($1, $2, $3, $4, $5)", &[id, owner, version, payload, remark])?
    } else {
        let rows: Vec<String> = entries
            .iter()
            .map(|entry| format!("({}, {}, {}, '{}', '{}')", entry.id, entry.client, entry.version, entry.payload, entry.remark))
            .collect();
        client.execute(&format!("INSERT INTO entry VALUES {}", rows.join(", ")), &[])?
    };
    affected("INSERT of entries", count, entries.len())
}

fn copy(client: &mut impl GenericClient, entries: &[Entry]) -> Result<(), Failure> {
    let mut writer = client.copy_in("COPY entry (id, client, version, payload, remark) FROM STDIN")?;
    for entry in entries {
        writeln!(writer, "{}\t{}\t{}\t{}\t{}", entry.id, entry.client, entry.version, entry.payload, entry.remark)?;
    }
    let count = writer.finish()?;
    // COPY's answer comes before its commit, and this client library does not wait for what follows: without a transaction block, only the
    // answer to another statement acknowledges the commit.
    client.batch_execute("")?;
    affected("COPY of entries", count, entries.len())
}

fn upsert(client: &mut impl GenericClient, id: i64, key: &str, on_conflict: bool) -> Result<(), Failure> {
    let alias = format!("alias of {key}");
    let count = if on_conflict {
        let statement = "INSERT INTO keyed VALUES ($1, $2, 0, 1) ON CONFLICT (key) DO UPDATE SET hits = keyed.hits + 1";
        client.execute(statement, &[&key, &alias])?
    } else {
        match client.execute("UPDATE keyed SET hits = hits + 1 WHERE key = $1", &[&key])? {
            0 => {
                // Two clients may meet here for a new key; a lock, not an error, decides who inserts it.
                client.execute("SELECT pg_advisory_xact_lock(hashtext($1))", &[&key])?;
                match client.execute("UPDATE keyed SET hits = hits + 1 WHERE key = $1", &[&key])? {
                    0 => client.execute("INSERT INTO keyed VALUES ($1, $2, 0, 1)", &[&key, &alias])?,
                    count => count,
                }
            }
            count => count,
        }
    };
    affected("upsert", count, 1)?;
    affected("INSERT of a hit", client.execute("INSERT INTO hit VALUES ($1, $2)", &[&id, &key])?, 1)
}

fn read(client: &mut impl GenericClient, id: i64, expected: Option<Row>) -> Result<(), Failure> {
    let statement =
        format!("SELECT version, {}, {} FROM entry WHERE id = $1", sql::digest_sql("payload"), sql::digest_sql("remark"));
    let rows = client.query(&statement, &[&id])?;
    let found: Vec<Row> = rows.iter().map(|row| Row { version: row.get(0), payload: row.get(1), remark: row.get(2) }).collect();
    if found == expected.into_iter().collect::<Vec<_>>() {
        Ok(())
    } else {
        Err(Failure::Wrong(format!("entry {id} read by its key: expected {expected:?}, found {found:?}")))
    }
}

fn affected(what: &str, count: u64, expected: usize) -> Result<(), Failure> {
    if count == expected as u64 {
        Ok(())
    } else {
        Err(Failure::Wrong(format!("{what}: {count} rows affected instead of {expected}")))
    }
}

fn seen(id: i64, current: &BTreeMap<Key, Row>, changes: &Changes) -> Option<Row> {
    let key = (Table::Entry, id);
    changes.0.get(&key).copied().unwrap_or_else(|| current.get(&key).copied())
}

fn first_id(client: u32) -> i64 {
    i64::from(client) << 32
}

/// The client whose id this is.
pub fn owner_of(id: i64) -> u32 {
    (id >> 32) as u32
}

/// Mostly a chat message's size, sometimes more than 4 KB, sometimes more than a page of 32 KB; hardly compressible.
fn value(rng: &mut ChaCha8Rng) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 .";
    let length = match rng.random_range(0..100) {
        0..93 => rng.random_range(1..250),
        93..98 => rng.random_range(4_200..9_000),
        _ => rng.random_range(33_000..100_000),
    };
    let mut bytes = vec![0u8; length];
    rng.fill(&mut bytes[..]);
    bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 63)])).collect()
}
