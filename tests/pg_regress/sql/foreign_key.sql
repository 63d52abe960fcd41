-- Foreign keys with the table on either side.
CREATE SCHEMA foreign_key;
SET search_path = foreign_key, public;

CREATE TABLE room (id int PRIMARY KEY, name text UNIQUE);
CREATE TABLE message (
    id int PRIMARY KEY,
    room int NOT NULL REFERENCES room,
    reply_to int REFERENCES message DEFERRABLE,
    topic text REFERENCES room (name) ON UPDATE CASCADE ON DELETE SET NULL
);
CREATE INDEX ON message (room);
INSERT INTO room VALUES (1, 'one'), (2, 'two'), (3, 'three');
INSERT INTO message SELECT i, i % 3 + 1, CASE WHEN i > 1 THEN i - 1 END, CASE i % 3 WHEN 0 THEN 'one' WHEN 1 THEN 'two' END FROM generate_series(1, 30) i;
INSERT INTO message VALUES (31, 9);
UPDATE message SET room = 9 WHERE id = 1;
DELETE FROM room WHERE id = 1;
UPDATE room SET id = 10 WHERE id = 1;
UPDATE room SET name = 'uno' WHERE id = 1;
SELECT topic, count(*) FROM message GROUP BY topic ORDER BY topic;
UPDATE message SET room = 3 WHERE room = 2;
DELETE FROM room WHERE id = 2;
SELECT topic, count(*) FROM message GROUP BY topic ORDER BY topic;
DELETE FROM message WHERE id = 10;
DELETE FROM message WHERE id = 30;
UPDATE room SET id = 1, name = 'uno' WHERE id = 1;
SELECT count(*) FROM message;

-- The parent row comes and goes in the same transaction.
BEGIN;
INSERT INTO room VALUES (4, 'four');
INSERT INTO message VALUES (40, 4);
SAVEPOINT s;
DELETE FROM message WHERE id = 40;
DELETE FROM room WHERE id = 4;
\set VERBOSITY sqlstate
INSERT INTO message VALUES (40, 4);
\set VERBOSITY default
ROLLBACK TO s;
SELECT room FROM message WHERE id = 40;
ROLLBACK;
\set VERBOSITY sqlstate
INSERT INTO message VALUES (40, 4);
\set VERBOSITY default

-- Deferred: checked at the end.
BEGIN;
SET CONSTRAINTS ALL DEFERRED;
INSERT INTO message VALUES (50, 1, 51);
INSERT INTO message VALUES (51, 1, 50);
COMMIT;
\set VERBOSITY sqlstate
BEGIN;
SET CONSTRAINTS ALL DEFERRED;
INSERT INTO message VALUES (60, 1, 61);
SELECT reply_to FROM message WHERE id = 60;
COMMIT;
\set VERBOSITY default
SELECT count(*) FROM message WHERE id = 60;

-- Every action.
CREATE TABLE parent (a int, b int, PRIMARY KEY (a, b));
CREATE TABLE cascading (id int, a int, b int, FOREIGN KEY (a, b) REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE nulling (id int, a int, b int, FOREIGN KEY (a, b) REFERENCES parent ON DELETE SET NULL (b) ON UPDATE SET NULL);
CREATE TABLE defaulting (id int, a int DEFAULT 0, b int DEFAULT 0, FOREIGN KEY (a, b) REFERENCES parent ON DELETE SET DEFAULT ON UPDATE SET DEFAULT);
CREATE TABLE restricting (id int, a int, b int, FOREIGN KEY (a, b) REFERENCES parent ON DELETE RESTRICT ON UPDATE RESTRICT);
INSERT INTO parent SELECT i, i FROM generate_series(0, 9) i;
INSERT INTO cascading SELECT i, i % 10, i % 10 FROM generate_series(1, 100) i;
INSERT INTO nulling SELECT i, 1 + i % 5, 1 + i % 5 FROM generate_series(1, 10) i;
INSERT INTO defaulting SELECT i, 1 + i % 5, 1 + i % 5 FROM generate_series(1, 10) i;
INSERT INTO restricting VALUES (1, 9, 9), (2, NULL, 5), (3, 77, NULL);
DELETE FROM parent WHERE a = 1;
UPDATE parent SET b = 22 WHERE a = 2;
SELECT count(*), count(*) FILTER (WHERE b = 22) FROM cascading;
SELECT a, b, count(*) FROM nulling GROUP BY a, b ORDER BY a, b;
SELECT a, b, count(*) FROM defaulting GROUP BY a, b ORDER BY a, b;
\set VERBOSITY sqlstate
DELETE FROM parent WHERE a = 9;
UPDATE parent SET b = 99 WHERE a = 9;
DELETE FROM parent;
INSERT INTO cascading VALUES (0, 5, 6);
ALTER TABLE restricting ADD FOREIGN KEY (id) REFERENCES room;
\set VERBOSITY default
DELETE FROM restricting;
BEGIN;
UPDATE parent SET a = a + 100 WHERE a > 2;
SELECT count(*), min(a), max(a) FROM cascading WHERE a >= 100;
ROLLBACK;
DELETE FROM parent WHERE a > 0;
SELECT count(*), sum(a) FROM cascading;
SELECT a, b, count(*) FROM defaulting GROUP BY a, b ORDER BY a, b;

-- NOT VALID and VALIDATE; a mix with heap on either side.
CREATE TABLE heap_parent (id int PRIMARY KEY) USING heap;
CREATE TABLE heap_child (id int REFERENCES room ON DELETE CASCADE) USING heap;
CREATE TABLE child (id int REFERENCES heap_parent ON DELETE CASCADE);
INSERT INTO heap_parent VALUES (1), (2);
INSERT INTO child VALUES (1), (2), (2);
INSERT INTO heap_child VALUES (3), (3);
\set VERBOSITY sqlstate
INSERT INTO child VALUES (3);
INSERT INTO heap_child VALUES (4);
\set VERBOSITY default
DELETE FROM heap_parent WHERE id = 2;
SELECT * FROM child;
ALTER TABLE child DROP CONSTRAINT child_id_fkey;
INSERT INTO child VALUES (5);
ALTER TABLE child ADD CONSTRAINT again FOREIGN KEY (id) REFERENCES heap_parent NOT VALID;
\set VERBOSITY sqlstate
ALTER TABLE child VALIDATE CONSTRAINT again;
DELETE FROM room WHERE id = 3;
\set VERBOSITY default
INSERT INTO heap_parent VALUES (5);
ALTER TABLE child VALIDATE CONSTRAINT again;
UPDATE message SET room = 1;
DELETE FROM room WHERE id = 3;
SELECT count(*) FROM heap_child;

-- MATCH FULL, and references into the table itself while whole statements shift it.
CREATE TABLE full_match (a int, b int, FOREIGN KEY (a, b) REFERENCES parent MATCH FULL);
INSERT INTO full_match VALUES (NULL, NULL), (0, 0);
\set VERBOSITY sqlstate
INSERT INTO full_match VALUES (0, NULL);
\set VERBOSITY default
CREATE TABLE tree (id int PRIMARY KEY, up int REFERENCES tree ON DELETE CASCADE ON UPDATE CASCADE);
INSERT INTO tree SELECT i, NULLIF(i / 2, 0) FROM generate_series(1, 127) i;
UPDATE tree SET id = id + 1000;
SELECT count(*), min(up), max(up) FROM tree;
DELETE FROM tree WHERE id = 1002;
SELECT count(*) FROM tree;
DELETE FROM tree;
SELECT count(*) FROM tree;
