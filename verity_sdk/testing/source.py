"""What the laws need to know of a source, and how they make things happen in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from verity_sdk.connector_base import BaseConnector
from verity_sdk.deprecation import moved
from verity_sdk.testing.faults import Fault

GrantTuple = tuple[str, ...]
"""(principal_ref, asset_ref, privilege, grant_mechanism, granted_via or "")"""


class SourceUnderTest(ABC):
    """A source (a fake, or a real server) that the laws may do anything to, and its connector.

    A law gets a fresh one, without any event, and then:

    1. Its clock stands still unless the law moves it. It is the connector's clock, too, and its
       sleep advances it: no law waits for real time, but for what never answers (L23).
    2. What `add_events` adds with `visible_at` is not served before the clock has reached that.
    3. Pages are small: 40 events are several pages of the API, a few hundred are not hundreds of
       requests. Time-outs of the connector are short, vendors' budgets out of the way.

    Attributes:
        does_not_apply: What this source can't show, a `Fault` or a law's label (`"L7"`), each with
            the reason. What is not named here applies; a law that injects a fault that then never
            happens is broken, not passed.
        settle: How far a pass stays behind now. None: the connector's setting or class attribute.
        lookback: The seen window. None: likewise.
        retention: How far back the source serves. None: likewise.
        slice_max: The longest window that is read at once. None: likewise.
        late_by: The latest arrival that is promised to be found (L2). None: half the lookback.
        late_found_within: How long after it became visible.
        on_time: An event that becomes visible no later than this after it occurred never turns up
            behind `complete_through` (L17). None: `settle`.
    """

    does_not_apply: ClassVar[Mapping[Fault | str, str]] = {}
    settle: ClassVar[timedelta | None] = None
    lookback: ClassVar[timedelta | None] = None
    retention: ClassVar[timedelta | None] = None
    slice_max: ClassVar[timedelta | None] = None
    late_by: ClassVar[timedelta | None] = None
    late_found_within: ClassVar[timedelta] = timedelta(hours=1)
    on_time: ClassVar[timedelta | None] = None

    @abstractmethod
    def connector(self) -> BaseConnector:
        """A new instance, as after a restart of the worker. Whoever asked for it closes it."""

    @abstractmethod
    def now(self) -> datetime:
        """The source's time, aware UTC."""

    @abstractmethod
    def advance(self, by: timedelta) -> None:
        """Move the source's time."""

    @abstractmethod
    def add_events(
        self, count: int, *, at: datetime, visible_at: datetime | None = None
    ) -> Sequence[str]:
        """Let `count` events happen at `at` or within seconds after it, some at the same instant.

        Returns:
            Their ids, as the connector will name them.
        """

    @abstractmethod
    def event_ids(self) -> Collection[str]:
        """The ids of all events that were added: the truth."""

    def grants(self) -> Collection[GrantTuple] | None:
        """The grants that stand now: the truth of a snapshot. None: there are none to read."""
        return None

    def secrets(self) -> Collection[str]:
        """What must not be seen in any error, log line, repr or cursor."""
        return ()

    def inject(self, fault: Fault, *, times: int = 1, after: int = 0) -> None:
        """Let a fault happen `times` times, after it could have happened `after` times."""
        raise NotImplementedError(f"this source can't show {fault.name}: say so in does_not_apply")

    def heal(self) -> None:
        """Nothing goes wrong any more."""
        return

    def have_faults_happened(self) -> bool:
        """Whether all that was injected has happened; true where the source can't tell."""
        return True

    def requests_count(self) -> int | None:
        """How many requests the source has seen so far. None: it is not asked by requests."""
        return None


class Fake(Protocol):
    """The shape of a behavioural fake that `FakedSource` can drive."""

    clock: Any
    faults: Any
    requests: Any

    def add_events(
        self, count: int, *, at: datetime, visible_at: datetime | None = None
    ) -> Sequence[str]:
        """As `SourceUnderTest.add_events`."""

    def event_ids(self) -> Collection[str]:
        """As `SourceUnderTest.event_ids`."""

    def grants(self) -> Collection[GrantTuple]:
        """As `SourceUnderTest.grants`."""


class FakedSource(SourceUnderTest):
    """A source that is a fake with a `Clock` and `Faults`; only `connector` is left to write.

    Args:
        fake: The fake, being served.
    """

    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    def now(self) -> datetime:
        """The fake's clock."""
        at: datetime = self.fake.clock()
        return at

    def advance(self, by: timedelta) -> None:
        """Move the fake's clock."""
        self.fake.clock.advance(by)

    async def sleep(self, seconds: float) -> None:
        """For the connector: waits by the fake's clock, so without waiting."""
        self.advance(timedelta(seconds=seconds))

    def add_events(
        self, count: int, *, at: datetime, visible_at: datetime | None = None
    ) -> Sequence[str]:
        """As the fake does."""
        return self.fake.add_events(count, at=at, visible_at=visible_at)

    def event_ids(self) -> Collection[str]:
        """As the fake says."""
        return self.fake.event_ids()

    def grants(self) -> Collection[GrantTuple] | None:
        """As the fake says."""
        return self.fake.grants()

    def inject(self, fault: Fault, *, times: int = 1, after: int = 0) -> None:
        """Hand it to the fake."""
        self.fake.faults.inject(fault, times=times, after=after)

    def heal(self) -> None:
        """Take back what was injected."""
        self.fake.faults.clear()

    def have_faults_happened(self) -> bool:
        """Whether the fake had occasion to show all of them."""
        return bool(self.fake.faults.are_over)

    def requests_count(self) -> int | None:
        """As the fake counted them."""
        return len(self.fake.requests)


def declared(source: SourceUnderTest, connector: BaseConnector, name: str) -> timedelta | None:
    """A duration, as the source says, else the connector's settings, else its class."""
    for owner in (source, getattr(connector, "settings", None), connector):
        value = getattr(owner, name, None)
        if isinstance(value, timedelta):
            return value
    return None


if not TYPE_CHECKING:
    __getattr__ = moved(__name__, {"Grant": "verity_sdk.testing.source.GrantTuple"})
