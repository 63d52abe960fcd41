-- Errors of an owner's commands that read the rows of all users do not say what is in them.
CREATE SCHEMA hostile_errors;
CREATE ROLE regress_errors_owner;
GRANT ALL ON SCHEMA hostile_errors TO regress_errors_owner;
GRANT SET ON PARAMETER kalam.user_id TO regress_errors_owner;
SET search_path = hostile_errors, public;
SET ROLE regress_errors_owner;
CREATE TABLE pair (a int, b text, span int4range) USING kalam_user;
CREATE TABLE place (id int PRIMARY KEY) USING kalam_shared;
SET kalam.user_id = 'ann';
INSERT INTO pair VALUES (1, 'secret', '[1,5)'), (1, 'secret', '[2,6)'), (2, 'other', '[7,8)');
SET kalam.user_id = 'eve';
CREATE UNIQUE INDEX ON pair (b);
CREATE UNIQUE INDEX CONCURRENTLY pair_later ON pair (b);
DROP INDEX pair_later;
ALTER TABLE pair ADD PRIMARY KEY (a);
ALTER TABLE pair ADD EXCLUDE USING btree (b WITH =);
ALTER TABLE pair ADD FOREIGN KEY (a) REFERENCES place;
ALTER TABLE pair ADD CONSTRAINT later FOREIGN KEY (a) REFERENCES place NOT VALID;
ALTER TABLE pair VALIDATE CONSTRAINT later;
ALTER TABLE pair DROP CONSTRAINT later;
-- With workers that build the index together.
SET max_parallel_maintenance_workers = 2;
SET min_parallel_table_scan_size = 0;
CREATE UNIQUE INDEX ON pair (b, span, a);
-- The leader meets the row, or a worker.
\set SHOW_CONTEXT never
CREATE UNIQUE INDEX ON pair (b);
\set SHOW_CONTEXT errors
RESET max_parallel_maintenance_workers;
-- What the same command meets in other tables is told.
CREATE TABLE plain (a int) USING kalam_shared;
INSERT INTO plain VALUES (1), (1);
CREATE UNIQUE INDEX ON plain (a);
ALTER TABLE plain ADD FOREIGN KEY (a) REFERENCES place;
-- A query below a command is the user's own.
CREATE TABLE own (id int PRIMARY KEY) USING kalam_user;
INSERT INTO own VALUES (1);
CREATE FUNCTION insert_own(int) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO hostile_errors.own VALUES (1);
    RETURN 1;
END $$;
ALTER TABLE pair ADD CHECK (insert_own(a) > 0);
INSERT INTO own VALUES (1);
-- A foreign key would tell of the rows of somebody else's table: whether they are there, and what becomes of them.
RESET ROLE;
CREATE ROLE regress_errors_mallory;
GRANT ALL ON SCHEMA hostile_errors TO regress_errors_mallory;
SET ROLE regress_errors_owner;
CREATE TABLE letter (id int PRIMARY KEY, code text, UNIQUE (code)) USING kalam_user;
GRANT REFERENCES ON letter TO regress_errors_mallory;
SET kalam.user_id = 'ann';
INSERT INTO letter VALUES (1, 'pin 4711');
SET ROLE regress_errors_mallory;
CREATE TABLE planted (code text, _user_id text) USING heap;
INSERT INTO planted VALUES ('pin 4711', 'ann');
ALTER TABLE planted SET ACCESS METHOD kalam_user;
ALTER TABLE planted ADD FOREIGN KEY (_user_id, code) REFERENCES letter (_user_id, code) ON UPDATE CASCADE;
CREATE TABLE refers (id int, FOREIGN KEY (_user_id, id) REFERENCES letter) USING kalam_user;
CREATE TABLE refers (id int, _user_id text COLLATE "C", FOREIGN KEY (_user_id, id) REFERENCES letter) PARTITION BY LIST (id);
RESET ROLE;
-- What EXPLAIN counts of an index in which users are mixed would tell whether others have a value.
CREATE TABLE tagged (id int, tags int[], at point) USING kalam_user;
CREATE INDEX ON tagged USING gin (tags) WITH (fastupdate = off);
CREATE INDEX ON tagged USING gist (at);
CREATE FUNCTION counts(statement text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    line text;
BEGIN
    FOR line IN EXECUTE 'EXPLAIN (ANALYZE, BUFFERS, WAL, COSTS OFF, TIMING OFF, SUMMARY OFF) ' || statement LOOP
        EXIT WHEN line ~ 'Planning:|KalamDB';
        IF line ~ 'Scan|Insert|Buffers|WAL' THEN RETURN NEXT regexp_replace(line, '=\d+', '=N', 'g'); END IF;
    END LOOP;
END $$;
SET kalam.user_id = 'ann';
INSERT INTO tagged SELECT i, ARRAY[i, 7], point(i, i) FROM generate_series(1, 500) i;
SET kalam.user_id = 'eve';
SET enable_seqscan = off;
SELECT counts('SELECT * FROM tagged WHERE at <@ box ''(90,90),(900,900)''');
SELECT counts('SELECT * FROM tagged WHERE tags @> ARRAY[7]');
SELECT counts('INSERT INTO tagged VALUES (1, ARRAY[7], point(1, 1))');
SELECT counts('SELECT id FROM letter WHERE id = 1');
RESET enable_seqscan;
-- The user of a row is never set to NULL.
CREATE TABLE person (name text COLLATE "C" PRIMARY KEY) USING kalam_shared;
CREATE TABLE of_person (id int, FOREIGN KEY (_user_id) REFERENCES person ON DELETE SET NULL) USING kalam_user;
SET ROLE regress_errors_owner;
SET kalam.user_id = 'eve';
-- Who may see all rows is told.
RESET ROLE;
CREATE UNIQUE INDEX ON pair (b);
SET row_security = off;
CREATE UNIQUE INDEX ON pair (b);
ALTER TABLE pair ADD FOREIGN KEY (a) REFERENCES place;
RESET row_security;
SET client_min_messages = warning;
DROP SCHEMA hostile_errors CASCADE;
DROP OWNED BY regress_errors_owner, regress_errors_mallory;
DROP ROLE regress_errors_owner, regress_errors_mallory;
