-- CREATE, DROP and TRUNCATE, committed and undone, in transactions and
-- subtransactions, with the rows that were in the tables.
CREATE SCHEMA ddl_rollback;
SET search_path = ddl_rollback, public;

-- CREATE.
BEGIN;
CREATE TABLE made (id int PRIMARY KEY, v text);
INSERT INTO made SELECT i, noise(i, 100) FROM generate_series(1, 1000) i;
SELECT count(*) FROM made;
ROLLBACK;
SELECT to_regclass('made') IS NULL AS gone;
BEGIN;
CREATE TABLE made (id int PRIMARY KEY, v text);
INSERT INTO made SELECT i, noise(i, 100) FROM generate_series(1, 1000) i;
COMMIT;
SELECT count(*), bool_and(v = noise(id, 100)) FROM made;
BEGIN;
SAVEPOINT s;
CREATE TABLE inner_made (i int);
INSERT INTO inner_made VALUES (1);
ROLLBACK TO s;
CREATE TABLE inner_made (t text);
INSERT INTO inner_made VALUES ('one');
RELEASE s;
SAVEPOINT s;
INSERT INTO inner_made VALUES ('two');
SAVEPOINT t;
INSERT INTO inner_made VALUES ('three');
ROLLBACK TO t;
COMMIT;
SELECT * FROM inner_made ORDER BY t;

-- DROP.
BEGIN;
DROP TABLE made;
SELECT to_regclass('made') IS NULL AS gone;
ROLLBACK;
SELECT count(*), bool_and(v = noise(id, 100)) FROM made;
SELECT check_indexes('made');
BEGIN;
SAVEPOINT s;
INSERT INTO made VALUES (1001, 'x');
DROP TABLE made;
ROLLBACK TO s;
SELECT count(*) FROM made;
INSERT INTO made VALUES (1001, noise(1001, 100));
SAVEPOINT s;
DROP TABLE inner_made;
RELEASE s;
COMMIT;
SELECT count(*), bool_and(v = noise(id, 100)) FROM made;
SELECT to_regclass('inner_made') IS NULL AS gone;
BEGIN;
CREATE TABLE brief (i int);
INSERT INTO brief VALUES (1);
DROP TABLE brief;
CREATE TABLE brief (i int);
INSERT INTO brief VALUES (2);
COMMIT;
SELECT * FROM brief;
DROP TABLE brief;
CREATE TABLE brief (i int);
SELECT * FROM brief;

-- TRUNCATE.
BEGIN;
TRUNCATE made;
SELECT count(*) FROM made;
INSERT INTO made VALUES (5, 'five');
SELECT * FROM made;
ROLLBACK;
SELECT count(*), bool_and(v = noise(id, 100)) FROM made;
SELECT check_indexes('made');
BEGIN;
INSERT INTO made VALUES (2000, noise(2000, 100));
SAVEPOINT s;
TRUNCATE made;
INSERT INTO made VALUES (1, 'one');
SAVEPOINT t;
TRUNCATE made;
INSERT INTO made VALUES (2, 'two');
SELECT * FROM made;
ROLLBACK TO t;
SELECT * FROM made;
ROLLBACK TO s;
SELECT count(*), bool_and(v = noise(id, 100)) FROM made;
COMMIT;
SELECT count(*), bool_and(v = noise(id, 100)) FROM made;
SELECT check_indexes('made');
BEGIN;
TRUNCATE made;
TRUNCATE made;
INSERT INTO made VALUES (1, 'one');
TRUNCATE made;
INSERT INTO made VALUES (2, 'two');
COMMIT;
SELECT * FROM made;
SELECT check_indexes('made');
TRUNCATE made;
SELECT count(*) FROM made;
INSERT INTO made VALUES (1, 'one');
SELECT * FROM made;

-- In the transaction that made the table, TRUNCATE need not keep the old rows,
-- but a savepoint before it must bring them back.
BEGIN;
CREATE TABLE young (i int);
INSERT INTO young VALUES (1);
TRUNCATE young;
SELECT count(*) FROM young;
INSERT INTO young VALUES (2);
SAVEPOINT s;
TRUNCATE young;
INSERT INTO young VALUES (3);
SELECT * FROM young;
ROLLBACK TO s;
SELECT * FROM young;
TRUNCATE young;
INSERT INTO young VALUES (4);
COMMIT;
SELECT * FROM young;
CREATE TABLE aged (i int);
INSERT INTO aged VALUES (1);
BEGIN;
TRUNCATE aged;
INSERT INTO aged VALUES (2);
SAVEPOINT s;
TRUNCATE aged;
INSERT INTO aged VALUES (3);
ROLLBACK TO s;
SELECT * FROM aged;
ROLLBACK;
SELECT * FROM aged;

-- RESTART IDENTITY, CASCADE, several tables, triggers.
CREATE TABLE parent (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
CREATE TABLE child (id int REFERENCES parent);
INSERT INTO parent DEFAULT VALUES;
INSERT INTO parent DEFAULT VALUES;
INSERT INTO child VALUES (1);
\set VERBOSITY sqlstate
TRUNCATE parent;
\set VERBOSITY default
TRUNCATE parent RESTART IDENTITY CASCADE;
INSERT INTO parent DEFAULT VALUES RETURNING id;
SELECT (SELECT count(*) FROM parent), (SELECT count(*) FROM child);
CREATE FUNCTION say() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE NOTICE '% % %', TG_WHEN, TG_OP, TG_TABLE_NAME;
    RETURN NULL;
END $$;
CREATE TRIGGER say_before BEFORE TRUNCATE ON child EXECUTE FUNCTION say();
CREATE TRIGGER say_after AFTER TRUNCATE ON child EXECUTE FUNCTION say();
TRUNCATE child, made;
SELECT count(*) FROM made;

-- A table with large values.
CREATE TABLE large (id int PRIMARY KEY, v text);
ALTER TABLE large ALTER v SET STORAGE EXTERNAL;
INSERT INTO large SELECT i, noise(i, 50000) FROM generate_series(1, 20) i;
BEGIN;
TRUNCATE large;
INSERT INTO large VALUES (1, noise(99, 50000));
ROLLBACK;
SELECT count(*), bool_and(v = noise(id, 50000)) FROM large;
BEGIN;
DROP TABLE large;
ROLLBACK;
SELECT count(*), bool_and(v = noise(id, 50000)) FROM large;
TRUNCATE large;
INSERT INTO large VALUES (1, noise(1, 50000));
SELECT count(*), bool_and(v = noise(id, 50000)) FROM large;

-- DROP and CREATE under one name, many times, in and out of exception blocks.
SET client_min_messages = warning;
DO $$
BEGIN
    FOR i IN 1..30 LOOP
        CREATE TABLE ddl_rollback.cycled (i int PRIMARY KEY);
        INSERT INTO ddl_rollback.cycled SELECT generate_series(1, i);
        BEGIN
            IF i % 2 = 0 THEN
                TRUNCATE ddl_rollback.cycled;
            ELSE
                DROP TABLE ddl_rollback.cycled;
            END IF;
            IF i % 3 = 0 THEN
                RAISE EXCEPTION 'undo';
            END IF;
        EXCEPTION WHEN raise_exception THEN
            ASSERT (SELECT count(*) FROM ddl_rollback.cycled) = i;
        END;
        DROP TABLE IF EXISTS ddl_rollback.cycled;
    END LOOP;
END $$;
RESET client_min_messages;
SELECT to_regclass('cycled') IS NULL AS gone;

-- Refused while in use.
BEGIN;
DECLARE c CURSOR FOR SELECT * FROM made;
\set VERBOSITY sqlstate
TRUNCATE made;
ROLLBACK;
BEGIN;
DECLARE c CURSOR FOR SELECT * FROM made;
DROP TABLE made;
\set VERBOSITY default
ROLLBACK;

-- Schemas, and tables dropped with the schema.
CREATE SCHEMA doomed;
CREATE TABLE doomed.one AS SELECT 1 AS i;
CREATE TABLE doomed.two AS SELECT 2 AS i;
BEGIN;
SET client_min_messages = warning;
DROP SCHEMA doomed CASCADE;
ROLLBACK;
SELECT * FROM doomed.one, doomed.two;
SET client_min_messages = warning;
DROP SCHEMA doomed CASCADE;
RESET client_min_messages;
SELECT to_regclass('doomed.one') IS NULL AS gone;
