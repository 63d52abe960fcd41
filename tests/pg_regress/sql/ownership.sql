-- What one user owns: usage, export, erasure. On heap there is nothing to
-- show: see ownership_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
CREATE SCHEMA owned;
SET search_path = owned, public;
SET kalam.bcrypt_cost = 10;
SET client_min_messages = warning;
SELECT kalam.install_roles();
RESET client_min_messages;
CREATE ROLE regress_kalam_dba IN ROLE kalam_dba;
CREATE ROLE regress_kalam_plain;
SELECT kalam.create_user('own_ann', 'a good password');
SELECT kalam.create_user('own_bob');
SELECT kalam.create_user('own_dba', role => 'dba');
CREATE TABLE notes (id int PRIMARY KEY, body text) USING kalam_user;
CREATE TABLE "Odd name" (id int, parent int, FOREIGN KEY (_user_id, parent) REFERENCES notes (_user_id, id)) USING kalam_user;
CREATE TABLE shared (id int) USING kalam_shared;
CREATE TABLE fired (what text) USING heap;
CREATE FUNCTION note_delete() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO owned.fired VALUES (TG_OP); RETURN OLD; END $$;
CREATE TRIGGER on_delete BEFORE DELETE ON notes FOR EACH ROW EXECUTE FUNCTION note_delete();
SET kalam.user_id = 'own_ann';
INSERT INTO notes SELECT i, 'ann ' || i FROM generate_series(1, 3) i;
INSERT INTO "Odd name" VALUES (1, 1), (2, 2);
SET kalam.user_id = 'own_bob';
INSERT INTO notes SELECT i, 'bob ' || i FROM generate_series(1, 2) i;
INSERT INTO "Odd name" VALUES (1, 1);
RESET kalam.user_id;

-- Everybody sees what is theirs, whatever rights they have on the tables.
SET kalam.user_id = 'own_ann';
SELECT relation, rows, bytes > 0 AS has_bytes FROM kalam.user_usage();
SELECT relation, "row" FROM kalam.user_rows() ORDER BY relation::text, "row"::text;
SELECT kalam.user_usage('own_bob');
SELECT kalam.user_rows('own_bob');
SELECT kalam.erase_user('own_ann');
SELECT kalam.erase_user('own_bob');
RESET kalam.user_id;
SET ROLE regress_kalam_plain;
SELECT * FROM kalam.user_usage();
SELECT kalam.user_usage('own_bob');
SELECT kalam.erase_user('own_bob');
RESET ROLE;
SET ROLE regress_kalam_dba;
SELECT relation, rows FROM kalam.user_usage('own_bob');
SELECT relation, rows FROM kalam.user_usage('own_dba');
SELECT relation, rows FROM kalam.user_usage('nobody');
SELECT relation, rows FROM kalam.user_usage(NULL);
SELECT kalam.export_user('own_bob', 'archive');
SELECT kalam.export_user(NULL);
RESET ROLE;
SET kalam.user_id = 'own_ann';
SELECT kalam.export_user('own_bob');
-- Two exports of one user are two.
SELECT count(DISTINCT kalam.export_user('own_ann', wait => true)) FROM generate_series(1, 2);
RESET kalam.user_id;
SET ROLE regress_kalam_plain;
SELECT count(*) FROM kalam.jobs WHERE type = 'UE';
SELECT kalam.clean_up_users();
RESET ROLE;
SELECT user_name, storage, finished_at IS NOT NULL AS finished, jsonb_array_length(files) AS files FROM kalam.user_exports ORDER BY id;
-- What a file of an export has.
CREATE FUNCTION exported(file text) RETURNS text LANGUAGE sql AS $$
    SELECT pg_read_file('kalamdb_segments/exports/' || max(id) || '/' || file) FROM kalam.user_exports WHERE user_name = 'own_ann' $$;
SELECT exported('owned.notes.json');
SELECT m->'user' AS "user", m->'account'->'role' AS role, m->'account' ? 'password_hash' AS has_hash, t->'table' AS "table", t->'rows' AS rows,
    t->'columns' AS columns, length(t->'parquet'->>'crc32c') AS sum
FROM (SELECT exported('manifest.json')::jsonb) m (m), jsonb_array_elements(m->'tables') t;

-- Erasing takes one user's rows and no other's, even where the session would
-- see all, and no trigger runs.
BEGIN;
SET LOCAL row_security = off;
SELECT relation, rows FROM kalam.user_usage('own_bob');
SELECT * FROM kalam.erase_user('own_ann');
SELECT _user_id, count(*) FROM notes GROUP BY 1 ORDER BY 1;
SELECT _user_id, count(*) FROM "Odd name" GROUP BY 1 ORDER BY 1;
ROLLBACK;
SELECT relation, rows FROM kalam.user_usage('own_ann');
SET ROLE regress_kalam_dba;
SELECT * FROM kalam.erase_user('own_ann');
SELECT * FROM kalam.erase_user('own_ann');
RESET ROLE;
SELECT * FROM fired;
SELECT * FROM kalam.user_usage('own_ann');
SELECT relation, rows FROM kalam.user_usage('own_bob');
SELECT count(*) FROM kalam.user_accounts WHERE name = 'own_ann';
SELECT outcome('SELECT kalam.login(''own_ann'', ''a good password'')');
SELECT kalam.user_id() = session_user AS is_role, current_setting('session_replication_role') AS replication_role, current_setting('row_security') AS row_security;
SELECT actor, subject, action, details - 'role' AS details FROM kalam.audit_log WHERE action IN ('export_user', 'erase_user') ORDER BY id;
-- The rows of a dropped user are a dba's to erase.
SELECT kalam.drop_user('own_bob');
SET ROLE regress_kalam_dba;
SELECT relation, rows FROM kalam.user_usage('own_bob');
SELECT kalam.execute_as('own_bob', 'SELECT 1');
SELECT * FROM kalam.erase_user('own_bob');
SELECT * FROM kalam.erase_user('own_dba');
RESET ROLE;
SELECT count(*) FROM kalam.users WHERE name = 'own_bob';

-- A job removes what is left on disk, exports too, and says so.
SET ROLE regress_kalam_dba;
SELECT kalam.clean_up_users(wait => true) AS job \gset
SELECT user_name, finished_at IS NOT NULL AS finished, rows, kept_rows, proof->'rewritten_tables' AS tables, jsonb_array_length(proof->'exports') AS exports
FROM kalam.erasures WHERE user_name LIKE 'own%' ORDER BY requested_at;
RESET ROLE;
SELECT * FROM kalam.user_exports;
SELECT subject, action, details - 'role' AS details FROM kalam.audit_log WHERE action IN ('export_user', 'user_erased') AND subject LIKE 'own%' ORDER BY id;
-- Users that were dropped long enough ago go by themselves.
SELECT kalam.create_user('own_cat', 'a good password');
SELECT kalam.create_user('own_dan', 'a good password');
SET kalam.user_id = 'own_cat';
INSERT INTO notes VALUES (1, 'cat');
DELETE FROM "Odd name";
SET kalam.user_id = 'own_dan';
INSERT INTO notes VALUES (1, 'dan'), (2, 'dan');
DELETE FROM notes WHERE id = 2;
RESET kalam.user_id;
SELECT kalam.drop_user('own_cat');
SELECT kalam.drop_user('own_dan');
UPDATE kalam.user_accounts SET deleted_at = deleted_at - interval '31 days' WHERE name = 'own_dan';
SELECT kalam.clean_up_users(wait => true) AS job \gset
SELECT name FROM kalam.users WHERE name IN ('own_cat', 'own_dan');
SELECT kalam.restore_user('own_dan');
SELECT kalam.restore_user('own_cat');
SET row_security = off;
SELECT _user_id, body FROM notes;
SELECT count(*) FROM kalam.deleted_rows WHERE user_id = 'own_dan';
RESET row_security;
SELECT user_name, finished_at IS NOT NULL AS finished, rows, kept_rows FROM kalam.erasures WHERE user_name = 'own_dan';
DROP OWNED BY regress_kalam_dba, regress_kalam_plain;
DROP ROLE regress_kalam_dba, regress_kalam_plain;
SET client_min_messages = warning;
DROP SCHEMA owned CASCADE;
