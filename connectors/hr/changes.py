"""From what is seen of a person, and what was known before, to an event: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from connectors.hr.known import ACTIVE, GONE, INACTIVE, ORGANISATION, UNKNOWN, Known, Person
from connectors.hr.settings import PLATFORM
from verity_sdk import references
from verity_sdk.connector_base import RawEvent

JOINER: Final = "JOINER"
MOVER: Final = "MOVER"
LEAVER: Final = "LEAVER"
UPDATED: Final = "UPDATED"

DERIVED_KEY: Final = "verity"
"""Where `raw_payload` says what was derived; all else there is the source's."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What a source shows of somebody at one time.

    Attributes:
        person_id: The source's own id.
        event_id: Of the event that this may become, before `suffixes`.
        occurred_at: When the source says that it changed, aware UTC.
        values: The tracked fields that are shown; None is an empty one, a missing one is hidden.
        is_active: None where the source does not say.
        is_gone: The record was deleted.
        is_new: The source says that it was made since this connector began.
        is_untouched: It is as it was made, as an account that waits for its first day.
        dates: `hired_on`, `moved_on`, `left_on` where known, as ISO dates; they may lie ahead.
        has_moved_before: There is an earlier position, so `moved_on` is no first one.
        suffixes: What an operation adds to the event id.
        changed: `occurred_at` in seconds since 1970, where passes meet the same change again.
        payload: What the source said, allowed fields only.
        derived: Facts for the event besides those that every event has.
    """

    person_id: str
    event_id: str
    occurred_at: datetime
    values: Mapping[str, str | None]
    is_active: bool | None = None
    is_gone: bool = False
    is_new: bool = False
    is_untouched: bool = False
    dates: Mapping[str, str] = field(default_factory=dict)
    has_moved_before: bool = False
    suffixes: Mapping[str, str] = field(default_factory=dict)
    changed: int = 0
    payload: Mapping[str, Any] = field(default_factory=dict)
    derived: Mapping[str, Any] = field(default_factory=dict)


def observe(one: Observation, known: Known, began_at: datetime) -> RawEvent | None:
    """The event of an observation, or None where nothing that is tracked differs.

    `known` has learnt it afterwards.

    Args:
        began_at: From when on changes are wanted, aware UTC. Of somebody who was not known, only
            dates can say what happened since.
    """
    before = known.get(one.person_id)
    operation, changed = _operation(before, one, began_at)
    event = None
    if operation is not None:
        event = _event(one, operation, changed, before)
    learn(one, known)
    return event


def learn(one: Observation, known: Known) -> None:
    """Take over what is shown, without an event: a baseline."""
    if one.is_gone:
        known.people.pop(one.person_id, None)
        if one.changed:
            # The next passes meet the same entry of the feed again.
            known.people[one.person_id] = Person(status=GONE, changed=one.changed)
        return
    person = known.people.setdefault(one.person_id, Person())
    if one.is_active is not None:
        person.status = ACTIVE if one.is_active else INACTIVE
    person.changed = one.changed
    person.learn(one.values, is_by_value=known.is_by_value)


def _operation(
    before: Person | None, one: Observation, began_at: datetime
) -> tuple[str | None, list[str]]:
    """What happened, and the names of what differs."""
    if before is None:
        return _first_operation(one, began_at), []
    if one.is_gone:
        # Whoever had left before leaves no second time when the record is cleared away.
        return (LEAVER if before.status in (ACTIVE, UNKNOWN) else None), []
    changed = before.differences(one.values)
    if one.is_active is False and before.status in (ACTIVE, UNKNOWN):
        return LEAVER, changed
    if one.is_active and before.status in (INACTIVE, GONE):
        return JOINER, changed
    if before.status != INACTIVE and any(name in ORGANISATION for name in changed):
        return MOVER, changed
    return (UPDATED if changed else None), changed


def _first_operation(one: Observation, began_at: datetime) -> str:
    """Of somebody who was not known: by what the source dates."""
    began_on = began_at.date().isoformat()

    def is_since(name: str) -> bool:
        return one.dates.get(name, "") >= began_on

    if one.is_gone:
        return LEAVER
    if one.is_active is False:
        # Without a date the safe side: access is looked at once too often.
        is_leaver = is_since("left_on") if "left_on" in one.dates else not one.is_untouched
        return LEAVER if is_leaver else UPDATED
    if one.is_new or is_since("hired_on"):
        return JOINER
    if one.has_moved_before and is_since("moved_on"):
        return MOVER
    return UPDATED


_EFFECTIVE: Final = {JOINER: "hired_on", MOVER: "moved_on", LEAVER: "left_on"}


def _event(
    one: Observation, operation: str, changed: Sequence[str], before: Person | None
) -> RawEvent:
    def current(name: str) -> str | None:
        """As it is now; for who is gone, or where it is hidden or cleared, as it was."""
        return one.values.get(name) or (None if before is None else before.value(name))

    email = current("work_email") or _as_email(current("login"))
    department = current("department")
    effective = one.dates.get(_EFFECTIVE.get(operation, ""))
    if effective is None and operation == LEAVER:
        effective = one.occurred_at.date().isoformat()
    derived: dict[str, Any] = {"changed": list(changed)}
    if before is not None:
        derived["previous"] = {
            name: value for name in changed if (value := before.value(name)) is not None
        }
    if email is not None:
        derived["email"] = email
        derived["account"] = references.account(email)
    if effective is not None:
        derived["effective_date"] = effective
    if operation == JOINER:
        derived["is_rehire"] = before is not None
    return RawEvent(
        platform=PLATFORM,
        event_id=one.event_id + one.suffixes.get(operation, ""),
        occurred_at=one.occurred_at,
        principal_ref=references.employee(one.person_id),
        asset_ref=references.UNKNOWN if department is None else references.department(department),
        operation=operation,
        raw_payload={**one.payload, DERIVED_KEY: {**derived, **one.derived}},
    )


def _as_email(login: str | None) -> str | None:
    return login if login is not None and "@" in login else None
