-- Runs once, when the image makes its database.
CREATE EXTENSION kalamdb;

CREATE TABLE messages (
    conversation_id bigint,
    seq int,
    sent_at timestamptz NOT NULL DEFAULT now(),
    role text NOT NULL,
    content text NOT NULL,
    PRIMARY KEY (conversation_id, seq)
) USING kalam_shared;
