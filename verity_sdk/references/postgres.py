"""Deprecated, for one release: the names of `connectors.postgres.references`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from verity_sdk.deprecation import moved_module

if not TYPE_CHECKING:
    __getattr__ = moved_module(__name__, "connectors.postgres.references")
