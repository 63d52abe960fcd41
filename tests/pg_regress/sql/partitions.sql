-- Partitioned tables and inheritance, alone and mixed with heap.
CREATE SCHEMA partitions;
SET search_path = partitions, public;

CREATE TABLE message (id int, sent date, room int, body text, PRIMARY KEY (id, sent)) PARTITION BY RANGE (sent);
CREATE TABLE message_2023 PARTITION OF message FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
CREATE TABLE message_2024 PARTITION OF message FOR VALUES FROM ('2024-01-01') TO ('2025-01-01') PARTITION BY HASH (id);
CREATE TABLE message_2024_0 PARTITION OF message_2024 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE message_2024_1 PARTITION OF message_2024 FOR VALUES WITH (MODULUS 2, REMAINDER 1) ;
CREATE TABLE message_old PARTITION OF message DEFAULT USING heap;
\set VERBOSITY sqlstate
CREATE UNIQUE INDEX ON message (room);
ALTER TABLE message_2023 DROP CONSTRAINT message_2023_pkey;
\set VERBOSITY default
CREATE INDEX ON message (room);
INSERT INTO message SELECT i, date '2022-12-01' + i, i % 7, 'm' || i FROM generate_series(1, 700) i;
SELECT tableoid::regclass, count(*), min(sent) >= '2022-01-01' AS sane FROM message GROUP BY tableoid ORDER BY tableoid::regclass::text;
SELECT count(*), sum(id) FROM message WHERE sent BETWEEN '2023-12-20' AND '2024-01-10';
SELECT id, body FROM message WHERE id = 400;
SELECT count(*) FROM message WHERE room = 3;
SELECT id FROM message ORDER BY sent DESC LIMIT 3;

-- Rows move between partitions, also between access methods and back.
UPDATE message SET sent = sent + 365 WHERE id = 100 RETURNING tableoid::regclass, id, sent;
UPDATE message SET sent = '2000-01-01' WHERE id = 101 RETURNING tableoid::regclass, id, sent;
UPDATE message SET sent = '2023-06-06' WHERE id = 101 RETURNING tableoid::regclass, id, sent;
UPDATE message SET id = id + 10000 WHERE sent >= '2024-01-01';
UPDATE message SET id = id - 10000 WHERE id > 10000;
UPDATE message SET room = room + 1 WHERE sent >= '2024-01-01';
SELECT count(*), sum(room) FROM message WHERE sent >= '2024-01-01';
SELECT count(*), sum(id) FROM message;
BEGIN;
UPDATE message SET sent = '2023-01-01';
SELECT tableoid::regclass, count(*) FROM message GROUP BY tableoid ORDER BY tableoid::regclass::text;
ROLLBACK;
DELETE FROM message WHERE sent < '2023-01-01' OR room = 5;
SELECT count(*), sum(id) FROM message;

-- COPY, ON CONFLICT, RETURNING, row locks and triggers through the parent.
COPY message FROM stdin (FORMAT csv);
1000,2023-05-05,1,copied
1001,2024-05-05,2,copied
1002,1999-01-01,3,copied
\.
SELECT tableoid::regclass, id FROM message WHERE body = 'copied' ORDER BY id;
INSERT INTO message VALUES (1000, '2023-05-05', 9, 'conflict'), (1003, '2023-05-05', 9, 'no conflict') ON CONFLICT (id, sent) DO UPDATE SET body = 'upserted' RETURNING tableoid::regclass, id, body;
SELECT id FROM message WHERE id >= 1000 ORDER BY id FOR UPDATE;
\set VERBOSITY sqlstate
INSERT INTO message VALUES (1000, '2023-05-05', 1, 'x');
INSERT INTO message_2023 VALUES (1, '2024-05-05');
INSERT INTO message (id) VALUES (1);
\set VERBOSITY default

-- ATTACH and DETACH.
CREATE TABLE message_2025 (LIKE message INCLUDING ALL);
INSERT INTO message_2025 VALUES (2000, '2025-01-01', 1, 'next');
ALTER TABLE message ATTACH PARTITION message_2025 FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
SELECT count(*) FROM message WHERE id = 2000;
ALTER TABLE message DETACH PARTITION message_2023;
SELECT count(*) FROM message;
SELECT count(*) FROM message_2023;
\set VERBOSITY sqlstate
INSERT INTO message VALUES (3000, '2027-01-01');
CREATE TABLE message_2027 PARTITION OF message FOR VALUES FROM ('2027-01-01') TO ('2028-01-01');
ALTER TABLE message ATTACH PARTITION message_2023 FOR VALUES FROM ('2023-02-01') TO ('2024-01-01');
\set VERBOSITY default
ALTER TABLE message ATTACH PARTITION message_2023 FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
SELECT count(*) FROM message;
TRUNCATE message_2024;
SELECT count(*) FROM message;
SELECT check_indexes('message_2023');
VACUUM ANALYZE message;
SELECT relname, reltuples FROM pg_class WHERE oid IN ('message_2023'::regclass, 'message_2025'::regclass) ORDER BY relname;

-- Foreign keys to and from a partitioned table, joins and aggregates by partition.
CREATE TABLE reaction (message_id int, sent date, kind text, FOREIGN KEY (message_id, sent) REFERENCES message ON DELETE CASCADE) PARTITION BY LIST (kind);
CREATE TABLE reaction_like PARTITION OF reaction FOR VALUES IN ('like');
CREATE TABLE reaction_other PARTITION OF reaction DEFAULT;
INSERT INTO reaction SELECT id, sent, CASE WHEN id % 2 = 0 THEN 'like' ELSE 'love' END FROM message;
\set VERBOSITY sqlstate
INSERT INTO reaction VALUES (-1, '2023-01-01', 'like');
\set VERBOSITY default
DELETE FROM message WHERE id <= 100;
SELECT tableoid::regclass, count(*) FROM reaction GROUP BY tableoid ORDER BY tableoid::regclass::text;
SET enable_partitionwise_join = on;
SET enable_partitionwise_aggregate = on;
SELECT r.kind, count(*) FROM message m JOIN reaction r ON r.message_id = m.id GROUP BY r.kind ORDER BY r.kind;

DELETE FROM reaction;

-- Row triggers on the parent fire for each partition; moved rows are a delete and an insert.
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE NOTICE '% % %', TG_TABLE_NAME, TG_WHEN, TG_OP;
    RETURN coalesce(NEW, OLD);
END $$;
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE ON message FOR EACH ROW EXECUTE FUNCTION tell();
UPDATE message SET sent = '2025-05-05' WHERE id = 1000;
DELETE FROM message WHERE id = 1000;

-- Inheritance with differing columns.
CREATE TABLE animal (id int, name text);
CREATE TABLE dog (breed text) INHERITS (animal);
CREATE TABLE cat (lives int, id int, name text) USING heap;
ALTER TABLE cat INHERIT animal;
INSERT INTO animal VALUES (1, 'some');
INSERT INTO dog VALUES (2, 'rex', 'collie');
INSERT INTO cat VALUES (9, 3, 'tom');
SELECT tableoid::regclass, * FROM animal ORDER BY id;
SELECT count(*) FROM ONLY animal;
UPDATE animal SET name = upper(name) RETURNING tableoid::regclass, *;
DELETE FROM animal WHERE id = 2;
ALTER TABLE animal ADD age int DEFAULT 1;
SELECT * FROM animal ORDER BY id;
SELECT * FROM cat;
TRUNCATE animal;
SELECT count(*) FROM cat;
