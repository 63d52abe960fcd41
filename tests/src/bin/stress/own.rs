//! What a client does with its own items: nobody else changes them, so whatever it reads of them is known beforehand.

use std::collections::BTreeMap;
use std::io::Write;

use kalamdb_tests::failure::Failure;
use kalamdb_tests::sql;
use postgres::Transaction;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use crate::schema::{Changes, Key, Row, TAGS, Table, item_columns, item_of};

/// Items that a client begins with, and above how many it deletes more than it inserts.
const FIRST_ITEMS: usize = 1_200;
const MOST_ITEMS: usize = 1_500;

/// Most changes are of items in a window that moves on with each commit, so that the others come to rest and become cold.
const WINDOW: i64 = 40;

/// An item with its texts.
struct Item {
    id: i64,
    tag: i32,
    version: i64,
    payload: String,
    body: Option<String>,
}

impl Item {
    fn row(&self) -> Row {
        let body = self.body.as_deref().map_or(0, sql::digest);
        Row { tag: self.tag, version: self.version, payload: sql::digest(&self.payload), body }
    }
}

/// The items of one client, as its running transaction must see them.
pub struct Own<'a> {
    pub client: u32,
    pub rng: &'a mut ChaCha8Rng,
    pub last_id: &'a mut i64,
    /// Number of the transaction among those that the client commits.
    pub seq: i64,
    /// What is committed.
    pub current: &'a BTreeMap<Key, Row>,
    /// What the transaction has done.
    pub changes: Changes,
}

pub fn first_id(client: u32) -> i64 {
    i64::from(client) << 32
}

/// Rows as one client must see them.
pub type Items = BTreeMap<i64, Row>;

impl Own<'_> {
    fn get(&self, id: i64) -> Option<Row> {
        let key = (Table::Item, id);
        self.changes.0.get(&key).copied().unwrap_or_else(|| self.current.get(&key).copied())
    }

    /// All items, as the transaction must see them.
    pub fn items(&self) -> Items {
        let of_items = (Table::Item, i64::MIN)..=(Table::Item, i64::MAX);
        let mut items: Items = self.current.range(of_items.clone()).map(|(key, row)| (key.1, *row)).collect();
        for (key, row) in self.changes.0.range(of_items) {
            match row {
                Some(row) => _ = items.insert(key.1, *row),
                None => _ = items.remove(&key.1),
            }
        }
        items
    }

    /// Some item that is there, mostly one in the window.
    fn pick(&mut self) -> Option<i64> {
        let items = self.items();
        let begin = first_id(self.client) + self.seq * 5 % (*self.last_id - first_id(self.client)).max(1);
        let in_window: Vec<i64> = items.range(begin..begin + WINDOW).map(|(id, _)| *id).collect();
        if in_window.is_empty() || self.rng.random_ratio(1, 10) {
            return items.into_keys().collect::<Vec<i64>>().choose(self.rng).copied();
        }
        in_window.choose(self.rng).copied()
    }

    fn new_item(&mut self) -> Item {
        *self.last_id += 1;
        let body = self.rng.random_ratio(1, 30).then(|| text(self.rng, 4_200..24_000));
        let payload = text(self.rng, 1..300);
        Item { id: *self.last_id, tag: self.rng.random_range(0..TAGS), version: 1, payload, body }
    }

    /// One random step.
    pub fn step(&mut self, tx: &mut Transaction) -> Result<(), Failure> {
        let full = self.items().len() > MOST_ITEMS;
        match self.rng.random_range(0..100) {
            0..14 if !full => self.insert(tx),
            14..18 if !full => {
                let count = self.rng.random_range(1..40);
                self.copy(tx, count)
            }
            0..24 => self.delete(tx),
            24..44 => self.update(tx),
            44..50 => self.update_tagged(tx),
            50..58 => self.upsert(tx),
            58..66 => self.lock_others(tx),
            _ => self.read(tx),
        }
    }

    fn insert(&mut self, tx: &mut Transaction) -> Result<(), Failure> {
        for _ in 0..self.rng.random_range(1..5) {
            let item = self.new_item();
            let statement = "INSERT INTO item (id, owner, tag, version, payload, body) VALUES ($1, $2, $3, $4, $5, $6)";
            let owner = self.client as i32;
            let count = tx.execute(statement, &[&item.id, &owner, &item.tag, &item.version, &item.payload, &item.body])?;
            affected("INSERT of an item", count, 1)?;
            self.changes.put((Table::Item, item.id), item.row());
        }
        Ok(())
    }

    /// What a client begins with.
    pub fn load(&mut self, tx: &mut Transaction) -> Result<(), Failure> {
        self.copy(tx, FIRST_ITEMS)
    }

    fn copy(&mut self, tx: &mut Transaction, count: usize) -> Result<(), Failure> {
        let items: Vec<Item> = (0..count).map(|_| self.new_item()).collect();
        let mut writer = tx.copy_in("COPY item (id, owner, tag, version, payload, body) FROM STDIN")?;
        for item in &items {
            let body = item.body.as_deref().unwrap_or("\\N");
            writeln!(writer, "{}\t{}\t{}\t{}\t{}\t{body}", item.id, self.client, item.tag, item.version, item.payload)?;
        }
        affected("COPY of items", writer.finish()?, items.len())?;
        items.iter().for_each(|item| self.changes.put((Table::Item, item.id), item.row()));
        Ok(())
    }

    fn delete(&mut self, tx: &mut Transaction) -> Result<(), Failure> {
        let Some(first) = self.pick() else { return Ok(()) };
        let many = if self.rng.random() { 1 } else { self.rng.random_range(2..60) };
        let ids: Vec<i64> = self.items().range(first..).take(many).map(|(id, _)| *id).collect();
        let count = if self.rng.random() {
            tx.execute("DELETE FROM item WHERE id = ANY($1)", &[&ids])?
        } else {
            let last = ids[ids.len() - 1];
            tx.execute("DELETE FROM item WHERE id BETWEEN $1 AND $2", &[&first, &last])?
        };
        affected("DELETE of items", count, ids.len())?;
        ids.iter().for_each(|id| self.changes.remove((Table::Item, *id)));
        Ok(())
    }

    /// Changes one item: in place or not, its large value or another column, found by key, by TID or by a cursor.
    fn update(&mut self, tx: &mut Transaction) -> Result<(), Failure> {
        let Some(id) = self.pick() else { return Ok(()) };
        let mut row = self.get(id).expect("a picked item is there");
        let (set, value): (&str, Option<String>) = match self.rng.random_range(0..5) {
            0 => {
                let payload = text(self.rng, 1..300);
                row.payload = sql::digest(&payload);
                ("payload = $1", Some(payload))
            }
            1 => {
                let body = self.rng.random_ratio(2, 3).then(|| text(self.rng, 4_200..24_000));
                row.body = body.as_deref().map_or(0, sql::digest);
                ("body = $1", body)
            }
            2 => {
                row.tag = self.rng.random_range(0..TAGS);
                ("tag = $1::text::int", Some(row.tag.to_string()))
            }
            _ => {
                row.version += 1;
                ("version = version + $1::text::int", Some("1".into()))
            }
        };
        let count = match self.rng.random_range(0..4) {
            0 => {
                let tid: String = tx.query_one("SELECT ctid::text FROM item WHERE id = $1", &[&id])?.get(0);
                tx.execute(&format!("UPDATE item SET {set} WHERE ctid = {}", sql::literal(&tid)), &[&value])?
            }
            1 => {
                tx.batch_execute(&format!("DECLARE one CURSOR FOR SELECT 1 FROM item WHERE id = {id} FOR UPDATE; FETCH one"))?;
                let count = tx.execute(&format!("UPDATE item SET {set} WHERE CURRENT OF one"), &[&value])?;
                tx.batch_execute("CLOSE one")?;
                count
            }
            _ => tx.execute(&format!("UPDATE item SET {set} WHERE id = {id}"), &[&value])?,
        };
        affected("UPDATE of an item", count, 1)?;
        self.changes.put((Table::Item, id), row);
        Ok(())
    }

    /// Changes all items with a tag.
    fn update_tagged(&mut self, tx: &mut Transaction) -> Result<(), Failure> {
        let tag = self.rng.random_range(0..TAGS);
        let tagged: Items = self.items().into_iter().filter(|(_, row)| row.tag == tag).collect();
        let statement = "UPDATE item SET version = version + 1 WHERE tag = $1 AND owner = $2";
        affected("UPDATE by tag", tx.execute(statement, &[&tag, &(self.client as i32)])?, tagged.len())?;
        for (id, row) in tagged {
            self.changes.put((Table::Item, id), Row { version: row.version + 1, ..row });
        }
        Ok(())
    }

    fn upsert(&mut self, tx: &mut Transaction) -> Result<(), Failure> {
        let mut item = self.new_item();
        if self.rng.random_ratio(2, 3)
            && let Some(id) = self.pick()
        {
            item.id = id;
        }
        let statement = "INSERT INTO item (id, owner, tag, version, payload, body) VALUES ($1, $2, $3, $4, $5, $6)
            ON CONFLICT (id) DO UPDATE SET version = item.version + 1, payload = excluded.payload";
        let owner = self.client as i32;
        let count = tx.execute(statement, &[&item.id, &owner, &item.tag, &item.version, &item.payload, &item.body])?;
        affected("upsert of an item", count, 1)?;
        let row = match self.get(item.id) {
            Some(row) => Row { version: row.version + 1, payload: sql::digest(&item.payload), ..row },
            None => item.row(),
        };
        self.changes.put((Table::Item, item.id), row);
        Ok(())
    }

    /// Locks items of anybody, so that pages have locked rows and several holders.
    fn lock_others(&mut self, tx: &mut Transaction) -> Result<(), Failure> {
        let strength = *["UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE"].choose(self.rng).expect("not empty");
        let policy = *["", "SKIP LOCKED", "SKIP LOCKED", "NOWAIT"].choose(self.rng).expect("not empty");
        let tag = self.rng.random_range(0..TAGS);
        tx.execute(&format!("SELECT id FROM item WHERE tag = $1 ORDER BY id LIMIT 5 FOR {strength} {policy}"), &[&tag])?;
        Ok(())
    }

    /// Reads own items in one of many ways, and compares.
    fn read(&mut self, tx: &mut Transaction) -> Result<(), Failure> {
        let items = self.items();
        let owner = self.client as i32;
        let columns = item_columns();
        let (what, condition, expected): (&str, String, Items) = match self.rng.random_range(0..5) {
            0 => ("by owner", format!("owner = {owner}"), items),
            1 => {
                let from = first_id(self.client) + self.rng.random_range(0..=*self.last_id - first_id(self.client));
                let to = from + 50;
                let expected = items.range(from..to).map(|(id, row)| (*id, *row)).collect();
                ("by a range of keys", format!("id >= {from} AND id < {to}"), expected)
            }
            2 => {
                let tag = self.rng.random_range(0..TAGS);
                let expected = items.into_iter().filter(|(_, row)| row.tag == tag).collect();
                ("by tag", format!("tag = {tag} AND owner = {owner}"), expected)
            }
            3 => {
                let ids: Vec<i64> = items.keys().copied().collect();
                let mut chosen: Vec<i64> = ids.choose_multiple(self.rng, 8).copied().collect();
                // One that never was, and one that may be deleted.
                chosen.extend([*self.last_id + 1, self.rng.random_range(first_id(self.client)..=*self.last_id)]);
                let list = chosen.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
                let expected = chosen.iter().filter_map(|id| Some((*id, *items.get(id)?))).collect();
                ("by keys", format!("id IN ({list})"), expected)
            }
            _ => return self.read_by_tid(tx),
        };
        let rows = tx.query(&format!("SELECT {columns} FROM item WHERE {condition}"), &[])?;
        compare(&format!("items {what} ({condition})"), &rows.iter().map(item_of).collect::<Vec<_>>(), &expected)
    }

    fn read_by_tid(&mut self, tx: &mut Transaction) -> Result<(), Failure> {
        let Some(id) = self.pick() else { return Ok(()) };
        let expected: Items = self.get(id).map(|row| (id, row)).into_iter().collect();
        let tid: String = tx.query_one("SELECT ctid::text FROM item WHERE id = $1", &[&id])?.get(0);
        let query = format!("SELECT {} FROM item WHERE ctid = {}", item_columns(), sql::literal(&tid));
        let rows = tx.query(&query, &[])?;
        compare(&format!("item {id} by TID {tid}"), &rows.iter().map(item_of).collect::<Vec<_>>(), &expected)
    }
}

fn affected(what: &str, count: u64, expected: usize) -> Result<(), Failure> {
    match count == expected as u64 {
        true => Ok(()),
        false => Err(Failure::Wrong(format!("{what}: {count} rows affected instead of {expected}"))),
    }
}

/// Each expected row exactly once, and no other.
pub fn compare(what: &str, found: &[(i64, Row)], expected: &Items) -> Result<(), Failure> {
    let mut seen = Items::new();
    let mut wrong = Vec::new();
    for (id, row) in found {
        if seen.insert(*id, *row).is_some() {
            wrong.push(format!("{id} is there twice"));
        }
        match expected.get(id) {
            None => wrong.push(format!("{id} must not be there: {row:?}")),
            Some(right) if right != row => wrong.push(format!("{id} is {row:?} instead of {right:?}")),
            Some(_) => {}
        }
    }
    wrong.extend(expected.iter().filter(|(id, _)| !seen.contains_key(id)).map(|(id, row)| format!("{id} is missing: {row:?}")));
    if wrong.is_empty() {
        return Ok(());
    }
    let count = wrong.len();
    wrong.truncate(12);
    Err(Failure::Wrong(format!(
        "{what}: {} of {} rows, {count} wrong:\n    {}",
        found.len(),
        expected.len(),
        wrong.join("\n    ")
    )))
}

/// A text that hardly compresses.
fn text(rng: &mut ChaCha8Rng, lengths: std::ops::Range<usize>) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 .";
    let mut bytes = vec![0u8; rng.random_range(lengths)];
    rng.fill(&mut bytes[..]);
    bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 63)])).collect()
}
