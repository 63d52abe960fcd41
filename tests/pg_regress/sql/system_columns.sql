-- tableoid, xmin, xmax, cmin, cmax: their meaning, not their numbers.
CREATE SCHEMA system_columns;
SET search_path = system_columns, public;

CREATE TABLE item (id int PRIMARY KEY, v text);
INSERT INTO item VALUES (0, 'before');
BEGIN;
INSERT INTO item VALUES (1, 'one');
INSERT INTO item VALUES (2, 'two'), (3, 'three');
SELECT id, tableoid::regclass, xmin = pg_current_xact_id()::xid AS mine, xmax, cmin FROM item ORDER BY id;
UPDATE item SET v = 'uno' WHERE id = 1;
SELECT id, xmin = pg_current_xact_id()::xid AS mine, xmax, cmin FROM item WHERE id = 1;
COMMIT;
SELECT count(DISTINCT xmin::text), bool_and(xmax::text = '0' OR id = 0) FROM item WHERE id > 0;
SELECT bool_and(age(xmin) > 0) FROM item;

-- A change of a row by another transaction changes xmin: what optimistic
-- locking relies on.
CREATE TABLE noted AS SELECT id, xmin::text AS version FROM item;
UPDATE item SET v = 'dos' WHERE id = 2;
SELECT item.id, item.xmin::text = noted.version AS unchanged FROM item JOIN noted USING (id) ORDER BY id;
UPDATE item SET v = 'stale' FROM noted WHERE item.id = noted.id AND item.xmin::text = noted.version AND item.id IN (2, 3) RETURNING item.id;

-- xmax shows a deletion that was undone, a lock, or nothing; within the
-- transaction cmin counts its commands.
BEGIN;
SAVEPOINT s;
DELETE FROM item WHERE id = 3;
ROLLBACK TO s;
SELECT id FROM item WHERE id = 3;
COMMIT;
BEGIN;
DECLARE before CURSOR FOR SELECT id, xmax = pg_current_xact_id()::xid AS deleted_by_me FROM item WHERE id = 3;
DELETE FROM item WHERE id = 3;
FETCH ALL FROM before;
ROLLBACK;
BEGIN;
INSERT INTO item VALUES (50, 'a');
INSERT INTO item VALUES (51, 'b');
INSERT INTO item VALUES (52, 'c');
SELECT id, cmin FROM item WHERE id >= 50 ORDER BY id;
UPDATE item SET v = 'd' WHERE id = 50;
SELECT id, cmin FROM item WHERE id >= 50 ORDER BY id;
ROLLBACK;
-- A row that was made and deleted by one transaction.
BEGIN;
INSERT INTO item VALUES (60, 'a');
DECLARE seen CURSOR FOR SELECT id, cmin::text AS cmin FROM item WHERE id = 60;
DELETE FROM item WHERE id = 60;
SELECT count(*) FROM item WHERE id = 60;
FETCH ALL FROM seen;
COMMIT;

-- In subtransactions xmin is the subtransaction's.
BEGIN;
INSERT INTO item VALUES (70, 'top');
SAVEPOINT s;
INSERT INTO item VALUES (71, 'sub');
SELECT id, xmin = pg_current_xact_id()::xid AS top FROM item WHERE id >= 70 ORDER BY id;
COMMIT;
SELECT count(DISTINCT xmin::text) FROM item WHERE id >= 70;

-- In conditions, RETURNING, whole-row references, COPY and index scans.
SELECT count(*) FROM item WHERE tableoid = 'item'::regclass;
SELECT count(*) FROM item WHERE tableoid <> 'item'::regclass;
INSERT INTO item VALUES (80, 'x') RETURNING tableoid::regclass, xmin = pg_current_xact_id()::xid AS mine, xmax, ctid IS NOT NULL AS place;
UPDATE item SET v = 'y' WHERE id = 80 RETURNING tableoid::regclass, xmin = pg_current_xact_id()::xid AS mine, ctid IS NOT NULL AS place;
DELETE FROM item WHERE id = 80 RETURNING tableoid::regclass, ctid IS NOT NULL AS place;
CALL only_scan('indexscan');
SELECT tableoid::regclass, xmin::text <> '0' AS xmin, id FROM item WHERE id = 2;
CALL only_scan('bitmapscan');
SELECT tableoid::regclass, xmin::text <> '0' AS xmin, id FROM item WHERE id = 2;
CALL only_scan('any');
SELECT item FROM item WHERE id = 2;
SELECT to_jsonb(item) FROM item WHERE id = 2;

-- In joins and after a sort, in triggers.
SELECT a.id, a.tableoid::regclass, b.xmin::text = a.xmin::text AS same FROM item a JOIN item b USING (id) ORDER BY a.id LIMIT 2;
CREATE FUNCTION show_system() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE NOTICE '% % old % new %', TG_WHEN, TG_OP,
        CASE WHEN TG_OP <> 'INSERT' THEN (OLD.tableoid::regclass)::text END,
        CASE WHEN TG_OP <> 'DELETE' AND TG_WHEN = 'AFTER' THEN (NEW.tableoid::regclass)::text END;
    RETURN coalesce(NEW, OLD);
END $$;
CREATE TRIGGER show_before BEFORE UPDATE OR DELETE ON item FOR EACH ROW EXECUTE FUNCTION show_system();
CREATE TRIGGER show_after AFTER INSERT OR UPDATE OR DELETE ON item FOR EACH ROW EXECUTE FUNCTION show_system();
INSERT INTO item VALUES (90, 'x');
UPDATE item SET v = 'y' WHERE id = 90;
DELETE FROM item WHERE id = 90;

-- tableoid among several tables.
CREATE TABLE item_child () INHERITS (item);
INSERT INTO item_child VALUES (100, 'child');
SELECT tableoid::regclass, count(*) FROM item GROUP BY tableoid ORDER BY tableoid::regclass::text;
\set VERBOSITY sqlstate
UPDATE item SET ctid = '(0,1)';
INSERT INTO item (xmin) VALUES (1);
CREATE TABLE wrong (xmin int);
\set VERBOSITY default
