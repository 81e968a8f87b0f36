"""The rules that everybody who drives a connector shares: the worker, `run()`, and the laws.

Pure functions: whoever needs one of them calls it, so that what passes here passes there.
"""

from __future__ import annotations

import re
from typing import Any

NAME_RULE = "letters, digits, `.`, `_` and `-`, beginning with a letter or digit, at most 128"
"""What a name may be, to be said where one is refused."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def is_valid_name(name: Any) -> bool:
    """Whether this can be a connector's id or a platform.

    It stands in the names of topics, in transactional ids, in the labels of metrics, and as an
    argument on command lines, where what begins with `-` is an option.
    """
    return isinstance(name, str) and _NAME.fullmatch(name) is not None
