-- VACUUM FULL and CLUSTER write a table anew and keep its rows.
CREATE SCHEMA clustered;
SET search_path = clustered, public;

CREATE TABLE churn (id int PRIMARY KEY, grp int, v text) WITH (autovacuum_enabled = off);
CREATE INDEX churn_grp ON churn (grp);
INSERT INTO churn SELECT i, (i * 7919) % 1000, noise(i, 100) FROM generate_series(1, 3000) i;
DELETE FROM churn WHERE id % 3 = 0;
UPDATE churn SET v = v || 'x' WHERE id % 3 = 1;
CREATE TABLE expected AS SELECT * FROM churn;
VACUUM FULL churn;
SELECT fingerprint('churn') = fingerprint('expected') AS same;
SELECT check_indexes('churn');
CLUSTER churn USING churn_grp;
SELECT fingerprint('churn') = fingerprint('expected') AS same;
SELECT bool_and(ordered) FROM (SELECT grp >= lag(grp, 1, 0) OVER (ORDER BY ctid) AS ordered FROM churn) x;
SELECT check_indexes('churn');
UPDATE churn SET grp = -grp;
CLUSTER churn;
SELECT bool_and(ordered) FROM (SELECT grp >= lag(grp, 1, -1000) OVER (ORDER BY ctid) AS ordered FROM churn) x;
SET enable_indexscan = off;
ALTER TABLE churn CLUSTER ON churn_pkey;
CLUSTER churn;
RESET enable_indexscan;
SELECT bool_and(ordered) FROM (SELECT id >= lag(id, 1, 0) OVER (ORDER BY ctid) AS ordered FROM churn) x;
UPDATE churn SET grp = -grp;
SELECT fingerprint('churn') = fingerprint('expected') AS same;
SELECT reltuples FROM pg_class WHERE oid = 'churn'::regclass;

-- Undone, and in the transaction that made rows and versions.
BEGIN;
INSERT INTO churn VALUES (10000, 1, 'new');
UPDATE churn SET v = 'own' WHERE id <= 10;
DELETE FROM churn WHERE id BETWEEN 11 AND 20;
CLUSTER churn USING churn_grp;
SELECT count(*), count(*) FILTER (WHERE v = 'own'), max(id) FROM churn;
ROLLBACK;
SELECT fingerprint('churn') = fingerprint('expected') AS same;
SELECT check_indexes('churn');

-- Large values, dropped columns, empty tables.
CREATE TABLE heavy (id int PRIMARY KEY, gone int, v text);
ALTER TABLE heavy ALTER v SET STORAGE EXTERNAL;
INSERT INTO heavy SELECT i, i, noise(i, 20000) FROM generate_series(1, 20) i;
DELETE FROM heavy WHERE id > 10;
ALTER TABLE heavy DROP gone;
VACUUM FULL heavy;
SELECT count(*), bool_and(v = noise(id, 20000)) FROM heavy;
TRUNCATE heavy;
VACUUM (FULL, FREEZE, ANALYZE) heavy;
SELECT count(*) FROM heavy;
\set VERBOSITY sqlstate
CLUSTER heavy;
BEGIN;
VACUUM FULL heavy;
ROLLBACK;
\set VERBOSITY default
