-- Fills `history` with a chat history that is the same on every machine: :messages messages of interleaved
-- conversations, most of them short and a few long, oldest message first.

-- A number in [0, 1) that depends on nothing but its arguments.
CREATE FUNCTION pg_temp.chance(i bigint, salt int) RETURNS float8 LANGUAGE sql IMMUTABLE AS
    $$ SELECT (hashint8extended(i, salt) & 1048575) / 1048576.0 $$;

CREATE FUNCTION pg_temp.pick(words text[], i bigint, salt int) RETURNS text LANGUAGE sql IMMUTABLE AS
    $$ SELECT words[1 + floor(pg_temp.chance(i, salt) * cardinality(words))::int] $$;

-- At any time 400 conversations go on; half of them end every 4000 messages and new ones take their place.
CREATE TEMP TABLE draft AS
SELECT i,
       (i / 4000) * 200 + floor(400 * pg_temp.chance(i, 1) ^ 2)::bigint AS conversation,
       timestamptz '2024-03-01 08:00:00+00' + i * interval '3.7 s' + pg_temp.chance(i, 2) * interval '3 s' AS sent_at
FROM generate_series(0, :messages - 1) AS i;

INSERT INTO history
SELECT 'c-' || lpad(conversation::text, 7, '0'), seq, sent_at, role,
       CASE role
           WHEN 'user' THEN
               pg_temp.pick(ARRAY['Hi,', 'Hello,', 'Thanks,', 'Okay,', 'Wait,', 'Sorry,', 'One more thing:', 'Hm,', 'Great,', 'So'], i, 10)
               || ' ' || pg_temp.pick(ARRAY['can you', 'could you please', 'I would like you to', 'is it possible to', 'help me to', 'how do I'], i, 11)
               || ' ' || pg_temp.pick(ARRAY['find', 'book', 'change', 'cancel', 'compare', 'explain', 'translate', 'summarise', 'check', 'plan'], i, 12)
               || ' ' || pg_temp.pick(ARRAY['a table for four', 'the train to Lisbon', 'my last order', 'a quiet hotel', 'this error message',
                                            'the weather on Sunday', 'a flight with one stop', 'the second paragraph', 'my subscription', 'a birthday present'], i, 13)
               || pg_temp.pick(ARRAY['?', ' for tomorrow?', ' under 80 euros?', ' before noon?', ', number ' || (i % 977) || '?', ' again?'], i, 14)
           ELSE
               pg_temp.pick(ARRAY['Of course.', 'Sure, one moment.', 'Good question.', 'Here is what I found.', 'I checked it for you.', 'Done.'], i, 20)
               || (SELECT string_agg(' ' || pg_temp.pick(ARRAY[
                       'There are ' || (2 + (i + line) % 17) || ' options, and the second one fits your budget best.',
                       'The earliest slot is at ' || (7 + (i + line) % 12) || ':' || lpad(((i * line) % 60)::text, 2, '0') || ', the next one an hour later.',
                       'You can still change this free of charge until the evening before.',
                       'The reference is ' || upper(substr(md5((i * 31 + line)::text), 1, 8)) || '; please keep it.',
                       'It usually takes ' || (5 + (i + line) % 40) || ' minutes, depending on how busy they are.',
                       'If you tell me a little more about what you need, I can narrow it down.',
                       'I would start with the simplest case and only then look at the rest.',
                       'Two reviewers mention the noise, the others praise the friendly staff.'], i * 8 + line, 21), '' ORDER BY line)
                   FROM generate_series(1, 1 + floor(5 * pg_temp.chance(i, 22) ^ 2)::bigint) AS line)
       END,
       jsonb_build_object('client', pg_temp.pick(ARRAY['web', 'ios', 'android', 'api'], i, 30), 'tokens', 4 + (i * 7) % 211)
           || CASE role WHEN 'assistant' THEN jsonb_build_object('model', pg_temp.pick(ARRAY['small', 'large'], i, 31), 'ms', 90 + (i * 13) % 1900)
                        ELSE '{}' END
FROM (SELECT i, conversation, sent_at, seq, CASE seq % 2 WHEN 0 THEN 'user' ELSE 'assistant' END AS role
      FROM (SELECT i, conversation, sent_at, (row_number() OVER (PARTITION BY conversation ORDER BY i))::int - 1 AS seq FROM draft) AS numbered) AS turns
ORDER BY i;
