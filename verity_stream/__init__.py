"""Verity Stream: audit events and permissions of data platforms into Kafka, exactly once.

`faust -A verity_stream worker` runs it. The attribute `app`, which that command takes, is made
on first use: importing the package loads no Faust and reads no settings. For teams downstream,
`from verity_stream import create_app, raw_topic, verity_agent` (`verity_stream.downstream`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verity_stream.downstream import (
        create_app,
        dead_topic,
        permissions_topic,
        raw_topic,
        verity_agent,
    )

__all__ = ["create_app", "dead_topic", "permissions_topic", "raw_topic", "verity_agent"]


def __getattr__(name: str) -> Any:
    # No submodule may be called `app`: importing it would hide this attribute from Faust.
    if name == "app":
        from verity_stream.worker.main import make_app

        app = globals()["app"] = make_app()
        return app
    if name in __all__:
        from verity_stream import downstream

        return getattr(downstream, name)
    if name == "__version__":
        from importlib.metadata import version

        return version("verity-stream")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
