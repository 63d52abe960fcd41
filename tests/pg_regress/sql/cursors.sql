-- Cursors: forwards, backwards, held over the transaction, for update.
CREATE SCHEMA cursors;
SET search_path = cursors, public;

CREATE TABLE line (id int PRIMARY KEY, body text);
INSERT INTO line SELECT i, 'line ' || i FROM generate_series(1, 1000) i;

-- Over a sequential scan.
BEGIN;
CALL only_scan('seqscan');
DECLARE c SCROLL CURSOR FOR SELECT id FROM line;
FETCH FIRST FROM c;
FETCH 3 FROM c;
FETCH BACKWARD 2 FROM c;
FETCH LAST FROM c;
FETCH NEXT FROM c;
FETCH PRIOR FROM c;
FETCH ABSOLUTE 500 FROM c;
FETCH RELATIVE -250 FROM c;
FETCH ABSOLUTE -1 FROM c;
FETCH RELATIVE 0 FROM c;
MOVE ABSOLUTE 0 IN c;
FETCH PRIOR FROM c;
FETCH NEXT FROM c;
MOVE FORWARD ALL IN c;
FETCH BACKWARD 3 FROM c;
CLOSE c;
CALL only_scan('any');
COMMIT;

-- Over an index scan, both directions.
BEGIN;
CALL only_scan('indexscan');
DECLARE c SCROLL CURSOR FOR SELECT id, body FROM line WHERE id > 10 ORDER BY id;
DECLARE d SCROLL CURSOR FOR SELECT id FROM line WHERE id < 990 ORDER BY id DESC;
FETCH 2 FROM c;
FETCH 2 FROM d;
FETCH LAST FROM c;
FETCH LAST FROM d;
FETCH BACKWARD 2 FROM c;
FETCH BACKWARD 2 FROM d;
FETCH ABSOLUTE 5 FROM c;
CALL only_scan('any');
COMMIT;

-- A cursor sees what was there when it was opened, and nothing later, not
-- even changes of its own transaction.
BEGIN;
DECLARE c CURSOR FOR SELECT * FROM line WHERE id <= 6 OR id > 1000 ORDER BY id;
FETCH 2 FROM c;
UPDATE line SET body = 'changed' WHERE id IN (2, 3, 4);
DELETE FROM line WHERE id = 5;
INSERT INTO line VALUES (1001, 'new');
FETCH ALL FROM c;
SELECT * FROM line WHERE id <= 6 OR id > 1000 ORDER BY id;
ROLLBACK;

-- An unsorted cursor over all pages while the table grows under it.
BEGIN;
DECLARE c NO SCROLL CURSOR FOR SELECT id FROM line;
FETCH 1 FROM c;
INSERT INTO line SELECT i, 'more' FROM generate_series(2001, 4000) i;
DO $$
DECLARE
    c refcursor := 'c';
    id int;
    n int := 1;
BEGIN
    LOOP
        FETCH c INTO id;
        EXIT WHEN NOT found;
        n := n + 1;
    END LOOP;
    RAISE NOTICE 'rows of the cursor: %', n;
END $$;
\set VERBOSITY sqlstate
FETCH BACKWARD 1 FROM c;
\set VERBOSITY default
ROLLBACK;

-- Savepoints: a cursor of a subtransaction goes with it, an outer one stays
-- where it is.
BEGIN;
DECLARE outside CURSOR FOR SELECT id FROM line ORDER BY id;
FETCH 2 FROM outside;
SAVEPOINT s;
DELETE FROM line WHERE id IN (3, 4);
DECLARE inside CURSOR FOR SELECT id FROM line ORDER BY id;
FETCH 3 FROM inside;
FETCH 1 FROM outside;
ROLLBACK TO s;
FETCH 2 FROM outside;
\set VERBOSITY sqlstate
FETCH 1 FROM inside;
\set VERBOSITY default
ROLLBACK;

-- WITH HOLD: after commit, after changes, after the table is gone.
BEGIN;
DECLARE held SCROLL CURSOR WITH HOLD FOR SELECT id, body FROM line WHERE id <= 5 ORDER BY id;
FETCH 1 FROM held;
UPDATE line SET body = 'before commit' WHERE id = 2;
COMMIT;
UPDATE line SET body = 'after commit' WHERE id = 3;
DELETE FROM line WHERE id = 4;
FETCH ALL FROM held;
FETCH FIRST FROM held;
CREATE TABLE short_lived AS SELECT repeat('long value ', 2000 * i) AS v FROM generate_series(1, 3) i;
DECLARE long_held CURSOR WITH HOLD FOR SELECT v FROM short_lived ORDER BY length(v);
DROP TABLE short_lived;
BEGIN;
DECLARE lengths CURSOR FOR SELECT 1;
COMMIT;
DO $$
DECLARE
    c refcursor := 'long_held';
    v text;
BEGIN
    FETCH LAST FROM c INTO v;
    RAISE NOTICE '%', length(v);
EXCEPTION WHEN OTHERS THEN
    RAISE NOTICE '%', SQLSTATE;
END $$;
CLOSE ALL;

-- WHERE CURRENT OF.
BEGIN;
DECLARE c CURSOR FOR SELECT * FROM line WHERE id BETWEEN 100 AND 104 ORDER BY id FOR UPDATE;
FETCH 1 FROM c;
UPDATE line SET body = 'current' WHERE CURRENT OF c;
UPDATE line SET body = body || ' again' WHERE CURRENT OF c;
FETCH 1 FROM c;
DELETE FROM line WHERE CURRENT OF c;
DELETE FROM line WHERE CURRENT OF c;
FETCH 1 FROM c;
UPDATE line SET id = -id WHERE CURRENT OF c RETURNING *;
FETCH ALL FROM c;
\set VERBOSITY sqlstate
SAVEPOINT s;
UPDATE line SET body = 'no row' WHERE CURRENT OF c;
ROLLBACK TO s;
UPDATE line SET body = 'no cursor' WHERE CURRENT OF nothing;
ROLLBACK TO s;
\set VERBOSITY default
COMMIT;
SELECT * FROM line WHERE id BETWEEN 100 AND 104 OR id < 0 ORDER BY id;

-- The same without FOR UPDATE, over each kind of scan, the row changed meanwhile.
CREATE FUNCTION walk() RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    c CURSOR FOR SELECT * FROM cursors.line WHERE id BETWEEN 200 AND 260;
    changed int := 0;
BEGIN
    FOR r IN c LOOP
        IF r.id % 3 = 0 THEN
            UPDATE cursors.line SET body = 'walked ' || r.id WHERE CURRENT OF c;
            changed := changed + 1;
        ELSIF r.id % 3 = 1 THEN
            DELETE FROM cursors.line WHERE CURRENT OF c;
        END IF;
    END LOOP;
    RETURN changed;
END $$;
CALL only_scan('seqscan');
BEGIN;
SELECT walk();
SELECT count(*), sum(id) FROM line WHERE id BETWEEN 200 AND 260;
ROLLBACK;
CALL only_scan('indexscan');
BEGIN;
SELECT walk();
SELECT count(*), sum(id) FROM line WHERE id BETWEEN 200 AND 260;
ROLLBACK;
CALL only_scan('any');
SELECT walk();
SELECT count(*), sum(id), count(*) FILTER (WHERE body = 'walked ' || id) FROM line WHERE id BETWEEN 200 AND 260;
BEGIN;
DECLARE c CURSOR FOR SELECT * FROM line WHERE id = 300;
FETCH 1 FROM c;
DELETE FROM line WHERE id = 300;
UPDATE line SET body = 'was deleted' WHERE CURRENT OF c;
SELECT count(*) FROM line WHERE id = 300;
COMMIT;

-- Cursors of functions, and two at once.
CREATE FUNCTION opened() RETURNS refcursor LANGUAGE plpgsql AS $$
DECLARE
    c refcursor := 'returned';
BEGIN
    OPEN c FOR SELECT id FROM cursors.line ORDER BY id LIMIT 3;
    RETURN c;
END $$;
BEGIN;
SELECT opened();
FETCH ALL FROM returned;
COMMIT;
DO $$
DECLARE
    a CURSOR FOR SELECT id FROM cursors.line ORDER BY id;
    b CURSOR FOR SELECT id FROM cursors.line ORDER BY id DESC;
    x int; y int; total bigint := 0;
BEGIN
    OPEN a;
    OPEN b;
    LOOP
        FETCH a INTO x;
        FETCH b INTO y;
        EXIT WHEN x >= y;
        total := total + x + y;
    END LOOP;
    RAISE NOTICE '%', total;
END $$;
