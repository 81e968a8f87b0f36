"""Fixtures for all tests; the real stack starts with the first test that asks for it."""

from hypothesis import HealthCheck, settings
from stack_fixtures import *  # noqa: F403 - pytest finds fixtures by name
from stack_fixtures import _running  # noqa: F401 - the star leaves it out

from verity_sdk.testing.report import (  # noqa: F401 - the table of laws × connectors
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)

# How long an example takes is no property of ours: 200 ms are soon over on a busy machine.
settings.register_profile("verity", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("verity")
