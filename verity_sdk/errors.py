"""The five errors of Verity, named by who must act.

A connector raises one of these; whatever else escapes from it is treated as a bug in the
connector and is retried like `Unavailable`, loudly. None of them may carry a secret: the
text of an error is logged, stored and shown.
"""

from __future__ import annotations


class VerityError(Exception):
    """The base of the five; never raised itself."""


class Unavailable(VerityError):
    """Nobody must act: wait and try again.

    Raised for time-outs, refused connections, throttling and server errors. The position
    has not moved; the same page is asked for again.

    Args:
        message: What was tried and what happened.
        retry_after_seconds: How long the source asked to be left alone, if it said so.
    """

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Denied(VerityError):
    """The operator must act: a credential or a permission is missing, wrong or revoked.

    The position has not moved. The connector is shown as `blocked` and probed slowly, so
    that a wrong secret does not hammer the source.
    """


class Malformed(VerityError):
    """A developer must act: one record is not understood.

    The record goes to the dead letters with its bytes and this reason; the stream goes on.
    """


class Fenced(VerityError):
    """Another relay owns this connector: stop, publish nothing more, leave everything as it is."""


class Misconfigured(VerityError):
    """The operator must act before anything starts: the message names the setting at fault."""
