-- The owner of a table has code run for others: below the checks of foreign keys, and with the owner's rights in commands of others.
-- It shows the rows of the session's user at most, and where that user has not called it, those of its owner's own tables only. On heap
-- there is nothing to show: see user_hostile_checks_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
\set VERBOSITY terse
CREATE SCHEMA hostile_checks;
SET search_path = hostile_checks;
CREATE ROLE regress_checks_app;
CREATE ROLE regress_checks_eve;
CREATE ROLE regress_checks_ann;
GRANT USAGE ON SCHEMA hostile_checks TO PUBLIC;
GRANT CREATE ON SCHEMA hostile_checks TO regress_checks_app, regress_checks_eve;
SET default_table_access_method = heap;
CREATE TABLE spot (at tid);
GRANT SELECT ON spot TO PUBLIC;
SET ROLE regress_checks_app;
CREATE TABLE secret (id int PRIMARY KEY, word text) USING kalam_user;
GRANT ALL ON secret TO PUBLIC;
RESET ROLE;
INSERT INTO secret VALUES (1, 'superuser 1');
SET ROLE regress_checks_ann;
INSERT INTO secret VALUES (1, 'ann 1'), (2, 'ann 2');
UPDATE secret SET word = 'ann 2, changed' WHERE id = 2;
SET ROLE regress_checks_eve;
INSERT INTO secret VALUES (1, 'eve 1');
RESET ROLE;
INSERT INTO spot SELECT format('(%s,%s)', b, o)::tid FROM generate_series(0, 30) b, generate_series(1, 3) o;
SET ROLE regress_checks_eve;
CREATE FUNCTION spy(place text) RETURNS int LANGUAGE plpgsql AS
    $$ BEGIN RAISE NOTICE '% sees %', place, (SELECT string_agg(word, ', ' ORDER BY word) FROM hostile_checks.secret); RETURN 1; END $$;
CREATE FUNCTION look(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN hostile_checks.spy('expression'); END $$;

-- The planner computes a cast while it plans the check of a foreign key.
CREATE TYPE kind AS ENUM ('one', 'two');
CREATE FUNCTION kind_number(kind) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN hostile_checks.spy('cast'); END $$;
CREATE CAST (kind AS int) WITH FUNCTION kind_number(kind) AS IMPLICIT;
CREATE TABLE number (id int PRIMARY KEY);
INSERT INTO number VALUES (1);
CREATE TABLE uses (kind kind REFERENCES number);
INSERT INTO uses VALUES ('one');
DROP TABLE uses;
-- A check is the first that the session has to do with user tables: triggers below it, also where they ask with parallel workers.
CREATE TABLE member (id int PRIMARY KEY REFERENCES number ON DELETE CASCADE);
INSERT INTO member VALUES (1);
CREATE FUNCTION spy_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    gone bigint;
BEGIN
    PERFORM hostile_checks.spy(TG_ARGV[0]);
    IF TG_NARGS > 1 THEN
        UPDATE hostile_checks.secret SET word = word || '!';
        GET DIAGNOSTICS gone = ROW_COUNT;
        RAISE NOTICE '% changes %', TG_ARGV[0], gone;
    END IF;
    RETURN OLD;
END $$;
CREATE TRIGGER spies BEFORE DELETE ON member FOR EACH ROW EXECUTE FUNCTION spy_trigger('trigger', 'changes');
\c -
SET search_path = hostile_checks;
SET default_table_access_method = heap;
\set VERBOSITY terse
SET ROLE regress_checks_eve;
SELECT kalam.user_id() AS loads_the_library;
DELETE FROM number;
INSERT INTO number VALUES (2);
INSERT INTO member VALUES (2);
CREATE FUNCTION spy_parallel() RETURNS trigger LANGUAGE plpgsql SET parallel_setup_cost = 0 SET parallel_tuple_cost = 0
    SET min_parallel_table_scan_size = 0 SET min_parallel_index_scan_size = 0 SET parallel_leader_participation = off AS
    $$ BEGIN RAISE NOTICE 'parallel workers see %', (SELECT count(*) FROM hostile_checks.secret); RETURN OLD; END $$;
CREATE OR REPLACE TRIGGER spies BEFORE DELETE ON member FOR EACH ROW EXECUTE FUNCTION spy_parallel();
DELETE FROM number;
-- Functions that look at a table without a query.
CREATE FUNCTION spy_tid() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    one tid;
    found int := 0;
BEGIN
    FOR one IN SELECT at FROM hostile_checks.spot LOOP
        BEGIN
            one := currtid2('hostile_checks.secret', one);
            found := found + 1;
        EXCEPTION WHEN OTHERS THEN NULL;
        END;
    END LOOP;
    RAISE NOTICE '% blocks of others show something', found / 3 - 1;
    RETURN OLD;
END $$;
CREATE OR REPLACE TRIGGER spies BEFORE DELETE ON member FOR EACH ROW EXECUTE FUNCTION spy_tid();
INSERT INTO number VALUES (3);
INSERT INTO member VALUES (3);
DELETE FROM number;
DROP TABLE member;

-- Rules change what a check does.
INSERT INTO number VALUES (1);
CREATE TABLE loot (word text);
CREATE TABLE ruled (id int REFERENCES number ON DELETE CASCADE);
INSERT INTO ruled VALUES (1);
CREATE RULE takes AS ON DELETE TO ruled DO ALSO INSERT INTO loot SELECT word FROM secret;
DELETE FROM number;
SELECT * FROM loot;
DROP TABLE ruled;
INSERT INTO number VALUES (1);
CREATE TABLE ruled (id int REFERENCES number ON DELETE CASCADE) USING kalam_user;
INSERT INTO ruled VALUES (1);
CREATE RULE takes AS ON DELETE TO ruled DO ALSO INSERT INTO loot SELECT word FROM secret;
DELETE FROM number;
DROP RULE takes ON ruled;
CREATE RULE takes AS ON DELETE TO ruled DO INSTEAD DELETE FROM secret;
DELETE FROM number;
DROP RULE takes ON ruled;
CREATE RULE takes AS ON DELETE TO ruled WHERE (SELECT count(*) FROM secret) > 1 DO INSTEAD NOTHING;
DELETE FROM number;
DROP RULE takes ON ruled;
DELETE FROM number;
SELECT * FROM ruled;

-- Commands of others that run code with the owner's rights.
CREATE TABLE mine (id int);
INSERT INTO mine VALUES (1);
CREATE INDEX mine_look ON mine (look(id));
CREATE MATERIALIZED VIEW shown AS SELECT word FROM secret;
RESET ROLE;
REINDEX TABLE mine;
ANALYZE mine;
REFRESH MATERIALIZED VIEW shown;
SELECT * FROM shown;
CREATE FUNCTION of_superuser() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM hostile_checks.secret';
SET ROLE regress_checks_eve;
REFRESH MATERIALIZED VIEW shown;
CREATE OR REPLACE FUNCTION spy(place text) RETURNS int LANGUAGE plpgsql AS
    $$ BEGIN RAISE NOTICE 'a function of the superuser sees %', hostile_checks.of_superuser(); RETURN 1; END $$;
RESET ROLE;
REINDEX TABLE mine;
SET ROLE regress_checks_eve;
CREATE OR REPLACE FUNCTION spy(place text) RETURNS int LANGUAGE plpgsql AS
    $$ BEGIN PERFORM kalam.create_user('regress_checks_more', 'Very-Long-1-Password', 'dba'); RETURN 1; END $$;
RESET ROLE;
REINDEX TABLE mine;
SET ROLE regress_checks_eve;
DROP TABLE mine;
-- What the extension itself runs as the owner.
CREATE OR REPLACE FUNCTION spy(place text) RETURNS int LANGUAGE plpgsql AS
    $$ BEGIN RAISE NOTICE '% sees %', place, (SELECT string_agg(word, ', ' ORDER BY word) FROM hostile_checks.secret); RETURN 1; END $$;
CREATE TABLE trap (id int, t text) USING kalam_user;
GRANT ALL ON trap TO PUBLIC;
SET ROLE regress_checks_ann;
INSERT INTO trap VALUES (0, 'a column is called t');
SET ROLE regress_checks_eve;
CREATE INDEX trap_look ON trap (id, look(1));
SET ROLE regress_checks_ann;
SELECT count(*) FROM kalam.user_rows();
SELECT count(*) FROM kalam.user_usage();
RESET ROLE;
SELECT count(*) FROM kalam.erase_user('regress_checks_ann');
SET ROLE regress_checks_eve;
DROP INDEX trap_look;
CREATE RULE takes AS ON DELETE TO trap DO ALSO INSERT INTO loot SELECT word FROM secret;
RESET ROLE;
SELECT count(*) FROM kalam.erase_user('regress_checks_ann');
SELECT count(*) FROM loot WHERE word LIKE 'ann%';
DROP RULE takes ON trap;
-- A reset of all settings would end the acting.
SET ROLE regress_checks_ann;
INSERT INTO secret VALUES (11, 'ann 11');
INSERT INTO trap VALUES (1, 'a column is called t');
SELECT row FROM kalam.user_rows() WHERE relation = 'trap'::regclass ORDER BY row->>'id';
-- Scans of the extension's own in parallel workers.
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
SET parallel_leader_participation = off;
SELECT rows FROM kalam.user_usage() WHERE relation = 'trap'::regclass;
RESET parallel_setup_cost;
RESET parallel_tuple_cost;
RESET min_parallel_table_scan_size;
RESET parallel_leader_participation;
SET ROLE regress_checks_eve;
CREATE FUNCTION reset_all() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RESET ALL; RETURN 1; END $$;
CREATE FUNCTION reset_quietly() RETURNS int LANGUAGE plpgsql IMMUTABLE AS
    $$ BEGIN IF kalam.user_id() = current_user THEN RETURN 1; END IF; RETURN hostile_checks.reset_all(); END $$;
CREATE INDEX trap_reset ON trap (id, reset_quietly());
RESET ROLE;
SELECT count(*) FROM kalam.erase_user('regress_checks_ann');
SET ROLE regress_checks_ann;
SELECT * FROM trap;
RESET ROLE;
DROP INDEX trap_reset;

-- Below a change of others: a trigger of another table's owner, and one of the application.
RESET ROLE;
CREATE TABLE leech (id int, FOREIGN KEY (_user_id, id) REFERENCES secret ON DELETE CASCADE) USING kalam_user;
ALTER TABLE leech OWNER TO regress_checks_eve;
SET ROLE regress_checks_eve;
CREATE TRIGGER spies BEFORE DELETE ON leech FOR EACH STATEMENT EXECUTE FUNCTION spy_trigger('leech');
SET ROLE regress_checks_ann;
DELETE FROM secret WHERE id = 11;
RESET ROLE;
DROP TABLE leech;
SET ROLE regress_checks_app;
CREATE TABLE part (id int, FOREIGN KEY (_user_id, id) REFERENCES secret ON DELETE CASCADE) USING kalam_user;
CREATE FUNCTION counts() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE NOTICE 'the application sees %', (SELECT count(*) FROM hostile_checks.secret); RETURN OLD; END $$;
CREATE TRIGGER counts BEFORE DELETE ON part FOR EACH ROW EXECUTE FUNCTION counts();
GRANT ALL ON part TO PUBLIC;
SET ROLE regress_checks_ann;
INSERT INTO part VALUES (11);
DELETE FROM secret WHERE id = 11;
SELECT count(*) FROM part;

-- The code of another table's owner does not log the session in, and has no rank that its owner has not.
SET ROLE regress_checks_eve;
CREATE FUNCTION spy_login() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    BEGIN
        PERFORM kalam.login('regress_checks_of_eve', 'no password');
    EXCEPTION WHEN insufficient_privilege THEN RAISE NOTICE 'login: %', SQLERRM;
    END;
    BEGIN
        PERFORM kalam.logout();
    EXCEPTION WHEN insufficient_privilege THEN RAISE NOTICE 'logout: %', SQLERRM;
    END;
    BEGIN
        PERFORM kalam.execute_as('regress_checks_ann', 'SELECT word FROM hostile_checks.secret');
    EXCEPTION WHEN insufficient_privilege THEN RAISE NOTICE 'execute_as: %', SQLERRM;
    END;
    BEGIN
        PERFORM kalam.user_rows('regress_checks_ann');
    EXCEPTION WHEN insufficient_privilege THEN RAISE NOTICE 'user_rows: %', SQLERRM;
    END;
    RETURN NULL;
END $$;
RESET ROLE;
CREATE TABLE leech (id int, FOREIGN KEY (_user_id, id) REFERENCES secret ON DELETE CASCADE) USING kalam_user;
ALTER TABLE leech OWNER TO regress_checks_eve;
SET ROLE regress_checks_eve;
CREATE TRIGGER spies BEFORE DELETE ON leech FOR EACH STATEMENT EXECUTE FUNCTION spy_login();
RESET ROLE;
DELETE FROM secret;
DROP TABLE leech;
-- An owner's code stops nobody who has no rows in the table.
SET ROLE regress_checks_eve;
CREATE FUNCTION fails() RETURNS int LANGUAGE plpgsql IMMUTABLE AS
    $$ BEGIN IF kalam.user_id() <> current_user THEN RAISE 'no'; END IF; RETURN 1; END $$;
CREATE TABLE blocks (id int) USING kalam_user;
CREATE INDEX blocks_fails ON blocks (id, fails());
SET ROLE regress_checks_ann;
INSERT INTO secret VALUES (12, 'ann 12');
SELECT row FROM kalam.user_rows() WHERE relation = 'secret'::regclass ORDER BY row->>'id';

-- A check below another one is for all users as well.
SET ROLE regress_checks_app;
CREATE TABLE outer_key (id int PRIMARY KEY);
CREATE TABLE inner_key (id int PRIMARY KEY);
CREATE TABLE outer_row (id int REFERENCES outer_key ON DELETE CASCADE);
CREATE TABLE inner_row (id int REFERENCES inner_key ON DELETE CASCADE) USING kalam_user;
CREATE FUNCTION goes_on() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN DELETE FROM hostile_checks.inner_key WHERE id = OLD.id; RETURN OLD; END $$;
CREATE TRIGGER goes_on BEFORE DELETE ON outer_row FOR EACH ROW EXECUTE FUNCTION goes_on();
GRANT ALL ON outer_key, inner_key, outer_row, inner_row TO PUBLIC;
INSERT INTO outer_key VALUES (1);
INSERT INTO inner_key VALUES (1);
INSERT INTO outer_row VALUES (1);
SET ROLE regress_checks_ann;
INSERT INTO inner_row VALUES (1);
SET ROLE regress_checks_eve;
INSERT INTO inner_row VALUES (1);
DELETE FROM outer_key;
SET ROLE regress_checks_ann;
SELECT (SELECT count(*) FROM inner_key) AS keys, (SELECT count(*) FROM inner_row) AS rows;

-- Rows do not change hands with what they refer to, nor by moving to another partition.
SET ROLE regress_checks_app;
CREATE TABLE account (name text COLLATE "C" PRIMARY KEY, room int, UNIQUE (name, room));
GRANT ALL ON account TO PUBLIC;
INSERT INTO account VALUES ('regress_checks_ann', 1), ('nobody', 1);
CREATE TABLE hand (id int, room int, _user_id text COLLATE "C" NOT NULL DEFAULT kalam.user_id(),
    FOREIGN KEY (_user_id, room) REFERENCES account (name, room) ON UPDATE CASCADE) PARTITION BY LIST (room);
CREATE TABLE hand_one PARTITION OF hand FOR VALUES IN (1) USING kalam_user;
CREATE TABLE hand_rest PARTITION OF hand DEFAULT USING kalam_user;
GRANT ALL ON hand TO PUBLIC;
SET ROLE regress_checks_ann;
INSERT INTO hand VALUES (1, 1);
SET ROLE regress_checks_eve;
UPDATE account SET name = 'regress_checks_eve' WHERE name = 'regress_checks_ann';
UPDATE account SET name = 'regress_checks_eve', room = 2 WHERE name = 'regress_checks_ann';
UPDATE account SET room = 2 WHERE name = 'regress_checks_ann';
SET ROLE regress_checks_ann;
SELECT tableoid::regclass, * FROM hand;

-- A foreign key to rows of others by way of a table that was empty.
RESET ROLE;
CREATE TABLE way (_user_id text COLLATE "C", id int, FOREIGN KEY (_user_id, id) REFERENCES secret (_user_id, id)) PARTITION BY RANGE (id);
ALTER TABLE way OWNER TO regress_checks_eve;
SET ROLE regress_checks_eve;
ALTER TABLE way RENAME COLUMN _user_id TO who;
CREATE TABLE way_heap PARTITION OF way DEFAULT USING heap;
CREATE TABLE way_heap (who text COLLATE "C", id int) USING heap;
ALTER TABLE way ATTACH PARTITION way_heap DEFAULT;

RESET ROLE;
SET row_security = off;
SELECT _user_id, id, word FROM secret ORDER BY 1, 2;
SET row_security = on;
SET client_min_messages = warning;
DROP SCHEMA hostile_checks CASCADE;
DROP ROLE regress_checks_app;
DROP ROLE regress_checks_eve;
DROP ROLE regress_checks_ann;
