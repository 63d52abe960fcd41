-- COPY in and out in its formats, with FREEZE, conditions, defaults and errors.
CREATE SCHEMA copy;
SET search_path = copy, public;
\getenv abs_builddir PG_ABS_BUILDDIR

CREATE TABLE message (id int PRIMARY KEY, author text NOT NULL, body text, sent timestamp DEFAULT '2024-05-05', extra jsonb);
COPY message FROM stdin;
1	ann	hello	2024-01-01 00:00:00	{"a": 1}
2	bob	\N	\N	\N
3	cy	tab\tnewline\nback\\slash	2024-01-02 00:00:00	[]
\.
COPY message (id, author) FROM stdin WITH (FORMAT csv, HEADER);
id,author
4,"dee, ""the"" quick"
5,""
\.
COPY message (author, id, body) FROM stdin (DELIMITER '|', NULL 'nil');
ed|6|nil
fay|7|
\.
COPY message FROM stdin (FORMAT csv) WHERE id % 2 = 0;
8,gil,even,2024-01-03,
9,hal,odd,2024-01-03,
10,ida,even,2024-01-03,
\.
SELECT * FROM message ORDER BY id;
COPY (SELECT * FROM message ORDER BY id) TO stdout;
COPY (SELECT id, author, body FROM message WHERE id < 6 ORDER BY id) TO stdout (FORMAT csv, HEADER, FORCE_QUOTE (author), NULL '-');
COPY message (id) TO stdout;

-- Out and in through every format gives the same rows.
CREATE TABLE again (LIKE message);
\set file :abs_builddir '/results/copy.text'
COPY message TO STDOUT \g :file
\set command '\\copy again from ' :'file'
:command
SELECT fingerprint('message') = fingerprint('again') AS same;
TRUNCATE again;
\set file :abs_builddir '/results/copy.csv'
COPY message TO STDOUT (FORMAT csv) \g :file
\set command '\\copy again from ' :'file' ' (format csv)'
:command
SELECT fingerprint('message') = fingerprint('again') AS same;
TRUNCATE again;
\set file :abs_builddir '/results/copy.binary'
COPY message TO STDOUT (FORMAT binary) \g :file
\set command '\\copy again from ' :'file' ' (format binary)'
:command
SELECT fingerprint('message') = fingerprint('again') AS same;

-- A failing line undoes the whole command, whatever was stored before it.
\set VERBOSITY sqlstate
COPY message FROM stdin (FORMAT csv);
20,ok,,2024-01-01,
1,duplicate,,2024-01-01,
\.
COPY message FROM stdin (FORMAT csv);
21,ok,,2024-01-01,
,null,,2024-01-01,
\.
COPY message FROM stdin (FORMAT csv);
22,ok,,2024-01-01,
23,too,few
\.
COPY message (id, author) FROM stdin (FORMAT csv);
24,ok
x,ok
\.
\set VERBOSITY default
SELECT count(*) FROM message;
CALL only_scan('indexscan');
SELECT count(*) FROM message WHERE id > 0;
CALL only_scan('any');

-- In a transaction: the rows are seen at once and vanish with it.
BEGIN;
COPY message (id, author) FROM stdin (FORMAT csv);
30,zed
31,yan
\.
SELECT id FROM message WHERE author IN ('zed', 'yan') ORDER BY id;
SAVEPOINT s;
COPY message (id, author) FROM stdin (FORMAT csv);
32,xen
\.
ROLLBACK TO s;
UPDATE message SET body = 'copied' WHERE id >= 30;
COMMIT;
SELECT id, body FROM message WHERE id >= 30 ORDER BY id;

-- FREEZE: only in the transaction that created or truncated the table.
\set VERBOSITY sqlstate
COPY message (id, author) FROM stdin (FORMAT csv, FREEZE);
40,no
\.
\set VERBOSITY default
BEGIN;
CREATE TABLE frozen (id int PRIMARY KEY, body text);
COPY frozen FROM stdin (FORMAT csv, FREEZE);
1,one
2,two
3,three
\.
SELECT * FROM frozen ORDER BY id;
COMMIT;
SELECT * FROM frozen ORDER BY id;
UPDATE frozen SET body = 'zwei' WHERE id = 2;
DELETE FROM frozen WHERE id = 3;
SELECT * FROM frozen ORDER BY id;
BEGIN;
TRUNCATE frozen;
COPY frozen FROM stdin (FORMAT csv, FREEZE);
7,seven
\.
ROLLBACK;
SELECT * FROM frozen ORDER BY id;
BEGIN;
TRUNCATE frozen;
COPY frozen FROM stdin (FORMAT csv, FREEZE);
8,eight
\.
COMMIT;
SELECT * FROM frozen ORDER BY id;

-- A table that was created and dropped again with FREEZE rows in it.
BEGIN;
CREATE TABLE vanishing (id int);
COPY vanishing FROM stdin (FREEZE);
1
2
\.
ROLLBACK;
SELECT to_regclass('vanishing') IS NULL AS gone;

-- Many rows: more than one insert buffer, with an index that is checked afterwards.
CREATE TABLE many (id int PRIMARY KEY, conversation int, body text);
CREATE INDEX ON many (conversation, id);
\set file :abs_builddir '/results/copy.many'
COPY (SELECT i, i % 97, noise(i, i % 300) FROM generate_series(1, 30000) i) TO STDOUT \g :file
\set command '\\copy many from ' :'file'
:command
SELECT count(*), sum(id), sum(length(body)), count(DISTINCT conversation) FROM many;
SELECT count(*) FROM many WHERE body <> noise(id, id % 300);
SELECT check_indexes('many');
BEGIN;
TRUNCATE many;
\set command '\\copy many from ' :'file' ' with (freeze)'
:command
SELECT count(*), sum(id) FROM many;
COMMIT;
SELECT count(*), sum(id), sum(length(body)) FROM many;
SELECT check_indexes('many');
VACUUM many;
SELECT count(*), sum(id), sum(length(body)) FROM many;
-- The second time every key is there already.
\set VERBOSITY sqlstate
\set command '\\copy many from ' :'file'
:command
\set VERBOSITY default
SELECT count(*) FROM many;

-- Wide rows among narrow ones: the buffer is limited by bytes, too.
CREATE TABLE mixed (id int, body text);
\set file :abs_builddir '/results/copy.mixed'
COPY (SELECT i, CASE WHEN i % 50 = 0 THEN noise(i, 60000) ELSE 'short ' || i END FROM generate_series(1, 1000) i) TO STDOUT \g :file
\set command '\\copy mixed from ' :'file'
:command
SELECT count(*), sum(length(body)), bool_and(body = noise(id, 60000)) FILTER (WHERE id % 50 = 0) FROM mixed;

-- Triggers and generated columns on the way in.
CREATE TABLE watched (id int, doubled int GENERATED ALWAYS AS (id * 2) STORED, note text DEFAULT 'default');
CREATE TABLE watched_log (id int, note text);
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_WHEN = 'AFTER' THEN
        INSERT INTO watched_log VALUES (NEW.id, (SELECT count(*) FROM watched WHERE id = NEW.id)::text);
    ELSIF NEW.id = 2 THEN
        RETURN NULL;
    ELSE
        NEW.note := NEW.note || '!';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER before BEFORE INSERT ON watched FOR EACH ROW EXECUTE FUNCTION watch();
CREATE TRIGGER after AFTER INSERT ON watched FOR EACH ROW EXECUTE FUNCTION watch();
COPY watched (id) FROM stdin;
1
2
3
\.
SELECT * FROM watched ORDER BY id;
SELECT * FROM watched_log ORDER BY id;

-- DML in COPY TO.
COPY (INSERT INTO watched_log VALUES (9, 'from copy') RETURNING *) TO stdout;
COPY (UPDATE watched_log SET note = note || '?' WHERE id = 9 RETURNING note) TO stdout;
COPY (DELETE FROM watched_log WHERE id = 9 RETURNING id) TO stdout;
SELECT count(*) FROM watched_log;

-- Old and new columns.
ALTER TABLE watched_log ADD added int DEFAULT 42, DROP note;
COPY watched_log FROM stdin;
5	50
\.
COPY watched_log (id) FROM stdin;
6
\.
COPY (SELECT * FROM watched_log ORDER BY id) TO stdout;
