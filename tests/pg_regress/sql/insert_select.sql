-- INSERT and SELECT: what goes in comes out, within and across transactions.
CREATE SCHEMA insert_select;
SET search_path = insert_select, public;

CREATE TABLE empty_table (a int);
SELECT count(*) FROM empty_table;
SELECT * FROM empty_table;

CREATE TABLE no_columns ();
INSERT INTO no_columns DEFAULT VALUES;
INSERT INTO no_columns DEFAULT VALUES;
SELECT count(*) FROM no_columns;
SELECT FROM no_columns;
DROP TABLE no_columns;

CREATE TABLE room (
    id int,
    name text,
    topic text DEFAULT 'none',
    created timestamptz DEFAULT '2024-01-01 00:00:00+00'
);
INSERT INTO room (id, name) VALUES (1, 'lobby');
INSERT INTO room VALUES (2, 'garden', NULL, NULL);
INSERT INTO room (name, id) VALUES ('attic', 3), ('cellar', 4);
INSERT INTO room DEFAULT VALUES;
SELECT id, name, topic, created AT TIME ZONE 'UTC' AS created FROM room ORDER BY id;
SELECT name FROM room WHERE id = 3;
SELECT count(*), count(id), sum(id), min(name), max(name) FROM room;

-- RETURNING sees the stored row.
INSERT INTO room (id, name) VALUES (5, 'roof') RETURNING *, id * 10 AS tenfold, tableoid::regclass;
INSERT INTO room SELECT id + 100, upper(name) FROM room WHERE id < 3 RETURNING id, name, topic;

-- Too many and unknown columns.
\set VERBOSITY sqlstate
INSERT INTO room VALUES (1, 'a', 'b', now(), 5);
INSERT INTO room (nothing) VALUES (1);
INSERT INTO room (id) VALUES ('x');
\set VERBOSITY default

-- A statement does not see the rows it inserts.
CREATE TABLE doubling (n int);
INSERT INTO doubling VALUES (1);
INSERT INTO doubling SELECT n + 1 FROM doubling;
INSERT INTO doubling SELECT n + 2 FROM doubling;
INSERT INTO doubling SELECT n + 4 FROM doubling;
INSERT INTO doubling SELECT n + 8 FROM doubling;
SELECT count(*), sum(n), count(DISTINCT n) FROM doubling;

-- The next statement of the same transaction does.
BEGIN;
INSERT INTO doubling VALUES (1000);
SELECT count(*) FROM doubling;
INSERT INTO doubling VALUES (1001);
SELECT max(n) FROM doubling;
COMMIT;
SELECT count(*), max(n) FROM doubling;

-- A volatile function sees the command's earlier rows only through its own snapshot.
CREATE TABLE seen (i int, volatile_count bigint, stable_count bigint);
CREATE FUNCTION counted() RETURNS bigint LANGUAGE sql VOLATILE AS 'SELECT count(*) FROM insert_select.seen';
CREATE FUNCTION counted_stable() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT count(*) FROM insert_select.seen';
INSERT INTO seen SELECT i, counted(), counted_stable() FROM generate_series(1, 4) i;
INSERT INTO seen SELECT i, counted(), counted_stable() FROM generate_series(5, 6) i;
SELECT * FROM seen ORDER BY i;

-- Data-modifying WITH: all parts share one snapshot.
CREATE TABLE source (i int);
CREATE TABLE target (i int);
INSERT INTO source SELECT generate_series(1, 10);
WITH moved AS (DELETE FROM source WHERE i % 2 = 0 RETURNING i),
     stored AS (INSERT INTO target SELECT i FROM moved RETURNING i)
SELECT (SELECT count(*) FROM source) AS source_before,
       (SELECT count(*) FROM target) AS target_before,
       (SELECT sum(i) FROM stored) AS stored;
SELECT (SELECT sum(i) FROM source) AS source, (SELECT sum(i) FROM target) AS target;

-- Constraints that are not keys.
CREATE TABLE checked (a int NOT NULL, b int CHECK (b > 0), CHECK (a < b));
INSERT INTO checked VALUES (1, 2);
\set VERBOSITY sqlstate
INSERT INTO checked VALUES (NULL, 2);
INSERT INTO checked VALUES (1, 0);
INSERT INTO checked VALUES (3, 2);
INSERT INTO checked SELECT i, 50 FROM generate_series(1, 100) i;
\set VERBOSITY default
SELECT * FROM checked;

-- More rows than fit on a few pages; joins, grouping, windows, set operations.
CREATE TABLE message (id int, conversation int, body text);
INSERT INTO message SELECT i, i % 100, 'message ' || i FROM generate_series(1, 20000) i;
SELECT count(*), sum(id), min(id), max(id), count(DISTINCT conversation) FROM message;
SELECT md5(string_agg(body, ',' ORDER BY id)) FROM message;
SELECT conversation, count(*), sum(id) FROM message GROUP BY conversation ORDER BY conversation LIMIT 5;
SELECT a.id, b.id FROM message a JOIN message b ON b.id = a.id + 19990 ORDER BY a.id;
SELECT id, row_number() OVER (PARTITION BY conversation ORDER BY id DESC)
FROM message WHERE conversation = 7 ORDER BY id DESC LIMIT 3;
SELECT count(*) FROM (SELECT id FROM message EXCEPT SELECT id FROM message WHERE id > 10) x;
SELECT count(*) FROM message WHERE body LIKE '%99';
SELECT id FROM message ORDER BY body COLLATE "C" DESC LIMIT 3;
SELECT (SELECT max(id) FROM message m WHERE m.conversation = c) FROM generate_series(1, 3) c;
-- A scan that stops early and a scan that is repeated.
SELECT count(*) FROM (SELECT 1 FROM message LIMIT 5000) x;
SET enable_material = off;
SET enable_hashjoin = off;
SET enable_mergejoin = off;
SELECT count(*), sum(m.id) FROM generate_series(1, 5) g LEFT JOIN message m ON m.id > 19995 + g;
RESET enable_material;
RESET enable_hashjoin;
RESET enable_mergejoin;
