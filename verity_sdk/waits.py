"""Deprecated, for one release: how a source says that it waits is `verity_sdk.context` now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from verity_sdk.deprecation import moved

if not TYPE_CHECKING:
    __getattr__ = moved(
        __name__,
        {
            "WaitReport": "verity_sdk.context.WaitReport",
            "report_wait": "verity_sdk.context.OLD_REPORT_WAIT",
        },
    )
