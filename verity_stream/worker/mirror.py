"""The mirror: what becomes of a checkpoint record in the Faust table."""

from __future__ import annotations

import logging
from typing import Any

from verity_sdk.completeness import order_of
from verity_sdk.errors import Malformed
from verity_stream.records import NotUnderstood, decode_checkpoint_body

logger = logging.getLogger(__name__)


def mirror_event(table: Any, event: Any) -> None:
    """Write one checkpoint record to the table when it is newer; nothing escapes.

    Faust acknowledges a message whose processing raised, and restarts the agent: a record that
    is not understood would take others with it. It is logged and left out instead; the relay
    does not depend on the mirror.
    """
    message = event.message
    try:
        key, value = message.key, message.value
        if value is None:
            table.pop(key, None)
        elif should_mirror(table.get(key), value, key):
            table[key] = value
    except Malformed as error:
        logger.error(
            "A checkpoint record is not understood, and not mirrored: %s",
            NotUnderstood.of(message, error),
        )
    except Exception:
        logger.exception(
            "A checkpoint record can't be mirrored: topic %s, partition %d, offset %d",
            message.topic,
            message.partition,
            message.offset,
        )


def should_mirror(current: bytes | None, incoming: bytes, key: bytes) -> bool:
    """Whether a checkpoint record is newer than the one that is held.

    Raises:
        Malformed: It is not a checkpoint record of the key's connector.
    """
    order = order_of(decode_checkpoint_body(incoming, key))
    if current is None:
        return True
    try:
        return order > order_of(decode_checkpoint_body(current, key))
    except Malformed:
        return True  # The changelog is a topic, too: what a stranger wrote there gives way.
