-- Flushes: asked for on one table and on many, and caused by policies.
-- On heap there are none: see flush_policy_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
CREATE SCHEMA policy;
SET search_path = policy, public;
-- The end of the first job of a table that was added after others.
CREATE FUNCTION next_flush(of regclass, after bigint DEFAULT 0) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    found text;
BEGIN
    FOR i IN 1 .. 6000 LOOP
        SELECT id INTO found FROM kalam.jobs WHERE type = 'FL' AND relation = of ORDER BY created_at OFFSET after LIMIT 1;
        EXIT WHEN found IS NOT NULL;
        PERFORM pg_sleep(0.01);
    END LOOP;
    RETURN kalam.job_wait(found);
END $$;

-- Asked for, with and without waiting.
CREATE TABLE asked (id int PRIMARY KEY, v text) WITH (kalam.flush_policy = 'off');
INSERT INTO asked SELECT i, noise(i, 20) FROM generate_series(1, 3000) i;
SELECT kalam.flush('asked', wait => true) ~ '^FL[0-9a-f]{12}$' AS id;
SELECT kalam.job_wait(kalam.flush('asked'));
SELECT type, state, automatic, schemaname, tablename, error, attempts FROM kalam.jobs WHERE relation = 'asked'::regclass ORDER BY created_at;
SELECT count(*), bool_and(v = noise(id, 20)) FROM asked;
SELECT kalam.job_wait(kalam.compact('asked'));

-- By the number of rows, each kind of change counted when it is committed.
CREATE TABLE by_rows (id int PRIMARY KEY, v text) WITH (kalam.flush_policy = 'rows:1000');
BEGIN;
INSERT INTO by_rows SELECT i, noise(i, 20) FROM generate_series(1, 5000) i;
ROLLBACK;
INSERT INTO by_rows SELECT i, noise(i, 20) FROM generate_series(1, 999) i;
SELECT count(*) FROM kalam.jobs WHERE relation = 'by_rows'::regclass;
INSERT INTO by_rows VALUES (1000, 'last');
SELECT next_flush('by_rows');
SELECT type, state, automatic, schemaname, tablename, error, requested_by FROM kalam.jobs WHERE relation = 'by_rows'::regclass AND type = 'FL';
UPDATE by_rows SET v = v WHERE id <= 500;
DELETE FROM by_rows WHERE id > 500;
SELECT next_flush('by_rows', 1);
SELECT count(*), bool_and(v = noise(id, 20)) FROM by_rows;

-- Users with few rows stay hot, whoever has many rows keeps the latest page; who asks for a flush gets everything.
CREATE TABLE by_user (id int PRIMARY KEY, v text) USING kalam_user WITH (kalam.flush_policy = 'rows:1000');
SET row_security = off;
INSERT INTO by_user (id, v, _user_id)
SELECT i, noise(i, 900), CASE WHEN i <= 300 THEN 'large' ELSE 'small ' || i % 20 END FROM generate_series(1, 1000) i;
SELECT next_flush('by_user');
SELECT count(*) FROM kalam.table_segments('by_user') WHERE user_id <> 'large';
SELECT coalesce(sum(rows), 0) < 300 AS latest_is_hot FROM kalam.table_segments('by_user');
CALL flush('by_user');
SELECT count(DISTINCT user_id) AS users, sum(rows) FROM kalam.table_segments('by_user');
SELECT count(*), bool_and(v = noise(id, 900)) FROM by_user;
RESET row_security;

-- By time, from the first changed row on.
CREATE TABLE by_time (id int) WITH (kalam.flush_interval = 1, kalam.flush_policy = 'interval:1');
INSERT INTO by_time VALUES (1);
SELECT next_flush('by_time');

-- Options that change act on rows that wait.
CREATE TABLE changed (id int) WITH (kalam.flush_policy = 'off');
INSERT INTO changed SELECT generate_series(1, 500);
SELECT count(*) FROM kalam.jobs WHERE relation = 'changed'::regclass;
ALTER TABLE changed SET (kalam.flush_policy = 'rows:400');
SELECT next_flush('changed');

-- All tables of a schema, or of the database, that the user owns.
CREATE ROLE regress_kalam_owner;
GRANT ALL ON SCHEMA policy TO regress_kalam_owner;
SET ROLE regress_kalam_owner;
CREATE TABLE policy.own (id int) WITH (kalam.flush_policy = 'off');
INSERT INTO policy.own VALUES (1);
SELECT kalam.job_wait(kalam.flush_schema('policy'));
SELECT kalam.job_wait(kalam.flush_all());
SELECT type, state, schemaname, tablename, message ~ '^flush of 1 tables: ' AS one_table FROM kalam.jobs ORDER BY created_at;
RESET ROLE;
SELECT kalam.flush_schema('policy', wait => true) IS NOT NULL AS done;
DROP TABLE by_rows, asked, own, by_time, changed;
DROP OWNED BY regress_kalam_owner;
DROP ROLE regress_kalam_owner;
