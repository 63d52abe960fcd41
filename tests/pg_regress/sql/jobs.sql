-- Jobs: their states, retries and ends, and who may do what with them. The job that is run does nothing but what it is told.
-- On heap there are none: see jobs_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
CREATE SCHEMA jobs;
SET search_path = jobs, public;
CREATE FUNCTION exercise(schema text, parameters jsonb) RETURNS text STRICT LANGUAGE c AS '$libdir/kalamdb', 'job_exercise_wrapper';
CREATE VIEW told AS
    SELECT type, state, schemaname, message, error, sqlstate, attempts, rows_done, rows_total, bytes_done, bytes_total,
        created_at <= started_at AND started_at <= finished_at AS in_order, pid IS NULL AS left_process, requested_by,
        idempotency_key ~ '^XX:[a-z]*::\d{4}-\d\d-\d\d$' AS has_key, id ~ '^XX[0-9a-f]{12}$' AS has_id
    FROM kalam.jobs WHERE type = 'XX';

-- A job that is done.
SELECT exercise('done', '{"rows": 10}') AS id \gset
SELECT kalam.job_wait(:'id');
SELECT * FROM told WHERE schemaname = 'done' \gx
SELECT kalam.job_cancel(:'id');

-- Failures are repeated, three times at most, those that cannot end better not at all.
SELECT exercise('twice', '{"failures": 2}') AS id \gset
SELECT kalam.job_wait(:'id');
SELECT exercise('never', '{"failures": 99}') AS id \gset
SELECT kalam.job_wait(:'id');
SELECT exercise('cannot', '{"unsupported": 1}') AS id \gset
SELECT kalam.job_wait(:'id');
SELECT schemaname, state, message, error, sqlstate, attempts FROM told ORDER BY schemaname;

-- One job of a kind on the same tables at a time, whoever asks.
SELECT exercise('wait', '{"wait": 1}') AS id \gset
SELECT exercise('wait', '{"wait": 1}') = :'id' AS same;
SELECT exercise('other', '{}') = :'id' AS same;
SELECT kalam.job_wait(:'id', '50 ms') IN ('new', 'queued', 'running') AS active;
SELECT kalam.job_wait(:'id', '0') IN ('new', 'queued', 'running') AS active;
SELECT kalam.job_cancel(:'id');
SELECT kalam.job_wait(:'id');
SELECT kalam.job_cancel(:'id');
SELECT exercise('wait', '{"rows": 1}') <> :'id' AS another;
SELECT kalam.job_wait(id) FROM kalam.jobs WHERE schemaname = 'wait' AND state <> 'cancelled';
SELECT state, message, attempts FROM told WHERE schemaname = 'wait' ORDER BY state;

-- Jobs that run show how far they are, and no more run than may.
SELECT exercise('one', '{"rows": 5, "wait": 1}') AS one, exercise('two', '{"wait": 1}') AS two, exercise('three', '{"rows": 1}') AS three \gset
DO $$
BEGIN
    FOR i IN 1 .. 3000 LOOP
        EXIT WHEN (SELECT count(*) FROM kalam.progress WHERE type = 'XX' AND (schemaname = 'two' OR rows_done = 5)) = 2;
        PERFORM pg_sleep(0.01);
    END LOOP;
END $$;
SELECT schemaname, rows_done, rows_total, bytes_done, bytes_total, percent, pid > 0 AS has_pid, elapsed > '0' AS has_begun FROM kalam.progress ORDER BY 1;
SELECT state IN ('new', 'queued') AS waits FROM kalam.jobs WHERE id = :'three';
-- Waiting jobs are cancelled at once.
SELECT kalam.job_cancel(:'three'), kalam.job_wait(:'three');
SELECT state, message, attempts FROM told WHERE schemaname = 'three';
-- The statement of a job can be cancelled as any other.
SELECT pg_cancel_backend(pid) FROM kalam.progress WHERE schemaname = 'one';
SELECT kalam.job_wait(:'one');
-- A process that is asked to leave gives its job back.
SELECT pg_terminate_backend(pid) FROM kalam.progress WHERE schemaname = 'two';
DO $$
BEGIN
    FOR i IN 1 .. 3000 LOOP
        EXIT WHEN EXISTS (SELECT FROM kalam.jobs WHERE schemaname = 'two' AND state = 'running' AND error IS NOT NULL);
        PERFORM pg_sleep(0.01);
    END LOOP;
END $$;
SELECT state, error, attempts FROM told WHERE schemaname = 'two';
SELECT kalam.job_cancel(:'two'), kalam.job_wait(:'two');

-- A job does not depend on the transaction that asks for it, and can be waited for inside of it.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM kalam.jobs WHERE schemaname = 'inside';
SELECT exercise('inside', '{"rows": 3}') AS id \gset
SELECT kalam.job_wait(:'id');
ROLLBACK;
SELECT state, rows_done FROM told WHERE schemaname = 'inside';

-- Who does not own a job sees nothing of it and can do nothing with it.
SELECT exercise('mine', '{"wait": 1}') AS id \gset
CREATE ROLE regress_kalam_stranger;
CREATE ROLE regress_kalam_watcher IN ROLE pg_monitor;
GRANT USAGE ON SCHEMA jobs TO regress_kalam_stranger;
CREATE TABLE room (i int);
SET ROLE regress_kalam_stranger;
\set VERBOSITY sqlstate
SELECT count(*) FROM kalam.jobs;
SELECT count(*) FROM kalam.progress;
SELECT count(*) FROM kalam.job;
SELECT kalam.job_cancel(:'id');
SELECT kalam.job_wait(:'id');
SELECT kalam.flush('jobs.room');
SELECT kalam.compact('jobs.room');
SELECT jobs.exercise('x', '{}');
SET ROLE regress_kalam_watcher;
SELECT count(*) > 5 AS several FROM kalam.jobs;
SELECT kalam.job_cancel(:'id');
RESET ROLE;
SELECT kalam.job_cancel(:'id'), kalam.job_wait(:'id');

-- What is refused.
SELECT kalam.job_wait('FL000000000000');
SELECT kalam.job_cancel('nonsense');
SELECT kalam.job_cancel('FL00000000000G');
SELECT kalam.flush('pg_class');
SELECT kalam.flush_schema('nowhere');
CREATE TEMP TABLE passing (i int);
SELECT kalam.flush('passing');
CREATE UNLOGGED TABLE unlogged (i int);
SELECT kalam.flush('unlogged');
BEGIN;
CREATE TABLE fresh (i int);
SELECT kalam.flush('fresh');
ROLLBACK;
BEGIN;
LOCK TABLE room IN SHARE MODE;
SELECT kalam.flush('room', wait => true);
ROLLBACK;
\set VERBOSITY default
DROP OWNED BY regress_kalam_stranger;
DROP ROLE regress_kalam_stranger, regress_kalam_watcher;

-- Processes leave when nothing is left to do, and none comes back for nothing.
DO $$
DECLARE
    quiet int := 0;
BEGIN
    FOR i IN 1 .. 600 LOOP
        PERFORM pg_stat_clear_snapshot(), pg_sleep(0.05);
        quiet := CASE WHEN EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'kalamdb job')
            THEN 0 ELSE quiet + 1 END;
        EXIT WHEN quiet = 20;
    END LOOP;
    RAISE NOTICE 'quiet: %', quiet = 20;
END $$;
