"""What a connector is handed of its surroundings: a clock, a sleep, where to say that it waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypeVar

C = TypeVar("C")

WaitReport: TypeAlias = Callable[[datetime | None, str], None]


@dataclass(frozen=True, slots=True)
class Context:
    """The surroundings of a connector, made by whoever drives it: the worker, a law, a test.

    A connector's constructor has the parameters of the specification, so the context comes another
    way: it is the current one while the connector is made, and stands in `connector.context` from
    its constructor's first line on.

    Attributes:
        clock: The present, aware UTC.
        sleep: Waits so many seconds.
        report_wait: Told when a request waits for its next try or its turn (until when, aware UTC,
            and why) and, with None, that it goes on; the worker shows it as `backing_off`. None:
            nobody listens.
        trusted: Makes of a time of `clock` one up to which a source may be asked and taken as
            read: the worker hands in the earlier of its clock and the database's.
    """

    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    report_wait: WaitReport | None = None
    trusted: Callable[[datetime], datetime] = lambda at: at

    def construct(
        self,
        connector_class: Callable[[Any, Any, Any], C],
        config: Any,
        kafka_producer: Any = None,
        db_pool: Any = None,
    ) -> C:
        """A connector in these surroundings."""
        with self.within():
            return connector_class(config, kafka_producer, db_pool)

    def enter(self) -> None:
        """Make it the current one for the rest of this task, and for the tasks that it starts."""
        _current.set(self)

    @contextmanager
    def within(self) -> Iterator[None]:
        """Make it the current one for a block."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


_current: ContextVar[Context | None] = ContextVar("current_context", default=None)
_DEFAULT = Context()


def current_context() -> Context:
    """What was entered last; this machine's clock and sleep where nothing was."""
    return _current.get() or _DEFAULT


class _ReportWait:
    """The context variable of old, `verity_sdk.waits.report_wait`: a part of the context now."""

    def get(self) -> WaitReport | None:
        return current_context().report_wait

    def set(self, report: WaitReport | None) -> None:
        replace(current_context(), report_wait=report).enter()


OLD_REPORT_WAIT = _ReportWait()
