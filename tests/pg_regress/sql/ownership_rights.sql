-- With whose rights the code runs that a table's owner has defined, when others look at, export or erase a user's rows. On heap there
-- are no such rows: see ownership_rights_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
CREATE ROLE rights_mallory LOGIN;
CREATE ROLE rights_ann LOGIN;
CREATE SCHEMA rights AUTHORIZATION rights_mallory;
GRANT USAGE ON SCHEMA rights TO PUBLIC;
SET ROLE rights_mallory;
CREATE TABLE rights.seen (who text) USING heap;
GRANT ALL ON rights.seen TO PUBLIC;
CREATE TYPE rights.mood AS ENUM ('fine');
CREATE FUNCTION rights.note(what text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO rights.seen VALUES (what || ' as ' || current_user);
END $$;
CREATE FUNCTION rights.as_json(rights.mood) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
    PERFORM rights.note('json');
    RETURN '1';
END $$;
CREATE FUNCTION rights.as_text(rights.mood) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM rights.note('text');
    RETURN '1';
END $$;
CREATE CAST (rights.mood AS json) WITH FUNCTION rights.as_json(rights.mood);
CREATE CAST (rights.mood AS text) WITH FUNCTION rights.as_text(rights.mood);
CREATE TABLE rights.diary (id int PRIMARY KEY, mood rights.mood) USING kalam_user;
GRANT ALL ON rights.diary TO PUBLIC;
CREATE FUNCTION rights.on_delete() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM rights.note('trigger');
    RETURN OLD;
END $$;
CREATE TRIGGER always BEFORE DELETE ON rights.diary FOR EACH ROW EXECUTE FUNCTION rights.on_delete();
ALTER TABLE rights.diary ENABLE ALWAYS TRIGGER always;
RESET ROLE;
SET kalam.user_id = 'rights_ann';
INSERT INTO rights.diary VALUES (1, 'fine');
SELECT rows FROM kalam.user_usage('rights_ann') WHERE relation = 'rights.diary'::regclass;
SELECT "row" FROM kalam.user_rows('rights_ann') WHERE relation = 'rights.diary'::regclass;
SELECT kalam.export_user('rights_ann', wait => true) IS NOT NULL AS exported;
RESET kalam.user_id;
SELECT * FROM kalam.erase_user('rights_ann');
-- Mallory's code ran with Mallory's rights only.
SELECT who, count(*) > 0 AS called FROM rights.seen GROUP BY who ORDER BY who;

-- Rows that the owner's code keeps, and what is put off to the end of the transaction.
SET ROLE rights_mallory;
CREATE OR REPLACE FUNCTION rights.on_delete() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
RESET ROLE;
SET kalam.user_id = 'rights_ann';
INSERT INTO rights.diary VALUES (1, 'fine');
RESET kalam.user_id;
SELECT * FROM kalam.erase_user('rights_ann');
SET ROLE rights_mallory;
DROP TRIGGER always ON rights.diary;
CREATE CONSTRAINT TRIGGER late AFTER DELETE ON rights.diary DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION rights.on_delete();
ALTER TABLE rights.diary ENABLE ALWAYS TRIGGER late;
RESET ROLE;
SELECT * FROM kalam.erase_user('rights_ann');
SET ROLE rights_mallory;
DROP TRIGGER late ON rights.diary;
ALTER TABLE rights.diary ENABLE ROW LEVEL SECURITY;
ALTER TABLE rights.diary FORCE ROW LEVEL SECURITY;
RESET ROLE;
SELECT * FROM kalam.erase_user('rights_ann');
SET ROLE rights_mallory;
ALTER TABLE rights.diary NO FORCE ROW LEVEL SECURITY;
RESET ROLE;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT * FROM kalam.erase_user('rights_ann');
ROLLBACK;
SELECT * FROM kalam.erase_user('rights_ann');
DROP SCHEMA rights CASCADE;
DROP ROLE rights_mallory, rights_ann;
