//! Wrong settings of the server, wrong options, and databases that were copied behind the engine's back.

use anyhow::{Result, ensure};
use kalamdb_tests::Installation;

use crate::Outcome;
use crate::bed::{Bed, DATABASE, refused};

pub fn wal_level_minimal(installation: &Installation) -> Result<Outcome> {
    let mut bed = Bed::started(installation, "minimal", &[("wal_level", "minimal"), ("max_wal_senders", "0")])?;
    let postmaster = bed.cluster.postmaster_pid();
    let mut client = bed.connect()?;
    refused(&mut client, "CREATE TABLE t (id int)", "55000", &["\"wal_level\"", "restart"])?;
    client.batch_execute("CREATE TABLE h (id int) USING heap; INSERT INTO h VALUES (1)")?;
    drop(client);
    bed.check_up(postmaster)?;
    bed.stop()?;
    bed.set("wal_level", "replica")?;
    bed.start()?;
    let mut client = bed.connect()?;
    bed.create_table(&mut client, "t")?;
    bed.check_table(&mut client, "t")?;
    Ok(Outcome::Passed("55000 at the first CREATE TABLE, works with wal_level = replica".into()))
}

pub fn no_replication_slots(installation: &Installation) -> Result<Outcome> {
    let mut bed = Bed::started(installation, "noslots", &[("max_replication_slots", "0")])?;
    let postmaster = bed.cluster.postmaster_pid();
    refused(&mut bed.connect()?, "CREATE TABLE t (id int)", "55000", &["\"max_replication_slots\"", "restart"])?;
    bed.check_up(postmaster)?;
    Ok(Outcome::Passed("55000 at the first CREATE TABLE".into()))
}

pub fn all_slots_in_use(installation: &Installation) -> Result<Outcome> {
    // Preloaded, the worker would have its slot before anybody else.
    let installation = Installation { preload: String::new(), ..installation.clone() };
    let mut bed = Bed::started(&installation, "allslots", &[("max_replication_slots", "1")])?;
    let postmaster = bed.cluster.postmaster_pid();
    let mut client = bed.connect()?;
    client.batch_execute("SELECT pg_create_physical_replication_slot('other')")?;
    refused(&mut client, "CREATE TABLE t (id int)", "53400", &["replication slot", "\"max_replication_slots\""])?;
    client.batch_execute("SELECT pg_drop_replication_slot('other')")?;
    crate::bed::eventually(|| Ok(client.batch_execute("CREATE TABLE t (id int)")?))?;
    bed.check_up(postmaster)?;
    Ok(Outcome::Passed("53400, works once a slot is free".into()))
}

pub fn unknown_options(installation: &Installation) -> Result<Outcome> {
    let bed = Bed::started(installation, "options", &[])?;
    let mut client = bed.connect()?;
    client.batch_execute("CREATE TABLE t (id int) WITH (fillfactor = 70)")?;
    let refused = [
        ("CREATE TABLE x (id int) WITH (kalam.nonsense = 1)", "22023"),
        ("CREATE TABLE x (id int) WITH (nonsense = 1)", "22023"),
        ("CREATE TABLE x (id int) WITH (fillfactor = 7)", "22023"),
        ("ALTER TABLE t SET (nonsense = 1)", "22023"),
        ("SET kalam.nonsense = 1", "42602"),
        ("ALTER SYSTEM SET kalam.cache_size = '1kB'", "22023"),
    ];
    for (statement, sqlstate) in refused {
        // These reports are Postgres' own.
        let error = client.batch_execute(statement).err();
        let code = error.as_ref().and_then(|error| error.code()).map(|code| code.code());
        ensure!(code == Some(sqlstate), "{statement}: {error:?}, expected {sqlstate}");
    }
    let tables: i64 = client.query_one("SELECT count(*) FROM pg_class WHERE relname = 'x'", &[])?.get(0);
    ensure!(tables == 0, "a refused table exists");
    Ok(Outcome::Passed(format!("{} statements refused", refused.len())))
}

/// Moving a database with tables to another tablespace is refused; moving one without any is not.
pub fn database_moved(installation: &Installation) -> Result<Outcome> {
    let bed = Bed::started(installation, "database_moved", &[])?;
    bed.create_table(&mut bed.connect()?, "t")?;
    let mut administrator = bed.cluster.connect("postgres")?;
    administrator.batch_execute("SET allow_in_place_tablespaces = on")?;
    administrator.batch_execute("CREATE TABLESPACE elsewhere LOCATION ''")?;
    let statement = format!("ALTER DATABASE {DATABASE} SET TABLESPACE elsewhere");
    refused(&mut administrator, &statement, "0A000", &[DATABASE, "dump"])?;
    bed.check_table(&mut bed.connect()?, "t")?;
    administrator.batch_execute("CREATE DATABASE empty")?;
    administrator.batch_execute("ALTER DATABASE empty SET TABLESPACE elsewhere")?;
    Ok(Outcome::Passed("0A000 with tables, done without".into()))
}

/// The engine knows nothing of tables whose files Postgres copied; they must not look empty.
pub fn template_copy(installation: &Installation) -> Result<Outcome> {
    let mut bed = Bed::started(installation, "template", &[])?;
    let postmaster = bed.cluster.postmaster_pid();
    let mut client = bed.connect()?;
    bed.create_table(&mut client, "t")?;
    drop(client);
    let mut administrator = bed.cluster.connect("postgres")?;
    for strategy in ["wal_log", "file_copy"] {
        administrator.batch_execute(&format!("CREATE DATABASE copied TEMPLATE {DATABASE} STRATEGY {strategy}"))?;
        let mut client = bed.cluster.connect("copied")?;
        for statement in super::store::EVERY_ACCESS {
            refused(&mut client, statement, "58P01", &["\"t\"", "TEMPLATE"])?;
        }
        let row = client.query_one("SELECT count(*), count(hot_bytes) FROM kalam.tables", &[])?;
        ensure!((row.get::<_, i64>(0), row.get::<_, i64>(1)) == (1, 0), "kalam.tables does not show the table without a size");
        client.batch_execute("DROP TABLE t; CREATE TABLE t (id int) USING kalam_shared; INSERT INTO t VALUES (1)")?;
        drop(client);
        administrator.batch_execute("DROP DATABASE copied")?;
    }
    bed.check_table(&mut bed.connect()?, "t")?;
    bed.check_up(postmaster)?;
    Ok(Outcome::Passed("58P01 for every access in the copy, the original is whole".into()))
}
