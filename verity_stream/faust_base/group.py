"""What the consumer group knows of this worker, asked of aiokafka's coordinator under Faust."""

from __future__ import annotations

import time
from typing import Any

import faust

from verity_sdk.errors import Denied, Misconfigured, VerityError
from verity_stream.kafka.errors import as_verity_error


def coordinator_of(app: faust.App) -> Any:
    """aiokafka's part in the consumer group; None before the consumer has started."""
    thread = getattr(app.consumer, "_thread", None)
    return getattr(getattr(thread, "_consumer", None), "_coordinator", None)


def note_heartbeats(coordinator: Any) -> None:
    """Let a coordinator say when the group last heard of it, as `heard_at`, from now on.

    aiokafka knows it in a local variable (consumer/group_coordinator.py, `_heartbeat_routine`).
    The time is that of the request: the broker's session began no earlier.
    """
    if coordinator is None:
        return
    is_first = not hasattr(coordinator, "heard_at")
    coordinator.heard_at = time.monotonic()  # Joining is hearing, too.
    if not is_first:
        return
    heartbeat = coordinator._do_heartbeat

    async def noted_heartbeat() -> Any:
        at = time.monotonic()
        is_answered = await heartbeat()
        if is_answered:
            coordinator.heard_at = at
        return is_answered

    coordinator._do_heartbeat = noted_heartbeat


def is_group_member(app: faust.App) -> bool:
    """Whether the task that takes part in the consumer group's coordination still runs.

    aiokafka ends it at an error that it does not expect (consumer/group_coordinator.py,
    `_coordination_routine`): heartbeats stop, others get the partitions, and nothing here changes.
    """
    task = getattr(coordinator_of(app), "_coordination_task", None)
    return task is None or not task.done()


def refusal(app: faust.App) -> VerityError | None:
    """What the group refuses this member for, where waiting cures nothing; else None.

    aiokafka keeps such an error until somebody fetches, and a member that was never assigned
    anything never does (consumer/group_coordinator.py, `_push_error_to_user`); or its task ends.
    """
    coordinator = coordinator_of(app)
    error = getattr(coordinator, "_pending_exception", None)
    task = getattr(coordinator, "_coordination_task", None)
    if error is None and task is not None and task.done() and not task.cancelled():
        error = task.exception()
    told = None if error is None else as_verity_error(error)
    return told if isinstance(told, Denied | Misconfigured) else None


def has_topic(app: faust.App, topic: str) -> bool:
    """Whether the cluster has a topic, as the consumer heard last; True where it heard nothing."""
    coordinator = coordinator_of(app)
    topics = set() if coordinator is None else coordinator._cluster.topics()
    return not topics or topic in topics


def is_in_group(app: faust.App) -> bool:
    """Whether the consumer group has heard of this worker within its session.

    Afterwards the group may have given its partitions to others, which it only hears of when it
    reaches the group again.
    """
    heard_at = getattr(coordinator_of(app), "heard_at", None)
    is_heard = heard_at is None or time.monotonic() - heard_at < app.conf.broker_session_timeout
    return is_heard and is_group_member(app)
