"""For teams downstream: Faust apps on Verity's topics that lose nothing and stop at nothing.

`create_app` makes the app, `raw_topic`, `permissions_topic` and `dead_topic` describe what it
reads, `verity_agent` turns a function of one event into an agent. What they guarantee:

1. Only records of committed transactions arrive, in the order of their partition.
2. An event counts as processed when its function has returned and the broker has acknowledged
   all that the function sent and every table it wrote. Then its offset is committed; not before.
   After a crash some events are processed again, none is left out.
3. A poison record, one that can't be decoded or whose function raises, goes to the topic
   `verity.agents.dead.{app_id}`, acknowledged, and the stream goes on.
4. What can be neither processed nor put there stops the worker (exit code 1), uncommitted.
"""

from verity_stream.downstream.app import DownstreamApp, create_app, guarded, verity_agent
from verity_stream.downstream.topics import (
    agents_dead_topic,
    dead_topic,
    permissions_topic,
    raw_topic,
)
from verity_stream.records import (
    DeadLetter,
    Grant,
    PermissionRecord,
    SnapshotEnd,
    SnapshotStart,
    decode_dead_letter,
    decode_event,
    decode_permission,
)

__all__ = [
    "DeadLetter",
    "DownstreamApp",
    "Grant",
    "PermissionRecord",
    "SnapshotEnd",
    "SnapshotStart",
    "agents_dead_topic",
    "create_app",
    "dead_topic",
    "decode_dead_letter",
    "decode_event",
    "decode_permission",
    "guarded",
    "permissions_topic",
    "raw_topic",
    "verity_agent",
]
