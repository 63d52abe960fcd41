-- Where cold rows are kept, and what the jobs on them do to others: files by user and storage, what statements load,
-- compaction that VACUUM asks for, snapshots. On heap there is nothing to show: see cold_storage_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
CREATE SCHEMA cold_storage;
SET search_path = cold_storage, public;
SELECT regexp_replace(current_setting('data_directory'), '/[^/]*$', '/regress_cold') AS directory, current_database() AS database \gset
SELECT kalam.create_storage('cold_second', 'file://' || :'directory');
SELECT kalam.create_storage('cold_third', 'file://' || :'directory' || '3', '{"user_template": "people/{table}/{user}"}');
CREATE FUNCTION compact(regclass, OUT rows bigint, OUT blocks bigint, OUT segments bigint, OUT left_out bigint, OUT gone bool)
    RETURNS SETOF record LANGUAGE c STRICT AS '$libdir/kalamdb', 'compact_inline_wrapper';
CREATE FUNCTION files(relation regclass, OUT location text, OUT path text, OUT rows bigint, OUT live_rows bigint)
    RETURNS SETOF record LANGUAGE sql AS $$
    SELECT location, regexp_replace(path, 'segment-[-0-9a-f]*', 'segment'), rows, live_rows FROM kalam.table_segments(relation)
    WHERE state <> 'unused' ORDER BY 1, 2, 3 $$;

-- Each user of a user table has files of their own, where the storage's template and the user's storage say.
CREATE TABLE m (id int PRIMARY KEY, body text) USING kalam_user WITH (kalam.flush_policy = 'off');
SELECT kalam.set_user_storage('bob', 'cold_second');
SELECT kalam.set_user_storage('carol/..', 'cold_third');
SET row_security = off;
INSERT INTO m SELECT i, 'body ' || i || ' of ' || u, u FROM generate_series(1, 300) i, unnest(ARRAY['alice', 'bob', 'carol/..']) u;
CALL flush('m');
SELECT * FROM files('m');
RESET row_security;
SET kalam.user_id = 'bob';
SELECT count(*), sum(id), min(body), max(_user_id) FROM m;
SELECT body FROM m WHERE id = 17;
UPDATE m SET body = 'changed' WHERE id = 18 RETURNING id, body;
DELETE FROM m WHERE id BETWEEN 19 AND 118;
INSERT INTO m VALUES (1, 'taken');
SELECT count(*), sum(id) FROM m;
SET kalam.user_id = 'carol/..';
SELECT count(*), sum(id), bool_and(body LIKE '%carol/..') AS own FROM m;
SELECT count(*) FROM kalam.history('m');
SET kalam.user_id = 'dave';
SELECT count(*) FROM m;
RESET kalam.user_id;
-- What is written anew goes to where the user's rows belong now.
SELECT kalam.set_user_storage('bob', NULL);
SET row_security = off;
CALL flush('m');
SELECT segments > 0 AS done FROM compact('m');
SELECT location, path, sum(live_rows) FROM files('m') GROUP BY 1, 2 ORDER BY 1, 2;
SELECT _user_id, count(*), sum(id) FROM m GROUP BY 1 ORDER BY 1;
SELECT check_indexes('m');
RESET row_security;

-- A shared table in another storage; its option, not the place of what is there already, decides.
CREATE TABLE s (id int PRIMARY KEY, body text) WITH (kalam.storage = 'cold_second', kalam.flush_policy = 'off');
INSERT INTO s SELECT i, 'body ' || i FROM generate_series(1, 2000) i;
CALL flush('s');
SELECT * FROM files('s');
ALTER TABLE s SET (kalam.storage = 'local');
UPDATE s SET body = 'changed' WHERE id <= 100;
CALL flush('s');
SELECT location, count(*) > 0 AS files FROM files('s') GROUP BY 1 ORDER BY 1;
SELECT count(*), count(*) FILTER (WHERE body = 'changed') FROM s;
SELECT segments > 0 AS done FROM compact('s');
SELECT DISTINCT location FROM files('s');
SELECT count(*), count(*) FILTER (WHERE body = 'changed') FROM s;

-- What EXPLAIN says of loads; how much there was depends on what is cached.
CREATE FUNCTION explained(options text) RETURNS json LANGUAGE plpgsql AS $$
DECLARE
    plan json;
BEGIN
    EXECUTE format('EXPLAIN (%s, FORMAT json) SELECT * FROM s WHERE id = 5', options) INTO plan;
    RETURN plan -> 1 -> 'KalamDB';
END $$;
SELECT array(SELECT json_object_keys(explained('ANALYZE, BUFFERS'))) AS counters;
SELECT explained('ANALYZE, BUFFERS off') IS NULL AND explained('COSTS off') IS NULL AS only_with_buffers;

-- VACUUM asks for a compaction where much of a segment is outdated.
CREATE TABLE v (id int PRIMARY KEY, body text) WITH (kalam.flush_policy = 'off', autovacuum_enabled = off);
INSERT INTO v SELECT i, noise(i, 300) FROM generate_series(1, 2000) i;
CALL flush('v');
VACUUM v;
SELECT count(*) FROM kalam.jobs WHERE tablename = 'v' AND type = 'CO';
DELETE FROM v WHERE id <= 1000;
-- What a segment still has of a block is outdated when the block is written.
SELECT kalam.checkpoint();
VACUUM v;
SELECT id AS job FROM kalam.jobs WHERE tablename = 'v' AND type = 'CO' \gset
SELECT kalam.job_wait(:'job');
SELECT sum(live_rows) = sum(rows) AS nothing_outdated FROM files('v');
SELECT count(*), sum(id) FROM v;

-- A job that takes its time holds no snapshot, so it keeps nobody's dead rows.
CREATE TABLE slow (id int PRIMARY KEY, body text) WITH (kalam.flush_policy = 'off');
INSERT INTO slow SELECT i, noise(i, 1000) FROM generate_series(1, 8000) i;
ALTER DATABASE :database SET kalam.flush_io_limit = '1MB';
SELECT kalam.flush('slow') AS job \gset
DO $$
BEGIN
    FOR attempt IN 1 .. 3000 LOOP
        PERFORM pg_stat_clear_snapshot();
        IF EXISTS (SELECT FROM kalam.progress p JOIN pg_stat_activity a USING (pid)
                   WHERE p.tablename = 'slow' AND p.bytes_done > 0 AND a.backend_xmin IS NULL AND a.backend_xid IS NULL) THEN
            RETURN;
        END IF;
        IF EXISTS (SELECT FROM kalam.jobs WHERE tablename = 'slow' AND state IN ('completed', 'failed', 'cancelled')) THEN
            EXIT;
        END IF;
        PERFORM pg_sleep(0.01);
    END LOOP;
    RAISE 'the job held a snapshot whenever it was looked at';
END $$;
SELECT kalam.job_cancel(:'job') AS cancelled;
SELECT kalam.job_wait(:'job');
ALTER DATABASE :database RESET kalam.flush_io_limit;
SELECT count(*), sum(id) FROM slow;
CALL flush('slow');
SELECT count(*), sum(id) FROM slow;

SELECT kalam.set_user_storage('carol/..', NULL);
DROP SCHEMA cold_storage CASCADE;
