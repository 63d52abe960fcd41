-- Options with the prefix kalam.: three ways to set them, what they may be, who may, and what becomes of them.
-- On heap there are none: see table_options_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
-- Without preload, statements know the options once the session has the library.
LOAD '$libdir/kalamdb';
CREATE SCHEMA options;
SET search_path = options, public;
SET kalam.flush_policy = 'rows:10000,interval:300';

-- With the table, beside Postgres' own.
CREATE TABLE messages (id int PRIMARY KEY, "Sent By" text, body text)
    WITH (fillfactor = 90, kalam.flush_rows = 5000, kalam.deleted_retention = '1 month 2 hours', kalam.bloom_columns = 'id, "Sent By"');
SELECT * FROM kalam.table_options ORDER BY 1, 2;
SELECT reloptions FROM pg_class WHERE oid = 'messages'::regclass;
SELECT * FROM kalam.effective_options('messages');
CREATE TABLE copied WITH (kalam.flush_policy = 'off') AS SELECT 1 AS one;
CREATE MATERIALIZED VIEW seen WITH (kalam.compression = none) AS SELECT 1 AS one;
CREATE SCHEMA inner_schema CREATE TABLE inside (i int) WITH (kalam.storage = local);
SELECT * FROM kalam.table_options WHERE relation <> 'messages'::regclass ORDER BY relation::text;

-- By ALTER TABLE, alone and together with other changes.
ALTER TABLE messages SET (kalam.flush_rows = 20000, kalam.compression = 'ZSTD:3');
ALTER TABLE messages SET (kalam.flush_interval = '5 min', fillfactor = 80), ADD COLUMN added int;
ALTER TABLE messages RESET (kalam.bloom_columns, fillfactor);
ALTER TABLE IF EXISTS nowhere SET (kalam.flush_rows = 1);
ALTER MATERIALIZED VIEW seen SET (kalam.compression = lz4);
SELECT * FROM kalam.table_options WHERE relation IN ('messages'::regclass, 'seen'::regclass) ORDER BY relation::text, 2;
SELECT reloptions FROM pg_class WHERE oid = 'messages'::regclass;

-- By functions.
SELECT kalam.set_options('messages', flush_policy => 'interval:60, rows:7', compression => 'none', row_group_rows => 5000);
SELECT kalam.reset_options('messages', 'flush_rows', 'compression');
SELECT * FROM kalam.table_options WHERE relation = 'messages'::regclass ORDER BY 2;
SELECT kalam.reset_options('messages');
SELECT count(*) FROM kalam.table_options WHERE relation = 'messages'::regclass;

-- In a transaction as everything else.
BEGIN;
ALTER TABLE messages SET (kalam.flush_rows = 3);
SELECT value, source FROM kalam.effective_options('messages') WHERE option = 'flush_rows';
SAVEPOINT before;
ALTER TABLE messages SET (kalam.flush_rows = 4);
ROLLBACK TO before;
SELECT value, source FROM kalam.effective_options('messages') WHERE option = 'flush_rows';
ROLLBACK;
SELECT value, source FROM kalam.effective_options('messages') WHERE option = 'flush_rows';

-- Defaults are settings.
SET kalam.flush_policy = 'rows:3';
-- A setting that says no time is refused where it is set.
SET kalam.deleted_retention = 'nonsense';
SET kalam.ttl = '-1 day';
SET kalam.flush_interval = '2 days';
SET kalam.deleted_retention = '0';
SELECT * FROM kalam.effective_options('messages') WHERE option IN ('flush_policy', 'deleted_retention');
SET kalam.flush_policy = 'rows:10000,interval:300';
RESET kalam.deleted_retention;

-- What is not an option, or not a value.
ALTER TABLE messages SET (kalam.nonsense = 1);
ALTER TABLE messages RESET (kalam.nonsense);
ALTER TABLE messages SET (kalam.flush_policy = 'rows:5,rows:6');
\set VERBOSITY sqlstate
SELECT option, value, outcome(format('ALTER TABLE messages SET (kalam.%s = %L)', option, value))
FROM (VALUES ('flush_policy', ''), ('flush_policy', 'rows:0'), ('flush_policy', 'rows:1000000'), ('flush_policy', 'interval:86400'),
    ('flush_policy', 'rows:1,'), ('flush_rows', '0'), ('flush_rows', '1000000'), ('flush_rows', 'many'), ('flush_interval', '0'),
    ('flush_interval', '86400'), ('flush_interval', '1 day'), ('storage', ''), ('storage', 'a/b'), ('compression', 'gzip'),
    ('compression', 'lz4:1'), ('compression', 'zstd:23'), ('row_group_rows', '1'), ('bloom_columns', ''), ('bloom_columns', 'nowhere'),
    ('cluster_by', 'ctid'), ('deleted_retention', '-1 day'), ('deleted_retention', 'soon'), ('ttl', '0'), ('max_bytes', '0'),
    ('max_bytes', '1 XB'), ('cluster_by', 'id'), ('encryption_key', 'k')) AS wrong (option, value);
SELECT option, value, outcome(format('ALTER TABLE messages SET (kalam.%s = %L)', option, value)), kalam.normalize_option(option, value)
FROM (VALUES ('flush_policy', 'rows:999999,interval:86399'), ('flush_policy', 'interval:1'), ('flush_policy', 'off'), ('flush_rows', '1'),
    ('flush_interval', '86399'), ('flush_interval', '2 min'), ('compression', 'zstd:22'), ('compression', 'Snappy'),
    ('row_group_rows', '1024'), ('bloom_columns', 'id ,body'), ('deleted_retention', '0'),
    ('deleted_retention', '36 hours')) AS valid (option, value);
CREATE TABLE events (i int) USING kalam_stream;
SELECT option, value, outcome(format('ALTER TABLE events SET (kalam.%s = %L)', option, value))
FROM (VALUES ('ttl', '1.5 s'), ('max_bytes', '2 GB'), ('max_bytes', '12345'), ('ttl', '0'), ('max_bytes', '1 XB')) AS tried (option, value);
SELECT option, value FROM kalam.table_options WHERE relation = 'events'::regclass ORDER BY 1;
-- What has no meaning for the kind of table is refused.
\set VERBOSITY default
ALTER TABLE messages SET (kalam.ttl = '1 s');
ALTER TABLE events SET (kalam.flush_rows = 10);
SELECT kalam.set_options('events', storage => 'local');
SELECT kalam.effective_options('pg_class');
DROP TABLE events;
\set VERBOSITY sqlstate
SELECT option, value FROM kalam.table_options WHERE relation = 'messages'::regclass ORDER BY 1;
CREATE TABLE wrong (i int) WITH (kalam.flush_rows = 0);
CREATE TABLE wrong (i int) WITH (kalam.flush_rows);
CREATE TABLE wrong (i int) USING heap WITH (kalam.flush_rows = 1);
SELECT to_regclass('wrong');
CREATE TABLE IF NOT EXISTS messages (i int) WITH (kalam.flush_rows = 77);
SELECT kalam.set_options('messages', flush_rows => 0);
SELECT kalam.reset_options('messages', 'nonsense');
SELECT kalam.set_options('pg_class', flush_rows => 1);
ALTER TABLE nowhere SET (kalam.flush_rows = 1);
ALTER TABLE messages SET (kalam.storage = nowhere);
SET kalam.flush_policy = 'sometimes';
SET kalam.compression = 'gzip';
INSERT INTO kalam.table_options VALUES ('messages', 'nonsense', '1');

-- Only the owner.
CREATE ROLE regress_kalam_other;
GRANT USAGE ON SCHEMA options TO regress_kalam_other;
SET ROLE regress_kalam_other;
ALTER TABLE options.messages SET (kalam.flush_rows = 1);
ALTER TABLE options.messages RESET (kalam.flush_rows);
SELECT kalam.set_options('options.messages', flush_rows => 1);
SELECT kalam.reset_options('options.messages');
INSERT INTO kalam.table_options VALUES ('options.messages', 'flush_rows', '1');
DELETE FROM kalam.table_options;
SET kalam.flush_policy = 'off';
SELECT count(*) > 5 AS readable FROM kalam.table_options;
RESET ROLE;
\set VERBOSITY default
ALTER TABLE messages OWNER TO regress_kalam_other;
GRANT CREATE ON SCHEMA options TO regress_kalam_other;
SET ROLE regress_kalam_other;
ALTER TABLE options.messages SET (kalam.flush_rows = 8);
RESET ROLE;
SELECT value FROM kalam.effective_options('messages') WHERE option = 'flush_rows';

-- They follow a table that gets another name, and go with it.
ALTER TABLE messages RENAME TO letters;
ALTER TABLE letters SET SCHEMA inner_schema;
SELECT relation, value FROM kalam.table_options WHERE option = 'flush_rows';
BEGIN;
DROP TABLE inner_schema.letters;
SELECT count(*) FROM kalam.table_options WHERE option = 'flush_rows';
ROLLBACK;
SELECT count(*) FROM kalam.table_options WHERE option = 'flush_rows';
DROP SCHEMA inner_schema CASCADE;
DROP TABLE copied;
DROP MATERIALIZED VIEW seen;
SELECT * FROM kalam.table_options;
DROP OWNED BY regress_kalam_other;
DROP ROLE regress_kalam_other;
