-- The size functions of PostgreSQL follow the number of blocks, one of 8 kB for
-- each. How many rows a block takes is the access method's affair.
CREATE SCHEMA relation_size;
SET search_path = relation_size, public;
CREATE TABLE t (id int, v text);
ALTER TABLE t ALTER v SET STORAGE plain;
SELECT pg_relation_size('t');
INSERT INTO t VALUES (1, 'one');
SELECT pg_relation_size('t'), pg_relation_size('t', 'main') = pg_relation_size('t') AS main;
INSERT INTO t SELECT i, repeat('x', 4000) FROM generate_series(2, 2000) i;
CALL wait_for_old_snapshots();
VACUUM t;
SELECT pg_relation_size('t') = 8192 * relpages::bigint AS as_vacuum_counts, relpages >= 250 AS many FROM pg_class WHERE oid = 't'::regclass;
SELECT pg_table_size('t') >= pg_relation_size('t') AS whole, pg_total_relation_size('t') = pg_table_size('t') AS total;

-- An empty end is given back, TRUNCATE gives all back, ROLLBACK brings it again.
DELETE FROM t WHERE id > 1;
CALL wait_for_old_snapshots();
VACUUM t;
SELECT pg_relation_size('t');
BEGIN;
TRUNCATE t;
SELECT pg_relation_size('t');
INSERT INTO t VALUES (1, 'two');
SELECT pg_relation_size('t');
TRUNCATE t;
SELECT pg_relation_size('t');
ROLLBACK;
SELECT pg_relation_size('t');
DELETE FROM t;
CALL wait_for_old_snapshots();
VACUUM t;
SELECT pg_relation_size('t');

-- Rewrites.
INSERT INTO t SELECT i, repeat('y', 4000) FROM generate_series(1, 100) i;
DELETE FROM t WHERE id % 10 <> 0;
CALL wait_for_old_snapshots();
VACUUM FULL t;
SELECT pg_relation_size('t') = 8192 * relpages::bigint AS as_vacuum_counts, pg_relation_size('t') BETWEEN 8192 AND 100000 AS small FROM pg_class WHERE oid = 't'::regclass;
ALTER TABLE t SET UNLOGGED;
SELECT pg_relation_size('t') BETWEEN 8192 AND 100000 AS small, count(*) FROM t;
ALTER TABLE t SET LOGGED;
SELECT pg_relation_size('t') BETWEEN 8192 AND 100000 AS small, count(*) FROM t;

-- Temporary tables, also when their rows go at commit.
BEGIN;
CREATE TEMPORARY TABLE passing (id int, v text) ON COMMIT DELETE ROWS;
INSERT INTO passing SELECT * FROM t;
SELECT pg_relation_size('passing') > 0 AS filled;
COMMIT;
SELECT pg_relation_size('passing'), count(*) FROM passing;

SET client_min_messages = error;
DROP SCHEMA relation_size CASCADE;
