-- Parallel plans see the same rows as serial ones, the leader's own changes
-- included.
CREATE SCHEMA parallel_scan;
SET search_path = parallel_scan, public;
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
SET min_parallel_index_scan_size = 0;
SET max_parallel_workers_per_gather = 2;
SET parallel_leader_participation = on;

CREATE TABLE big (id int, grp int, v text) WITH (parallel_workers = 2, autovacuum_enabled = off);
INSERT INTO big SELECT i, i % 100, 'v' || i FROM generate_series(1, 40000) i;
CREATE INDEX big_id ON big (id);
CREATE INDEX big_grp ON big (grp);
ANALYZE big;
SELECT plan_has('SELECT count(*) FROM big', 'Parallel Seq Scan');
SELECT count(*), sum(id), count(DISTINCT grp) FROM big;
SELECT grp, count(*) FROM big GROUP BY grp HAVING count(*) <> 400;
SELECT count(*) FROM big a JOIN big b ON a.id = b.id + 1 WHERE b.grp = 5;

-- The workers do all of it, or the leader alone when there are none.
SET parallel_leader_participation = off;
SELECT count(*), sum(id) FROM big;
SET max_parallel_workers = 0;
SELECT count(*), sum(id) FROM big;
RESET max_parallel_workers;
SET parallel_leader_participation = on;

-- Changes of the transaction and of its subtransactions.
BEGIN;
INSERT INTO big SELECT i, 1000, 'new' FROM generate_series(40001, 41000) i;
DELETE FROM big WHERE id <= 500;
SAVEPOINT s;
UPDATE big SET grp = 2000 WHERE id BETWEEN 501 AND 1000;
SAVEPOINT t;
DELETE FROM big WHERE id > 40500;
SELECT count(*), sum(id), count(*) FILTER (WHERE grp = 1000), count(*) FILTER (WHERE grp = 2000) FROM big;
ROLLBACK TO t;
SELECT count(*), sum(id), count(*) FILTER (WHERE grp = 1000), count(*) FILTER (WHERE grp = 2000) FROM big;
ROLLBACK TO s;
SELECT count(*), sum(id), count(*) FILTER (WHERE grp = 1000), count(*) FILTER (WHERE grp = 2000) FROM big;
ROLLBACK;
SELECT count(*), sum(id) FROM big;

-- Parallel index, index-only and bitmap scans.
CALL only_scan('indexscan');
SELECT plan_has('SELECT count(v) FROM big WHERE id BETWEEN 1000 AND 30000', 'Parallel Index Scan');
SELECT count(v), sum(id) FROM big WHERE id BETWEEN 1000 AND 30000;
CALL only_scan('bitmapscan');
SELECT plan_has('SELECT count(v) FROM big WHERE grp < 50', 'Parallel Bitmap Heap Scan');
SELECT count(v), sum(id) FROM big WHERE grp < 50;
CALL only_scan('indexonlyscan');
VACUUM big;
SELECT plan_has('SELECT count(id) FROM big WHERE id > 1000', 'Parallel Index Only Scan');
SELECT count(id), sum(id) FROM big WHERE id > 1000;
CALL only_scan('any');

-- Written from parallel plans, and built by parallel workers.
CREATE TABLE copied AS SELECT * FROM big WHERE id % 2 = 0;
SELECT count(*), sum(id) FROM copied;
CREATE MATERIALIZED VIEW per_group AS SELECT grp, count(*) AS n FROM big GROUP BY grp;
SELECT count(*), sum(n) FROM per_group;
SET max_parallel_maintenance_workers = 2;
CREATE INDEX big_v ON big (v);
CREATE UNIQUE INDEX big_id_unique ON big (id);
SELECT check_indexes('big');
DELETE FROM big WHERE id % 5 = 0;
VACUUM (PARALLEL 2) big;
SELECT count(*), sum(id) FROM big;
SELECT check_indexes('big');

-- A scan that is repeated, in a parallel append and below a limit.
SET enable_material = off;
SET enable_hashjoin = off;
SET enable_mergejoin = off;
CREATE TABLE few (i int);
INSERT INTO few VALUES (1), (2), (3);
SELECT count(*), sum(n) FROM few, LATERAL (SELECT count(*) AS n FROM big WHERE id > i) x;
RESET enable_material;
RESET enable_hashjoin;
RESET enable_mergejoin;
SELECT count(*), sum(id) FROM (SELECT id FROM big UNION ALL SELECT id FROM copied) x;
SELECT count(*) FROM (SELECT id FROM big LIMIT 1000) x;
-- An error in a worker.
\set VERBOSITY sqlstate
SELECT count(1 / (id - 39999)) FROM big;
\set VERBOSITY default
SELECT count(*) FROM big;
