"""What Kafka's client raises, as one of the five errors."""

from __future__ import annotations

from aiokafka import errors as kafka_errors

from verity_sdk.errors import Denied, Fenced, Misconfigured, Unavailable, VerityError


def as_verity_error(error: BaseException) -> VerityError:
    """The one of the five errors that says who must act on an error of Kafka's client."""
    if isinstance(error, VerityError):
        return error
    what = str(error)
    if not what.startswith(type(error).__name__):
        what = f"{type(error).__name__}: {what}".strip(": ")
    if isinstance(error, kafka_errors.ProducerFenced):
        return Fenced("a newer producer has this connector's transactional id")
    if isinstance(
        error, kafka_errors.MessageSizeTooLargeError | kafka_errors.RecordListTooLargeError
    ):
        return Misconfigured(
            f"the broker refused a record's size ({what}): VERITY_KAFKA__MAX_RECORD_BYTES must "
            "be below the broker's message.max.bytes"
        )
    if isinstance(error, kafka_errors.InvalidTimestampError):
        return Misconfigured(
            f"the broker refused a record's time ({what}): this machine's clock is ahead of the "
            "broker's by more than the topic's message.timestamp.after.max.ms, an hour by default"
        )
    if isinstance(error, kafka_errors.InvalidTransactionTimeout):
        return Misconfigured(
            "VERITY_TRANSACTION_TIMEOUT is above the broker's transaction.max.timeout.ms"
        )
    if isinstance(
        error,
        kafka_errors.TopicAuthorizationFailedError
        | kafka_errors.GroupAuthorizationFailedError
        | kafka_errors.ClusterAuthorizationFailedError
        | kafka_errors.TransactionalIdAuthorizationFailed
        | kafka_errors.AuthenticationFailedError,
    ):
        return Denied(f"Kafka refused: {what}")
    return Unavailable(f"Kafka: {what}")
