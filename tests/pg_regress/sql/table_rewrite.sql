-- CLUSTER and VACUUM FULL: the same rows in new files, in the wanted order.
CREATE SCHEMA table_rewrite;
SET search_path = table_rewrite, public;

-- Is every row of a table of ours where the order by this expression wants it?
CREATE FUNCTION is_ordered(relation regclass, key text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    ordered boolean;
BEGIN
    EXECUTE format('SELECT bool_and(k >= before) FROM (SELECT %s AS k, lag(%1$s) OVER (ORDER BY ctid) AS before FROM %s) r',
        key, relation) INTO ordered;
    RETURN ordered;
END $$;

CREATE TABLE t (id int PRIMARY KEY, k int, v text) WITH (autovacuum_enabled = off);
INSERT INTO t SELECT i, (i * 7919) % 5003, noise(i, i % 300) FROM generate_series(1, 5000) i;
CREATE INDEX t_k ON t (k);
CREATE INDEX t_hash ON t USING hash (id);
UPDATE t SET v = v || 'x' WHERE id % 4 = 0;
DELETE FROM t WHERE id % 5 = 0;
CREATE TABLE before AS SELECT * FROM t;
SELECT is_ordered('t', 'k');

-- By a scan of the index, by a sort, and without an order.
SET enable_sort = off;
CLUSTER t USING t_k;
RESET enable_sort;
SELECT is_ordered('t', 'k'), fingerprint('t') = fingerprint('before') AS same, check_indexes('t');
SELECT indisclustered FROM pg_index WHERE indexrelid = 't_k'::regclass;
SET enable_indexscan = off;
CLUSTER t USING t_pkey;
RESET enable_indexscan;
SELECT is_ordered('t', 'id'), fingerprint('t') = fingerprint('before') AS same, check_indexes('t');
CREATE TABLE files AS SELECT relfilenode, relfrozenxid FROM pg_class WHERE oid = 't'::regclass;
VACUUM FULL t;
SELECT is_ordered('t', 'id'), fingerprint('t') = fingerprint('before') AS same, check_indexes('t');
SELECT c.relfilenode <> f.relfilenode AS new_files, age(c.relfrozenxid) <= age(f.relfrozenxid) AS not_older, c.reltuples
FROM pg_class c, files f WHERE c.oid = 't'::regclass;
CALL only_scan('indexscan');
SELECT count(*), sum(id) FROM t WHERE k BETWEEN 1000 AND 2000;
SELECT count(*), sum(id) FROM before WHERE k BETWEEN 1000 AND 2000;
CALL only_scan('bitmapscan');
SELECT id, k FROM t WHERE id IN (4, 5, 6) ORDER BY id;
CALL only_scan('any');

-- The table goes on as before.
UPDATE t SET v = 'changed' WHERE id < 10;
INSERT INTO t VALUES (5, 5, 'back');
INSERT INTO t VALUES (6, 6, 'twice');
SELECT count(*), count(*) FILTER (WHERE v = 'changed') FROM t;
-- The index it was table_rewrite on last is remembered.
CLUSTER t;
SELECT is_ordered('t', 'id'), check_indexes('t');
CALL wait_for_old_snapshots();
VACUUM t;
SELECT count(*) FROM t;

-- Columns that came and went, NULLs, generated columns, large values.
CREATE TABLE wide (id int, gone text, big text, more text) WITH (autovacuum_enabled = off);
ALTER TABLE wide ALTER COLUMN big SET STORAGE EXTERNAL;
INSERT INTO wide SELECT i, noise(i, 9000), CASE WHEN i % 3 > 0 THEN noise(-i, i * 1000) END, noise(i, 40) FROM generate_series(1, 40) i;
ALTER TABLE wide DROP COLUMN gone;
ALTER TABLE wide ADD COLUMN late int DEFAULT 7, ADD COLUMN twice int GENERATED ALWAYS AS (id * 2) STORED, ADD COLUMN empty text;
INSERT INTO wide (id, big) VALUES (41, repeat('compressible', 10000));
UPDATE wide SET more = 'same value' WHERE id % 2 = 0;
CREATE TABLE wide_before AS SELECT * FROM wide;
CREATE INDEX wide_id ON wide (id DESC);
SET enable_sort = off;
CLUSTER wide USING wide_id;
RESET enable_sort;
SELECT is_ordered('wide', '-id'), fingerprint('wide') = fingerprint('wide_before') AS same;
SET enable_indexscan = off;
CLUSTER wide;
RESET enable_indexscan;
SELECT is_ordered('wide', '-id'), fingerprint('wide') = fingerprint('wide_before') AS same;
VACUUM FULL wide;
SELECT fingerprint('wide') = fingerprint('wide_before') AS same;
SELECT id, length(big), late, twice, empty FROM wide WHERE id IN (3, 7, 41) ORDER BY id;
UPDATE wide SET more = 'once more' WHERE id = 7;
SELECT big = noise(-7, 7000) AS same FROM wide WHERE id = 7;

-- An index that gives an order but no sort.
CREATE TABLE places (id int, at point) WITH (autovacuum_enabled = off);
INSERT INTO places SELECT i, point(i % 37, i % 41) FROM generate_series(1, 2000) i;
CREATE INDEX places_at ON places USING gist (at);
CREATE TABLE places_before AS SELECT id, at::text FROM places;
CLUSTER places USING places_at;
SELECT fingerprint('places') = fingerprint('places_before') AS same;
SELECT count(*) FROM places WHERE at <@ box '((0,0),(5,5))';

-- In a transaction that changed the table itself.
BEGIN;
DELETE FROM t WHERE id % 2 = 0;
UPDATE t SET k = -k, v = 'own' WHERE id % 3 = 0;
UPDATE t SET k = k - 1 WHERE id % 9 = 0;
INSERT INTO t SELECT i, -i, 'new' FROM generate_series(10001, 10100) i;
CREATE TABLE own AS SELECT * FROM t;
SET LOCAL enable_sort = off;
CLUSTER t USING t_k;
SELECT is_ordered('t', 'k'), fingerprint('t') = fingerprint('own') AS same;
SET LOCAL enable_sort = on;
SET LOCAL enable_indexscan = off;
CLUSTER t USING t_pkey;
SELECT is_ordered('t', 'id'), fingerprint('t') = fingerprint('own') AS same;
UPDATE t SET v = 'after' WHERE id = 10001;
SELECT count(*), count(*) FILTER (WHERE v = 'own'), count(*) FILTER (WHERE v = 'after') FROM t;
ROLLBACK;
SELECT count(*), count(*) FILTER (WHERE v = 'own') FROM t;
SELECT check_indexes('t');

BEGIN;
SAVEPOINT one;
DELETE FROM t WHERE id < 100;
ROLLBACK TO one;
UPDATE t SET v = 'kept' WHERE id < 50;
SAVEPOINT two;
DELETE FROM t WHERE id > 3000;
RELEASE two;
CLUSTER t USING t_k;
SAVEPOINT three;
CALL wait_for_old_snapshots();
VACUUM t;
ROLLBACK TO three;
INSERT INTO t VALUES (3, 3, 'twice');
ROLLBACK TO three;
COMMIT;
SELECT count(*), count(*) FILTER (WHERE v = 'kept'), max(id) FROM t;
SELECT is_ordered('t', 'k'), check_indexes('t');

-- An empty table, and one with nothing but dead rows.
CREATE TABLE empty (id int PRIMARY KEY) WITH (autovacuum_enabled = off);
CLUSTER empty USING empty_pkey;
VACUUM FULL empty;
INSERT INTO empty SELECT generate_series(1, 1000);
TRUNCATE empty;
INSERT INTO empty SELECT generate_series(1, 10);
DELETE FROM empty;
VACUUM FULL empty;
SELECT count(*) FROM empty;

-- Rows that leave room for updates.
CREATE TABLE roomy (id int PRIMARY KEY, v text) WITH (fillfactor = 50, autovacuum_enabled = off);
INSERT INTO roomy SELECT i, noise(i, 100) FROM generate_series(1, 2000) i;
VACUUM FULL roomy;
UPDATE roomy SET v = noise(-id, 100) WHERE id % 2 = 0;
SELECT count(*) FROM roomy WHERE v = noise(CASE WHEN id % 2 = 0 THEN -id ELSE id END, 100);

-- What cannot be done.
\set VERBOSITY sqlstate
CREATE INDEX t_part ON t (v) WHERE id > 10;
CLUSTER t USING t_part;
CLUSTER t USING t_hash;
CLUSTER t USING nowhere;
BEGIN;
VACUUM FULL t;
ROLLBACK;
\set VERBOSITY default
SELECT check_indexes('t');

SET client_min_messages = warning;
DROP SCHEMA table_rewrite CASCADE;
