-- Temporary tables: the session's own, emptied or dropped at the end of a
-- transaction if so declared, gone with the session.
CREATE SCHEMA temporary;
SET search_path = temporary, public;

CREATE TEMP TABLE t (id int PRIMARY KEY, v text);
INSERT INTO t SELECT i, noise(i, i) FROM generate_series(1, 2000) i;
CREATE TABLE same AS SELECT * FROM t;
SELECT relpersistence, amname = current_setting('default_table_access_method') AS our_am, pg_relation_filepath('t') ~ '/t[0-9]+_[0-9]+$' AS own_file
FROM pg_class c JOIN pg_am a ON a.oid = relam WHERE c.oid = 't'::regclass;
SELECT fingerprint('t') = fingerprint('same') AS same;
UPDATE t SET v = v || 'x' WHERE id % 3 = 0;
DELETE FROM t WHERE id % 7 = 0;
BEGIN;
UPDATE t SET v = 'gone';
SAVEPOINT s;
DELETE FROM t;
ROLLBACK TO s;
SELECT count(*) FROM t WHERE v = 'gone';
ROLLBACK;
SELECT count(*), count(*) FILTER (WHERE v LIKE '%x') FROM t;
CREATE INDEX t_v ON t (v);
SELECT check_indexes('t');
CALL wait_for_old_snapshots();
VACUUM t;
ANALYZE t;
SELECT reltuples FROM pg_class WHERE oid = 't'::regclass;
VACUUM FULL t;
SET enable_indexscan = off;
CLUSTER t USING t_pkey;
RESET enable_indexscan;
SELECT check_indexes('t'), count(*) FROM t;
CALL only_scan('bitmapscan');
SELECT id FROM t WHERE id BETWEEN 5 AND 10;
CALL only_scan('any');
INSERT INTO t VALUES (1, 'twice') ON CONFLICT (id) DO UPDATE SET v = 'upserted' RETURNING id, v;
ALTER TABLE t ADD COLUMN w int DEFAULT 5, ALTER COLUMN id TYPE bigint;
SELECT count(*), sum(w) FROM t;
DROP INDEX t_v;
TRUNCATE t;
SELECT count(*) FROM t;
INSERT INTO t VALUES (1, noise(1, 100000), 1);
SELECT length(v) FROM t;

-- A temporary table hides a permanent one of the same name.
CREATE TABLE hidden (a text);
INSERT INTO hidden VALUES ('permanent');
CREATE TEMP TABLE hidden (a text);
INSERT INTO hidden VALUES ('temporary');
SELECT * FROM hidden;
SELECT * FROM temporary.hidden;
DROP TABLE hidden;
SELECT * FROM hidden;

-- ON COMMIT DELETE ROWS
CREATE TEMP TABLE emptied (id int PRIMARY KEY, v text) ON COMMIT DELETE ROWS;
INSERT INTO emptied VALUES (1, 'at once');
SELECT count(*) FROM emptied;
BEGIN;
INSERT INTO emptied SELECT i, noise(i, 5000) FROM generate_series(1, 20) i;
SELECT count(*), sum(length(v)) FROM emptied;
DECLARE c CURSOR WITH HOLD FOR SELECT id FROM emptied ORDER BY id;
FETCH 2 FROM c;
COMMIT;
SELECT count(*) FROM emptied;
FETCH 2 FROM c;
CLOSE c;
BEGIN;
INSERT INTO emptied VALUES (1, 'again');
SELECT * FROM emptied;
ROLLBACK;
SELECT count(*) FROM emptied;
BEGIN;
SELECT count(*) FROM emptied;
COMMIT;
INSERT INTO emptied VALUES (1, 'no duplicate');
SELECT check_indexes('emptied');

-- Made, used and emptied in one transaction, which may fail.
BEGIN;
CREATE TEMP TABLE reused (a int) ON COMMIT DELETE ROWS;
INSERT INTO reused VALUES (1);
TRUNCATE reused;
INSERT INTO reused VALUES (2);
SELECT * FROM reused;
COMMIT;
SELECT * FROM reused;
BEGIN;
CREATE TEMP TABLE undone (a int);
INSERT INTO undone VALUES (1);
TRUNCATE undone;
INSERT INTO undone VALUES (2);
ROLLBACK;
SELECT to_regclass('undone');
BEGIN;
INSERT INTO reused VALUES (3);
SAVEPOINT s;
CREATE TEMP TABLE undone (a int);
INSERT INTO undone VALUES (1);
ROLLBACK TO s;
CREATE TEMP TABLE undone (a text) ON COMMIT DROP;
INSERT INTO undone VALUES ('dropped');
SELECT * FROM undone, reused;
COMMIT;
SELECT to_regclass('undone'), count(*) FROM reused;

-- The end of a transaction that fails while it commits leaves a table that
-- works.
CREATE TEMP TABLE parent (id int PRIMARY KEY) ON COMMIT DELETE ROWS;
CREATE TEMP TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED) ON COMMIT DELETE ROWS;
BEGIN;
INSERT INTO parent VALUES (1);
INSERT INTO child VALUES (1), (2);
COMMIT;
SELECT count(*) FROM parent;
BEGIN;
INSERT INTO parent VALUES (1);
INSERT INTO child VALUES (1);
SELECT count(*) FROM parent JOIN child USING (id);
COMMIT;
SELECT count(*) FROM parent;

-- Many, one after the other and at a time.
DO $$ BEGIN
    FOR i IN 1..200 LOOP
        EXECUTE format('CREATE TEMP TABLE many_%s (a int)', i);
        EXECUTE format('INSERT INTO many_%s SELECT generate_series(1, %1$s)', i);
        IF i % 4 > 0 THEN
            EXECUTE format('DROP TABLE many_%s', i);
        END IF;
        COMMIT;
    END LOOP;
END $$;
SELECT count(*), sum(n) FROM (
    SELECT (xpath('/row/n/text()', query_to_xml(format('SELECT count(*) AS n FROM %s', oid::regclass), false, true, '')))[1]::text::int AS n
    FROM pg_class WHERE relname LIKE 'many\_%' AND relpersistence = 't') s;

-- Temporary partitions, tables made by a query, views.
CREATE TEMP TABLE parts (k int, v text) PARTITION BY LIST (k);
CREATE TEMP TABLE part_1 PARTITION OF parts FOR VALUES IN (1);
CREATE TEMP TABLE part_2 PARTITION OF parts FOR VALUES IN (2);
INSERT INTO parts VALUES (1, 'a'), (2, 'b');
UPDATE parts SET k = 2 WHERE k = 1;
SELECT tableoid::regclass, * FROM parts ORDER BY v;
CREATE TEMP TABLE made AS SELECT i FROM generate_series(1, 100) i;
CREATE TEMP VIEW seen AS SELECT sum(i) FROM made;
SELECT * FROM seen;
SELECT 1 AS a INTO TEMP into_made;
TABLE into_made;

-- What cannot be done.
\set VERBOSITY sqlstate
BEGIN;
INSERT INTO made VALUES (101);
PREPARE TRANSACTION 'temporary';
CREATE TABLE temporary.wrong (a int REFERENCES made);
ALTER TABLE made SET LOGGED;
\set VERBOSITY default

-- A new session has none of them.
\c -
SET search_path = temporary, public;
SELECT to_regclass('t'), to_regclass('emptied'), to_regclass('made');
CREATE TEMP TABLE t (other text);
INSERT INTO t VALUES ('new session');
TABLE t;
DROP SCHEMA temporary CASCADE;

-- VACUUM cleans indexes of any size in this session: no other one sees them.
CREATE TEMP TABLE parallel_temp AS SELECT i AS id, i % 1000 AS other FROM generate_series(1, 60000) i;
CREATE INDEX ON parallel_temp (id);
CREATE INDEX ON parallel_temp (other);
DELETE FROM parallel_temp WHERE id % 3 = 0;
SET min_parallel_index_scan_size = 0;
CALL wait_for_old_snapshots();
VACUUM parallel_temp;
DELETE FROM parallel_temp WHERE id % 3 = 1;
CALL wait_for_old_snapshots();
VACUUM (PARALLEL 2) parallel_temp;
SET enable_seqscan = off;
SELECT count(*) FROM parallel_temp WHERE id > 0;
SELECT count(*) FROM parallel_temp WHERE other >= 0;
RESET enable_seqscan;
RESET min_parallel_index_scan_size;
DROP TABLE parallel_temp;

-- a deleted row costs one look: the index entry is marked dead without a wait for the flush of the commit
CREATE FUNCTION heap_fetches(query text) RETURNS int LANGUAGE plpgsql AS $$
DECLARE plan json;
BEGIN
  EXECUTE 'EXPLAIN (ANALYZE, FORMAT json) ' || query INTO plan;
  RETURN plan->0->'Plan'->>'Heap Fetches';
END $$;
SET enable_seqscan = off;
SET enable_indexscan = off;
SET enable_bitmapscan = off;
CREATE TEMPORARY TABLE gone (id int UNIQUE) WITH (autovacuum_enabled = off);
INSERT INTO gone VALUES (1), (2);
DELETE FROM gone;
SELECT heap_fetches('SELECT id FROM gone ORDER BY id');
SELECT heap_fetches('SELECT id FROM gone ORDER BY id');
RESET enable_seqscan;
RESET enable_indexscan;
RESET enable_bitmapscan;
DROP TABLE gone;
DROP FUNCTION heap_fetches;
