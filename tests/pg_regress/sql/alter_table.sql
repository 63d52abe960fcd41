-- ALTER TABLE: columns come and go with and without a rewrite of the rows.
CREATE SCHEMA alter_table;
SET search_path = alter_table, public;

CREATE TABLE person (id int PRIMARY KEY, name text);
INSERT INTO person SELECT i, 'person ' || i FROM generate_series(1, 500) i;

-- Columns that old rows get from the catalog.
CREATE FUNCTION rewritten(change text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    before oid := pg_relation_filenode('alter_table.person');
BEGIN
    EXECUTE change;
    RETURN pg_relation_filenode('alter_table.person') <> before;
END $$;
SELECT rewritten('ALTER TABLE person ADD age int');
SELECT rewritten('ALTER TABLE person ADD city text DEFAULT ''nowhere''');
SELECT rewritten('ALTER TABLE person ADD since timestamptz NOT NULL DEFAULT now()');
SELECT rewritten('ALTER TABLE person ADD tags text[] DEFAULT ''{a,b}''');
SELECT rewritten('ALTER TABLE person ADD luck float8 DEFAULT random()');
INSERT INTO person (id, name, city) VALUES (501, 'late', DEFAULT), (502, 'later', NULL);
SELECT id, name, age, city, tags, since IS NOT NULL AS since, luck BETWEEN 0 AND 1 AS luck FROM person WHERE id IN (1, 250, 501, 502) ORDER BY id;
SELECT count(*), count(age), count(city), count(since), count(tags), count(luck) FROM person;
ALTER TABLE person ALTER city SET DEFAULT 'somewhere';
INSERT INTO person (id) VALUES (503);
SELECT city, count(*) FROM person GROUP BY city ORDER BY city;
UPDATE person SET age = id % 90 WHERE id % 2 = 0;
SELECT city, count(*), count(age) FROM person GROUP BY city ORDER BY city;
CREATE INDEX person_city ON person (city);
CALL only_scan('indexscan');
SELECT count(*) FROM person WHERE city = 'nowhere';
SELECT id FROM person WHERE city = 'somewhere';
CALL only_scan('any');
SELECT id FROM person WHERE city IS NULL;

-- DROP COLUMN, and ADD of one with the same name and another type.
ALTER TABLE person DROP luck, DROP tags;
ALTER TABLE person ADD tags jsonb;
SELECT count(*), count(tags) FROM person;
INSERT INTO person (id, name, tags) VALUES (504, 'tagged', '[1]');
UPDATE person SET tags = '{}' WHERE id = 1;
SELECT id, name, tags FROM person WHERE tags IS NOT NULL ORDER BY id;
\set VERBOSITY sqlstate
SELECT luck FROM person;
\set VERBOSITY default

-- Type changes, with and without a rewrite.
SELECT rewritten('ALTER TABLE person ALTER name TYPE varchar');
SELECT rewritten('ALTER TABLE person ALTER age TYPE bigint');
SELECT rewritten('ALTER TABLE person ALTER age TYPE text USING ''age '' || age');
SELECT rewritten('ALTER TABLE person ALTER id TYPE bigint USING id * 10');
SELECT id, name, age, city FROM person WHERE id IN (10, 20, 5010) ORDER BY id;
SELECT count(*), count(age), sum(id) FROM person;
SELECT check_indexes('person');
\set VERBOSITY sqlstate
ALTER TABLE person ALTER name TYPE int USING name::int;
ALTER TABLE person ALTER name TYPE varchar(3);
ALTER TABLE person ALTER age SET NOT NULL;
ALTER TABLE person ADD CHECK (id < 100);
ALTER TABLE person ADD UNIQUE (city);
ALTER TABLE person ADD forced int NOT NULL;
ALTER TABLE person ADD CONSTRAINT p FOREIGN KEY (id) REFERENCES person (name);
\set VERBOSITY default
SELECT count(*), sum(id) FROM person;

-- Constraints added and validated against the rows.
ALTER TABLE person ADD CONSTRAINT positive CHECK (id > 0);
ALTER TABLE person ADD CONSTRAINT named CHECK (name IS NOT NULL) NOT VALID;
\set VERBOSITY sqlstate
ALTER TABLE person VALIDATE CONSTRAINT named;
\set VERBOSITY default
UPDATE person SET name = 'nobody' WHERE name IS NULL;
ALTER TABLE person VALIDATE CONSTRAINT named;
ALTER TABLE person ALTER name SET NOT NULL;
ALTER TABLE person DROP CONSTRAINT person_pkey;
INSERT INTO person (id, name) VALUES (10, 'twin');
\set VERBOSITY sqlstate
ALTER TABLE person ADD PRIMARY KEY (id);
\set VERBOSITY default
DELETE FROM person WHERE name = 'twin';
ALTER TABLE person ADD PRIMARY KEY (id);
SELECT check_indexes('person');

-- Names.
ALTER TABLE person RENAME TO human;
ALTER TABLE human RENAME name TO full_name;
ALTER TABLE human SET SCHEMA public;
SELECT count(*), max(full_name) FROM public.human;
ALTER TABLE public.human SET SCHEMA alter_table;

-- All of it undone.
BEGIN;
ALTER TABLE human ADD extra int DEFAULT 5;
ALTER TABLE human ALTER city TYPE varchar(20) USING upper(city);
ALTER TABLE human DROP since;
UPDATE human SET extra = 6, city = 'UPDATED' WHERE id = 10;
SELECT id, city, extra FROM human WHERE id IN (10, 20) ORDER BY id;
ALTER TABLE human RENAME TO machine;
ROLLBACK;
SELECT id, city, since IS NOT NULL AS since FROM human WHERE id IN (10, 20) ORDER BY id;
SELECT count(*), sum(id) FROM human;
SELECT check_indexes('human');
BEGIN;
SAVEPOINT s;
ALTER TABLE human ALTER id TYPE numeric;
INSERT INTO human (id, full_name) VALUES (0.5, 'half');
ROLLBACK TO s;
INSERT INTO human (id, full_name) VALUES (1, 'one');
COMMIT;
SELECT count(*), sum(id) FROM human;

-- A rewrite keeps what is dropped dropped and what is null null, with large
-- values, and in the transaction that made some of the rows.
CREATE TABLE heavy (a int, b text, c int, d text);
INSERT INTO heavy SELECT i, noise(i, 20000), i, CASE WHEN i % 2 = 0 THEN noise(-i, 9000) END FROM generate_series(1, 30) i;
ALTER TABLE heavy DROP c;
BEGIN;
INSERT INTO heavy SELECT i, noise(i, 20000), CASE WHEN i % 2 = 0 THEN noise(-i, 9000) END FROM generate_series(31, 40) i;
UPDATE heavy SET d = 'x' WHERE a = 40;
DELETE FROM heavy WHERE a = 39;
ALTER TABLE heavy ALTER a TYPE bigint;
SELECT count(*), bool_and(b = noise(a::int, 20000)), count(d) FROM heavy;
COMMIT;
SELECT count(*), bool_and(b = noise(a::int, 20000)), bool_and(d = noise(-a::int, 9000)) FILTER (WHERE a < 40), count(d) FROM heavy;

-- Dead versions and rows of others do not matter to a rewrite.
DELETE FROM heavy WHERE a > 20;
UPDATE heavy SET a = a + 1;
ALTER TABLE heavy ALTER a TYPE int;
SELECT count(*), sum(a), bool_and(b = noise(a - 1, 20000)) FROM heavy;

-- Columns change their width below large values, with dead versions about,
-- undone and for good.
CREATE TABLE layout (a int, b text, c text, d int);
ALTER TABLE layout ALTER c SET STORAGE EXTERNAL;
INSERT INTO layout SELECT i, repeat(chr(33 + i % 90), i), noise(i, 9000), i FROM generate_series(1, 120) i;
UPDATE layout SET d = d + 1, c = noise(-a, 9000) WHERE a % 3 = 0;
DELETE FROM layout WHERE a % 5 = 0;
CREATE FUNCTION layout_intact(OUT rows bigint, OUT b boolean, OUT c boolean, OUT d numeric) LANGUAGE sql AS $$
    SELECT count(*), bool_and(l.b = repeat(chr(33 + l.a::int % 90), l.a::int)),
        bool_and(l.c = noise(CASE WHEN l.a % 3 = 0 THEN -l.a ELSE l.a END::int, 9000)), sum(l.d::numeric)
    FROM alter_table.layout l
$$;
BEGIN;
ALTER TABLE layout ALTER a TYPE bigint, ALTER d TYPE text;
SELECT * FROM layout_intact();
ROLLBACK;
SELECT * FROM layout_intact();
VACUUM layout;
INSERT INTO layout SELECT i, repeat(chr(33 + i % 90), i), noise(CASE WHEN i % 3 = 0 THEN -i ELSE i END, 9000), 0 FROM generate_series(121, 160) i;
SELECT * FROM layout_intact();
ALTER TABLE layout ALTER a TYPE bigint, ALTER d TYPE text;
SELECT * FROM layout_intact();

-- Storage parameters, statistics targets, comments, owner, replica identity, cluster marker.
ALTER TABLE heavy SET (fillfactor = 70, autovacuum_enabled = off);
ALTER TABLE heavy ALTER b SET STATISTICS 10, ALTER b SET STORAGE EXTERNAL;
ALTER TABLE heavy RESET (fillfactor);
ALTER TABLE heavy REPLICA IDENTITY FULL;
COMMENT ON TABLE heavy IS 'heavy rows';
UPDATE heavy SET d = 'again';
SELECT count(*), sum(a) FROM heavy WHERE d = 'again';
SELECT reloptions FROM pg_class WHERE oid = 'heavy'::regclass;

-- Expression and generated columns follow a rewrite.
CREATE TABLE derived (a int, b int GENERATED ALWAYS AS (a * 2) STORED);
INSERT INTO derived SELECT generate_series(1, 5);
ALTER TABLE derived ADD c int GENERATED ALWAYS AS (a * 3) STORED;
ALTER TABLE derived ADD d serial;
SELECT a, b, c, d FROM derived ORDER BY a;
ALTER TABLE derived ALTER b DROP EXPRESSION;
UPDATE derived SET a = a + 1;
SELECT a, b, c FROM derived ORDER BY a;

-- A column default of a domain that has a constraint is checked in old rows.
CREATE DOMAIN small_int AS int CHECK (value < 10);
\set VERBOSITY sqlstate
ALTER TABLE derived ADD e small_int DEFAULT 50;
\set VERBOSITY default
ALTER TABLE derived ADD e small_int DEFAULT 5;
SELECT e, count(*) FROM derived GROUP BY e;
