-- Index-only scans give the rows the snapshot sees, whatever is known of the
-- visibility of whole pages.
CREATE SCHEMA index_only_scan;
SET search_path = index_only_scan, public;

CREATE TABLE reading (id int PRIMARY KEY, sensor int, value int) WITH (autovacuum_enabled = off);
CREATE INDEX reading_sensor ON reading (sensor, value);
INSERT INTO reading SELECT i, i % 20, i FROM generate_series(1, 5000) i;
CALL only_scan('indexonlyscan');
SELECT plan_has('SELECT sensor, value FROM reading WHERE sensor = 3', 'Index Only Scan');
SELECT count(*), sum(value) FROM reading WHERE sensor = 3;
VACUUM reading;
SELECT count(*), sum(value) FROM reading WHERE sensor = 3;
DELETE FROM reading WHERE id % 40 = 3;
SELECT count(*), sum(value) FROM reading WHERE sensor = 3;
INSERT INTO reading VALUES (10000, 3, 10000);
SELECT count(*), sum(value) FROM reading WHERE sensor = 3;
VACUUM reading;
SELECT count(*), sum(value) FROM reading WHERE sensor = 3;
BEGIN;
UPDATE reading SET value = value + 1 WHERE sensor = 3;
SELECT count(*), sum(value) FROM reading WHERE sensor = 3;
ROLLBACK;
SELECT count(*), sum(value) FROM reading WHERE sensor = 3;
BEGIN;
DELETE FROM reading WHERE sensor = 3;
SELECT count(*), sum(value) FROM reading WHERE sensor = 3;
SAVEPOINT s;
INSERT INTO reading VALUES (20000, 3, 5);
SELECT count(*), sum(value) FROM reading WHERE sensor = 3;
ROLLBACK TO s;
SELECT count(*), sum(value) FROM reading WHERE sensor = 3;
ROLLBACK;
SELECT count(*), sum(value) FROM reading WHERE sensor = 3;
SELECT sensor, value FROM reading WHERE sensor = 5 ORDER BY value LIMIT 3;
SELECT sensor, value FROM reading WHERE sensor = 5 ORDER BY value DESC LIMIT 3;
SELECT min(id), max(id), count(*) FROM reading WHERE id > 0;
UPDATE reading SET value = -value WHERE id <= 20;
SELECT min(value), max(value) FROM reading WHERE sensor = 7;
CALL only_scan('any');

-- An index-only scan within a cursor while rows behind it change.
VACUUM reading;
CALL only_scan('indexonlyscan');
BEGIN;
DECLARE c CURSOR FOR SELECT id FROM reading WHERE id BETWEEN 101 AND 106 ORDER BY id;
FETCH 2 FROM c;
DELETE FROM reading WHERE id BETWEEN 103 AND 104;
FETCH ALL FROM c;
SELECT id FROM reading WHERE id BETWEEN 101 AND 106 ORDER BY id;
ROLLBACK;

-- INCLUDE columns of wide and variable types come back from the index.
CREATE TABLE wide (id int, a text, b char(10), c name, d "char", e numeric);
INSERT INTO wide SELECT i, 'text ' || i, 'c' || i, 'n' || i, 'x', i / 4.0 FROM generate_series(1, 50) i;
CREATE UNIQUE INDEX ON wide (id) INCLUDE (a, b, c, d, e);
VACUUM wide;
SELECT plan_has('SELECT * FROM wide WHERE id = 7', 'Index Only Scan');
SELECT * FROM wide WHERE id IN (7, 8) ORDER BY id;
CALL only_scan('any');
