-- Many versions of a row: in place of the old one, chained, with and without
-- a change of indexed columns, within one statement and one transaction.
CREATE SCHEMA update_versions;
SET search_path = update_versions, public;

-- One row, a thousand updates, in one transaction and in many.
CREATE TABLE counter (id int PRIMARY KEY, n int, other text);
INSERT INTO counter VALUES (1, 0, 'x'), (2, 0, 'y');
DO $$
BEGIN
    FOR i IN 1..1000 LOOP
        UPDATE counter SET n = n + 1 WHERE id = 1;
    END LOOP;
END $$;
SELECT * FROM counter ORDER BY id;
DO $$
BEGIN
    FOR i IN 1..500 LOOP
        UPDATE counter SET n = n + 1 WHERE id = 2;
        COMMIT;
    END LOOP;
END $$;
SELECT * FROM counter ORDER BY id;
CALL only_scan('indexscan');
SELECT * FROM counter WHERE id = 1;
SELECT * FROM counter WHERE id > 0 ORDER BY id;
CALL only_scan('any');

-- The same with half of the updates rolled back.
DO $$
BEGIN
    FOR i IN 1..200 LOOP
        UPDATE counter SET n = n + 1 WHERE id = 1;
        IF i % 2 = 0 THEN
            COMMIT;
        ELSE
            ROLLBACK;
        END IF;
    END LOOP;
END $$;
SELECT * FROM counter ORDER BY id;
CALL only_scan('indexscan');
SELECT * FROM counter WHERE id = 1;
CALL only_scan('any');
DO $$
BEGIN
    FOR i IN 1..200 LOOP
        BEGIN
            UPDATE counter SET n = n + 1, other = i::text WHERE id = 2;
            IF i % 3 = 0 THEN
                RAISE EXCEPTION 'undo';
            END IF;
        EXCEPTION WHEN raise_exception THEN
            NULL;
        END;
    END LOOP;
END $$;
SELECT * FROM counter ORDER BY id;

-- Versions that grow until they move to other pages.
CREATE TABLE growing (id int PRIMARY KEY, v text) WITH (fillfactor = 50);
INSERT INTO growing SELECT i, '' FROM generate_series(1, 300) i;
DO $$
BEGIN
    FOR i IN 1..12 LOOP
        UPDATE growing SET v = v || noise(i, 60);
        COMMIT;
    END LOOP;
END $$;
SELECT count(*), sum(length(v)), count(DISTINCT v) FROM growing;
CALL only_scan('indexscan');
SELECT count(*), sum(length(v)) FROM growing WHERE id > 0;
SELECT length(v), md5(v) = md5((SELECT string_agg(noise(i, 60), '' ORDER BY i) FROM generate_series(1, 12) i)) AS intact FROM growing WHERE id = 150;
CALL only_scan('any');
SELECT check_indexes('growing');

-- Indexed columns change and change back; old keys must lead nowhere.
CREATE TABLE moving (id int PRIMARY KEY, a int, b int);
CREATE INDEX moving_a ON moving (a);
CREATE UNIQUE INDEX moving_b ON moving (b);
INSERT INTO moving SELECT i, i, i FROM generate_series(1, 100) i;
UPDATE moving SET a = a + 1;
UPDATE moving SET a = a - 1;
UPDATE moving SET a = a + 1000 WHERE id <= 50;
UPDATE moving SET b = b + 1000;
UPDATE moving SET b = b - 1000;
UPDATE moving SET id = id + 500 WHERE id > 90;
CALL only_scan('indexscan');
SELECT count(*), sum(a) FROM moving WHERE a > 0;
SELECT count(*), sum(b) FROM moving WHERE b > 0;
SELECT count(*), sum(id) FROM moving WHERE id > 0;
SELECT * FROM moving WHERE a = 7;
SELECT * FROM moving WHERE a = 1007;
SELECT * FROM moving WHERE b = 7;
SELECT * FROM moving WHERE b = 1007;
SELECT * FROM moving WHERE id IN (95, 595);
CALL only_scan('any');
SELECT check_indexes('moving');

-- A row is changed once, however often the statement meets it: no statement
-- meets its own new versions.
CREATE TABLE halloween (id int PRIMARY KEY, pay int);
CREATE INDEX halloween_pay ON halloween (pay);
INSERT INTO halloween SELECT i, i * 100 FROM generate_series(1, 50) i;
CALL only_scan('indexscan');
UPDATE halloween SET pay = pay + 200 WHERE pay < 2500;
SELECT count(*), sum(pay) FROM halloween WHERE pay > 0;
UPDATE halloween SET id = id + 50;
SELECT count(*), sum(id) FROM halloween WHERE id > 0;
CALL only_scan('seqscan');
UPDATE halloween SET pay = pay + (SELECT max(pay) FROM halloween) WHERE pay <= (SELECT avg(pay) FROM halloween);
SELECT count(*), sum(pay) FROM halloween;
INSERT INTO halloween SELECT id + 1000, pay FROM halloween;
SELECT count(*), sum(pay) FROM halloween;
CALL only_scan('any');
CREATE TABLE pairs (v int, w int);
INSERT INTO pairs VALUES (1, 10), (2, 20), (3, 30);
UPDATE pairs SET v = w, w = v;
SELECT * FROM pairs ORDER BY v;
UPDATE pairs p SET v = q.v + 1 FROM pairs q WHERE q.w = p.w;
SELECT * FROM pairs ORDER BY v;

-- Two changes of one row by one command: the second finds it changed.
WITH first AS (UPDATE pairs SET v = v + 1 WHERE w = 1 RETURNING v)
UPDATE pairs SET v = v + 100 WHERE w = 1 AND (SELECT count(*) FROM first) >= 0;
SELECT * FROM pairs ORDER BY w;
WITH gone AS (DELETE FROM pairs WHERE w = 2 RETURNING v)
UPDATE pairs SET v = v + 100 WHERE w = 2 AND (SELECT count(*) FROM gone) >= 0;
SELECT * FROM pairs ORDER BY w;
-- A function that changes the row that the command is about to change.
CREATE FUNCTION meddle(key int) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
    UPDATE update_versions.pairs SET v = v + 1000 WHERE w = key;
    RETURN 0;
END $$;
UPDATE pairs SET v = v + meddle(w) WHERE w = 3;
DELETE FROM pairs WHERE w = 3 AND meddle(w) = 0;
SELECT * FROM pairs ORDER BY w;
-- A trigger that does it is told.
CREATE FUNCTION meddle_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE update_versions.pairs SET v = v + 5000 WHERE w = OLD.w;
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER meddle BEFORE UPDATE OR DELETE ON pairs FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION meddle_trigger();
\set VERBOSITY sqlstate
UPDATE pairs SET v = 0 WHERE w = 1;
DELETE FROM pairs WHERE w = 1;
\set VERBOSITY default
SELECT * FROM pairs ORDER BY w;

-- A long chain under a snapshot that sees only its beginning.
CREATE TABLE chain (id int PRIMARY KEY, n int);
INSERT INTO chain VALUES (1, 0);
BEGIN ISOLATION LEVEL REPEATABLE READ;
DECLARE old CURSOR FOR SELECT n FROM chain WHERE id = 1;
DO $$
BEGIN
    FOR i IN 1..300 LOOP
        UPDATE chain SET n = n + 1;
    END LOOP;
END $$;
FETCH ALL FROM old;
SELECT n FROM chain;
COMMIT;
SELECT n FROM chain;
