//! The test of the test: damage done behind the ledgers' back, which the verification must notice.

use anyhow::{Result, bail, ensure};
use kalamdb_tests::sql;
use postgres::Client;

use crate::truth::Ledger;
use crate::verify;

/// Name of a kind of damage and the statements that do it.
const KINDS: [(&str, &str); 9] = [
    ("lose-row", "DELETE FROM entry WHERE id = (SELECT min(id) FROM entry)"),
    ("lose-transfer", "DELETE FROM transfer WHERE id = (SELECT max(id) FROM transfer)"),
    ("change-value", "UPDATE entry SET payload = payload || 'x' WHERE id = (SELECT max(id) FROM entry)"),
    ("change-version", "UPDATE entry SET version = version - 1 WHERE id = (SELECT max(id) FROM entry)"),
    ("extra-row", "INSERT INTO entry VALUES (5, 0, 1, 'ghost', '')"),
    ("break-sum", "UPDATE account SET balance = balance + 1 WHERE id = 1"),
    ("move-money", "UPDATE account SET balance = balance + CASE id WHEN 1 THEN 1 ELSE -1 END WHERE id IN (1, 2)"),
    ("lose-upsert", "UPDATE keyed SET hits = hits - 1 WHERE key = (SELECT min(key) FROM keyed)"),
    // The row is written again while the index counts as not ready, so its new version has no entry there.
    (
        "lose-index-entry",
        "UPDATE pg_index SET indisready = false WHERE indexrelid = 'entry_client_version'::regclass;
         CREATE TEMPORARY TABLE moved ON COMMIT DROP AS SELECT * FROM entry ORDER BY id LIMIT 1;
         DELETE FROM entry WHERE id IN (SELECT id FROM moved);
         INSERT INTO entry SELECT * FROM moved;
         UPDATE pg_index SET indisready = true WHERE indexrelid = 'entry_client_version'::regclass",
    ),
];

/// Does every kind of damage (or the one named) in a transaction that is rolled back, and verifies in it.
pub fn run(client: &mut Client, ledgers: &[&mut Ledger], only: Option<&str>, amcheck: bool) -> Result<()> {
    let chosen: Vec<_> = KINDS.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)).collect();
    ensure!(!chosen.is_empty(), "unknown kind of damage {only:?}");
    for (name, statements) in chosen {
        let mut copies: Vec<Ledger> = ledgers.iter().map(|ledger| (**ledger).clone()).collect();
        let mut transaction = client.transaction()?;
        transaction.batch_execute(statements).map_err(|error| anyhow::anyhow!("{name}: {}", sql::describe(&error)))?;
        let noticed = verify::check(&mut transaction, &mut copies.iter_mut().collect::<Vec<_>>(), true, amcheck);
        transaction.rollback()?;
        match noticed {
            Ok(_) => bail!("the damage {name:?} was not noticed"),
            Err(error) => {
                let text = format!("{error:#}");
                println!("self-test {name}: noticed: {}", text.lines().take(2).collect::<Vec<_>>().join(" ").replace("  ", ""));
            }
        }
    }
    Ok(())
}
