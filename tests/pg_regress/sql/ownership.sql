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
RESET ROLE;

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
DROP OWNED BY regress_kalam_dba, regress_kalam_plain;
DROP ROLE regress_kalam_dba, regress_kalam_plain;
SET client_min_messages = warning;
DROP SCHEMA owned CASCADE;
