-- Partial and expression indexes follow rows into and out of their condition.
CREATE SCHEMA partial_expression_index;
SET search_path = partial_expression_index, public;

CREATE TABLE task (id int PRIMARY KEY, state text, title text, data jsonb);
CREATE INDEX task_open ON task (id) WHERE state = 'open';
CREATE INDEX task_title ON task (lower(title));
CREATE INDEX task_data ON task ((data ->> 'owner')) WHERE data ? 'owner';
INSERT INTO task SELECT i, CASE WHEN i % 4 = 0 THEN 'open' ELSE 'done' END, 'Title ' || i % 100,
    CASE WHEN i % 2 = 0 THEN jsonb_build_object('owner', 'user ' || i % 10) ELSE '{}' END
FROM generate_series(1, 1000) i;
CALL only_scan('indexscan');
SELECT plan_has($$SELECT count(*) FROM task WHERE state = 'open' AND id < 100$$, 'task_open');
SELECT count(*), sum(id) FROM task WHERE state = 'open' AND id < 100;
SELECT plan_has($$SELECT count(*) FROM task WHERE lower(title) = 'title 42'$$, 'task_title');
SELECT count(*), sum(id) FROM task WHERE lower(title) = 'title 42';
SELECT plan_has($$SELECT count(*) FROM task WHERE data ->> 'owner' = 'user 4' AND data ? 'owner'$$, 'task_data');
SELECT count(*), sum(id) FROM task WHERE data ->> 'owner' = 'user 4' AND data ? 'owner';

-- In, out, in again, and changes that touch neither condition nor expression.
UPDATE task SET state = 'done' WHERE id = 4;
UPDATE task SET state = 'open' WHERE id = 5;
UPDATE task SET title = upper(title) WHERE id = 42;
UPDATE task SET data = data || '{"owner": "user 99"}' WHERE id = 7;
UPDATE task SET data = data - 'owner' WHERE id = 14;
SELECT id FROM task WHERE state = 'open' AND id < 12 ORDER BY id;
SELECT id FROM task WHERE lower(title) = 'title 42' AND id < 200 ORDER BY id;
SELECT id FROM task WHERE data ->> 'owner' = 'user 99' AND data ? 'owner';
SELECT count(*) FROM task WHERE data ->> 'owner' = 'user 4' AND data ? 'owner';
UPDATE task SET state = 'open' WHERE id = 4;
UPDATE task SET state = 'done' WHERE id = 4;
UPDATE task SET state = 'open' WHERE id = 4;
DELETE FROM task WHERE id = 8;
SELECT id FROM task WHERE state = 'open' AND id < 12 ORDER BY id;
BEGIN;
UPDATE task SET state = 'done';
SELECT count(*) FROM task WHERE state = 'open' AND id > 0;
ROLLBACK;
SELECT count(*) FROM task WHERE state = 'open' AND id > 0;
CALL only_scan('any');
SELECT check_indexes('task');

-- Built over existing rows.
CREATE INDEX task_late ON task (title) WHERE id > 900;
CREATE INDEX task_length ON task (length(title), (id % 7));
CALL only_scan('indexscan');
SELECT count(*) FROM task WHERE title LIKE 'Title %' AND id > 900;
SELECT count(*) FROM task WHERE length(title) = 7 AND id % 7 = 3;
CALL only_scan('seqscan');
SELECT count(*) FROM task WHERE length(title) = 7 AND id % 7 = 3;
CALL only_scan('any');

-- A unique key that holds among some rows only.
CREATE UNIQUE INDEX one_current ON task ((data ->> 'slot')) WHERE state = 'current';
UPDATE task SET state = 'current', data = '{"slot": "A"}' WHERE id = 20;
\set VERBOSITY sqlstate
UPDATE task SET state = 'current', data = '{"slot": "A"}' WHERE id = 21;
\set VERBOSITY default
UPDATE task SET data = '{"slot": "A"}' WHERE id = 21;
UPDATE task SET state = 'past' WHERE id = 20;
UPDATE task SET state = 'current' WHERE id = 21;
SELECT id, state FROM task WHERE data ->> 'slot' = 'A' ORDER BY id;

-- Errors from the expression stop the row and the build.
CREATE TABLE divided (id int, d int);
CREATE INDEX divided_index ON divided ((100 / d));
\set VERBOSITY sqlstate
INSERT INTO divided VALUES (1, 5), (2, 0);
\set VERBOSITY default
INSERT INTO divided VALUES (1, 5);
SELECT count(*) FROM divided;
DROP INDEX divided_index;
INSERT INTO divided VALUES (2, 0);
\set VERBOSITY sqlstate
CREATE INDEX divided_index ON divided ((100 / d));
\set VERBOSITY default
-- The error says where it comes from.
CREATE FUNCTION divide(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN 100 / $1; END';
CREATE INDEX divided_index ON divided (divide(d));
CREATE INDEX divided_index ON divided (id) WHERE divide(d) > 0;
TRUNCATE divided;
INSERT INTO divided VALUES (1, 5), (3, 7);
CREATE INDEX divided_index ON divided ((100 / d));
SELECT check_indexes('divided');

-- The whole row in an expression.
CREATE FUNCTION row_size(task) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT length($1.title) + $1.id';
CREATE INDEX task_row ON task (row_size(task));
CALL only_scan('indexscan');
SELECT id FROM task WHERE row_size(task) = 508;
CALL only_scan('any');
