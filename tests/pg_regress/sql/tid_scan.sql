-- Rows by their ctid. The values themselves are the table's own business.
CREATE SCHEMA tid_scan;
SET search_path = tid_scan, public;

CREATE TABLE spot (id int PRIMARY KEY, v text);
INSERT INTO spot SELECT i, noise(i, 100) FROM generate_series(1, 2000) i;
SELECT count(DISTINCT ctid) FROM spot;
SELECT bool_and(ctid > '(0,0)') FROM spot;

-- Each row is found by the ctid it shows.
CREATE TABLE noted AS SELECT id, ctid AS place FROM spot;
SELECT plan_has($$SELECT * FROM spot WHERE ctid = '(0,1)'$$, 'Tid Scan');
SET enable_hashjoin = off;
SET enable_mergejoin = off;
SELECT count(*) FROM noted n JOIN spot s ON s.ctid = n.place AND s.id = n.id;
RESET enable_hashjoin;
RESET enable_mergejoin;
SELECT id FROM spot WHERE ctid = ANY (ARRAY(SELECT place FROM noted WHERE id IN (7, 77, 777, 1999))) ORDER BY id;
SELECT id FROM spot WHERE ctid = (SELECT place FROM noted WHERE id = 5) OR ctid = (SELECT place FROM noted WHERE id = 6) ORDER BY id;

-- Places that do not exist.
SELECT count(*) FROM spot WHERE ctid = '(1000000,1)';
SELECT count(*) FROM spot WHERE ctid = '(0,0)';
SELECT count(*) FROM spot WHERE ctid = '(0,65535)';
SELECT count(*) FROM spot WHERE ctid = '(4294967295,1)';
SELECT count(*) FROM spot WHERE ctid = ANY ('{"(0,0)","(99999,5)"}');
SELECT count(*) FROM spot WHERE ctid = NULL;

-- Insertion order is the order of the places in a fresh table.
SELECT bool_and(id = n) FROM (SELECT id, row_number() OVER (ORDER BY ctid) AS n FROM spot) x;

-- Ranges.
SELECT plan_has($$SELECT * FROM spot WHERE ctid < '(1,0)'$$, 'Tid Range Scan');
SELECT (SELECT count(*) FROM spot WHERE ctid <= place) AS before, (SELECT count(*) FROM spot WHERE ctid > place) AS behind,
    (SELECT min(id) FROM spot WHERE ctid >= place) AS here
FROM noted WHERE id = 777;
SELECT count(*) FROM spot WHERE ctid > (SELECT place FROM noted WHERE id = 500) AND ctid < (SELECT place FROM noted WHERE id = 600);
SELECT count(*) FROM spot WHERE ctid > '(1000000,0)';
SELECT count(*) FROM spot WHERE ctid < '(0,1)';
SELECT count(*) FROM spot WHERE ctid >= '(0,0)' AND ctid <= '(4294967295,65535)';
BEGIN;
DECLARE c SCROLL CURSOR FOR SELECT id FROM spot WHERE ctid >= (SELECT place FROM noted WHERE id = 1990);
FETCH 3 FROM c;
FETCH LAST FROM c;
FETCH BACKWARD 2 FROM c;
FETCH FIRST FROM c;
COMMIT;

-- The place of an old version no longer gives the row; the new one does.
BEGIN;
UPDATE spot SET v = 'moved' WHERE id = 10;
SELECT count(*) FROM spot WHERE ctid = (SELECT place FROM noted WHERE id = 10);
SELECT v FROM spot WHERE ctid = (SELECT s.ctid FROM spot s WHERE id = 10);
SELECT (SELECT ctid FROM spot WHERE id = 10) <> place AS new_place FROM noted WHERE id = 10;
ROLLBACK;
SELECT id FROM spot WHERE ctid = (SELECT place FROM noted WHERE id = 10);
DELETE FROM spot WHERE id = 11;
SELECT count(*) FROM spot WHERE ctid = (SELECT place FROM noted WHERE id = 11);

-- UPDATE and DELETE by ctid.
UPDATE spot SET v = 'by ctid' WHERE ctid = (SELECT place FROM noted WHERE id = 12) RETURNING id, v;
UPDATE spot SET v = 'no longer' WHERE ctid = (SELECT place FROM noted WHERE id = 12) RETURNING id, v;
DELETE FROM spot WHERE ctid IN (SELECT place FROM noted WHERE id BETWEEN 20 AND 29);
SELECT count(*) FROM spot;
UPDATE spot SET v = spot.v || '!' FROM noted WHERE noted.place = spot.ctid AND noted.id = 30;
SELECT right(v, 3) = right(noise(30, 100), 2) || '!' AS changed FROM spot WHERE id = 30;

-- Self join by ctid, and ctid within the same statement as other columns.
SELECT count(*) FROM spot a JOIN spot b ON a.ctid = b.ctid WHERE a.id = b.id;
DELETE FROM spot a USING spot b WHERE a.id % 10 = b.id % 10 AND a.ctid < b.ctid;
SELECT count(*) FROM spot;

-- currtid functions.
SELECT currtid2('spot', ctid::text::tid) = ctid AS newest FROM spot ORDER BY id LIMIT 1;

-- In a cursor, and with a parameter.
PREPARE by_place (tid) AS SELECT count(*) FROM spot WHERE ctid = $1;
EXECUTE by_place ('(0,0)');
DO $$
DECLARE
    place tid;
    n int;
BEGIN
    SELECT ctid INTO place FROM tid_scan.spot LIMIT 1;
    EXECUTE format('EXECUTE by_place (%L)', place) INTO n;
    RAISE NOTICE '%', n;
END $$;
