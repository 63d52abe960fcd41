-- A schema called "kalam" that is not the extension's, and names that are no
-- text in UTF-8. On heap there is nothing to show: see lookalike_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
SET client_min_messages = warning;
CREATE ROLE regress_lookalike LOGIN;
GRANT SET ON PARAMETER kalam.user_id TO regress_lookalike;
CREATE DATABASE regress_lookalike TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C';
GRANT CREATE ON DATABASE regress_lookalike TO regress_lookalike;
SELECT current_database() AS before \gset
\c regress_lookalike
SET client_encoding = 'UTF8';

-- Roles whose names differ in a byte that is no text in UTF-8 are no user, and
-- not the same one.
CREATE EXTENSION kalamdb;
CREATE ROLE "regress_ré";
CREATE ROLE "regress_rè";
CREATE TABLE own (id int PRIMARY KEY, t text) USING kalam_user;
GRANT ALL ON own TO PUBLIC;
SET ROLE "regress_ré";
INSERT INTO own VALUES (1, 'secret');
SET ROLE "regress_rè";
\set VERBOSITY verbose
\set SHOW_CONTEXT never
SELECT kalam.user_id();
\set VERBOSITY default
SELECT * FROM own;
UPDATE own SET t = 'spoiled';
RESET ROLE;
SET kalam.user_id = 'somebody';
INSERT INTO own VALUES (1, 'somebody''s');
GRANT SET ON PARAMETER kalam.user_id TO "regress_rè";
SET ROLE "regress_rè";
SELECT * FROM own;
RESET ROLE;
SELECT subject, count(*) FROM kalam.audit_log WHERE action = 'set_user_id' GROUP BY 1;
REVOKE SET ON PARAMETER kalam.user_id FROM "regress_rè";
RESET kalam.user_id;
DROP ROLE "regress_ré";

-- Whatever the extension's processes were about to do, they do not do it to
-- somebody else's tables after the extension was dropped. A job that is to be
-- tried again has one started.
CREATE FUNCTION exercise(schema text, parameters jsonb) RETURNS text STRICT LANGUAGE c AS '$libdir/kalamdb', 'job_exercise_wrapper';
SELECT exercise('never', '{"failures": 99}') AS id \gset
SELECT count(*) FROM kalam.jobs WHERE state IN ('new', 'queued', 'running', 'retrying');
DROP EXTENSION kalamdb CASCADE;
DROP FUNCTION exercise;
SET SESSION AUTHORIZATION regress_lookalike;
CREATE SCHEMA kalam;
-- A sequence keeps what is rolled back.
CREATE SEQUENCE kalam.ran;
CREATE FUNCTION kalam.spy(what text) RETURNS text LANGUAGE sql AS 'SELECT what WHERE nextval(''kalam.ran'') > 0';
CREATE VIEW kalam.job AS SELECT kalam.spy('id') AS id, 'FL'::text AS type, kalam.spy('new') AS state, 0::oid AS relation, NULL::text AS schema_name,
    NULL::text AS table_name, now() AS not_before, now() AS created_at;
CREATE FUNCTION kalam.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER nothing INSTEAD OF UPDATE ON kalam.job FOR EACH ROW EXECUTE FUNCTION kalam.nothing();
CREATE VIEW kalam.user_accounts AS SELECT kalam.spy('name') AS name;
CREATE VIEW kalam.storage_catalog AS SELECT kalam.spy('name') AS name;
SELECT pg_sleep(2.5);
SELECT is_called FROM kalam.ran;

-- Nor does a session write its audit log there.
CREATE TABLE kalam.audit_log (a text, b text, c text, d text, e text, f text, g text, h text);
CREATE TABLE kalam.t (x int);
INSERT INTO kalam.t VALUES (1);
SET kalam.user_id = 'somebody';
COPY kalam.t TO STDOUT;
SELECT * FROM kalam.t;
TABLE kalam.audit_log;
SELECT is_called FROM kalam.ran;
RESET SESSION AUTHORIZATION;
DROP ROLE "regress_rè";

\c :before
DROP DATABASE regress_lookalike;
REVOKE SET ON PARAMETER kalam.user_id FROM regress_lookalike;
DROP ROLE regress_lookalike;
