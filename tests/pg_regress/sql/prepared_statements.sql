-- Prepared statements survive what happens to their tables.
CREATE SCHEMA prepared_statements;
SET search_path = prepared_statements, public;

CREATE TABLE item (id int PRIMARY KEY, v text);
PREPARE put (int, text) AS INSERT INTO item VALUES ($1, $2);
PREPARE get (int) AS SELECT * FROM item WHERE id = $1;
PREPARE every_row AS SELECT * FROM item ORDER BY id;
PREPARE change (int, text) AS UPDATE item SET v = $2 WHERE id = $1 RETURNING *;
PREPARE remove (int) AS DELETE FROM item WHERE id = $1 RETURNING id;
PREPARE upsert (int, text) AS INSERT INTO item VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v || '!' RETURNING *;
EXECUTE put (1, 'one');
EXECUTE put (2, 'two');
EXECUTE get (1);
EXECUTE change (2, 'zwei');
EXECUTE upsert (2, 'deux');
EXECUTE upsert (3, 'trois');
EXECUTE remove (1);
EXECUTE every_row;
DO $$
BEGIN
    FOR i IN 100..120 LOOP
        EXECUTE format('EXECUTE put (%s, %L)', i, 'v' || i);
    END LOOP;
END $$;
SET plan_cache_mode = force_generic_plan;
EXECUTE get (110);
SET plan_cache_mode = force_custom_plan;
EXECUTE get (110);
RESET plan_cache_mode;
TRUNCATE item;
EXECUTE every_row;
EXECUTE put (1, 'again');
EXECUTE every_row;
CREATE INDEX ON item (v);
EXECUTE get (1);
ALTER TABLE item ALTER id TYPE bigint;
\set VERBOSITY sqlstate
EXECUTE every_row;
\set VERBOSITY default
ALTER TABLE item ALTER id TYPE int;
EXECUTE every_row;
VACUUM item;
EXECUTE get (1);
BEGIN;
EXECUTE put (5, 'five');
ALTER TABLE item ALTER v SET DEFAULT 'x';
EXECUTE get (5);
ROLLBACK;
EXECUTE get (5);
DROP TABLE item;
\set VERBOSITY sqlstate
EXECUTE get (1);
\set VERBOSITY default
CREATE TABLE item (id int PRIMARY KEY, v text);
EXECUTE put (7, 'new table');
EXECUTE get (7);

-- Statements cached by PL/pgSQL.
CREATE FUNCTION stored(key int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
BEGIN
    SELECT v INTO result FROM prepared_statements.item WHERE id = key;
    RETURN result;
END $$;
SELECT stored(7);
DROP TABLE item;
CREATE TABLE item (id int PRIMARY KEY, extra int, v text);
INSERT INTO item VALUES (7, 0, 'third table');
SELECT stored(7);
DEALLOCATE ALL;
