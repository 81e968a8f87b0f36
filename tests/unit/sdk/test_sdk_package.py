"""The names of the SDK, what importing it costs, and the version."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import verity_sdk
import verity_stream

ROOT = Path(verity_stream.__file__).parents[1]
CODE = ("verity_stream", "verity_sdk", "verity_common", "connectors")


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


def test_the_version_stands_in_one_place() -> None:
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert verity_stream.__version__ == stated
    literal = re.compile(rf"""\b(__version__|VERSION)\s*=|["']{re.escape(stated)}["']""")
    modules = [file for package in CODE for file in (ROOT / package).rglob("*.py")]
    assert modules
    assert not [file for file in modules if literal.search(file.read_text())]
