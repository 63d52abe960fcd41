-- Exports of users end, and a storage that is not there holds up nobody else's erasure. On heap there is nothing to show: see user_exports_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
SELECT regexp_replace(current_setting('data_directory'), '/[^/]*$', '/regress_exports') AS directory \gset
CREATE SCHEMA user_exports;
SET search_path = user_exports, public;
SET client_min_messages = warning;
CREATE ROLE regress_exports_eve;
CREATE TABLE diary (id int PRIMARY KEY, body text) USING kalam_user WITH (kalam.flush_policy = 'off');
SET row_security = off;
INSERT INTO diary SELECT 1, 'of ' || u, u FROM unnest('{far_ann,far_bob,far_cid}'::text[]) u;
SET row_security = on;
-- Each look is one of a transaction of its own: jobs wait for older snapshots.
CREATE PROCEDURE await(condition text) LANGUAGE plpgsql AS $$
DECLARE met boolean := false;
BEGIN
    WHILE NOT met LOOP
        COMMIT;
        EXECUTE 'SELECT ' || condition INTO met;
        PERFORM pg_sleep(0.01);
    END LOOP;
END $$;
CREATE VIEW exports AS SELECT user_name, storage, finished_at IS NOT NULL AS finished FROM kalam.user_exports WHERE user_name LIKE 'far%';

-- One at a time for each user.
BEGIN;
LOCK TABLE diary IN ACCESS EXCLUSIVE MODE;
SELECT kalam.export_user('far_ann') AS first \gset
SELECT kalam.export_user('far_ann') AS second \gset
SELECT kalam.export_user('far_bob') AS third \gset
COMMIT;
SELECT :'first' = :'second' AS same, :'first' = :'third' AS same_of_others;
SELECT kalam.job_wait(:'first'), kalam.job_wait(:'third');
SELECT kalam.export_user('far_ann', wait => true) <> :'first' AS another;
SELECT * FROM exports ORDER BY user_name;

-- Dropped by whoever may handle the user's data.
SELECT min(id) AS first, max(id) AS last FROM kalam.user_exports WHERE user_name = 'far_ann' \gset
SET ROLE regress_exports_eve;
SELECT outcome(format('SELECT kalam.drop_export(%s)', :first));
RESET ROLE;
SELECT outcome('SELECT kalam.drop_export(7)');
SELECT count(*) FROM pg_ls_dir('kalamdb_segments/exports/' || :first, true, false);
BEGIN;
SELECT kalam.drop_export(:first);
ROLLBACK;
SELECT kalam.drop_export(:first);
SELECT outcome(format('SELECT kalam.drop_export(%s)', :first));
CALL await('NOT EXISTS (SELECT FROM kalam.user_exports WHERE dropped_at IS NOT NULL)');
SELECT * FROM exports ORDER BY user_name;
SELECT count(*) FROM pg_ls_dir('kalamdb_segments/exports/' || :last, true, false);
SELECT count(*) FROM pg_ls_dir('kalamdb_segments/exports/' || :first, true, false);
SELECT action, count(*) FROM kalam.audit_log WHERE subject LIKE 'far%' GROUP BY 1 ORDER BY 1;
-- They end by themselves.
SHOW kalam.export_retention;
UPDATE kalam.user_exports SET finished_at = finished_at - interval '8 days' WHERE user_name = 'far_ann';
SELECT id AS third FROM kalam.user_exports WHERE user_name = 'far_bob' \gset
SELECT kalam.drop_export(:third);
CALL await('NOT EXISTS (SELECT FROM user_exports.exports)');

-- The storage of an export is gone for a time.
SELECT kalam.create_storage('exports_far', 'file://' || :'directory');
SELECT kalam.export_user('far_ann', 'exports_far', wait => true) IS NOT NULL AS exported;
SELECT kalam.export_user('far_bob', wait => true) IS NOT NULL AS exported;
COPY (SELECT) TO PROGRAM 'cat > /dev/null && mv ../regress_exports ../regress_exports.away';
BEGIN;
SELECT relation, rows FROM kalam.erase_user('far_ann');
SELECT relation, rows FROM kalam.erase_user('far_bob');
COMMIT;
CALL await('finished_at IS NOT NULL FROM kalam.user_erasure WHERE user_name = ''far_bob''');
SELECT user_name, finished_at IS NOT NULL AS finished, jsonb_array_length(proof -> 'exports') AS exports FROM kalam.erasures WHERE user_name LIKE 'far%' ORDER BY 1;
COPY (SELECT) TO PROGRAM 'cat > /dev/null && mv ../regress_exports.away ../regress_exports';
SELECT kalam.clean_up_users() IS NOT NULL AS asked;
CALL await('finished_at IS NOT NULL FROM kalam.user_erasure WHERE user_name = ''far_ann''');
SELECT user_name, finished_at IS NOT NULL AS finished, jsonb_array_length(proof -> 'exports') AS exports FROM kalam.erasures WHERE user_name LIKE 'far%' ORDER BY 1;
SELECT * FROM exports;
SELECT kalam.drop_storage('exports_far');
SET row_security = off;
SELECT * FROM diary;
SET row_security = on;

-- Code of a table's owner that waits holds no job up, nor an export whoever wants the table.
ALTER SYSTEM SET kalam.owner_code_limit = '1 s';
SELECT pg_reload_conf();
CREATE TYPE nap AS (seconds float8);
CREATE FUNCTION nap_text(nap) RETURNS text LANGUAGE sql AS $$ SELECT 'slept' || pg_sleep($1.seconds)::text $$;
CREATE CAST (nap AS text) WITH FUNCTION nap_text(nap);
CREATE TABLE naps (id int PRIMARY KEY, length nap) USING kalam_user;
SET kalam.user_id = 'far_dan';
INSERT INTO naps VALUES (1, row(3600));
SELECT kalam.export_user('far_dan') AS export \gset
SELECT kalam.job_wait(:'export');
SELECT error, sqlstate, attempts FROM kalam.jobs WHERE id = :'export';
ALTER SYSTEM RESET kalam.owner_code_limit;
SELECT pg_reload_conf();
UPDATE naps SET length = row(0);
SELECT kalam.export_user('far_dan', wait => true) IS NOT NULL AS exported;
INSERT INTO naps SELECT i, row(0.0002)::nap FROM generate_series(2, 3001) i;
SELECT kalam.export_user('far_dan') AS export \gset
CALL await(format('EXISTS (SELECT FROM pg_locks WHERE relation = %s AND mode = ''AccessShareLock'' AND pid <> pg_backend_pid())', 'naps'::regclass::oid));
ALTER TABLE naps ADD COLUMN mood text;
SELECT kalam.job_wait(:'export');
SELECT attempts > 1 AS gave_way FROM kalam.jobs WHERE id = :'export';
RESET kalam.user_id;
SELECT relation, rows FROM kalam.erase_user('far_dan');

DROP SCHEMA user_exports CASCADE;
DROP ROLE regress_exports_eve;
