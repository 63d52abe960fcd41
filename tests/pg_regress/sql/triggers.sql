-- Triggers of every kind on tables.
CREATE SCHEMA triggers;
SET search_path = triggers, public;

CREATE TABLE item (id int PRIMARY KEY, v text, n int DEFAULT 0);
CREATE TABLE history (seq serial, what text, old text, new text);
CREATE FUNCTION record() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO triggers.history (what, old, new)
    VALUES (format('%s %s %s', TG_WHEN, TG_LEVEL, TG_OP),
        CASE WHEN TG_LEVEL = 'ROW' AND TG_OP <> 'INSERT' THEN OLD::text END,
        CASE WHEN TG_LEVEL = 'ROW' AND TG_OP <> 'DELETE' THEN NEW::text END);
    RETURN coalesce(NEW, OLD);
END $$;
CREATE TRIGGER a_before_statement BEFORE INSERT OR UPDATE OR DELETE ON item EXECUTE FUNCTION record();
CREATE TRIGGER b_before_row BEFORE INSERT OR UPDATE OR DELETE ON item FOR EACH ROW EXECUTE FUNCTION record();
CREATE TRIGGER c_after_row AFTER INSERT OR UPDATE OR DELETE ON item FOR EACH ROW EXECUTE FUNCTION record();
CREATE TRIGGER d_after_statement AFTER INSERT OR UPDATE OR DELETE ON item EXECUTE FUNCTION record();
INSERT INTO item VALUES (1, 'one'), (2, 'two');
UPDATE item SET v = 'uno' WHERE id = 1;
DELETE FROM item WHERE id = 2;
UPDATE item SET v = 'none' WHERE id = 99;
SELECT what, old, new FROM history ORDER BY seq;
TRUNCATE history;

-- The statement that failed left no trace.
\set VERBOSITY sqlstate
INSERT INTO item VALUES (3, 'three'), (1, 'again');
\set VERBOSITY default
SELECT count(*) FROM history;
DROP TRIGGER a_before_statement ON item;
DROP TRIGGER b_before_row ON item;
DROP TRIGGER c_after_row ON item;
DROP TRIGGER d_after_statement ON item;

-- BEFORE triggers change, replace and suppress rows.
CREATE FUNCTION adjust() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        RETURN CASE WHEN OLD.v = 'keep' THEN NULL ELSE OLD END;
    END IF;
    IF NEW.v = 'skip' THEN
        RETURN NULL;
    END IF;
    NEW.n := NEW.n + 1;
    RETURN NEW;
END $$;
CREATE TRIGGER adjust BEFORE INSERT OR UPDATE OR DELETE ON item FOR EACH ROW EXECUTE FUNCTION adjust();
INSERT INTO item VALUES (10, 'keep'), (11, 'skip'), (12, 'go');
UPDATE item SET n = n + 10;
UPDATE item SET v = 'skip' WHERE id = 12;
DELETE FROM item WHERE id >= 10 RETURNING id;
SELECT * FROM item ORDER BY id;
DROP TRIGGER adjust ON item;

-- Conditions and column lists.
CREATE FUNCTION say() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE NOTICE '%: % -> %', TG_NAME, OLD, NEW;
    RETURN NEW;
END $$;
CREATE TRIGGER only_n AFTER UPDATE OF n ON item FOR EACH ROW EXECUTE FUNCTION say();
CREATE TRIGGER changed AFTER UPDATE ON item FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION say();
UPDATE item SET v = v WHERE id = 1;
UPDATE item SET n = n WHERE id = 1;
UPDATE item SET v = 'eins' WHERE id = 1;
DROP TRIGGER only_n ON item;
DROP TRIGGER changed ON item;

-- An AFTER trigger sees the statement's effects, a BEFORE one the rows stored so far.
CREATE FUNCTION seen() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE NOTICE '% %: % rows', TG_WHEN, NEW.id, (SELECT count(*) FROM triggers.item);
    RETURN NEW;
END $$;
CREATE TRIGGER seen_before BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION seen();
CREATE TRIGGER seen_after AFTER INSERT ON item FOR EACH ROW EXECUTE FUNCTION seen();
INSERT INTO item VALUES (20, 'a'), (21, 'b'), (22, 'c');
DROP TRIGGER seen_before ON item;
DROP TRIGGER seen_after ON item;

-- Transition tables.
CREATE FUNCTION transitions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        RAISE NOTICE 'inserted: %', (SELECT string_agg(n.id || n.v, ', ' ORDER BY n.id) FROM new_rows n);
    ELSIF TG_OP = 'UPDATE' THEN
        RAISE NOTICE 'updated: %', (SELECT string_agg(o.id || o.v || '>' || n.v, ', ' ORDER BY o.id) FROM old_rows o JOIN new_rows n USING (id));
    ELSE
        RAISE NOTICE 'deleted: %', (SELECT string_agg(o.id || o.v, ', ' ORDER BY o.id) FROM old_rows o);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER on_insert AFTER INSERT ON item REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION transitions();
CREATE TRIGGER on_update AFTER UPDATE ON item REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION transitions();
CREATE TRIGGER on_delete AFTER DELETE ON item REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION transitions();
INSERT INTO item SELECT i, 'x' FROM generate_series(30, 33) i;
UPDATE item SET v = v || v WHERE id >= 30;
DELETE FROM item WHERE id >= 32;
DELETE FROM item WHERE id = 999;
COPY item (id, v) FROM stdin;
40	copied
41	too
\.
INSERT INTO item VALUES (40, 'conflict'), (42, 'new') ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v;
DROP TRIGGER on_insert ON item;
DROP TRIGGER on_update ON item;
DROP TRIGGER on_delete ON item;

-- Large values are there in OLD and NEW.
CREATE TABLE heavy (id int PRIMARY KEY, v text, n int);
ALTER TABLE heavy ALTER v SET STORAGE EXTERNAL;
CREATE FUNCTION large() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE NOTICE '% % old % new %', TG_WHEN, TG_OP,
        CASE WHEN TG_OP <> 'INSERT' THEN OLD.v = noise(OLD.id, 20000) END,
        CASE WHEN TG_OP <> 'DELETE' THEN NEW.v = noise(NEW.id, 20000) END;
    RETURN coalesce(NEW, OLD);
END $$;
CREATE TRIGGER large_before BEFORE INSERT OR UPDATE OR DELETE ON heavy FOR EACH ROW EXECUTE FUNCTION large();
CREATE TRIGGER large_after AFTER INSERT OR UPDATE OR DELETE ON heavy FOR EACH ROW EXECUTE FUNCTION large();
INSERT INTO heavy VALUES (1, noise(1, 20000), 0);
UPDATE heavy SET n = 1;
UPDATE heavy SET id = 2, v = noise(2, 20000);
DELETE FROM heavy;

-- Constraint triggers wait for the end of the transaction and then see what
-- was stored when they were queued.
CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE NOTICE '% %: row %, now %', TG_OP, TG_NAME, coalesce(NEW.v, OLD.v), (SELECT v FROM triggers.item WHERE id = coalesce(NEW.id, OLD.id));
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT OR UPDATE OR DELETE ON item DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late();
BEGIN;
INSERT INTO item VALUES (50, 'first');
UPDATE item SET v = 'second' WHERE id = 50;
SAVEPOINT s;
UPDATE item SET v = 'undone' WHERE id = 50;
ROLLBACK TO s;
UPDATE item SET v = 'third' WHERE id = 50;
SET CONSTRAINTS ALL IMMEDIATE;
DELETE FROM item WHERE id = 50;
COMMIT;
DROP TRIGGER late ON item;

-- Triggers that change other rows and other tables, to some depth.
CREATE TABLE node (id int PRIMARY KEY, parent int, total int DEFAULT 0);
CREATE FUNCTION add_up() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE triggers.node SET total = total + NEW.total - OLD.total WHERE id = NEW.parent;
    RETURN NULL;
END $$;
CREATE TRIGGER add_up AFTER UPDATE OF total ON node FOR EACH ROW EXECUTE FUNCTION add_up();
INSERT INTO node SELECT i, i / 2 FROM generate_series(1, 31) i;
UPDATE node SET total = total + 1 WHERE id >= 16;
SELECT id, total FROM node WHERE id < 4 ORDER BY id;

-- INSTEAD OF triggers on a view, and triggers that are switched off.
CREATE VIEW item_view AS SELECT id, v FROM item;
CREATE FUNCTION instead() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO triggers.item VALUES (NEW.id, 'via view: ' || NEW.v);
        RETURN NEW;
    ELSIF TG_OP = 'UPDATE' THEN
        UPDATE triggers.item SET v = NEW.v WHERE id = OLD.id;
        RETURN NEW;
    END IF;
    DELETE FROM triggers.item WHERE id = OLD.id;
    RETURN OLD;
END $$;
CREATE TRIGGER instead INSTEAD OF INSERT OR UPDATE OR DELETE ON item_view FOR EACH ROW EXECUTE FUNCTION instead();
INSERT INTO item_view VALUES (60, 'v');
UPDATE item_view SET v = 'changed' WHERE id = 60 RETURNING *;
DELETE FROM item_view WHERE id = 60;
SELECT count(*) FROM item WHERE id = 60;
ALTER TABLE node DISABLE TRIGGER add_up;
UPDATE node SET total = 0;
ALTER TABLE node ENABLE ALWAYS TRIGGER add_up;
UPDATE node SET total = 1 WHERE id = 31;
SELECT sum(total) FROM node;
