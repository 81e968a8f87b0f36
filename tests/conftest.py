"""Fixtures for all tests; the real stack starts with the first test that asks for it."""

from stack_fixtures import *  # noqa: F403 - pytest finds fixtures by name
from stack_fixtures import _running  # noqa: F401 - the star leaves it out

from verity_sdk.testing.report import (  # noqa: F401 - the table of laws × connectors
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)
