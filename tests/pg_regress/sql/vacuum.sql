-- VACUUM: keeps every live row and every index in step, and gives the space of
-- dead ones back for use.
CREATE SCHEMA vacuum;
SET search_path = vacuum, public;

CREATE TABLE churn (id int PRIMARY KEY, grp int, v text) WITH (autovacuum_enabled = off);
CREATE INDEX churn_grp ON churn (grp);
CREATE INDEX churn_hash ON churn USING hash (v);
INSERT INTO churn SELECT i, i % 10, 'v' || i FROM generate_series(1, 5000) i;
CALL wait_for_old_snapshots();
VACUUM churn;
SELECT fingerprint('churn');
DELETE FROM churn WHERE id % 3 = 0;
UPDATE churn SET v = v || 'x' WHERE id % 3 = 1;
UPDATE churn SET grp = grp + 10 WHERE id % 30 = 2;
CREATE TABLE expected AS SELECT * FROM churn;
CALL wait_for_old_snapshots();
VACUUM churn;
SELECT fingerprint('churn') = fingerprint('expected') AS same;
SELECT check_indexes('churn');
CALL only_scan('indexscan');
SELECT grp, count(*), sum(id) FROM churn WHERE grp >= 0 GROUP BY grp ORDER BY grp;
SELECT count(*) FROM expected e JOIN churn c USING (v);
CALL only_scan('any');
CALL wait_for_old_snapshots();
VACUUM (FREEZE) churn;
SELECT fingerprint('churn') = fingerprint('expected') AS same;
SELECT check_indexes('churn');
SELECT reltuples FROM pg_class WHERE oid = 'churn'::regclass;

-- Rows of aborted transactions are removed, their keys free.
BEGIN;
INSERT INTO churn SELECT i, 0, 'aborted' FROM generate_series(5001, 7000) i;
UPDATE churn SET v = 'aborted';
ROLLBACK;
CALL wait_for_old_snapshots();
VACUUM churn;
SELECT fingerprint('churn') = fingerprint('expected') AS same;
SELECT check_indexes('churn');

-- After VACUUM rows change, go and come as before.
UPDATE churn SET v = 'after' WHERE id < 100;
DELETE FROM churn WHERE id BETWEEN 100 AND 200;
INSERT INTO churn SELECT i, 50, 'back' FROM generate_series(100, 200) i;
SELECT count(*), count(*) FILTER (WHERE v = 'after'), count(*) FILTER (WHERE v = 'back') FROM churn;
SELECT check_indexes('churn');

-- The options.
CALL wait_for_old_snapshots();
VACUUM (INDEX_CLEANUP off) churn;
CALL wait_for_old_snapshots();
VACUUM (INDEX_CLEANUP on, TRUNCATE on, PARALLEL 0) churn;
CALL wait_for_old_snapshots();
VACUUM (DISABLE_PAGE_SKIPPING) churn;
CALL wait_for_old_snapshots();
VACUUM (SKIP_LOCKED, PROCESS_TOAST off) churn;
CALL wait_for_old_snapshots();
VACUUM (ANALYZE) churn (id, v);
DELETE FROM churn WHERE id > 4000;
CALL wait_for_old_snapshots();
VACUUM (INDEX_CLEANUP off) churn;
INSERT INTO churn SELECT i, 60, 'reused' FROM generate_series(4001, 4500) i;
CALL wait_for_old_snapshots();
VACUUM (INDEX_CLEANUP on) churn;
SELECT count(*), sum(id) FROM churn;
SELECT check_indexes('churn');
CALL only_scan('indexscan');
SELECT count(*) FROM churn WHERE grp = 60;
CALL only_scan('any');
\set VERBOSITY sqlstate
BEGIN;
CALL wait_for_old_snapshots();
VACUUM churn;
ROLLBACK;
\set VERBOSITY default

-- The space of dead versions is used again: ten rounds do not take ten times
-- the blocks.
CREATE TABLE rounds (id int PRIMARY KEY, v text) WITH (autovacuum_enabled = off);
INSERT INTO rounds SELECT i, noise(i, 200) FROM generate_series(1, 2000) i;
CALL wait_for_old_snapshots();
VACUUM rounds;
CREATE FUNCTION blocks(relation regclass) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    last_block int;
BEGIN
    EXECUTE format('SELECT coalesce(max((ctid::text::point)[0]), -1) + 1 FROM %s', relation) INTO last_block;
    RETURN last_block;
END $$;
CREATE TABLE measured AS SELECT blocks('rounds') AS at_first;
UPDATE rounds SET v = noise(-id, 200);
CALL wait_for_old_snapshots();
VACUUM rounds;
UPDATE rounds SET v = noise(id, 200);
CALL wait_for_old_snapshots();
VACUUM rounds;
UPDATE rounds SET v = noise(-id, 200);
CALL wait_for_old_snapshots();
VACUUM rounds;
UPDATE rounds SET v = noise(id, 200);
CALL wait_for_old_snapshots();
VACUUM rounds;
UPDATE rounds SET v = noise(-id, 200);
CALL wait_for_old_snapshots();
VACUUM rounds;
UPDATE rounds SET v = noise(id, 200);
CALL wait_for_old_snapshots();
VACUUM rounds;
SELECT blocks('rounds') <= 3 * at_first + 2 AS bounded FROM measured;
SELECT count(*), bool_and(v = noise(id, 200)) FROM rounds;
DELETE FROM rounds;
CALL wait_for_old_snapshots();
VACUUM rounds;
INSERT INTO rounds SELECT i, noise(i, 200) FROM generate_series(1, 2000) i;
SELECT blocks('rounds') <= 3 * at_first + 2 AS bounded FROM measured;

-- Large values of dead rows go, those of live rows stay.
CREATE TABLE heavy (id int PRIMARY KEY, v text, n int) WITH (autovacuum_enabled = off);
ALTER TABLE heavy ALTER v SET STORAGE EXTERNAL;
INSERT INTO heavy SELECT i, noise(i, 20000), 0 FROM generate_series(1, 60) i;
UPDATE heavy SET n = 1;
UPDATE heavy SET v = noise(-id, 30000) WHERE id % 2 = 0;
DELETE FROM heavy WHERE id % 5 = 0;
CALL wait_for_old_snapshots();
VACUUM heavy;
SELECT count(*), bool_and(v = CASE WHEN id % 2 = 0 THEN noise(-id, 30000) ELSE noise(id, 20000) END), sum(n) FROM heavy;
CALL wait_for_old_snapshots();
VACUUM (FREEZE) heavy;
UPDATE heavy SET n = 2;
CALL wait_for_old_snapshots();
VACUUM heavy;
SELECT count(*), bool_and(v = CASE WHEN id % 2 = 0 THEN noise(-id, 30000) ELSE noise(id, 20000) END), sum(n) FROM heavy;

-- Freezing moves the horizon of the table on.
CREATE TABLE frozen (id int) WITH (autovacuum_enabled = off);
INSERT INTO frozen SELECT generate_series(1, 1000);
UPDATE frozen SET id = id + 1;
CREATE TABLE horizon AS SELECT relfrozenxid FROM pg_class WHERE oid = 'frozen'::regclass;
BEGIN;
SAVEPOINT s;
INSERT INTO frozen VALUES (0);
ROLLBACK TO s;
COMMIT;
CALL wait_for_old_snapshots();
VACUUM (FREEZE) frozen;
SELECT age(c.relfrozenxid) < age(h.relfrozenxid) AS advanced FROM pg_class c, horizon h WHERE c.oid = 'frozen'::regclass;
SELECT count(*), sum(id) FROM frozen;
DELETE FROM frozen WHERE id <= 500;
CALL wait_for_old_snapshots();
VACUUM (FREEZE) frozen;
SELECT count(*), sum(id) FROM frozen;

-- Empty, truncated and never used tables; several at once; the whole of the schema's.
CREATE TABLE nothing (a int PRIMARY KEY);
CALL wait_for_old_snapshots();
VACUUM nothing;
CALL wait_for_old_snapshots();
VACUUM (FREEZE, ANALYZE) nothing, frozen, heavy;
TRUNCATE heavy;
CALL wait_for_old_snapshots();
VACUUM heavy;
SELECT count(*) FROM heavy;
