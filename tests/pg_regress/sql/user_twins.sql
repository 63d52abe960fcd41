-- One user runs every kind of statement over every kind of index in every shape of plan, beside another user's rows and in tables
-- that the other user never wrote to. What comes out is the same: rows, errors with their texts, the state afterwards.
CREATE SCHEMA beside;
CREATE SCHEMA alone;
CREATE EXTENSION IF NOT EXISTS btree_gist;
CREATE ROLE regress_twin;
GRANT USAGE, CREATE ON SCHEMA beside, alone TO regress_twin;
SET client_min_messages = warning;
-- What is forced upon the planner costs more than any compilation.
ALTER ROLE regress_twin SET jit = off;
SET jit = off;

-- What triggers see.
CREATE FUNCTION public.twin_old() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('twin.seen', current_setting('twin.seen', true) || ' old: ' || (SELECT count(*) || ' ' || coalesce(sum(id), 0) FROM o), true);
    RETURN NULL;
END $$;
CREATE FUNCTION public.twin_row() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE others bigint;
BEGIN
    EXECUTE format('SELECT count(*) FROM %I.%I', TG_TABLE_SCHEMA, TG_TABLE_NAME) INTO others;
    PERFORM set_config('twin.seen', current_setting('twin.seen', true) || ' row: ' || others, true);
    IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
    RETURN NEW;
END $$;

-- Both schemas have the same tables, one for each kind of index; statements name them without a schema.
CREATE FUNCTION public.twin_tables() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    space text; kind text; with_index text;
BEGIN
    FOREACH space IN ARRAY ARRAY['beside', 'alone'] LOOP
        PERFORM set_config('search_path', space || ', public', false);
        FOR kind, with_index IN VALUES
            ('btree', 'CREATE INDEX ON t (n)'), ('desc', 'CREATE INDEX ON t (n DESC NULLS LAST, word)'),
            ('hash', 'CREATE INDEX ON t USING hash (word)'), ('gin', 'CREATE INDEX ON t USING gin (words)'),
            ('gist', 'CREATE INDEX ON t USING gist (span)'), ('brin', 'CREATE INDEX ON t USING brin (n)'),
            ('spgist', 'CREATE INDEX ON t USING spgist (word)'),
            ('excluded', 'ALTER TABLE t ADD EXCLUDE USING gist (word WITH =, span WITH &&)'),
            ('partial', 'CREATE UNIQUE INDEX ON t (n) WHERE n >= 0'), ('expression', 'CREATE UNIQUE INDEX ON t (lower(word), (n + 1))'),
            ('covering', 'CREATE UNIQUE INDEX ON t (n) INCLUDE (word, span)'), ('deferred', 'ALTER TABLE t ADD UNIQUE (n) DEFERRABLE')
        LOOP
            EXECUTE format('CREATE TABLE %I (id int PRIMARY KEY, n int, word text, words text[], span int4range, body text) USING kalam_user
                WITH (kalam.flush_policy = ''off'')', kind);
            EXECUTE regexp_replace(with_index, '\mt\M', quote_ident(kind));
            EXECUTE format('CREATE TABLE %I (id int PRIMARY KEY, parent int, FOREIGN KEY (_user_id, parent) REFERENCES %I (_user_id, id)
                ON DELETE CASCADE ON UPDATE CASCADE) USING kalam_user WITH (kalam.flush_policy = ''off'')', kind || '_child', kind);
            EXECUTE format('CREATE VIEW %I AS SELECT * FROM %I', kind || '_view', kind);
            EXECUTE format('CREATE FUNCTION %I() RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER AS ''SELECT sum(n) FROM %I''',
                kind || '_definer', kind);
            EXECUTE format('CREATE TRIGGER deletes AFTER DELETE ON %I REFERENCING OLD TABLE AS o FOR EACH STATEMENT EXECUTE FUNCTION twin_old()', kind);
            EXECUTE format('CREATE TRIGGER updates AFTER UPDATE ON %I REFERENCING OLD TABLE AS o FOR EACH STATEMENT EXECUTE FUNCTION twin_old()', kind);
            EXECUTE format('CREATE TRIGGER each_row BEFORE INSERT OR UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION twin_row()', kind);
            EXECUTE format('GRANT ALL ON %I, %I, %I TO regress_twin', kind, kind || '_child', kind || '_view');
        END LOOP;
        CREATE TABLE plain (id int PRIMARY KEY, word text) USING kalam_shared;
        INSERT INTO plain SELECT i, 'word ' || i FROM generate_series(1, 60) i;
        GRANT ALL ON plain TO regress_twin;
    END LOOP;
END $$;

CREATE FUNCTION public.twin_kinds() RETURNS SETOF text LANGUAGE sql AS $$
    VALUES ('btree'), ('desc'), ('hash'), ('gin'), ('gist'), ('brin'), ('spgist'), ('excluded'), ('partial'), ('expression'),
        ('covering'), ('deferred') $$;

-- Rows of a user in all tables of a schema. Those of the other user have the same keys and many more.
CREATE FUNCTION public.twin_rows(space text, who text, first int, last int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE kind text;
BEGIN
    PERFORM set_config('search_path', space || ', public', false);
    PERFORM set_config('kalam.user_id', who, false);
    FOR kind IN SELECT twin_kinds() LOOP
        EXECUTE format('INSERT INTO %I (id, n, word, words, span, body)
            SELECT i, i, ''word '' || i, ARRAY[''all'', ''w'' || i %% 7], int4range(i * 3, i * 3 + 2), repeat(''body '', i %% 30)
            FROM generate_series(%s, %s) i', kind, first, last);
        EXECUTE format('INSERT INTO %I (id, parent) SELECT i, i FROM generate_series(%s, %s) i', kind || '_child', first, last);
    END LOOP;
    PERFORM set_config('kalam.user_id', '', false);
END $$;

-- What a statement shows, and what the table has afterwards; nothing stays.
CREATE FUNCTION public.twin_look(space text, kind text, settings text[], statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    seen text := ''; state text; words text; detail text; hint text; named text; rest text; one record; setting text;
BEGIN
    statement := replace(statement, '%T', format('%I.%I', space, kind));
    statement := replace(statement, '%V', format('%I.%I', space, kind || '_view'));
    statement := replace(statement, '%C', format('%I.%I', space, kind || '_child'));
    statement := replace(statement, '%P', format('%I.plain', space));
    statement := replace(statement, '%F', format('%I.%I', space, kind || '_definer'));
    BEGIN
        PERFORM set_config('twin.seen', '', true);
        -- They end with the subtransaction.
        FOREACH setting IN ARRAY settings LOOP
            PERFORM set_config(split_part(setting, '=', 1), split_part(setting, '=', 2), true);
        END LOOP;
        IF statement ~ '^(SELECT|WITH|EXPLAIN|TABLE|VALUES)|RETURNING|^EXECUTE' THEN
            FOR one IN EXECUTE statement LOOP
                seen := seen || one::text || E'\n';
            END LOOP;
        ELSE
            EXECUTE statement;
        END IF;
        SET CONSTRAINTS ALL IMMEDIATE;
        seen := seen || current_setting('twin.seen');
        IF statement !~ '^(SELECT|EXPLAIN)' THEN
            EXECUTE format('SELECT string_agg(t::text, '' '' ORDER BY id) || count(*) FROM %I.%I t', space, kind) INTO rest;
            seen := seen || 'rest ' || md5(coalesce(rest, ''));
            EXECUTE format('SELECT string_agg(t::text, '' '' ORDER BY id) || count(*) FROM %I.%I t', space, kind || '_child') INTO rest;
            seen := seen || ' ' || md5(coalesce(rest, ''));
        END IF;
        RAISE EXCEPTION USING ERRCODE = 'ZZ000';
    EXCEPTION
        WHEN SQLSTATE 'ZZ000' THEN NULL;
        WHEN OTHERS THEN
            GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, words = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL,
                hint = PG_EXCEPTION_HINT, named = CONSTRAINT_NAME;
            seen := seen || format('%s %s; %s; %s; %s', state, words, detail, hint, named);
    END;
    RETURN replace(seen, space || '.', '');
END $$;

CREATE TABLE public.twin_shapes (name text, settings text[]) USING heap;
INSERT INTO twin_shapes VALUES
    ('any', '{}'),
    ('seq', '{enable_indexscan=off,enable_indexonlyscan=off,enable_bitmapscan=off}'),
    ('index', '{enable_seqscan=off,enable_bitmapscan=off,enable_indexonlyscan=off}'),
    ('index only', '{enable_seqscan=off,enable_bitmapscan=off,enable_indexscan=off}'),
    ('bitmap', '{enable_seqscan=off,enable_indexscan=off,enable_indexonlyscan=off}'),
    ('lossy bitmap', '{enable_seqscan=off,enable_indexscan=off,enable_indexonlyscan=off,work_mem=64kB}'),
    ('parallel', '{parallel_setup_cost=0,parallel_tuple_cost=0,min_parallel_table_scan_size=0,min_parallel_index_scan_size=0,force_parallel_mode=on}'),
    ('nested loop', '{enable_hashjoin=off,enable_mergejoin=off,enable_memoize=off}'),
    ('hash join', '{enable_nestloop=off,enable_mergejoin=off}'),
    ('merge join', '{enable_nestloop=off,enable_hashjoin=off}'),
    ('generic plan', '{plan_cache_mode=force_generic_plan}');

CREATE TABLE public.twin_statements (id int GENERATED ALWAYS AS IDENTITY, shaped boolean, statement text) USING heap;
-- In all shapes.
INSERT INTO twin_statements (shaped, statement) SELECT true, s FROM unnest(ARRAY[
    'SELECT count(*), min(id), max(id), min(n), max(n), min(word), max(word), sum(length(body)) FROM %T',
    'SELECT id FROM %T WHERE n = 45', 'SELECT id FROM %T WHERE n BETWEEN 40 AND 55 ORDER BY n DESC', 'SELECT n FROM %T WHERE n > 45 ORDER BY n',
    'SELECT id FROM %T WHERE word = ''word 45''', 'SELECT id FROM %T WHERE word = ''word 500''', 'SELECT id FROM %T WHERE word ^@ ''word 4'' ORDER BY id',
    'SELECT id FROM %T WHERE lower(word) = ''word 47''', 'SELECT id FROM %T WHERE words @> ''{w3}'' ORDER BY id',
    'SELECT id FROM %T WHERE words && ''{w3,w4}'' AND n > 44 ORDER BY id', 'SELECT id FROM %T WHERE span && ''[100,140)'' ORDER BY id',
    'SELECT count(*) FROM %T WHERE n >= 0 OR words @> ''{all}''', 'SELECT id FROM %T WHERE id IN (1, 41, 42, 500, 900) ORDER BY id',
    'SELECT id FROM %T WHERE _user_id <> ''eve''', 'SELECT DISTINCT _user_id FROM %T', 'SELECT id FROM %T ORDER BY _user_id DESC, id DESC LIMIT 3',
    'SELECT count(*) FROM %T a JOIN %T b ON a.n = b.n', 'SELECT count(*) FROM %T a JOIN %P p ON p.id = a.id',
    'SELECT count(*), count(a.id), count(p.id) FROM %T a FULL JOIN %P p ON p.word = a.word',
    'SELECT p.id FROM %P p WHERE EXISTS (SELECT FROM %T a WHERE a.n = p.id) ORDER BY 1',
    'SELECT p.id FROM %P p WHERE p.id NOT IN (SELECT n FROM %T) ORDER BY 1',
    'SELECT count(*) FROM %V', 'SELECT %F()', 'SELECT count(*) FROM %T TABLESAMPLE system (100)', 'SELECT count(*) FROM %T TABLESAMPLE bernoulli (100)',
    'SELECT count(*) FROM %T WHERE ctid >= ''(0,0)'' AND ctid < ''(1000000,0)''',
    'SELECT count(*) FROM %T WHERE ctid = ANY (ARRAY(SELECT ctid FROM %T))',
    'SELECT count(*) FROM %T WHERE ctid = ANY (ARRAY(SELECT format(''(%s,%s)'', b, o)::tid FROM generate_series(0, 20) b, generate_series(1, 291, 7) o)) AND n < 0',
    'WITH RECURSIVE r AS (SELECT 41 AS id UNION SELECT t.id + 1 FROM r JOIN %T t USING (id)) SELECT max(id) FROM r',
    'WITH x AS MATERIALIZED (SELECT * FROM %T) SELECT count(*) FROM x', 'SELECT word, row_number() OVER (ORDER BY n) FROM %T WHERE n > 55',
    'SELECT id FROM %T WHERE n = 45 FOR UPDATE NOWAIT', 'SELECT count(*) FROM (SELECT FROM %T FOR SHARE SKIP LOCKED) s',
    'UPDATE %T SET n = n + 1000 WHERE n = 45 RETURNING id, n', 'UPDATE %T SET word = word || ''!'' WHERE words @> ''{w3}'' RETURNING id',
    'UPDATE %T SET body = ''x'' WHERE n = 500 RETURNING id', 'DELETE FROM %T WHERE n = 45 RETURNING id', 'DELETE FROM %T WHERE n < 1000 RETURNING id',
    'DELETE FROM %T t USING %P p WHERE p.id = t.n AND p.id > 50 RETURNING t.id'
]) s;
-- In one.
INSERT INTO twin_statements (shaped, statement) SELECT false, s FROM unnest(ARRAY[
    'INSERT INTO %T (id, n, word, span) VALUES (500, 500, ''word 500'', ''[1500,1502)'') RETURNING id, n, word, _user_id',
    'INSERT INTO %T (id, n, word, span) VALUES (45, -1, ''new'', ''[9000,9001)'')', 'INSERT INTO %T (id, n, word, span) VALUES (9000, 45, ''new'', ''[9000,9001)'')',
    'INSERT INTO %T (id, n, word, span) VALUES (9000, 45, ''word 45'', ''[135,137)'')', 'INSERT INTO %T (id, n, word, span) VALUES (9000, 500, ''word 500'', ''[1500,1502)'')',
    'INSERT INTO %T (id, n, word, span) VALUES (500, 500, ''x'', ''[9000,9001)'') ON CONFLICT DO NOTHING RETURNING id',
    'INSERT INTO %T AS t (id, n, word) VALUES (45, -2, ''x'') ON CONFLICT (id) DO UPDATE SET word = t.word || excluded.word RETURNING id, word',
    'INSERT INTO %T AS t (id, n, word) VALUES (500, -2, ''x'') ON CONFLICT (id) DO UPDATE SET word = t.word || excluded.word RETURNING id, word',
    'INSERT INTO %T (id, n, word, _user_id) VALUES (500, 500, ''x'', ''other'') ON CONFLICT DO NOTHING RETURNING id',
    'INSERT INTO %T (id, n, word, _user_id) VALUES (9000, 9000, ''x'', ''other'')', 'UPDATE %T SET _user_id = ''other'' WHERE id = 45',
    'UPDATE %T SET id = 500 WHERE id = 45 RETURNING id', 'UPDATE %T SET id = 46 WHERE id = 45', 'UPDATE %T SET n = 46 WHERE n = 45',
    'UPDATE %T SET n = 500, span = ''[1500,1502)'', word = ''word 500'' WHERE id = 45 RETURNING id',
    'UPDATE %V SET word = ''by view'' WHERE n > 58 RETURNING id', 'DELETE FROM %V WHERE id = 500',
    'MERGE INTO %T t USING (VALUES (45), (500)) s(id) ON t.id = s.id WHEN MATCHED THEN UPDATE SET word = ''merged'' WHEN NOT MATCHED THEN INSERT (id, n, word) VALUES (s.id, -s.id, ''inserted'')',
    'INSERT INTO %C (id, parent) VALUES (9000, 45)', 'INSERT INTO %C (id, parent) VALUES (9000, 500)', 'INSERT INTO %C (id, parent, _user_id) VALUES (9000, 500, ''other'')',
    'UPDATE %C SET parent = 500 WHERE id = 45', 'DELETE FROM %T WHERE id = 46 RETURNING id', 'UPDATE %T SET id = 777 WHERE id = 47 RETURNING id', 'DELETE FROM %C WHERE parent = 500',
    'TRUNCATE %C', 'LOCK TABLE %T IN SHARE MODE',
    'SELECT * FROM kalam.history(''%T''::regclass)', 'SELECT kalam.undelete(''%T''::regclass, 500)', 'SELECT kalam.undelete(''%T''::regclass, 45)',
    'SELECT count(*) FROM kalam.table_segments(''%T''::regclass)', 'SELECT count(*) FROM kalam.segments', 'SELECT count(*) FROM kalam.jobs',
    'SELECT kalam.table_users(''%T''::regclass)', 'SELECT relation, rows FROM kalam.user_usage() WHERE relation = ''%T''::regclass',
    'SELECT count(*) FROM kalam.user_rows() WHERE relation = ''%T''::regclass', 'SELECT rows FROM kalam.user_usage(''other'')',
    'SELECT lead FROM (SELECT lead(ctid) OVER (ORDER BY ctid) > ctid AS lead FROM %T) s WHERE NOT lead',
    'SELECT (xmin = xmax)::text, tableoid = ''%T''::regclass FROM %T WHERE id = 45',
    'SELECT pg_catalog.has_table_privilege(''%T'', ''SELECT'')', 'SELECT count(*) FROM %T WHERE 1 / (n - 500) < 5',
    'SELECT query_to_xml(''SELECT count(*) FROM %T'', true, false, '''')', 'SELECT count(*) FROM ONLY %T', 'SELECT kalam.user_id(), kalam.scan_user()',
    'CREATE TEMP TABLE copied AS SELECT * FROM %T', 'CREATE INDEX ON %T (body)', 'ALTER TABLE %T ADD CHECK (n < 100)', 'DROP TABLE %T',
    'SELECT statistics.most_common_vals FROM pg_stats statistics WHERE false',
    'EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT id FROM %T WHERE n >= -1 AND body IS NOT NULL',
    'SELECT count(*) FROM pg_locks WHERE relation = ''%T''::regclass AND NOT granted',
    'DO $d$ DECLARE c SCROLL CURSOR FOR SELECT * FROM %T ORDER BY n; r record; BEGIN OPEN c; FETCH LAST FROM c INTO r; UPDATE %T SET word = ''last'' WHERE CURRENT OF c;
        MOVE BACKWARD ALL FROM c; FETCH c INTO r; DELETE FROM %T WHERE CURRENT OF c; END $d$',
    'DO $d$ BEGIN CREATE MATERIALIZED VIEW alone.seen USING heap AS SELECT * FROM %T; PERFORM set_config(''twin.seen'', (SELECT count(*)::text FROM alone.seen), true);
        REFRESH MATERIALIZED VIEW alone.seen; END $d$',
    'DO $d$ BEGIN CREATE TABLE alone.seen USING kalam_shared AS SELECT * FROM %T; PERFORM set_config(''twin.seen'', (SELECT count(*)::text FROM alone.seen), true); END $d$',
    'DO $d$ DECLARE r record; BEGIN FOR r IN SELECT id FROM %T LOOP UPDATE %T SET n = -n WHERE id = r.id; END LOOP; END $d$',
    'DO $d$ BEGIN INSERT INTO %T (id, n, word) VALUES (500, 500, ''new''); EXCEPTION WHEN unique_violation THEN RAISE NOTICE ''%'', SQLERRM; END $d$',
    'DO $d$ BEGIN FOR i IN 1..7 LOOP PERFORM count(*) FROM %T WHERE n = i * 100; END LOOP; END $d$'
]) s;
GRANT SELECT ON twin_shapes, twin_statements TO regress_twin;

-- The comparison, by the user who must not learn anything. Each statement runs over every kind of index as the planner likes, and
-- in every shape that is forced upon the planner over some.
CREATE FUNCTION public.twin_compare(OUT compared bigint, OUT different bigint) LANGUAGE plpgsql AS $$
DECLARE kind text; shape record; one record; here text; there text;
BEGIN
    compared := 0;
    different := 0;
    FOR one IN SELECT * FROM twin_statements ORDER BY id LOOP
        FOR shape IN SELECT * FROM twin_shapes WHERE one.shaped OR name = 'any' LOOP
            FOR kind IN SELECT k FROM twin_kinds() WITH ORDINALITY AS t (k, place)
                WHERE CASE WHEN one.shaped AND shape.name = 'any' THEN true ELSE (place + one.id + length(shape.name)) % CASE WHEN one.shaped THEN 4 ELSE 2 END = 0 END
            LOOP
                here := twin_look('beside', kind, shape.settings, one.statement);
                there := twin_look('alone', kind, shape.settings, one.statement);
                compared := compared + 1;
                IF here IS DISTINCT FROM there THEN
                    different := different + 1;
                    IF different <= 10 THEN
                        RAISE WARNING E'%, %: %\n-- beside: %\n-- alone: %', kind, shape.name, one.statement, left(here, 500), left(there, 500);
                    END IF;
                END IF;
            END LOOP;
        END LOOP;
    END LOOP;
END $$;

SELECT twin_tables();
SELECT twin_rows('beside', 'other', 1, 40), twin_rows('beside', 'eve', 41, 60), twin_rows('alone', 'eve', 41, 60),
    twin_rows('beside', 'other', 41, 600);
-- Deleted rows of both, of which one sees the own ones.
SELECT set_config('kalam.user_id', 'other', false);
DELETE FROM beside.btree WHERE id > 580;
SELECT set_config('kalam.user_id', '', false);
ANALYZE;
-- The comparison finds a difference where there is one.
SELECT s, twin_look('beside', 'btree', '{row_security=off}', s) <> twin_look('alone', 'btree', '{row_security=off}', s) AS differs
FROM unnest(ARRAY['SELECT count(*) FROM %T', 'INSERT INTO %T (id, n, _user_id) VALUES (500, 500, ''other'')', 'UPDATE %T SET n = 0']) s;
GRANT SET ON PARAMETER kalam.user_id TO regress_twin;
SET SESSION AUTHORIZATION regress_twin;
SET kalam.user_id = 'eve';
-- Hot rows.
SELECT * FROM twin_compare();
RESET SESSION AUTHORIZATION;
RESET kalam.user_id;
RESET search_path;
-- Cold rows, and some that became hot again.
VACUUM;
SELECT kalam.flush_schema('beside', wait => true) IS NOT NULL AS beside, kalam.flush_schema('alone', wait => true) IS NOT NULL AS alone;
SET row_security = off;
SELECT count(DISTINCT user_id) AS users_with_cold_rows FROM kalam.segments WHERE schemaname = 'beside' AND tablename = 'btree';
RESET row_security;
SET SESSION AUTHORIZATION regress_twin;
SET kalam.user_id = 'eve';
SELECT * FROM twin_compare();
RESET SESSION AUTHORIZATION;
RESET kalam.user_id;
RESET search_path;
-- What the other user has is all there.
SET row_security = off;
SELECT _user_id, count(*), sum(n) FROM beside.btree GROUP BY 1 ORDER BY 1;
SELECT _user_id, count(*), sum(n) FROM beside.excluded GROUP BY 1 ORDER BY 1;
RESET row_security;
REVOKE SET ON PARAMETER kalam.user_id FROM regress_twin;
DROP SCHEMA beside, alone CASCADE;
DROP TABLE twin_shapes, twin_statements;
DROP FUNCTION twin_tables, twin_kinds, twin_rows, twin_look, twin_compare, twin_old, twin_row;
DROP OWNED BY regress_twin;
DROP ROLE regress_twin;
DROP EXTENSION btree_gist;
