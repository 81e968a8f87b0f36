"""The former name of `verity_stream.verify.completeness`, for one release."""

from __future__ import annotations

from typing import TYPE_CHECKING

from verity_sdk.deprecation import moved

if TYPE_CHECKING:
    from verity_sdk.completeness import Completeness as Completeness
    from verity_sdk.completeness import Coverage as Answer
    from verity_stream.verify.completeness import is_complete as is_complete

    __all__ = ["Answer", "Completeness", "is_complete"]
else:
    __getattr__ = moved(
        __name__,
        {
            "Answer": "verity_sdk.completeness.Coverage",
            "Completeness": "verity_sdk.completeness.Completeness",
            "is_complete": "verity_stream.verify.completeness.is_complete",
        },
    )
