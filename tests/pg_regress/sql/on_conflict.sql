-- INSERT ... ON CONFLICT.
CREATE SCHEMA on_conflict;
SET search_path = on_conflict, public;

CREATE TABLE hit (page text PRIMARY KEY, n int DEFAULT 1, tag text UNIQUE, note text);
INSERT INTO hit VALUES ('a', 1, 'ta'), ('b', 1, 'tb');

-- DO NOTHING with and without a target.
INSERT INTO hit VALUES ('a', 9, 'new') ON CONFLICT DO NOTHING;
INSERT INTO hit VALUES ('c', 9, 'ta') ON CONFLICT DO NOTHING;
INSERT INTO hit VALUES ('c', 9, 'tc'), ('a', 9, 'td'), ('c', 9, 'te') ON CONFLICT (page) DO NOTHING RETURNING *;
\set VERBOSITY sqlstate
INSERT INTO hit VALUES ('d', 9, 'ta') ON CONFLICT (page) DO NOTHING;
INSERT INTO hit VALUES ('d', 9, 'td') ON CONFLICT (note) DO NOTHING;
\set VERBOSITY default
SELECT * FROM hit ORDER BY page;

-- DO UPDATE: of the old row, with the new one, under a condition.
INSERT INTO hit AS h (page) VALUES ('a'), ('z') ON CONFLICT (page) DO UPDATE SET n = h.n + EXCLUDED.n RETURNING *;
INSERT INTO hit AS h (page, note) VALUES ('a', 'noted') ON CONFLICT ON CONSTRAINT hit_pkey DO UPDATE SET note = EXCLUDED.note, n = h.n + 10;
INSERT INTO hit AS h (page, n) VALUES ('a', 50), ('b', 50) ON CONFLICT (page) DO UPDATE SET n = EXCLUDED.n WHERE h.n < 5 RETURNING page, n;
INSERT INTO hit VALUES ('q', 1, 'tb') ON CONFLICT (tag) DO UPDATE SET page = EXCLUDED.page, note = 'renamed from ' || hit.page;
INSERT INTO hit VALUES ('a') ON CONFLICT (page) DO UPDATE SET (n, note) = (SELECT count(*), 'counted' FROM hit);
SELECT * FROM hit ORDER BY page;

-- The same row twice in one command; another key violated by the update.
\set VERBOSITY sqlstate
INSERT INTO hit (page) VALUES ('x'), ('x') ON CONFLICT (page) DO UPDATE SET n = hit.n + 1;
INSERT INTO hit (page) VALUES ('a'), ('a') ON CONFLICT (page) DO UPDATE SET n = hit.n + 1;
INSERT INTO hit (page) VALUES ('a') ON CONFLICT (page) DO UPDATE SET page = 'q';
INSERT INTO hit (page) VALUES ('a') ON CONFLICT (page) DO UPDATE SET tag = 'tb';
\set VERBOSITY default
INSERT INTO hit (page) VALUES ('x'), ('x') ON CONFLICT (page) DO NOTHING;
SELECT * FROM hit ORDER BY page;

-- Many rows, half of them there already, in a transaction that is undone and one that is not.
CREATE TABLE upsert (id int PRIMARY KEY, n int, v text);
CREATE INDEX ON upsert (n);
INSERT INTO upsert SELECT i, 0, noise(i, 50) FROM generate_series(2, 2000, 2) i;
BEGIN;
INSERT INTO upsert SELECT i, 0, 'new' FROM generate_series(1, 2000) i ON CONFLICT (id) DO UPDATE SET n = upsert.n + 1;
SELECT n, count(*), count(*) FILTER (WHERE v = 'new') FROM upsert GROUP BY n ORDER BY n;
ROLLBACK;
SELECT n, count(*), count(*) FILTER (WHERE v = 'new') FROM upsert GROUP BY n ORDER BY n;
INSERT INTO upsert SELECT i, 0, 'new' FROM generate_series(1, 2000) i ON CONFLICT (id) DO UPDATE SET n = upsert.n + 1;
INSERT INTO upsert SELECT i, 0, 'newer' FROM generate_series(1, 2100) i ON CONFLICT DO NOTHING;
SELECT n, count(*), count(*) FILTER (WHERE v = 'new') FROM upsert GROUP BY n ORDER BY n;
SELECT check_indexes('upsert');
DO $$
BEGIN
    FOR i IN 1..300 LOOP
        INSERT INTO on_conflict.upsert VALUES (1, 0, '') ON CONFLICT (id) DO UPDATE SET n = upsert.n + 1;
    END LOOP;
END $$;
SELECT n FROM upsert WHERE id = 1;

-- A key that was deleted, or whose row was rolled back, does not conflict.
BEGIN;
DELETE FROM upsert WHERE id = 5;
INSERT INTO upsert VALUES (5, 500, 'again') ON CONFLICT (id) DO NOTHING;
SELECT n FROM upsert WHERE id = 5;
SAVEPOINT s;
INSERT INTO upsert VALUES (9999, 1, 'undone');
ROLLBACK TO s;
INSERT INTO upsert VALUES (9999, 2, 'kept') ON CONFLICT (id) DO UPDATE SET n = -1;
SELECT n FROM upsert WHERE id = 9999;
COMMIT;

-- Expression and partial indexes, NULLs, exclusion constraints as arbiters.
CREATE TABLE special (a text, b int, r int4range, EXCLUDE USING gist (r WITH &&));
CREATE UNIQUE INDEX ON special (lower(a));
CREATE UNIQUE INDEX ON special (b) WHERE b > 0;
INSERT INTO special VALUES ('Key', 1, '[1,5)'), (NULL, NULL, NULL);
INSERT INTO special VALUES ('KEY', 2, '[10,15)') ON CONFLICT (lower(a)) DO UPDATE SET b = special.b + EXCLUDED.b RETURNING *;
INSERT INTO special VALUES ('other', 3, '[10,15)') ON CONFLICT (b) WHERE b > 0 DO UPDATE SET a = EXCLUDED.a RETURNING *;
INSERT INTO special VALUES ('third', 7, '[4,6)') ON CONFLICT DO NOTHING;
INSERT INTO special VALUES (NULL, NULL, NULL) ON CONFLICT DO NOTHING;
INSERT INTO special VALUES ('fourth', 0, '[20,21)'), ('fifth', 0, '[21,22)') ON CONFLICT (b) WHERE b > 0 DO NOTHING;
SELECT * FROM special ORDER BY a, b;

-- With triggers, generated columns, large values.
CREATE TABLE full_row (id int PRIMARY KEY, v text, l int GENERATED ALWAYS AS (length(v)) STORED);
ALTER TABLE full_row ALTER v SET STORAGE EXTERNAL;
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE NOTICE '% % % %', TG_WHEN, TG_OP, CASE WHEN TG_OP = 'UPDATE' THEN length(OLD.v) END, length(NEW.v);
    RETURN NEW;
END $$;
CREATE TRIGGER before BEFORE INSERT OR UPDATE ON full_row FOR EACH ROW EXECUTE FUNCTION tell();
CREATE TRIGGER after AFTER INSERT OR UPDATE ON full_row FOR EACH ROW EXECUTE FUNCTION tell();
INSERT INTO full_row VALUES (1, noise(1, 30000)) ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v || full_row.v;
INSERT INTO full_row VALUES (1, noise(2, 20000)) ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v || full_row.v;
SELECT id, l, v = noise(2, 20000) || noise(1, 30000) AS intact FROM full_row;
INSERT INTO full_row VALUES (1, 'x') ON CONFLICT DO NOTHING;
SELECT id, l FROM full_row;

-- In a function, in WITH, and over isolation levels of one session.
WITH source AS (SELECT i, 'w' || i AS v FROM generate_series(1, 3) i),
     stored AS (INSERT INTO full_row SELECT * FROM source ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v RETURNING id, v)
SELECT * FROM stored ORDER BY id;
BEGIN ISOLATION LEVEL SERIALIZABLE;
INSERT INTO full_row VALUES (3, 's'), (4, 's') ON CONFLICT (id) DO UPDATE SET v = 'serializable';
COMMIT;
SELECT id, v FROM full_row ORDER BY id;
