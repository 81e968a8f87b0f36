"""Deprecated, for one release: Log Analytics is Azure's, and `connectors._azure` has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from verity_sdk.deprecation import moved_module

if not TYPE_CHECKING:
    __getattr__ = moved_module(__name__, "connectors._azure.log_analytics")
