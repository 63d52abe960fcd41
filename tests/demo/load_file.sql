-- Fills `history` from a CSV file with the columns conversation_id, seq, role, content, metadata; psql's COPY reads it
-- from standard input. The file has no times: conversations start in the file's order, a new one every few seconds,
-- and a turn takes 20 to 90 seconds, so that conversations interleave as they do in life.
CREATE TEMP TABLE lines (line bigint GENERATED ALWAYS AS IDENTITY, conversation_id text, seq int, role text, content text, metadata jsonb);
\copy lines (conversation_id, seq, role, content, metadata) FROM pstdin WITH (FORMAT csv, HEADER);
INSERT INTO history
SELECT l.conversation_id, l.seq, started_at + l.seq * turn, l.role, l.content, l.metadata
FROM lines AS l
JOIN (SELECT conversation_id,
             timestamptz '2024-03-01 08:00:00+00' + row_number() OVER (ORDER BY min(line)) * interval '9 s' AS started_at,
             (20 + (hashtext(conversation_id) & 1023) * 70 / 1023.0) * interval '1 s' AS turn
      FROM lines GROUP BY conversation_id) AS c USING (conversation_id)
ORDER BY started_at + l.seq * turn, line;
