-- What operators ask for: read by every worker's reconcile timer.
CREATE TABLE connector_controls (
    connector_id          text        PRIMARY KEY,
    paused                boolean     NOT NULL DEFAULT false,
    snapshot_requested_at timestamptz
);

-- When permissions were last read, so that a restart does not read them again.
CREATE TABLE connector_snapshots (
    connector_id text        PRIMARY KEY,
    snapshot_id  text        NOT NULL,
    started_at   timestamptz NOT NULL,
    ended_at     timestamptz,
    is_complete  boolean,
    grant_count  bigint
);

-- What the workers report: for people, never a source of truth for the relay.
CREATE TABLE connector_status (
    connector_id     text        PRIMARY KEY,
    platform         text        NOT NULL,
    worker           text        NOT NULL,
    state            text        NOT NULL,
    state_since      timestamptz NOT NULL,
    last_success_at  timestamptz,
    last_event_at    timestamptz,
    next_try_at      timestamptz,
    last_error       text,
    event_count      bigint      NOT NULL DEFAULT 0,
    repeat_count     bigint      NOT NULL DEFAULT 0,
    dead_count       bigint      NOT NULL DEFAULT 0,
    gap_count        bigint      NOT NULL DEFAULT 0,
    reported_at      timestamptz NOT NULL DEFAULT now()
);
