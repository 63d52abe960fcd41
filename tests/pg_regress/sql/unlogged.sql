-- Unlogged tables, the way from and to logged ones, and tables that move to
-- another tablespace.
CREATE SCHEMA unlogged;
SET search_path = unlogged, public;

-- A table of ours is unlogged when a reset of its files, as after a crash,
-- would empty it: it has an init fork.
CREATE FUNCTION has_init_fork(relation regclass) RETURNS boolean LANGUAGE sql AS $$
    SELECT (pg_stat_file(pg_relation_filepath(relation) || '_init', true)).size IS NOT NULL
$$;

CREATE UNLOGGED TABLE u (id int PRIMARY KEY, v text);
SELECT relpersistence, has_init_fork(oid) FROM pg_class WHERE oid = 'u'::regclass;
INSERT INTO u SELECT i, noise(i, i * 3) FROM generate_series(1, 1000) i;
UPDATE u SET v = v || 'x' WHERE id % 3 = 0;
DELETE FROM u WHERE id % 7 = 0;
CREATE TABLE same AS SELECT * FROM u;
SELECT fingerprint('u') = fingerprint('same') AS same, check_indexes('u');
BEGIN;
DELETE FROM u;
INSERT INTO u VALUES (1, 'undone');
ROLLBACK;
VACUUM (ANALYZE) u;
VACUUM FULL u;
SELECT fingerprint('u') = fingerprint('same') AS same, check_indexes('u'), has_init_fork('u');
BEGIN;
TRUNCATE u;
INSERT INTO u VALUES (1, 'undone');
ROLLBACK;
SELECT fingerprint('u') = fingerprint('same') AS same;
BEGIN;
CREATE UNLOGGED TABLE made (a int);
INSERT INTO made VALUES (1);
TRUNCATE made;
INSERT INTO made VALUES (2);
COMMIT;
SELECT a, has_init_fork('made') FROM made;

-- From and to logged tables.
ALTER TABLE u SET LOGGED;
SELECT fingerprint('u') = fingerprint('same') AS same, check_indexes('u'), has_init_fork('u');
INSERT INTO u VALUES (0, 'logged');
BEGIN;
ALTER TABLE u SET UNLOGGED;
SELECT count(*), has_init_fork('u') FROM u;
ROLLBACK;
SELECT count(*), has_init_fork('u') FROM u;
ALTER TABLE u SET UNLOGGED;
SELECT count(*), has_init_fork('u') FROM u;
DELETE FROM u WHERE id = 0;
SELECT fingerprint('u') = fingerprint('same') AS same, check_indexes('u');

\set VERBOSITY sqlstate
CREATE TABLE wrong (a int REFERENCES u);
\set VERBOSITY default

-- Kinds of relations that can be unlogged.
CREATE UNLOGGED TABLE query_result AS SELECT i FROM generate_series(1, 10) i;
SELECT sum(i), has_init_fork('query_result') FROM query_result;
CREATE MATERIALIZED VIEW view AS SELECT sum(id) FROM u;
REFRESH MATERIALIZED VIEW view;
CREATE UNLOGGED TABLE parts (k int) PARTITION BY LIST (k);
CREATE UNLOGGED TABLE part_1 PARTITION OF parts FOR VALUES IN (1);
INSERT INTO parts VALUES (1);
SELECT count(*) FROM parts;

-- Another tablespace: the files move and nothing is left behind.
SET allow_in_place_tablespaces = on;
CREATE TABLESPACE kalamdb_elsewhere LOCATION '';
CREATE TABLE moved (id int PRIMARY KEY, v text, big text);
ALTER TABLE moved ALTER COLUMN big SET STORAGE EXTERNAL;
INSERT INTO moved SELECT i, noise(i, 300), noise(-i, i * 40) FROM generate_series(1, 400) i;
DELETE FROM moved WHERE id % 5 = 0;
CREATE TABLE moved_before AS SELECT * FROM moved;
CREATE TEMP TABLE moved_temp AS SELECT * FROM moved;
CREATE TABLE paths AS SELECT oid, pg_relation_filepath(oid) AS path FROM pg_class WHERE relname IN ('u', 'moved', 'moved_temp');
ALTER TABLE moved SET TABLESPACE kalamdb_elsewhere;
ALTER TABLE moved_temp SET TABLESPACE kalamdb_elsewhere;
ALTER TABLE u SET TABLESPACE kalamdb_elsewhere;
SELECT oid::regclass, pg_relation_filepath(oid) <> path AS moved FROM paths ORDER BY oid;
-- A file that is not needed any more is unlinked by the next checkpoint.
CHECKPOINT;
SELECT count((pg_stat_file(path, true)).size) FROM paths;
SELECT fingerprint('moved') = fingerprint('moved_before') AS same, check_indexes('moved');
SELECT fingerprint('moved_temp') = fingerprint('moved_before') AS same;
SELECT fingerprint('u') = fingerprint('same') AS same, check_indexes('u'), has_init_fork('u');
UPDATE moved SET v = 'after' WHERE id < 10;
INSERT INTO moved VALUES (5, 'back', repeat('b', 10000));
BEGIN;
ALTER TABLE moved SET TABLESPACE pg_default;
DELETE FROM moved WHERE id > 100;
ROLLBACK;
SELECT count(*), count(*) FILTER (WHERE v = 'after') FROM moved;
ALTER TABLE u SET TABLESPACE pg_default, SET LOGGED;
SELECT fingerprint('u') = fingerprint('same') AS same, check_indexes('u'), has_init_fork('u');
VACUUM FULL moved;
ALTER TABLE moved SET TABLESPACE pg_default;
SELECT count(*), sum(length(big)) FROM moved;
DROP TABLE moved_temp;
DROP TABLESPACE kalamdb_elsewhere;

\set VERBOSITY sqlstate
CREATE TABLE refers (a int REFERENCES u);
ALTER TABLE u SET UNLOGGED;
\set VERBOSITY default
SET client_min_messages = warning;
DROP SCHEMA unlogged CASCADE;
