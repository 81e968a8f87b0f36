"""What stands in Kafka: a file a kind, encode beside decode.

Pure functions from the SDK's objects to `Record`s. Every value is a JSON object; times are
RFC 3339, UTC, with microseconds and `Z`. The headers are UTF-8 text:

| header | on | is |
| --- | --- | --- |
| `event_id` | raw events, dead letters that have one | the source's id, as text |
| `dead_id` | dead letters | the same whenever the same thing is rejected again |
| `connector_id` | all | which connector published it |
| `schema` | all | `raw_event/1`, `dead_letter/1`, `gap/1`, `checkpoint/1`, `permission/1` |
| `fetched_at` | all | when the page was fetched |
| `snapshot_id`, `record` | permissions | the run; `start`, `grant` or `end` |
"""

from verity_stream.records.checkpoints import (
    Checkpoint,
    PageSummary,
    Sealed,
    Seen,
    SeenInTopics,
    checkpoint_record,
    decode_checkpoint,
    decode_checkpoint_body,
    decode_sealed,
    decode_seen,
    encode_seen,
    newer_checkpoint,
)
from verity_stream.records.dead_letters import (
    ORIGINAL_REASON,
    DeadLetter,
    DeadLetterPart,
    dead_event,
    dead_record,
    decode_dead_letter,
    decode_dead_part,
    original,
)
from verity_stream.records.events import (
    EncodedEvent,
    EventEncoder,
    decode_event,
)
from verity_stream.records.gaps import (
    claims_to_be_a_gap,
    decode_gap,
    gap_record,
    sound_gap,
)
from verity_stream.records.ids import (
    ID_HEADERS,
    ID_KEY_KEY,
    PublishedId,
    decode_slot,
    decode_slot_key,
    encode_slot,
    published_ids_of,
    slot_key,
)
from verity_stream.records.permissions import (
    Grant,
    PermissionRecord,
    SnapshotEnd,
    SnapshotResult,
    SnapshotStart,
    decode_permission,
    end_record,
    grant_body,
    snapshot_record,
    start_record,
)
from verity_stream.records.record import (
    CHECKPOINTS_TOPIC,
    GAPS_TOPIC,
    IDS_TOPIC,
    KINDS,
    Headers,
    Kind,
    NotUnderstood,
    Offsets,
    Origin,
    Place,
    Record,
    clean,
    dead_topic,
    decoding,
    header,
    json_object,
    optional_time,
    permissions_topic,
    raw_topic,
    read_time,
    require,
)

__all__ = [
    "CHECKPOINTS_TOPIC",
    "GAPS_TOPIC",
    "IDS_TOPIC",
    "ID_HEADERS",
    "ID_KEY_KEY",
    "KINDS",
    "ORIGINAL_REASON",
    "Checkpoint",
    "DeadLetter",
    "DeadLetterPart",
    "EncodedEvent",
    "EventEncoder",
    "Grant",
    "Headers",
    "Kind",
    "NotUnderstood",
    "Offsets",
    "Origin",
    "PageSummary",
    "PermissionRecord",
    "Place",
    "PublishedId",
    "Record",
    "Sealed",
    "Seen",
    "SeenInTopics",
    "SnapshotEnd",
    "SnapshotResult",
    "SnapshotStart",
    "checkpoint_record",
    "claims_to_be_a_gap",
    "clean",
    "dead_event",
    "dead_record",
    "dead_topic",
    "decode_checkpoint",
    "decode_checkpoint_body",
    "decode_dead_letter",
    "decode_dead_part",
    "decode_event",
    "decode_gap",
    "decode_permission",
    "decode_sealed",
    "decode_seen",
    "decode_slot",
    "decode_slot_key",
    "decoding",
    "encode_seen",
    "encode_slot",
    "end_record",
    "gap_record",
    "grant_body",
    "header",
    "json_object",
    "newer_checkpoint",
    "optional_time",
    "original",
    "permissions_topic",
    "published_ids_of",
    "raw_topic",
    "read_time",
    "require",
    "slot_key",
    "snapshot_record",
    "sound_gap",
    "start_record",
]
