CREATE TABLE @schema@.messages (
    msg_id bigint PRIMARY KEY DEFAULT kalam.snowflake_id(),
    conversation_id text NOT NULL CONSTRAINT conversation_id_not_empty CHECK (conversation_id OPERATOR(pg_catalog.<>) ''),
    "from" text NOT NULL CONSTRAINT from_not_empty CHECK ("from" OPERATOR(pg_catalog.<>) ''),
    "timestamp" timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    content text NOT NULL
        CONSTRAINT content_not_empty CHECK (content OPERATOR(pg_catalog.<>) '')
        CONSTRAINT content_at_most_1_mib CHECK (pg_catalog.octet_length(content) OPERATOR(pg_catalog.<=) 1048576),
    metadata jsonb
) USING kalam_shared;

CREATE INDEX messages_conversation_id_msg_id ON @schema@.messages (conversation_id, msg_id);

COMMENT ON TABLE @schema@.messages IS 'messages of conversations';
COMMENT ON COLUMN @schema@.messages.msg_id IS 'identifier that grows with time';
COMMENT ON COLUMN @schema@.messages.conversation_id IS 'conversation that the message belongs to';
COMMENT ON COLUMN @schema@.messages."from" IS 'who wrote it';
COMMENT ON COLUMN @schema@.messages."timestamp" IS 'when the server took it';
COMMENT ON COLUMN @schema@.messages.content IS 'its text, at most 1 MiB';
COMMENT ON COLUMN @schema@.messages.metadata IS 'anything else';

CREATE FUNCTION @schema@.post_message(conversation_id text, "from" text, content text, metadata jsonb DEFAULT NULL,
        OUT msg_id bigint, OUT status text)
    LANGUAGE sql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $post@tag@$
        -- Messages of a conversation become visible in the order of their identifiers, so that whoever reads on with since_msg_id
        -- misses none.
        SELECT pg_advisory_xact_lock(hashtextextended(post_message.conversation_id, 1797));
        INSERT INTO @schema@.messages (conversation_id, "from", content, metadata)
        VALUES (post_message.conversation_id, post_message."from", post_message.content, post_message.metadata)
        RETURNING messages.msg_id, 'stored'::text
    $post@tag@$;
COMMENT ON FUNCTION @schema@.post_message(text, text, text, jsonb) IS 'stores a message';

CREATE FUNCTION @schema@.query_messages(conversation_id text DEFAULT NULL, since_msg_id bigint DEFAULT NULL,
        "limit" integer DEFAULT 50, "order" text DEFAULT 'asc',
        OUT messages jsonb, OUT count integer, OUT has_more boolean)
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    SET timezone = 'UTC'
    AS $query@tag@$
DECLARE
    wanted CONSTANT integer := coalesce(query_messages."limit", 50);
    direction CONSTANT text := lower(coalesce(query_messages."order", 'asc'));
BEGIN
    IF wanted NOT BETWEEN 1 AND 1000 THEN
        RAISE EXCEPTION 'limit % is out of range', wanted
            USING ERRCODE = 'invalid_parameter_value', DETAIL = 'It is between 1 and 1000.',
                  HINT = 'In ascending order, read on with since_msg_id while has_more is true.';
    ELSIF direction NOT IN ('asc', 'desc') THEN
        RAISE EXCEPTION 'unknown order "%"', query_messages."order"
            USING ERRCODE = 'invalid_parameter_value', DETAIL = 'The orders are asc and desc.',
                  HINT = 'Leave it out to read the oldest messages first.';
    END IF;
    -- With and without a conversation are statements of their own, so that each has its index. One message more than wanted
    -- says whether there are others. An answer ends early when it is too long for one jsonb.
    EXECUTE format(
        $statement@tag@$
        SELECT coalesce(jsonb_agg(jsonb_build_object(
                   'msg_id', n.msg_id, 'conversation_id', n.conversation_id, 'from', n."from", 'timestamp', n."timestamp",
                   'content', n.content, 'metadata', n.metadata) ORDER BY n.place) FILTER (WHERE n.is_shown), '[]'),
               (count(*) FILTER (WHERE n.is_shown))::integer,
               count(*) > count(*) FILTER (WHERE n.is_shown)
        FROM (
            SELECT b.*, b.place = 1 OR b.place <= $3 AND b.bytes <= 67108864 AS is_shown
            FROM (
                SELECT row_number() OVER so_far AS place,
                       sum(octet_length(l.content) + coalesce(octet_length(l.metadata::text), 0)) OVER so_far AS bytes, l.*
                FROM (
                    SELECT m.* FROM @schema_of_format@.messages m WHERE %1$s AND %2$s ORDER BY m.msg_id %3$s LIMIT $3 + 1
                ) l
                WINDOW so_far AS (ORDER BY l.msg_id %3$s ROWS UNBOUNDED PRECEDING)
            ) b
        ) n
        $statement@tag@$,
        CASE WHEN query_messages.conversation_id IS NULL THEN 'true' ELSE 'm.conversation_id = $1' END,
        CASE WHEN query_messages.since_msg_id IS NULL THEN 'true' ELSE 'm.msg_id > $2' END,
        direction)
    INTO messages, count, has_more
    USING query_messages.conversation_id, query_messages.since_msg_id, wanted;
END $query@tag@$;
COMMENT ON FUNCTION @schema@.query_messages(text, bigint, integer, text) IS
    'messages by identifier, from the one after since_msg_id on; has_more says whether there are others';

REVOKE ALL ON FUNCTION @schema@.post_message(text, text, text, jsonb), @schema@.query_messages(text, bigint, integer, text)
    FROM PUBLIC;

DO $grants@tag@$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname OPERATOR(pg_catalog.=) 'kalam_service'::name) THEN
        GRANT USAGE ON SCHEMA @schema@ TO kalam_service;
        GRANT SELECT, INSERT ON @schema@.messages TO kalam_service;
        GRANT EXECUTE ON FUNCTION @schema@.post_message(text, text, text, jsonb),
            @schema@.query_messages(text, bigint, integer, text) TO kalam_service;
    END IF;
END $grants@tag@$;
