"""The SDK's names, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files

import verity_sdk


def test_every_public_name_is_there() -> None:
    for name in verity_sdk.__all__:
        assert hasattr(verity_sdk, name), name
    assert verity_sdk.__all__ == sorted(verity_sdk.__all__)


def test_importing_it_imports_neither_kafka_nor_postgres_nor_faust() -> None:
    check = (
        "import sys, verity_sdk, verity_sdk.connector_base, verity_sdk.settings\n"
        "heavy = {'aiokafka', 'asyncpg', 'faust', 'mode', 'verity_stream'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_it_says_that_it_is_typed() -> None:
    assert (files("verity_sdk") / "py.typed").is_file()
    assert (files("verity_common") / "py.typed").is_file()
