"""The laws of connectors, as a pytest suite that any author runs against a source of their own.

    import pytest
    from acme_connector import AcmeConnector
    from verity_sdk.testing import ConnectorLaws

    class TestAcmeLaws(ConnectorLaws):
        connector_class = AcmeConnector

        @pytest.fixture
        def source(self):
            with acme_source() as source:
                yield source

`source` is a `SourceUnderTest`: a source without any event, whose clock the law moves, to which it
adds events and in which it makes things go wrong. Where it is a fake with a `Clock` and `Faults`,
`FakedSource` is all of it but the making of the connector. docs/writing-a-connector.md leads there.

A law that does not apply is skipped and says why: the source names it in `does_not_apply`. Needs
pytest; nothing else of the SDK does.
"""

from typing import TYPE_CHECKING

try:
    import pytest  # noqa: F401 - asked for here, so that the message says what to do
except ImportError as error:
    raise ImportError("verity_sdk.testing needs pytest: pip install pytest") from error

from verity_sdk.deprecation import moved
from verity_sdk.testing.driver import Collector, LawBroken, State, Suspending, opened
from verity_sdk.testing.faults import Clock, Fault, Faults
from verity_sdk.testing.laws import LAWS, ConnectorLaws, judge
from verity_sdk.testing.report import Outcome, Verdict
from verity_sdk.testing.source import Fake, FakedSource, GrantTuple, SourceUnderTest

__all__ = [
    "LAWS",
    "Clock",
    "Collector",
    "ConnectorLaws",
    "Fake",
    "FakedSource",
    "Fault",
    "Faults",
    "GrantTuple",
    "LawBroken",
    "Outcome",
    "SourceUnderTest",
    "State",
    "Suspending",
    "Verdict",
    "judge",
    "opened",
]


if not TYPE_CHECKING:
    __getattr__ = moved(__name__, {"Grant": "verity_sdk.testing.source.GrantTuple"})
