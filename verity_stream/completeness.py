"""Moved: `verity_stream.verify.completeness`. This name stays for one release."""

from __future__ import annotations

import warnings

from verity_stream.verify.completeness import Completeness, Coverage, is_complete

__all__ = ["Answer", "Completeness", "Coverage", "is_complete"]

Answer = Coverage

warnings.warn(
    "verity_stream.verify.completeness is verity_stream.verify.completeness now",
    DeprecationWarning,
    stacklevel=2,
)
