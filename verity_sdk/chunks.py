"""The former name of `verity_sdk.batches`, for one release."""

from __future__ import annotations

from typing import TYPE_CHECKING

from verity_sdk.deprecation import moved

if TYPE_CHECKING:
    from verity_sdk.batches import ABANDON_SECONDS, Limits, closing
    from verity_sdk.batches import Batch as Basket
    from verity_sdk.batches import batched as chunked
    from verity_sdk.batches import batched_into as filled
    from verity_sdk.position import Watermark, not_after

    __all__ = [
        "ABANDON_SECONDS",
        "Basket",
        "Limits",
        "Watermark",
        "chunked",
        "closing",
        "filled",
        "not_after",
    ]
else:
    __getattr__ = moved(
        __name__,
        {
            "ABANDON_SECONDS": "verity_sdk.batches.ABANDON_SECONDS",
            "Basket": "verity_sdk.batches.Batch",
            "Limits": "verity_sdk.batches.Limits",
            "Watermark": "verity_sdk.position.Watermark",
            "chunked": "verity_sdk.batches.batched",
            "closing": "verity_sdk.batches.closing",
            "filled": "verity_sdk.batches.batched_into",
            "not_after": "verity_sdk.position.not_after",
        },
    )
