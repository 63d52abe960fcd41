-- MERGE.
CREATE SCHEMA merge;
SET search_path = merge, public;

CREATE TABLE balance (id int PRIMARY KEY, amount int, note text);
CREATE TABLE booking (id int, delta int);
INSERT INTO balance SELECT i, i * 100 FROM generate_series(1, 5) i;
INSERT INTO booking VALUES (1, 10), (2, -200), (6, 60), (7, 0);
MERGE INTO balance b USING booking k ON b.id = k.id
WHEN MATCHED AND b.amount + k.delta = 0 THEN DELETE
WHEN MATCHED THEN UPDATE SET amount = b.amount + k.delta, note = 'booked'
WHEN NOT MATCHED AND k.delta = 0 THEN DO NOTHING
WHEN NOT MATCHED THEN INSERT VALUES (k.id, k.delta, 'opened');
SELECT * FROM balance ORDER BY id;

-- A target row may be met once only.
INSERT INTO booking VALUES (1, 5);
\set VERBOSITY sqlstate
MERGE INTO balance b USING booking k ON b.id = k.id WHEN MATCHED THEN UPDATE SET amount = b.amount + k.delta;
MERGE INTO balance b USING (SELECT 1 AS id FROM generate_series(1, 2)) k ON b.id = k.id WHEN MATCHED THEN DELETE;
MERGE INTO balance b USING (VALUES (20), (20)) k (id) ON b.id = k.id WHEN NOT MATCHED THEN INSERT VALUES (k.id, 0);
\set VERBOSITY default
SELECT * FROM balance ORDER BY id;

-- Into many rows, undone, and done.
CREATE TABLE target (id int PRIMARY KEY, v text, n int);
CREATE INDEX ON target (n);
INSERT INTO target SELECT i, noise(i, 60), 0 FROM generate_series(1, 3000, 2) i;
BEGIN;
MERGE INTO target t USING generate_series(1, 3000) s (id) ON t.id = s.id
WHEN MATCHED AND s.id % 3 = 0 THEN DELETE
WHEN MATCHED THEN UPDATE SET n = 1
WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'new', 2);
SELECT n, count(*), sum(id) FROM target GROUP BY n ORDER BY n;
ROLLBACK;
SELECT n, count(*), sum(id) FROM target GROUP BY n ORDER BY n;
MERGE INTO target t USING generate_series(1, 3000) s (id) ON t.id = s.id
WHEN MATCHED AND s.id % 3 = 0 THEN DELETE
WHEN MATCHED THEN UPDATE SET n = 1
WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'new', 2);
SELECT n, count(*), sum(id) FROM target GROUP BY n ORDER BY n;
SELECT check_indexes('target');

-- Triggers, and the target joined with itself.
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE NOTICE '% % % -> %', TG_WHEN, TG_OP, CASE WHEN TG_OP <> 'INSERT' THEN OLD.amount END, CASE WHEN TG_OP <> 'DELETE' THEN NEW.amount END;
    RETURN coalesce(NEW, OLD);
END $$;
CREATE TRIGGER before BEFORE INSERT OR UPDATE OR DELETE ON balance FOR EACH ROW EXECUTE FUNCTION tell();
CREATE TRIGGER after AFTER INSERT OR UPDATE OR DELETE ON balance FOR EACH ROW EXECUTE FUNCTION tell();
MERGE INTO balance b USING (SELECT id + 1 AS id, amount FROM balance WHERE id IN (3, 6)) k ON b.id = k.id
WHEN MATCHED THEN UPDATE SET amount = k.amount
WHEN NOT MATCHED THEN INSERT VALUES (k.id, k.amount);
MERGE INTO balance b USING (VALUES (3)) k (id) ON b.id = k.id WHEN MATCHED THEN DELETE;
SELECT * FROM balance ORDER BY id;
