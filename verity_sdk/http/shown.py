"""What of a request may be shown: no query, no header, no body, no control character."""

from __future__ import annotations

import re

CHARACTERS_MAX = 200


def shown_url(url: str) -> str:
    """A URL without its query, fragment, user and password."""
    return printable(re.split(r"[?#]", url, maxsplit=1)[0].rpartition("@")[2])


def printable(text: str, characters_max: int = CHARACTERS_MAX) -> str:
    """A text on one line, and not too long; what can't be printed is a question mark."""
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return shown if len(shown) <= characters_max else shown[: characters_max - 1] + "…"
