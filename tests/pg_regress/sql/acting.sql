-- Acting for other users, access levels, and the audit log. On heap there is
-- nothing to show: see acting_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
SET kalam.bcrypt_cost = 10;
SET client_min_messages = warning;
SELECT kalam.install_roles();
RESET client_min_messages;
CREATE ROLE regress_kalam_dba IN ROLE kalam_dba;
CREATE ROLE regress_kalam_service IN ROLE kalam_service;
CREATE ROLE regress_kalam_plain;
SELECT kalam.create_user('acting_user', role => 'user');
SELECT kalam.create_user('acting_service', role => 'service');
SELECT kalam.create_user('acting_dba', role => 'dba');
SELECT kalam.create_user('acting_system', role => 'system');
SELECT kalam.create_user('acting_gone');
SELECT kalam.drop_user('acting_gone');
CREATE TABLE acted (i int, by text);
GRANT ALL ON acted TO regress_kalam_service;

-- Who may act for whom.
CREATE TABLE tried (actor text, subject text, result text);
GRANT INSERT ON tried TO PUBLIC;
SELECT format('SET ROLE %s; INSERT INTO tried SELECT %L, s, outcome(format(''SELECT kalam.execute_as(%%L, %%L)'', s, ''SELECT 1'')) FROM unnest(ARRAY[''acting_user'', ''acting_service'', ''acting_dba'', ''acting_system'', ''acting_gone'', ''acting_none'', ''regress_kalam_plain'', ''regress_kalam_dba'', ''postgres'', '''']) s; RESET ROLE', r, r)
FROM unnest(ARRAY['regress_kalam_plain', 'regress_kalam_service', 'regress_kalam_dba', session_user]) r \gexec
SELECT subject, string_agg(result, ' ' ORDER BY actor = session_user, actor DESC) AS service_plain_dba_superuser FROM tried GROUP BY 1 ORDER BY 1;

-- One query, with that user's name, and only for as long as it runs.
SET ROLE regress_kalam_service;
SELECT kalam.execute_as('acting_user', 'SELECT kalam.user_id(), current_user, 12345678901234567890.10 AS n, NULL AS nothing');
SELECT kalam.execute_as('acting_user', 'INSERT INTO acted VALUES (1, kalam.user_id()), (2, kalam.user_id()) RETURNING *');
SELECT kalam.execute_as('acting_user', 'UPDATE acted SET i = i + 10');
SELECT kalam.execute_as('acting_user', 'SELECT i FROM acted WHERE false');
SELECT * FROM acted ORDER BY 1;
SELECT kalam.user_id();
-- Within one transaction too.
SELECT kalam.execute_as('acting_user', 'SELECT kalam.user_id()'), kalam.user_id();
BEGIN;
SELECT kalam.execute_as('acting_user', 'SELECT kalam.user_id()');
SELECT kalam.user_id();
SAVEPOINT s;
SELECT kalam.execute_as('acting_user', 'SELECT 1/0');
ROLLBACK TO s;
SELECT kalam.user_id();
COMMIT;
SELECT kalam.execute_as('acting_user', 'SELECT 1/0');
SELECT kalam.user_id();
DO $$
BEGIN
    PERFORM kalam.execute_as('acting_user', 'SELECT 1/0');
EXCEPTION WHEN division_by_zero THEN
    RAISE NOTICE '%', kalam.user_id();
END $$;
-- It runs with the rights of whoever calls.
SELECT kalam.execute_as('acting_user', 'SELECT * FROM tried');
SELECT kalam.execute_as('acting_user', 'CREATE TABLE t (i int)');
SELECT kalam.execute_as('acting_user', 'SELECT 1; SELECT 2');
SELECT kalam.execute_as('acting_user', 'SELECT 1 AS i INTO t');
SELECT kalam.execute_as('acting_user', 'COMMIT');
SELECT kalam.execute_as('acting_user', 'SET kalam.user_id = ''x''');
SELECT kalam.execute_as('acting_user', '');
SELECT kalam.execute_as('acting_user', NULL);
SELECT kalam.execute_as('acting_user', 'SELEC 1');
-- Nothing in it changes who the session is, and rights do not add up.
SELECT kalam.execute_as('acting_user', 'SELECT kalam.logout()');
SELECT kalam.execute_as('acting_user', 'SELECT kalam.login(''acting_user'', ''x'')');
SELECT kalam.execute_as('acting_user', 'SELECT kalam.issue_token()');
SELECT kalam.execute_as('acting_user', 'SELECT kalam.execute_as(''acting_service'', ''SELECT 1'')');
RESET ROLE;
SELECT kalam.execute_as('acting_dba', 'SELECT kalam.execute_as(''acting_service'', ''SELECT kalam.execute_as(''''acting_user'''', ''''SELECT kalam.user_id()'''')'')');
SELECT kalam.execute_as('acting_user', 'SELECT kalam.create_user(''acting_more'')');
SELECT kalam.user_id() = session_user AS is_role;

-- Access levels.
CREATE TABLE levels (i int) USING kalam_shared;
CREATE TABLE other (i int) USING heap;
SELECT kalam.set_access_level('levels', 'x');
CREATE FUNCTION grants() RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT string_agg(a.grantee::regrole::text || ' ' || a.privilege_type, ', ' ORDER BY a.grantee::regrole::text, a.privilege_type)
    FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = 'levels'::regclass AND a.grantee <> c.relowner
$$;
GRANT ALL ON levels TO PUBLIC;
SELECT kalam.set_access_level('levels', 'public');
SELECT grants();
SELECT kalam.set_access_level('levels', 'private');
SELECT grants();
SELECT kalam.set_access_level('levels', 'dba');
SELECT grants();
SELECT kalam.set_access_level('levels', 'restricted');
SELECT grants();
SELECT kalam.set_access_level('other', 'public');
SELECT kalam.set_access_level('pg_class', 'public');
SELECT kalam.set_access_level(NULL, 'public');
SET ROLE regress_kalam_dba;
SELECT kalam.set_access_level('levels', 'public');
SELECT kalam.install_roles();
RESET ROLE;

-- The audit log: rollback takes nothing of an impersonation back, and nobody
-- changes a row.
BEGIN;
SELECT kalam.execute_as('acting_user', 'SELECT ''rolled back''');
ROLLBACK;
SELECT actor, subject, action, target, details - 'role' AS details FROM kalam.audit_log
WHERE action = 'set_access_level' OR details->>'statement' LIKE '%rolled back%' ORDER BY id;
SELECT actor, subject, count(*) FROM kalam.audit_log WHERE action = 'execute_as_refused' AND subject LIKE 'acting_%' GROUP BY 1, 2 ORDER BY 1, 2;
UPDATE kalam.audit_log SET actor = 'nobody';
UPDATE kalam.audit_log SET actor = 'nobody' WHERE false;
DELETE FROM kalam.audit_log;
TRUNCATE kalam.audit_log;
SET session_replication_role = replica;
DELETE FROM kalam.audit_log;
RESET session_replication_role;
SET ROLE regress_kalam_dba;
INSERT INTO kalam.audit_log SELECT * FROM kalam.audit_log LIMIT 1;
DELETE FROM kalam.audit_log;
SELECT count(*) > 0 AS readable FROM kalam.audit_log;
RESET ROLE;
-- No grant makes a change possible, nor does a way around.
SELECT count(*) AS entries, min(id) AS entry FROM kalam.audit_log \gset
CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
GRANT ALL ON kalam.audit_log TO regress_kalam_service;
GRANT pg_write_all_data, pg_read_all_data TO regress_kalam_service;
SET ROLE regress_kalam_service;
INSERT INTO kalam.audit_log VALUES (1, now(), 'nobody', 'nobody', 'forged', NULL, '{}', NULL);
INSERT INTO kalam.audit_log SELECT * FROM kalam.audit_log ON CONFLICT (id) DO UPDATE SET actor = 'nobody';
UPDATE kalam.audit_log SET actor = 'nobody';
UPDATE kalam.audit_log SET actor = 'nobody' WHERE ctid = '(0,1)' RETURNING *;
WITH gone AS (DELETE FROM kalam.audit_log RETURNING 1) SELECT count(*) FROM gone;
MERGE INTO kalam.audit_log a USING (SELECT 1) s ON true WHEN MATCHED THEN DELETE;
MERGE INTO kalam.audit_log a USING (SELECT 1) s ON false WHEN NOT MATCHED THEN INSERT VALUES (1, now(), 'nobody', NULL, 'forged', NULL, '{}', NULL);
COPY kalam.audit_log FROM stdin;
\.
TRUNCATE kalam.audit_log;
CREATE TEMP VIEW log AS SELECT * FROM kalam.audit_log;
DELETE FROM log;
ALTER TABLE kalam.audit_log DISABLE TRIGGER append_only;
ALTER TABLE kalam.audit_log DISABLE TRIGGER ALL;
DROP TRIGGER append_only ON kalam.audit_log;
CREATE RULE instead AS ON UPDATE TO kalam.audit_log DO INSTEAD NOTHING;
CREATE TRIGGER swallow BEFORE INSERT ON kalam.audit_log FOR EACH ROW EXECUTE FUNCTION swallow();
ALTER TABLE kalam.audit_log ADD COLUMN more text;
ALTER TABLE kalam.audit_log OWNER TO regress_kalam_service;
DROP TABLE kalam.audit_log;
SET session_replication_role = replica;
SELECT kalam.execute_as('acting_user', 'DELETE FROM kalam.audit_log');
-- The library writes on, whatever trigger the role could make.
SELECT kalam.execute_as('acting_user', 'SELECT ''not swallowed''');
RESET ROLE;
SELECT count(*) FROM kalam.audit_log WHERE details->>'statement' LIKE '%not swallowed%';
SELECT count(*) FROM kalam.audit_log WHERE actor = 'nobody';
SELECT count(*) - :entries AS new, min(id) = :entry AS complete FROM kalam.audit_log;
DROP TRIGGER swallow ON kalam.audit_log;
REVOKE ALL ON kalam.audit_log FROM regress_kalam_service;
REVOKE pg_write_all_data, pg_read_all_data FROM regress_kalam_service;

-- A gateway acts for users by the setting: an entry for each user and role, whatever becomes of the transactions.
CREATE TABLE letters (id int PRIMARY KEY) USING kalam_user;
GRANT ALL ON letters TO regress_kalam_service, regress_kalam_plain;
GRANT SET ON PARAMETER kalam.user_id TO regress_kalam_service, regress_kalam_plain;
SET ROLE regress_kalam_service;
BEGIN;
SET LOCAL kalam.user_id = 'gate_1';
INSERT INTO letters VALUES (1);
ROLLBACK;
BEGIN READ ONLY;
SET LOCAL kalam.user_id = 'gate_2';
SELECT count(*) FROM letters;
SET LOCAL kalam.user_id = 'gate_1';
SELECT count(*) FROM letters;
COMMIT;
SET kalam.user_id = 'gate_3';
COPY letters TO stdout;
COPY letters TO stdout;
SET kalam.user_id = 'regress_kalam_service';
SELECT count(*) FROM letters;
SET ROLE regress_kalam_plain;
SET kalam.user_id = 'gate_3';
PREPARE look AS SELECT count(*) FROM letters;
EXECUTE look;
EXECUTE look;
SET kalam.user_id = 'gate_4';
EXECUTE look;
SET kalam.audit_user_id = off;
RESET ROLE;
SET kalam.audit_user_id = off;
SET kalam.user_id = 'gate_5';
SELECT count(*) FROM letters;
RESET kalam.audit_user_id;
SET kalam.user_id = 'gate_6';
-- Nothing of users is looked at, but could be.
SELECT 1 AS one;
-- The first thing that a session does; the history is read by a function.
\c -
SET kalam.user_id = 'gate_7';
SELECT count(*) FROM kalam.history('letters');
-- By COPY as the first thing, by a trigger of COPY, and by functions in parallel workers.
\c -
SET kalam.user_id = 'gate_8';
COPY letters (id) FROM stdin;
8
\.
CREATE FUNCTION for_another() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    new._user_id := set_config('kalam.user_id', 'gate_' || new.id, false);
    RETURN new;
END $$;
CREATE TRIGGER for_another BEFORE INSERT ON letters FOR EACH ROW EXECUTE FUNCTION for_another();
COPY letters (id) FROM stdin;
9
10
\.
DROP TRIGGER for_another ON letters;
CREATE FUNCTION letters_seen() RETURNS bigint LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$ BEGIN RETURN (SELECT count(*) FROM letters); END $$;
\c -
SET kalam.user_id = 'gate_11';
LOAD 'kalamdb';
SET force_parallel_mode = on;
SELECT letters_seen();
RESET force_parallel_mode;
-- By functions in the workers of a command.
\c -
CREATE TABLE with_workers (x int) USING heap WITH (parallel_workers = 2);
INSERT INTO with_workers SELECT generate_series(1, 20000);
CREATE FUNCTION letters_seen_by(i int) RETURNS int IMMUTABLE PARALLEL SAFE LANGUAGE plpgsql AS $$
BEGIN IF i % 5000 = 1 THEN PERFORM count(*) FROM letters; END IF; RETURN i; END $$;
SET min_parallel_table_scan_size = 0;
SET maintenance_work_mem = '256MB';
SET kalam.user_id = 'gate_12';
CREATE INDEX ON with_workers (letters_seen_by(x));
SET kalam.user_id = 'gate_13';
REINDEX TABLE with_workers;
DROP TABLE with_workers;
RESET kalam.user_id;
SELECT actor = session_user AS by_us, CASE actor WHEN session_user THEN '' ELSE actor END AS actor, subject, count(*) FROM kalam.audit_log
WHERE action = 'set_user_id' AND subject LIKE 'gate%' GROUP BY 1, 2, 3 ORDER BY 1, 2, 3;
DROP TABLE letters;
REVOKE SET ON PARAMETER kalam.user_id FROM regress_kalam_service, regress_kalam_plain;
-- Its rows are in its index.
SELECT bt_index_parent_check('kalam.audit_log_pkey', true);
SELECT bt_index_parent_check('kalam.login_attempts_name_at', true);
DROP OWNED BY regress_kalam_dba, regress_kalam_service, regress_kalam_plain;
DROP ROLE regress_kalam_dba, regress_kalam_service, regress_kalam_plain;
