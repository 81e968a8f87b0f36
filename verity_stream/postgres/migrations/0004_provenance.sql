-- Which Kafka cluster the position belongs to: another environment that is pointed at this database
-- by mistake is told, before it claims anything.
-- And the version that was last published there: a topic that lacks it was deleted or truncated.
-- An edit raises the version only, so the two can be told apart.
ALTER TABLE connector_checkpoints
    ADD COLUMN kafka_cluster     text,
    ADD COLUMN published_version bigint NOT NULL DEFAULT 0;

COMMENT ON COLUMN connector_checkpoints.kafka_cluster IS 'The id of the Kafka cluster with this position.';
COMMENT ON COLUMN connector_checkpoints.published_version IS 'The version that a relay last published.';

-- Of the rows that are here already, those with ids to remember were written by a relay.
UPDATE connector_checkpoints SET published_version = version WHERE seen IS NOT NULL;
