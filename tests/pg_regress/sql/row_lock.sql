-- SELECT ... FOR UPDATE and its weaker forms within one session. What others
-- see of it is in the isolation tests.
CREATE SCHEMA row_lock;
SET search_path = row_lock, public;

CREATE TABLE job (id int PRIMARY KEY, state text, v text);
INSERT INTO job SELECT i, 'new', noise(i, 50) FROM generate_series(1, 20) i;
BEGIN;
SELECT id, state FROM job WHERE id <= 3 ORDER BY id FOR UPDATE;
SELECT id FROM job WHERE id = 4 FOR NO KEY UPDATE;
SELECT id FROM job WHERE id = 5 FOR SHARE;
SELECT id FROM job WHERE id = 6 FOR KEY SHARE;
UPDATE job SET state = 'locked' WHERE id <= 6;
SELECT id, state FROM job WHERE id <= 7 ORDER BY id FOR UPDATE;
DELETE FROM job WHERE id = 1;
SELECT count(*) FROM (SELECT 1 FROM job FOR UPDATE) x;
COMMIT;
SELECT id, state FROM job WHERE id <= 7 ORDER BY id;

-- Locks grow stronger and are given up with their savepoint.
BEGIN;
SELECT id FROM job WHERE id = 10 FOR KEY SHARE;
SAVEPOINT a;
SELECT id FROM job WHERE id = 10 FOR SHARE;
SAVEPOINT b;
SELECT id FROM job WHERE id = 10 FOR UPDATE;
UPDATE job SET state = 'b' WHERE id = 10;
ROLLBACK TO b;
SELECT state FROM job WHERE id = 10 FOR NO KEY UPDATE;
ROLLBACK TO a;
SELECT state FROM job WHERE id = 10 FOR UPDATE;
UPDATE job SET state = 'c' WHERE id = 10;
SELECT state FROM job WHERE id = 10 FOR SHARE;
COMMIT;
SELECT state FROM job WHERE id = 10;

-- Locks and changes of one row in turn, many times.
BEGIN;
DO $$
BEGIN
    FOR i IN 1..100 LOOP
        PERFORM FROM row_lock.job WHERE id = 11 FOR KEY SHARE;
        PERFORM FROM row_lock.job WHERE id = 11 FOR UPDATE;
        UPDATE row_lock.job SET state = 's' || i WHERE id = 11;
        BEGIN
            PERFORM FROM row_lock.job WHERE id = 11 FOR SHARE;
            UPDATE row_lock.job SET state = 'undone' WHERE id = 11;
            RAISE EXCEPTION 'undo';
        EXCEPTION WHEN raise_exception THEN
            NULL;
        END;
    END LOOP;
END $$;
SELECT id, state FROM job WHERE id = 11 FOR UPDATE;
COMMIT;
SELECT id, state FROM job WHERE id = 11;

-- NOWAIT and SKIP LOCKED with nobody else about; joins, OF, subqueries, LIMIT, CTEs, order.
SELECT id FROM job WHERE id = 12 FOR UPDATE NOWAIT;
SELECT id FROM job WHERE state = 'new' ORDER BY id LIMIT 2 FOR UPDATE SKIP LOCKED;
SELECT a.id, b.id FROM job a JOIN job b ON b.id = a.id + 1 WHERE a.id = 15 FOR UPDATE OF a FOR SHARE OF b;
SELECT a.id, b.id FROM job a LEFT JOIN job b ON b.id = a.id + 100 WHERE a.id = 15 FOR UPDATE OF a;
SELECT * FROM (SELECT id FROM job WHERE id < 5 FOR SHARE) x ORDER BY id;
WITH picked AS (SELECT id FROM job WHERE state = 'new' ORDER BY id LIMIT 3 FOR UPDATE SKIP LOCKED)
UPDATE job SET state = 'taken' FROM picked WHERE job.id = picked.id RETURNING job.id;
SELECT id FROM job WHERE id BETWEEN 8 AND 12 ORDER BY id DESC OFFSET 1 LIMIT 2 FOR UPDATE;
CALL only_scan('indexscan');
SELECT id, length(v) FROM job WHERE id BETWEEN 15 AND 16 ORDER BY id FOR UPDATE;
CALL only_scan('bitmapscan');
SELECT id, length(v) FROM job WHERE id BETWEEN 15 AND 16 ORDER BY id FOR SHARE;
CALL only_scan('any');
\set VERBOSITY sqlstate
SELECT count(*) FROM job FOR UPDATE;
SELECT id FROM job GROUP BY id FOR UPDATE;
BEGIN READ ONLY;
SELECT id FROM job FOR UPDATE;
ROLLBACK;
\set VERBOSITY default

-- A cursor that locks, a lock at every isolation level, and after a rollback.
BEGIN;
DECLARE c CURSOR FOR SELECT id FROM job ORDER BY id FOR UPDATE;
FETCH 2 FROM c;
COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT id FROM job WHERE id = 15 FOR UPDATE;
UPDATE job SET state = 'rr' WHERE id = 15;
SELECT id, state FROM job WHERE id = 15 FOR UPDATE;
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT id, state FROM job WHERE id = 15 FOR SHARE;
UPDATE job SET state = 'serial' WHERE id = 15;
COMMIT;
SELECT id, state FROM job WHERE id = 15;

-- Rows with values kept elsewhere.
CREATE TABLE heavy (id int PRIMARY KEY, v text, n int DEFAULT 0);
ALTER TABLE heavy ALTER v SET STORAGE EXTERNAL;
INSERT INTO heavy SELECT i, noise(i, 30000) FROM generate_series(1, 3) i;
BEGIN;
SELECT id, v = noise(id, 30000) AS intact FROM heavy ORDER BY id FOR UPDATE;
UPDATE heavy SET n = 1;
SELECT id, v = noise(id, 30000) AS intact FROM heavy ORDER BY id FOR SHARE;
COMMIT;

-- Advisory: a thousand locked rows, then vacuumed.
CREATE TABLE many (id int PRIMARY KEY) WITH (autovacuum_enabled = off);
INSERT INTO many SELECT generate_series(1, 1000);
BEGIN;
SELECT count(*) FROM (SELECT id FROM many FOR UPDATE) x;
COMMIT;
BEGIN;
SELECT count(*) FROM (SELECT id FROM many FOR KEY SHARE) x;
ROLLBACK;
VACUUM (FREEZE) many;
SELECT count(*), sum(id) FROM many;
UPDATE many SET id = -id;
SELECT count(*), sum(id) FROM many;
