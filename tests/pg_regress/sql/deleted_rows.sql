-- Deleted rows can be read and brought back as long as their retention lasts. On heap there is
-- nothing to show: see deleted_rows_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
CREATE SCHEMA deleted_rows;
SET search_path = deleted_rows, public;
CREATE TABLE m (id int PRIMARY KEY, body text, big text, amount numeric, meta jsonb, twice int GENERATED ALWAYS AS (id * 2) STORED);
INSERT INTO m SELECT i, 'row ' || i, CASE WHEN i % 10 = 0 THEN noise(i, 20000) END, i * 1.50, jsonb_build_object('n', i) FROM generate_series(1, 100) i;
SHOW kalam.deleted_retention;
DELETE FROM m WHERE id <= 20;
SELECT count(*), count(DISTINCT xid), max(deleted_at) <= now() AS before_now FROM kalam.history('m');
SELECT deleted_row - 'big' AS deleted_row, length(deleted_row ->> 'big') FROM kalam.history('m') WHERE (deleted_row ->> 'id')::int IN (3, 10) ORDER BY 1;
SELECT id, body, amount, meta, twice, big = noise(id, 20000) AS big FROM kalam.history_of(NULL::m) WHERE id IN (3, 10) ORDER BY id;

-- An update, a rolled back deletion and TRUNCATE leave nothing.
UPDATE m SET body = 'new' WHERE id = 30;
BEGIN;
DELETE FROM m WHERE id = 31;
SAVEPOINT s;
DELETE FROM m WHERE id = 32;
SELECT count(*) FROM kalam.history('m');
ROLLBACK TO s;
SELECT count(*) FROM kalam.history('m');
ROLLBACK;
SELECT count(*) FROM kalam.history('m');
BEGIN;
SAVEPOINT s;
DELETE FROM m WHERE id = 33;
RELEASE s;
SAVEPOINT s;
DELETE FROM m WHERE id = 34;
ROLLBACK TO s;
DELETE FROM m WHERE id = 35;
COMMIT;
SELECT id FROM kalam.history_of(NULL::m) WHERE id > 30 ORDER BY id;

-- Back.
SELECT kalam.undelete('m', 3);
SELECT kalam.undelete('m', '10') ->> 'id' AS id;
SELECT id, body, amount, meta, twice, big = noise(id, 20000) AS big FROM m WHERE id IN (3, 10) ORDER BY id;
SELECT kalam.undelete('m', 3);
SELECT kalam.undelete('m', 1000);
SELECT kalam.undelete('m', 1, 2);
SELECT kalam.undelete('m', 'x');
-- The last one counts.
DELETE FROM m WHERE id = 3;
INSERT INTO m (id, body) VALUES (3, 'again');
DELETE FROM m WHERE id = 3;
SELECT kalam.undelete('m', 3) ->> 'body' AS body;

-- Triggers fire and constraints hold when a row comes back.
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE, n int GENERATED ALWAYS AS IDENTITY);
INSERT INTO parent VALUES (1), (2);
INSERT INTO child VALUES (1, 1), (2, 1), (3, 2);
DELETE FROM parent WHERE id = 1;
SELECT id, parent, n FROM kalam.history_of(NULL::child) ORDER BY id;
SELECT kalam.undelete('child', 1);
SELECT kalam.undelete('parent', 1), kalam.undelete('child', 1);
SELECT * FROM child ORDER BY id;

-- The table has changed since.
ALTER TABLE m DROP COLUMN body;
ALTER TABLE m ALTER COLUMN amount TYPE text;
ALTER TABLE m RENAME COLUMN meta TO info;
ALTER TABLE m ADD COLUMN late int DEFAULT 7;
SELECT * FROM kalam.history_of(NULL::m) WHERE id = 1;
SELECT kalam.undelete('m', 1);
SELECT * FROM m WHERE id = 1;
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE TABLE feelings (id int PRIMARY KEY, mood mood, tail text);
INSERT INTO feelings VALUES (1, 'good', 'tail');
DELETE FROM feelings;
ALTER TABLE feelings DROP COLUMN mood;
DROP TYPE mood;
SELECT * FROM kalam.history_of(NULL::feelings);
CREATE TABLE two (a int, b text, v int, PRIMARY KEY (b, a));
INSERT INTO two VALUES (1, 'x', 5);
DELETE FROM two;
SELECT kalam.undelete('two', 1, 'x');
SELECT kalam.undelete('two', 'x', 1);

-- Not kept: with retention 0, in temporary and unlogged tables, in tables of other access methods.
SET kalam.deleted_retention = 0;
DELETE FROM m WHERE id = 50;
RESET kalam.deleted_retention;
SELECT count(*) FROM kalam.history_of(NULL::m) WHERE id = 50;
CREATE TEMP TABLE t (id int) USING kalam_shared;
INSERT INTO t VALUES (1);
DELETE FROM t;
SELECT count(*) FROM kalam.history('t');
CREATE UNLOGGED TABLE u (id int) USING kalam_shared;
INSERT INTO u VALUES (1);
DELETE FROM u;
SELECT count(*) FROM kalam.history('u');
CREATE TABLE h (id int) USING heap;
SELECT kalam.history('h');
SELECT kalam.history_of(1);
SELECT kalam.undelete('u', 1);

-- A row that moves to another partition is not deleted.
CREATE TABLE p (id int, v int) PARTITION BY RANGE (id);
CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20);
INSERT INTO p VALUES (1, 1), (2, 2);
UPDATE p SET id = 11 WHERE id = 1;
DELETE FROM p WHERE id = 2;
SELECT tableoid::regclass, * FROM p;
SELECT * FROM kalam.history_of(NULL::p1);

-- Whoever may read the table may read its history; whoever may insert may bring rows back.
CREATE ROLE deleted_rows_reader;
GRANT USAGE ON SCHEMA deleted_rows TO deleted_rows_reader;
SET ROLE deleted_rows_reader;
SELECT kalam.history('two');
RESET ROLE;
GRANT SELECT ON two TO deleted_rows_reader;
SET ROLE deleted_rows_reader;
SELECT count(*) FROM kalam.history('two');
SELECT kalam.undelete('two', 'x', 1);
SELECT count(*) FROM kalam.deleted_rows;
RESET ROLE;
ALTER TABLE two ENABLE ROW LEVEL SECURITY;
SET ROLE deleted_rows_reader;
SELECT kalam.history('two');
RESET ROLE;
SELECT count(*) FROM kalam.history('two');
DROP OWNED BY deleted_rows_reader;
DROP ROLE deleted_rows_reader;

-- A row from before a column was added has nothing of it.
CREATE TABLE grown (id int PRIMARY KEY, body text);
INSERT INTO grown SELECT i, 'row ' || i FROM generate_series(1, 50) i;
ALTER TABLE grown ADD first int, ADD second text DEFAULT 'fast';
DELETE FROM grown;
SELECT count(*), count(DISTINCT deleted_row) FROM kalam.history('grown');
SELECT * FROM kalam.history_of(NULL::grown) WHERE id < 3 ORDER BY id;
SELECT kalam.undelete('grown', 1);
SELECT * FROM grown;

-- The retention ends.
CREATE FUNCTION erase(regclass, timestamptz, OUT rows bigint, OUT blocks bigint, OUT segments bigint, OUT left_out bigint, OUT gone bool)
    RETURNS SETOF record LANGUAGE c STRICT AS '$libdir/kalamdb', 'erase_inline_wrapper';
SELECT gone FROM erase('two', '2001-01-01');
SELECT count(*) FROM kalam.history('two');
SELECT gone FROM erase('two', 'infinity');
SELECT count(*) FROM kalam.history('two');
SELECT count(*) > 0 AS others_stay FROM kalam.history('m');

-- A dropped table takes its deleted rows along, those of the same transaction too.
CREATE TABLE dropped (id int PRIMARY KEY);
INSERT INTO dropped VALUES (1), (2), (3);
DELETE FROM dropped WHERE id = 1;
SELECT 'dropped'::regclass::oid AS dropped \gset
BEGIN;
DELETE FROM dropped WHERE id = 2;
SAVEPOINT s;
DROP TABLE dropped;
SELECT count(*) FROM kalam.deleted_rows WHERE relation = :dropped;
ROLLBACK TO s;
COMMIT;
SELECT count(*) FROM kalam.deleted_rows WHERE relation = :dropped;
BEGIN;
DELETE FROM dropped;
DROP TABLE dropped;
COMMIT;
SELECT count(*) FROM kalam.deleted_rows WHERE relation = :dropped;
-- The table changes between the start of a query and the moment when it asks.
CREATE TABLE changed (id int, a text);
INSERT INTO changed VALUES (1, '1311768467463790320');
DELETE FROM changed;
BEGIN;
DECLARE c CURSOR FOR SELECT * FROM kalam.history_of(NULL::changed);
ALTER TABLE changed ALTER a TYPE bigint USING 0;
FETCH ALL FROM c;
ROLLBACK;
BEGIN;
DECLARE c CURSOR FOR SELECT * FROM kalam.history_of(NULL::changed);
ALTER TABLE changed ADD b int;
FETCH ALL FROM c;
ROLLBACK;
SELECT id, a FROM kalam.history_of(NULL::changed);
DROP SCHEMA deleted_rows CASCADE;
