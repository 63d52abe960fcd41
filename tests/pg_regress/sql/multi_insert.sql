-- Statements that store many rows at a time.
CREATE SCHEMA multi_insert;
SET search_path = multi_insert, public;

CREATE TABLE many (id int PRIMARY KEY, grp int, body text);
INSERT INTO many VALUES (1, 1, 'a'), (2, 1, 'b'), (3, 2, NULL);
INSERT INTO many SELECT i, i % 7, repeat(chr(97 + i % 26), i % 120) FROM generate_series(4, 10000) i;
SELECT count(*), sum(id), sum(length(body)), count(DISTINCT grp) FROM many;
SELECT count(*) FROM many WHERE id > 3 AND body <> repeat(chr(97 + id % 26), id % 120);
SELECT check_indexes('many');

-- The whole statement fails or succeeds.
\set VERBOSITY sqlstate
INSERT INTO many SELECT i FROM generate_series(20000, 9990, -1) i;
INSERT INTO many VALUES (20001), (20002), (20001);
INSERT INTO many SELECT i, 1 / (20500 - i) FROM generate_series(20001, 21000) i;
\set VERBOSITY default
SELECT count(*), max(id) FROM many;
CALL only_scan('indexonlyscan');
SELECT count(*), max(id) FROM many WHERE id > 0;
CALL only_scan('any');
INSERT INTO many SELECT i FROM generate_series(10001, 20000) i;
SELECT count(*), max(id) FROM many;
SELECT check_indexes('many');

-- Rows of very different sizes in one statement, in rising and in falling order.
CREATE TABLE sizes (id int, body text);
INSERT INTO sizes SELECT i, noise(i, i * 10) FROM generate_series(0, 1500) i;
INSERT INTO sizes SELECT i, noise(i, i * 10) FROM generate_series(1500, 0, -1) i;
SELECT count(*), sum(length(body)), bool_and(body = noise(id, id * 10)) FROM sizes;

-- Several tables in turn within one transaction and one statement.
CREATE TABLE left_side (i int);
CREATE TABLE right_side (i int);
BEGIN;
DO $$
BEGIN
    FOR i IN 1..500 LOOP
        INSERT INTO left_side VALUES (i);
        INSERT INTO right_side SELECT i FROM generate_series(1, i % 5);
    END LOOP;
END $$;
WITH l AS (INSERT INTO left_side SELECT generate_series(501, 1000) RETURNING i)
INSERT INTO right_side SELECT i FROM l;
SELECT (SELECT count(*) FROM left_side), (SELECT count(*) FROM right_side), (SELECT sum(i) FROM left_side), (SELECT sum(i) FROM right_side);
ROLLBACK;
SELECT (SELECT count(*) FROM left_side), (SELECT count(*) FROM right_side);

-- Rows of an aborted bulk insert are gone for good; those after it are there.
CREATE TABLE bulk (i int, filler text);
BEGIN;
INSERT INTO bulk SELECT i, noise(i, 100) FROM generate_series(1, 3000) i;
ROLLBACK;
INSERT INTO bulk SELECT i, noise(i, 100) FROM generate_series(1, 10) i;
BEGIN;
INSERT INTO bulk SELECT i, noise(i, 100) FROM generate_series(11, 3000) i;
SAVEPOINT s;
INSERT INTO bulk SELECT i, noise(i, 100) FROM generate_series(3001, 6000) i;
ROLLBACK TO s;
INSERT INTO bulk SELECT i, noise(i, 100) FROM generate_series(3001, 3010) i;
COMMIT;
SELECT count(*), min(i), max(i), count(DISTINCT i), bool_and(filler = noise(i, 100)) FROM bulk;

-- Deleting most rows and filling up again.
DELETE FROM bulk WHERE i % 10 <> 0;
VACUUM bulk;
INSERT INTO bulk SELECT i, noise(i, 100) FROM generate_series(1, 3010) i WHERE i % 10 <> 0;
SELECT count(*), sum(i), bool_and(filler = noise(i, 100)) FROM bulk;

-- Rows for which no page with rows in it has the room that fillfactor keeps free.
SET statement_timeout = '60s';
CREATE TABLE roomy (id int, body text) WITH (fillfactor = 10);
ALTER TABLE roomy ALTER body SET STORAGE PLAIN;
INSERT INTO roomy VALUES (0, '');
INSERT INTO roomy SELECT i, repeat('x', 3600) FROM generate_series(1, 40) i;
INSERT INTO roomy VALUES (41, '');
UPDATE roomy SET body = repeat('y', 3700) WHERE id % 3 = 0;
DELETE FROM roomy WHERE id % 2 = 1;
VACUUM roomy;
INSERT INTO roomy SELECT i, repeat('z', 3600) FROM generate_series(100, 139) i;
SELECT count(*), sum(length(body)) FROM roomy;
RESET statement_timeout;
