"""Moved: `verity_stream.verify.completeness`. This name stays for one release."""

from __future__ import annotations

import warnings

from verity_stream.verify.completeness import Answer, Completeness, is_complete

__all__ = ["Answer", "Completeness", "is_complete"]

warnings.warn(
    "verity_stream.completeness is verity_stream.verify.completeness now",
    DeprecationWarning,
    stacklevel=2,
)
