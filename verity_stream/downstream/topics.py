"""Verity's topics as downstream apps see them: typed, and poison never raises in Faust."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import faust

from verity_sdk.connector_base import RawEvent
from verity_sdk.errors import Malformed
from verity_stream import records
from verity_stream.records import (
    DeadLetter,
    PermissionRecord,
    decode_dead_letter,
    decode_event,
    decode_permission,
)


def raw_topic(app: faust.App, platform: str) -> Any:
    """A platform's audit events, as `RawEvent`s whose `occurred_at` is aware UTC."""
    return _typed_topic(app, records.raw_topic(platform), RawEvent, decode_event)


def permissions_topic(app: faust.App, platform: str) -> Any:
    """A platform's permission snapshots, as `SnapshotStart`, `Grant` and `SnapshotEnd`."""
    name = records.permissions_topic(platform)
    return _typed_topic(app, name, PermissionRecord, decode_permission)


def dead_topic(app: faust.App, platform: str) -> Any:
    """What a platform's connectors could not publish, as `DeadLetter`s."""
    return _typed_topic(app, records.dead_topic(platform), DeadLetter, decode_dead_letter)


def agents_dead_topic(app_id: str) -> str:
    """The name of the topic of an app's own dead letters."""
    return f"verity.agents.dead.{app_id}"


def _typed_topic(app: faust.App, name: str, kind: Any, decode: Callable[[bytes], Any]) -> Any:
    return app.topic(name, schema=TypedSchema(kind, decode))


@dataclass(frozen=True, slots=True)
class Undecodable:
    """Stands in an event for a value that could not be decoded; no agent ever sees it."""

    reason: str


class TypedSchema(faust.Schema[Any, Any]):
    """Decodes values by a function of ours, and never raises.

    Where a schema raises, Faust acknowledges the record at once and throws the error into every
    agent of the topic (transport/conductor.py): the record would be lost and the agents restarted.
    """

    def __init__(self, kind: Any, decode_value: Callable[[bytes], Any]) -> None:
        super().__init__(value_type=kind)
        self._decode_value = decode_value

    def compile(self, app: Any, **handlers: Any) -> Any:
        """The function that makes an event of a record; keys stay bytes."""
        decode_value, create_event = self._decode_value, app.create_event

        async def decode(message: Any, *, propagate: bool = False) -> Any:
            try:
                if message.value is None:
                    raise Malformed("the record has no value")
                value = decode_value(message.value)
            except Malformed as error:
                value = Undecodable(str(error))
            return create_event(message.key, value, message.headers, message)

        return decode
