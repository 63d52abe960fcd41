-- TABLESAMPLE takes the rows it should, and the same ones when repeated.
CREATE SCHEMA table_sample;
SET search_path = table_sample, public;

CREATE TABLE event (id int, v text);
INSERT INTO event SELECT i, 'event ' || i FROM generate_series(1, 20000) i;
SELECT count(*) FROM event TABLESAMPLE SYSTEM (100);
SELECT count(*) FROM event TABLESAMPLE BERNOULLI (100);
SELECT count(*) FROM event TABLESAMPLE SYSTEM (0);
SELECT count(*) FROM event TABLESAMPLE BERNOULLI (0);
SELECT count(*) BETWEEN 9000 AND 11000 AS half FROM event TABLESAMPLE BERNOULLI (50) REPEATABLE (1);
SELECT count(*) BETWEEN 1 AND 19999 AS some FROM event TABLESAMPLE SYSTEM (50) REPEATABLE (1);
SELECT (SELECT md5(string_agg(id::text, ',' ORDER BY id)) FROM event TABLESAMPLE BERNOULLI (10) REPEATABLE (7))
     = (SELECT md5(string_agg(id::text, ',' ORDER BY id)) FROM event TABLESAMPLE BERNOULLI (10) REPEATABLE (7)) AS same;
SELECT (SELECT md5(string_agg(id::text, ',' ORDER BY id)) FROM event TABLESAMPLE SYSTEM (30) REPEATABLE (7))
     = (SELECT md5(string_agg(id::text, ',' ORDER BY id)) FROM event TABLESAMPLE SYSTEM (30) REPEATABLE (7)) AS same;
SELECT count(*) - count(DISTINCT id) AS twice FROM event TABLESAMPLE SYSTEM (60);

-- Only live rows are sampled.
DELETE FROM event WHERE id % 2 = 0;
UPDATE event SET v = 'changed' WHERE id <= 1000;
SELECT count(*), count(*) FILTER (WHERE v = 'changed') FROM event TABLESAMPLE SYSTEM (100);
SELECT count(*), count(*) FILTER (WHERE v = 'changed') FROM event TABLESAMPLE BERNOULLI (100);
BEGIN;
INSERT INTO event VALUES (-1, 'own');
SELECT count(*) FROM event TABLESAMPLE BERNOULLI (100) WHERE id = -1;
ROLLBACK;

-- In joins, and again for each row of another table.
SELECT count(*) FROM event a TABLESAMPLE BERNOULLI (100) JOIN event b TABLESAMPLE SYSTEM (100) USING (id);
SELECT g, (SELECT count(*) FROM event TABLESAMPLE BERNOULLI (g * 50) REPEATABLE (0)) > 0 AS some FROM generate_series(0, 2) g;
\set VERBOSITY sqlstate
SELECT count(*) FROM event TABLESAMPLE SYSTEM (101);
SELECT count(*) FROM event TABLESAMPLE SYSTEM (-1);
\set VERBOSITY default
CREATE TABLE empty (i int);
SELECT count(*) FROM empty TABLESAMPLE SYSTEM (50);
