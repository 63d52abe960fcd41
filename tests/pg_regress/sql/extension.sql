-- What belongs to the extension alone: its objects, settings, functions and
-- refusals. On heap there is nothing to show: see extension_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
CREATE SCHEMA extension;
SET search_path = extension, public;
SELECT amtype, amhandler::regproc FROM pg_am WHERE amname = 'kalam_shared';
SELECT extrelocatable FROM pg_extension WHERE extname = 'kalamdb';
-- Every function has a comment, and none can be called by everybody unless it
-- is meant to be.
SELECT p.proname FROM pg_proc p WHERE pronamespace = 'kalam'::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL;
SELECT p.oid::regprocedure FROM pg_proc p
WHERE pronamespace = 'kalam'::regnamespace AND prorettype <> 'table_am_handler'::regtype AND has_function_privilege('public', p.oid, 'EXECUTE') ORDER BY 1;

-- The access method spelled out, as default, and as heap beside it.
RESET default_table_access_method;
CREATE TABLE ours (id int PRIMARY KEY, v text) USING kalam_shared;
CREATE TABLE theirs (id int PRIMARY KEY, v text) USING heap;
CREATE MATERIALIZED VIEW seen USING kalam_shared AS SELECT 1 AS one;
CREATE TABLE filled USING kalam_shared AS SELECT generate_series(1, 10) AS i;
SELECT c.relname, a.amname FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE relnamespace = 'extension'::regnamespace AND relkind IN ('r', 'm') ORDER BY 1;
INSERT INTO ours SELECT i, noise(i, i * 5) FROM generate_series(1, 500) i;
INSERT INTO theirs SELECT * FROM ours;
SELECT fingerprint('ours') = fingerprint('theirs') AS same;
UPDATE theirs SET v = ours.v || '!' FROM ours WHERE ours.id = theirs.id AND ours.id % 2 = 0;
DELETE FROM ours USING theirs WHERE ours.id = theirs.id AND theirs.v LIKE '%!';
SELECT (SELECT count(*) FROM ours), (SELECT count(*) FROM theirs);

-- Heap's options are accepted, unknown ones are not.
CREATE TABLE optioned (i int) USING kalam_shared WITH (fillfactor = 50, autovacuum_enabled = off, parallel_workers = 3);
SELECT reloptions FROM pg_class WHERE oid = 'optioned'::regclass;
\set VERBOSITY sqlstate
CREATE TABLE wrong (i int) USING kalam_shared WITH (nonsense = 1);
CREATE TABLE wrong (i int) USING kalam_shared WITH (fillfactor = 5);
\set VERBOSITY default

-- From heap and back.
ALTER TABLE theirs SET ACCESS METHOD kalam_shared;
SELECT a.amname FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE c.oid = 'theirs'::regclass;
SELECT count(*), bool_and(v = noise(id, id * 5) || CASE WHEN id % 2 = 0 THEN '!' ELSE '' END) FROM theirs;
SELECT check_indexes('theirs');
BEGIN;
ALTER TABLE theirs SET ACCESS METHOD heap;
SELECT count(*) FROM theirs;
ROLLBACK;
SELECT count(*), bool_and(v = noise(id, id * 5) || CASE WHEN id % 2 = 0 THEN '!' ELSE '' END) FROM theirs;
ALTER TABLE theirs SET ACCESS METHOD heap;
SELECT count(*), bool_and(v = noise(id, id * 5) || CASE WHEN id % 2 = 0 THEN '!' ELSE '' END) FROM theirs;
SELECT check_indexes('theirs');

-- Nobody can pull the access method away.
\set VERBOSITY sqlstate
SELECT kalam.shared_handler(NULL);
DROP ACCESS METHOD kalam_shared;
DROP EXTENSION kalamdb;
ALTER EXTENSION kalamdb SET SCHEMA extension;
\set VERBOSITY default

-- Settings: bounds, and no invented names.
\set VERBOSITY sqlstate
SET kalam.cache_size = '100MB';
SET kalam.nonsense = 1;
SET kalam.checkpoint_interval = 10;
ALTER SYSTEM SET kalam.checkpoint_interval = 0;
ALTER SYSTEM SET kalam.checkpoint_dirty = 91;
\set VERBOSITY default
SELECT name FROM pg_settings WHERE name LIKE 'kalam.%' AND (short_desc = '' OR short_desc IS NULL);

-- Functions, for those who may call them.
SELECT kalam.checkpoint();
SELECT count(*) > 10 AS several, count(*) - count(DISTINCT name) AS twice, count(*) FILTER (WHERE description = '' OR unit = '') AS bare FROM kalam.stats();
SELECT value FROM kalam.stats() WHERE name = 'worker_ready';
CREATE ROLE regress_kalam_nobody;
GRANT USAGE ON SCHEMA extension TO regress_kalam_nobody;
GRANT SELECT ON ours TO regress_kalam_nobody;
SET ROLE regress_kalam_nobody;
\set VERBOSITY sqlstate
SELECT kalam.checkpoint();
SELECT count(*) FROM kalam.stats();
\set VERBOSITY default
SELECT count(*) FROM extension.ours;
CREATE TEMP TABLE mine (i int) USING heap;
RESET ROLE;
GRANT pg_checkpoint, pg_monitor TO regress_kalam_nobody;
SET ROLE regress_kalam_nobody;
SELECT kalam.checkpoint();
SELECT count(*) > 10 AS several FROM kalam.stats();
RESET ROLE;
DROP OWNED BY regress_kalam_nobody;
DROP ROLE regress_kalam_nobody;
