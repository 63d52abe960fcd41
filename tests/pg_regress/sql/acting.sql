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
-- Its rows are in its index.
SELECT bt_index_parent_check('kalam.audit_log_pkey', true);
SELECT bt_index_parent_check('kalam.login_attempts_name_at', true);
DROP OWNED BY regress_kalam_dba, regress_kalam_service, regress_kalam_plain;
DROP ROLE regress_kalam_dba, regress_kalam_service, regress_kalam_plain;
