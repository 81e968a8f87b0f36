-- From when on a connector's events are collected: `verity complete` can't answer for what lies
-- before. It is in the checkpoint record, too; the row carries it on where the topic was deleted.
ALTER TABLE connector_checkpoints ADD COLUMN collected_from timestamptz;

COMMENT ON COLUMN connector_checkpoints.collected_from IS 'From when on the events are collected.';
