-- Temporary and unlogged tables.
CREATE SCHEMA temporary_unlogged;
SET search_path = temporary_unlogged, public;

CREATE TEMP TABLE scratch (id int PRIMARY KEY, v text);
INSERT INTO scratch SELECT i, noise(i, 5000) FROM generate_series(1, 100) i;
UPDATE scratch SET v = 'x' WHERE id % 2 = 0;
DELETE FROM scratch WHERE id % 5 = 0;
SELECT count(*), sum(length(v)) FROM scratch;
BEGIN;
CREATE TEMP TABLE at_commit (i int) ON COMMIT DELETE ROWS;
CREATE TEMP TABLE dropped (i int) ON COMMIT DROP;
INSERT INTO at_commit VALUES (1);
INSERT INTO dropped VALUES (1);
SELECT count(*) FROM at_commit, dropped;
COMMIT;
SELECT count(*) FROM at_commit;
SELECT to_regclass('pg_temp.dropped') IS NULL AS gone;
INSERT INTO at_commit VALUES (1);
SELECT count(*) FROM at_commit;
DISCARD TEMP;
SELECT to_regclass('pg_temp.scratch') IS NULL AS gone;
CREATE UNLOGGED TABLE fleeting (id int PRIMARY KEY, v text);
INSERT INTO fleeting SELECT i, noise(i, 5000) FROM generate_series(1, 100) i;
UPDATE fleeting SET v = 'x' WHERE id = 1;
SELECT count(*), sum(length(v)) FROM fleeting;
ALTER TABLE fleeting SET LOGGED;
SELECT count(*), sum(length(v)) FROM fleeting;
ALTER TABLE fleeting SET UNLOGGED;
SELECT count(*), sum(length(v)) FROM fleeting;
SELECT check_indexes('fleeting');
TRUNCATE fleeting;
SELECT count(*) FROM fleeting;

-- A temporary table hides a permanent one of the same name, in cursors, views and functions.
CREATE TABLE hidden (v text);
INSERT INTO hidden VALUES ('permanent');
CREATE TEMP TABLE hidden AS SELECT 'temporary' AS v;
SELECT v FROM hidden;
SELECT v FROM temporary_unlogged.hidden;
CREATE INDEX ON pg_temp.hidden (v);
BEGIN;
UPDATE hidden SET v = 'undone';
CREATE TEMP TABLE brief ON COMMIT DROP AS SELECT generate_series(1, 1000) AS i;
ANALYZE brief;
SELECT count(*) FROM brief;
ROLLBACK;
SELECT v FROM hidden;
DROP TABLE pg_temp.hidden;
SELECT v FROM hidden;

-- A concurrent refresh of a materialized view works through a temporary table.
CREATE TABLE base (id int PRIMARY KEY, grp int, v text);
INSERT INTO base SELECT i, i % 5, noise(i, 3000) FROM generate_series(1, 500) i;
CREATE MATERIALIZED VIEW summary AS SELECT grp, count(*) AS n, max(id) AS last, max(v) AS v FROM base GROUP BY grp;
\set VERBOSITY sqlstate
REFRESH MATERIALIZED VIEW CONCURRENTLY summary;
\set VERBOSITY default
CREATE UNIQUE INDEX ON summary (grp);
UPDATE base SET grp = 7 WHERE id % 50 = 0;
DELETE FROM base WHERE grp = 1;
REFRESH MATERIALIZED VIEW CONCURRENTLY summary;
SELECT grp, n, last, md5(v) FROM summary ORDER BY grp;
SELECT count(*) FROM (SELECT grp, n, last, v FROM summary EXCEPT SELECT grp, count(*), max(id), max(v) FROM base GROUP BY grp) x;
REFRESH MATERIALIZED VIEW CONCURRENTLY summary;
SELECT check_indexes('summary');
