-- Unique and primary keys: who may be stored, who not, and what the error says.
CREATE SCHEMA unique_key;
SET search_path = unique_key, public;

CREATE TABLE account (id int PRIMARY KEY, email text UNIQUE, tenant int, number int, UNIQUE (tenant, number));
INSERT INTO account VALUES (1, 'a@x', 1, 1), (2, 'b@x', 1, 2), (3, NULL, NULL, 1), (4, NULL, NULL, 1);
INSERT INTO account VALUES (1, 'c@x', 2, 1);
INSERT INTO account VALUES (5, 'a@x', 2, 1);
INSERT INTO account VALUES (5, 'c@x', 1, 2);
UPDATE account SET id = 2 WHERE id = 1;
UPDATE account SET email = 'b@x' WHERE id = 4;
INSERT INTO account VALUES (NULL, 'd@x', 9, 9);
SELECT * FROM account ORDER BY id;
DO $$
DECLARE
    state text; constraint_name text; table_name text; schema_name text; detail text;
BEGIN
    INSERT INTO account VALUES (1, 'c@x', 2, 1);
EXCEPTION WHEN unique_violation THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, constraint_name = CONSTRAINT_NAME,
        table_name = TABLE_NAME, schema_name = SCHEMA_NAME, detail = PG_EXCEPTION_DETAIL;
    RAISE NOTICE '% % %.% %', state, constraint_name, schema_name, table_name, detail;
END $$;

-- A key is free again after its row is deleted, moved away, or rolled back.
DELETE FROM account WHERE id = 1;
INSERT INTO account VALUES (1, 'a@x', 1, 1);
UPDATE account SET id = 10 WHERE id = 1;
INSERT INTO account VALUES (1, 'z@x', 7, 7);
BEGIN;
INSERT INTO account VALUES (50, 'r@x', 5, 5);
ROLLBACK;
INSERT INTO account VALUES (50, 'r@x', 5, 5);
BEGIN;
DELETE FROM account WHERE id = 50;
INSERT INTO account VALUES (50, 'r@x', 5, 5);
UPDATE account SET id = 51 WHERE id = 50;
INSERT INTO account VALUES (50, 's@x', 5, 6);
DELETE FROM account WHERE id = 50;
UPDATE account SET id = 50 WHERE id = 51;
COMMIT;
SELECT * FROM account ORDER BY id;

-- In a subtransaction that ends either way.
BEGIN;
SAVEPOINT s;
INSERT INTO account VALUES (60, 'sub@x', 6, 6);
ROLLBACK TO s;
INSERT INTO account VALUES (60, 'sub@x', 6, 6);
RELEASE s;
SAVEPOINT s;
\set VERBOSITY sqlstate
INSERT INTO account VALUES (60, 'other@x', 6, 7);
\set VERBOSITY default
ROLLBACK TO s;
DELETE FROM account WHERE id = 60;
SAVEPOINT t;
INSERT INTO account VALUES (60, 'sub2@x', 6, 6);
COMMIT;
SELECT * FROM account WHERE id = 60;

-- The check comes per row, so a shift by one collides, except when deferred.
CREATE TABLE numbered (n int PRIMARY KEY);
INSERT INTO numbered SELECT generate_series(1, 10);
\set VERBOSITY sqlstate
UPDATE numbered SET n = n + 1;
\set VERBOSITY default
SELECT count(*), sum(n) FROM numbered;
CREATE TABLE deferred (n int, CONSTRAINT deferred_key UNIQUE (n) DEFERRABLE INITIALLY IMMEDIATE);
INSERT INTO deferred SELECT generate_series(1, 10);
UPDATE deferred SET n = n + 1;
SELECT count(*), sum(n) FROM deferred;
BEGIN;
SET CONSTRAINTS deferred_key DEFERRED;
INSERT INTO deferred VALUES (5);
SELECT count(*) FROM deferred WHERE n = 5;
UPDATE deferred SET n = 500 WHERE n = 5 AND n IN (SELECT n FROM deferred WHERE n = 5);
UPDATE deferred SET n = 5 WHERE ctid = (SELECT min(ctid) FROM deferred WHERE n = 500);
COMMIT;
SELECT count(*), sum(n) FROM deferred;
\set VERBOSITY sqlstate
BEGIN;
SET CONSTRAINTS deferred_key DEFERRED;
INSERT INTO deferred VALUES (6);
SET CONSTRAINTS deferred_key IMMEDIATE;
ROLLBACK;
BEGIN;
SET CONSTRAINTS deferred_key DEFERRED;
INSERT INTO deferred VALUES (7);
COMMIT;
\set VERBOSITY default
SELECT count(*), sum(n) FROM deferred;

-- NULLS NOT DISTINCT, INCLUDE, a key over an expression, and one over part of the rows.
CREATE TABLE special (a int, b text, c int);
CREATE UNIQUE INDEX special_a ON special (a) NULLS NOT DISTINCT;
CREATE UNIQUE INDEX special_b ON special (lower(b));
CREATE UNIQUE INDEX special_c ON special (c) INCLUDE (b) WHERE c > 0;
INSERT INTO special VALUES (NULL, 'Hello', 0), (1, 'World', 0), (2, NULL, 5);
\set VERBOSITY terse
INSERT INTO special VALUES (NULL, 'x', 0);
INSERT INTO special VALUES (3, 'hELLO', 0);
INSERT INTO special VALUES (3, 'x', 5);
UPDATE special SET c = 5 WHERE a = 1;
\set VERBOSITY default
UPDATE special SET c = 0 WHERE a = 2;
UPDATE special SET c = 5 WHERE a = 1;
SELECT * FROM special ORDER BY a;

-- A unique index over rows that are not unique.
CREATE TABLE doubled (v int);
INSERT INTO doubled SELECT i / 2 FROM generate_series(1, 20) i;
\set VERBOSITY terse
CREATE UNIQUE INDEX doubled_v ON doubled (v);
\set VERBOSITY default
DELETE FROM doubled a WHERE EXISTS (SELECT FROM doubled b WHERE b.v = a.v AND b.ctid < a.ctid);
CREATE UNIQUE INDEX doubled_v ON doubled (v);
SELECT count(*), sum(v) FROM doubled;
-- Old versions of a row are no duplicates.
CREATE TABLE versions (id int, v int);
INSERT INTO versions VALUES (1, 0), (2, 0);
UPDATE versions SET v = 1;
UPDATE versions SET v = 2;
BEGIN;
UPDATE versions SET v = 3;
CREATE UNIQUE INDEX versions_id ON versions (id);
COMMIT;
ALTER TABLE versions ADD PRIMARY KEY USING INDEX versions_id;
SELECT check_indexes('versions');
\set VERBOSITY sqlstate
INSERT INTO versions VALUES (2, 9);
\set VERBOSITY default

-- A key of several types that is looked up by each prefix.
CREATE TABLE composite (a text, b date, c uuid, v int, PRIMARY KEY (a, b, c));
INSERT INTO composite SELECT 'a' || i % 3, date '2024-01-01' + i % 5, md5(i::text)::uuid, i FROM generate_series(1, 300) i;
\set VERBOSITY sqlstate
INSERT INTO composite VALUES ('a1', '2024-01-02', md5('1')::uuid, 0);
\set VERBOSITY default
CALL only_scan('indexscan');
SELECT v FROM composite WHERE a = 'a1' AND b = '2024-01-02' AND c = md5('1')::uuid;
SELECT count(*), sum(v) FROM composite WHERE a = 'a1' AND b = '2024-01-02';
SELECT count(*), sum(v) FROM composite WHERE a = 'a1';
SELECT count(*), sum(v) FROM composite WHERE (a, b) > ('a1', '2024-01-03');
CALL only_scan('any');
