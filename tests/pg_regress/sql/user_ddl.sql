-- What CREATE and ALTER do to user tables, and what they refuse.
CREATE SCHEMA user_ddl;
SET search_path = user_ddl, public;
SET default_table_access_method = kalam_user;

-- The column stands where the statement has it, or at the end.
CREATE TABLE named (_user_id text, id int, UNIQUE (id)) ;
\d named
CREATE TABLE defaulted (id int, _user_id text NOT NULL DEFAULT 'nobody');
SELECT column_name, column_default, is_nullable FROM information_schema.columns WHERE table_name = 'defaulted' ORDER BY ordinal_position;
CREATE TABLE wrong (id int, _user_id int);
CREATE TABLE copied (LIKE named INCLUDING ALL);
\d copied
CREATE TABLE IF NOT EXISTS copied (id int);
CREATE SCHEMA user_ddl_inner CREATE TABLE inside (id int PRIMARY KEY);
\d user_ddl_inner.inside
DROP SCHEMA user_ddl_inner CASCADE;
CREATE COLLATION blurred (provider = icu, locale = 'und', deterministic = false);
CREATE TABLE blurry (id int, _user_id text COLLATE blurred);

-- Keys begin with the user, whoever makes them and how.
CREATE TABLE keyed (id int CONSTRAINT special PRIMARY KEY, a int UNIQUE, b int, c int, CONSTRAINT pair UNIQUE (b, _user_id), UNIQUE (c) DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE keyed ADD UNIQUE (a, b), ADD COLUMN d int UNIQUE;
CREATE UNIQUE INDEX ON keyed (lower(a::text));
CREATE UNIQUE INDEX partial ON keyed (d) WHERE d > 10;
CREATE UNIQUE INDEX already ON keyed (_user_id, b DESC) INCLUDE (c);
CREATE INDEX plain ON keyed (b);
CREATE INDEX brin ON keyed USING brin (b);
CREATE UNIQUE INDEX to_be_key ON keyed (b, c);
ALTER TABLE keyed ADD CONSTRAINT key_by_index UNIQUE USING INDEX to_be_key;
SELECT indexrelid::regclass AS index, pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = 'keyed'::regclass ORDER BY indexrelid::regclass::text;
ALTER TABLE keyed DROP CONSTRAINT special;
ALTER TABLE keyed ADD PRIMARY KEY (id);
SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'keyed'::regclass ORDER BY 1;
INSERT INTO keyed (id, c) VALUES (1, 1), (2, 1);
BEGIN;
INSERT INTO keyed (id, c) VALUES (1, 1);
INSERT INTO keyed (id, c) VALUES (2, 1);
UPDATE keyed SET c = 2 WHERE id = 2;
COMMIT;
SELECT id, c FROM keyed ORDER BY id;

-- Exclusion constraints: the method has to know text, as btree does.
CREATE TABLE excluded (id int, EXCLUDE USING btree (id WITH =));
SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'excluded'::regclass;
ALTER TABLE excluded ADD CONSTRAINT second EXCLUDE USING hash (id WITH =);
CREATE TABLE ranges (during int4range, EXCLUDE USING gist (during WITH &&));

-- Foreign keys between user tables stay within a user's rows.
CREATE TABLE room (id int PRIMARY KEY, name text);
CREATE TABLE message (id int PRIMARY KEY, room int REFERENCES room);
CREATE TABLE message (id int PRIMARY KEY, room int REFERENCES room (id));
CREATE TABLE message (id int PRIMARY KEY, room int, other text, FOREIGN KEY (other, room) REFERENCES room (_user_id, id));
CREATE TABLE message (id int PRIMARY KEY, room int, FOREIGN KEY (_user_id, room) REFERENCES room (_user_id, id) ON DELETE CASCADE);
CREATE TABLE topic (id int PRIMARY KEY, title text) USING kalam_shared;
ALTER TABLE message ADD COLUMN topic int REFERENCES topic ON DELETE CASCADE;
ALTER TABLE message ADD FOREIGN KEY (room) REFERENCES room (id);
CREATE TABLE outside (room int REFERENCES room) USING heap;
CREATE TABLE outside (owner text, room int, FOREIGN KEY (owner, room) REFERENCES room (_user_id, id)) USING heap;
CREATE TABLE outside (room int) USING kalam_shared;
ALTER TABLE outside ADD FOREIGN KEY (room) REFERENCES room;
INSERT INTO topic VALUES (1, 'shared'), (2, 'by all');
SET kalam.user_id = 'ann';
INSERT INTO room VALUES (1, 'of ann');
INSERT INTO message VALUES (1, 1, DEFAULT, 1);
SET kalam.user_id = 'ben';
INSERT INTO message VALUES (1, 1, DEFAULT, 1);
INSERT INTO room VALUES (1, 'of ben');
INSERT INTO message VALUES (1, 1, DEFAULT, 1), (2, 1, DEFAULT, 2), (3, NULL, DEFAULT, 2);
DELETE FROM room WHERE id = 1 RETURNING name;
SELECT id FROM message ORDER BY id;
SET kalam.user_id = 'ann';
SELECT id FROM message ORDER BY id;
-- A shared row is referred to by everybody's, whoever deletes it.
DELETE FROM topic WHERE id = 2;
SET kalam.user_id = 'ben';
SELECT count(*) FROM message;
-- A new foreign key is checked against the rows of all.
INSERT INTO message VALUES (9, NULL, DEFAULT, NULL);
CREATE TABLE place (id int PRIMARY KEY) USING kalam_shared;
ALTER TABLE message ADD COLUMN place int;
UPDATE message SET place = 5;
SET kalam.user_id = 'ann';
ALTER TABLE message ADD CONSTRAINT in_place FOREIGN KEY (place) REFERENCES place;
INSERT INTO place VALUES (5);
ALTER TABLE message ADD CONSTRAINT in_place FOREIGN KEY (place) REFERENCES place;
ALTER TABLE message DROP CONSTRAINT message__user_id_room_fkey, ADD FOREIGN KEY (_user_id, room) REFERENCES room (_user_id, id);
-- Deferred checks at the end, when the session acts for another user.
ALTER TABLE message DROP CONSTRAINT message__user_id_room_fkey, ADD FOREIGN KEY (_user_id, room) REFERENCES room (_user_id, id) DEFERRABLE INITIALLY DEFERRED;
BEGIN;
SET LOCAL kalam.user_id = 'cid';
INSERT INTO message VALUES (1, 77, DEFAULT, NULL);
INSERT INTO room VALUES (77, 'of cid');
SET LOCAL kalam.user_id = 'ann';
COMMIT;
BEGIN;
SET LOCAL kalam.user_id = 'cid';
INSERT INTO message VALUES (2, 78, DEFAULT, NULL);
SET LOCAL kalam.user_id = 'ann';
INSERT INTO room VALUES (78, 'of ann');
COMMIT;

-- Indexes have the names that they have on heap.
CREATE EXTENSION btree_gist SCHEMA user_ddl;
CREATE FUNCTION make_named(method text) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE names text[];
BEGIN
    EXECUTE 'CREATE TABLE key_names (a int PRIMARY KEY, b int UNIQUE, c int, d text, e int4range, UNIQUE (b, c), UNIQUE (c) INCLUDE (d),
        EXCLUDE USING gist (e WITH &&)) USING ' || method;
    CREATE UNIQUE INDEX ON key_names (lower(d));
    CREATE INDEX ON key_names (lower(d), upper(d));
    CREATE UNIQUE INDEX ON key_names (b, (c + 1), (c + 2));
    CREATE INDEX ON key_names (b) INCLUDE (c);
    CREATE UNIQUE INDEX ON key_names (b) INCLUDE (c);
    ALTER TABLE key_names ADD UNIQUE (d), ADD EXCLUDE USING gist (int4range(a, b) WITH &&), ADD COLUMN z int UNIQUE, ADD UNIQUE (b) INCLUDE (a);
    names := array_agg(relname ORDER BY relname) FROM pg_class WHERE relnamespace = 'user_ddl'::regnamespace AND relname ~ '^key_names_';
    DROP TABLE key_names;
    RETURN names;
END $$;
SELECT make_named('heap') = make_named('kalam_user') AS same, cardinality(make_named('kalam_user'));
DROP EXTENSION btree_gist;

-- The default that the column has can be said again, as dumps of tables that inherit do.
ALTER TABLE ONLY room ALTER COLUMN _user_id SET DEFAULT kalam.user_id();

-- Commands that commit in the middle go on as they began, for an owner who may not see the rows of others too.
CREATE ROLE regress_ddl_owner;
CREATE TABLE midway (id int PRIMARY KEY, v int);
INSERT INTO midway SELECT i, i FROM generate_series(1, 100) i;
ALTER TABLE midway OWNER TO regress_ddl_owner;
GRANT ALL ON SCHEMA user_ddl TO regress_ddl_owner;
RESET kalam.user_id;
SET ROLE regress_ddl_owner;
SET row_security = off;
CREATE INDEX CONCURRENTLY midway_v ON midway (v);
REINDEX INDEX CONCURRENTLY midway_v;
REINDEX TABLE CONCURRENTLY midway;
VACUUM midway;
SELECT count(*) FROM midway;
RESET row_security;
SELECT count(*) FROM midway;
RESET ROLE;
SELECT indexrelid::regclass, indisvalid FROM pg_index WHERE indrelid = 'midway'::regclass ORDER BY 1;
DROP TABLE midway;
REVOKE ALL ON SCHEMA user_ddl FROM regress_ddl_owner;
DROP ROLE regress_ddl_owner;

-- Refused.
\set VERBOSITY terse
ALTER TABLE room DROP COLUMN _user_id;
ALTER TABLE room RENAME COLUMN _user_id TO owner;
ALTER TABLE room ALTER COLUMN _user_id DROP NOT NULL;
ALTER TABLE room ALTER COLUMN _user_id DROP DEFAULT;
ALTER TABLE room ALTER COLUMN _user_id SET DEFAULT 'all';
ALTER TABLE room ALTER COLUMN _user_id TYPE varchar;
ALTER TABLE room SET ACCESS METHOD heap;
ALTER TABLE topic SET ACCESS METHOD kalam_user;
CREATE MATERIALIZED VIEW seen AS SELECT 1 AS i;
CREATE TABLE parts (id int) PARTITION BY LIST (id);
CREATE TABLE part PARTITION OF parts FOR VALUES IN (1);
ALTER TABLE parts ATTACH PARTITION room FOR VALUES IN (2);
ALTER TABLE room INHERIT parts;
CREATE TYPE pair AS (a int, b int);
CREATE TABLE typed OF pair;
CLUSTER message USING nothing;
\set VERBOSITY default
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int PRIMARY KEY, p int, FOREIGN KEY (_user_id, p) REFERENCES parent (_user_id, id) ON DELETE SET NULL);
CREATE TABLE child (id int PRIMARY KEY, p int, FOREIGN KEY (_user_id, p) REFERENCES parent (_user_id, id) ON DELETE SET NULL (p));
ALTER TABLE child ADD FOREIGN KEY (_user_id, p) REFERENCES parent ON DELETE SET NULL (_user_id);
ALTER TABLE child ADD FOREIGN KEY (_user_id, p) REFERENCES parent ON UPDATE SET NULL;
INSERT INTO parent VALUES (1);
INSERT INTO child VALUES (1, 1);
DELETE FROM parent;
SELECT id, p FROM child;
DROP TABLE child, parent;
\set VERBOSITY terse
CREATE INDEX by_room ON message USING hash (room);
\set VERBOSITY default
CREATE TABLE part PARTITION OF parts FOR VALUES IN (1) USING kalam_shared;

-- Should hook and trigger be passed by, the access method itself refuses.
SELECT evtname, evtenabled FROM pg_event_trigger WHERE evtname = 'kalam_user_tables';
SELECT kalam.prepare_ddl();

RESET kalam.user_id;
SET client_min_messages = warning;
DROP SCHEMA user_ddl CASCADE;
