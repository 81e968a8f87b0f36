"""Verity Stream: audit events and permissions of data platforms into Kafka, exactly once.

`faust -A verity_stream worker` runs it. The attribute `app`, which that command takes, is made
on first use: importing the package loads no Faust and reads no settings.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # No submodule may be called `app`: importing it would hide this attribute from Faust.
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from verity_stream.worker import make_app

    app = globals()["app"] = make_app()
    return app
