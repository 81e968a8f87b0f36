"""What was last known of everybody, as compact as a cursor needs it.

Neither source says what changed: BambooHR's feed says that somebody changed, SCIM shows how
somebody is now. What changed is the difference from the last known state, and that state has to
move together with the published events: so it is part of the cursor.

A person takes 20 to 45 bytes there (docs/platforms/hr.md has the measurements). A cursor is one
record in Kafka, so there is a limit, `KNOWN_BYTES_MAX`, and passing it is an error with a name.
"""

from __future__ import annotations

import base64
import bz2
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from verity_sdk.errors import Misconfigured
from verity_sdk.values import dumps, loads

KNOWN_BYTES_MAX: Final = 900_000
"""Kafka takes a record of 1,000,000 bytes (VERITY_KAFKA__MAX_RECORD_BYTES); this leaves room for
what else stands in a checkpoint."""
_DECODED_BYTES_MAX: Final = 256 * 1024 * 1024

ORGANISATION: Final = (
    *("department", "division", "location", "job_title", "manager", "cost_center"),
    "organization",
)
"""A change of one of these is a move."""
TRACKED: Final = ("work_email", "login", *ORGANISATION, "employment_status", "left_on")
"""What is compared one by one."""
PROFILE: Final = (
    *("first_name", "last_name", "preferred_name", "display_name", "user_type"),
    "employee_number",
)
"""What is compared as one, under the name `profile`."""
_PROFILE_LETTERS: Final = dict(zip(PROFILE, "flpdun", strict=True))
_BY_VALUE: Final = frozenset(
    {"work_email", "login", "department", "division", "location", "job_title"}
)
"""What is remembered as it is, so that an event can say what was before."""

ACTIVE, INACTIVE, GONE, UNKNOWN = "a", "i", "x", "u"

_NONE = ""
_VALUE = "="
_HASH = "#"
_LIKE_LOGIN = "~"


@lru_cache(maxsize=100_000)
def _hash(name: str, value: str) -> str:
    """24 bits: of sixteen million changes one is missed."""
    # An e-mail and a login that are the same look the same, and are written once.
    kind = "account" if name in ("work_email", "login") else name
    data = f"{kind}\x00{value}".encode("utf-8", "replace")
    digest = hashlib.blake2b(data, digest_size=3)
    return _HASH + base64.b64encode(digest.digest()).decode()


@dataclass(slots=True)
class Person:
    """What was last known of somebody.

    Attributes:
        status: `ACTIVE`, `INACTIVE`, `GONE` (the record was deleted) or `UNKNOWN`.
        changed: The source's time of the change that this reflects, in seconds since 1970; 0
            where it is none or too long ago to be met again.
        tokens: Of each tracked field its value or hash, or nothing where it is empty. A field
            that was never shown is missing, which is not the same.
        profile: Which of `PROFILE` were shown, and their hash.
    """

    status: str = UNKNOWN
    changed: int = 0
    tokens: dict[str, str] = field(default_factory=dict)
    profile: str | None = None

    def value(self, name: str) -> str | None:
        """A field as it was, if that was kept."""
        token = self.tokens.get(name)
        return token[1:] if token is not None and token.startswith(_VALUE) else None

    def differences(self, values: Mapping[str, str | None]) -> list[str]:
        """The names of what is known to differ; what either side does not show is no difference."""
        changed = []
        for name, token in self.tokens.items():
            if name in values and not _is_same(name, token, values[name]):
                changed.append(name)
        profile = profile_of(values)
        if (
            profile is not None
            and self.profile is not None
            and profile != self.profile
            # Shown by other fields than before: not comparable.
            and profile.partition(_HASH)[0] == self.profile.partition(_HASH)[0]
        ):
            changed.append("profile")
        return changed

    def learn(self, values: Mapping[str, str | None], *, is_by_value: bool) -> None:
        """Take over what is shown; keep what is not."""
        is_by_value = is_by_value and self.status not in (INACTIVE, GONE)
        for name in TRACKED:
            if name in values:
                self.tokens[name] = _token(name, values[name], is_by_value=is_by_value)
            elif not is_by_value and (value := self.value(name)) is not None:
                self.tokens[name] = _hash(name, value)
        profile = profile_of(values)
        if profile is not None:
            self.profile = profile


def profile_of(values: Mapping[str, str | None]) -> str | None:
    """Which of `PROFILE` are shown, and the hash of them; None where none is."""
    shown = [name for name in PROFILE if name in values]
    if not shown:
        return None
    letters = "".join(_PROFILE_LETTERS[name] for name in shown)
    return letters + _hash("profile", "\x00".join(values[name] or "" for name in shown))


def _token(name: str, value: str | None, *, is_by_value: bool) -> str:
    if value is None:
        return _NONE
    return _VALUE + value if is_by_value and name in _BY_VALUE else _hash(name, value)


def _is_same(name: str, token: str, value: str | None) -> bool:
    if value is None or token == _NONE:
        return value is None and token == _NONE
    if token.startswith(_VALUE):
        return token[1:] == value
    return token == _hash(name, value)


@dataclass(slots=True)
class Known:
    """Everybody who is known, by the source's id.

    Attributes:
        is_by_value: Whether active people's e-mail and organisation are kept as they are.
    """

    is_by_value: bool = True
    people: dict[str, Person] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.people)

    def get(self, person_id: str) -> Person | None:
        """What is known of somebody, if anything."""
        return self.people.get(person_id)

    def active_ids(self) -> Iterator[str]:
        """The ids of those who are not known to have left."""
        return (one for one, person in self.people.items() if person.status in (ACTIVE, UNKNOWN))

    def forget_changes_before(self, at: int) -> bool:
        """Drop what no pass will meet again: times of changes, and people deleted by then.

        Returns:
            Whether there was any.
        """
        has_forgotten = False
        for person_id, person in list(self.people.items()):
            if person.changed and person.changed < at:
                has_forgotten = True
                person.changed = 0
                if person.status == GONE:
                    del self.people[person_id]
        return has_forgotten

    def encode(self) -> str:
        """As printable text without quotes or backslashes.

        Column by column, because alike compresses with alike; bz2, because it takes a fifth less
        than zlib does for many short texts.

        Raises:
            Misconfigured: It is longer than a checkpoint can hold.
        """
        # Numeric ids in their order differ little from one to the next.
        ids = sorted(self.people, key=lambda one: (len(one), one))
        people = [self.people[one] for one in ids]
        columns = {name: [one.tokens.get(name) for one in people] for name in TRACKED}
        columns["work_email"] = [
            _LIKE_LOGIN if email and email == login else email
            for email, login in zip(columns["work_email"], columns["login"], strict=True)
        ]
        body = {
            "ids": ids,
            "status": "".join(one.status for one in people),
            "changed": [one.changed for one in people],
            "profile": [one.profile for one in people],
            "tokens": {
                name: column
                for name, column in columns.items()
                if any(token is not None for token in column)
            },
        }
        packed = base64.b85encode(bz2.compress(dumps(body))).decode()
        if len(packed) > KNOWN_BYTES_MAX:
            fit = len(ids) * KNOWN_BYTES_MAX // len(packed)
            remedy = (
                'remember = "hashes" keeps less of each'
                if self.is_by_value
                else "fewer `fields` or `attributes` keep less of each"
            )
            raise Misconfigured(
                f"the last known state of {len(ids):,} people takes {len(packed):,} bytes, and a "
                f"checkpoint holds {KNOWN_BYTES_MAX:,}, about {fit:,} people like these: {remedy}"
            )
        return packed

    @classmethod
    def decode(cls, packed: Any, *, is_by_value: bool) -> Known:
        """Read what `encode` wrote.

        Raises:
            Misconfigured: It is none; the cursor was edited or is another connector's.
        """
        try:
            unpacker = bz2.BZ2Decompressor()
            data = unpacker.decompress(base64.b85decode(packed), _DECODED_BYTES_MAX)
            body = loads(data)
            tokens = body["tokens"]
            if "login" in tokens and "work_email" in tokens:
                pairs = zip(tokens["work_email"], tokens["login"], strict=True)
                tokens["work_email"] = [
                    login if email == _LIKE_LOGIN else email for email, login in pairs
                ]
            people = {
                person_id: Person(
                    status=body["status"][i],
                    changed=body["changed"][i],
                    tokens={
                        name: column[i] for name, column in tokens.items() if column[i] is not None
                    },
                    profile=body["profile"][i],
                )
                for i, person_id in enumerate(body["ids"])
            }
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise Misconfigured(
                f"the cursor's `known` can't be read ({type(error).__name__}): move the position "
                "by time to start from a new baseline"
            ) from error
        return cls(is_by_value, people)
