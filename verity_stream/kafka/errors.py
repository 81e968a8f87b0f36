"""What Kafka answers, as one of the five errors: a table by who must act, a row a code.

The client's `retriable` says whether the same request may be sent again, which is no verdict: it
is False for what a new producer or a rejoin cures, and True for a topic that nobody will create.
So each code was judged by hand, against the broker's own list (`Errors` of kafka-clients 4.3.1;
`tests/unit/stream/kafka/test_kafka_errors.py` holds the table against the jar).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

from aiokafka import errors as kafka_errors

from verity_sdk.errors import Denied, Fenced, Misconfigured, Unavailable, VerityError


class Cure(Enum):
    """What ends an error."""

    WAIT = "it passes by itself"
    ANEW = "a new producer, or joining the group again"
    STOP = "nothing: somebody newer owns this"
    GRANT = "a person: a right, or a credential"
    CHANGE = "a person: a setting, ours or the cluster's"


class Verdict(NamedTuple):
    """A row: Kafka's name of a code, what ends the error, and what is shown to who must act."""

    name: str
    cure: Cure
    sentence: str = ""


def _rows(cure: Cure, names: str) -> dict[int, Verdict]:
    """Rows without a sentence, from `number NAME` pairs."""
    words = names.split()
    return {
        int(code): Verdict(name, cure) for code, name in zip(words[::2], words[1::2], strict=True)
    }


def _acts(cure: Cure, rows: Mapping[int, tuple[str, str]]) -> dict[int, Verdict]:
    return {code: Verdict(name, cure, sentence) for code, (name, sentence) in rows.items()}


_CREDENTIALS = "VERITY_KAFKA__SASL_USERNAME and VERITY_KAFKA__SASL_PASSWORD"
_TOKENS = "Verity logs in by password, not by a delegation token: ask the cluster's administrator"
_VERSIONS = (
    "the broker speaks another version of Kafka's protocol than this client (or a proxy stands "
    "between): Verity needs Apache Kafka 3 or newer, or what speaks as it does"
)
_BUG = (
    "a request of ours that this broker does not take: please report it with the broker's version"
)
_FEW_REPLICAS = (
    "fewer replicas are in sync than the topic's min.insync.replicas; if it stays so, a broker is "
    "missing, or the topic has fewer replicas than that"
)
_OTHER_PROTOCOL = (
    "it is of a protocol that Verity does not use: the group VERITY_APP_ID, or the broker, is not "
    "what it should be; ask the cluster's administrator"
)

VERDICTS: Mapping[int, Verdict] = {
    **_rows(
        Cure.WAIT,
        "-1 UNKNOWN_SERVER_ERROR 0 NONE 2 CORRUPT_MESSAGE 3 UNKNOWN_TOPIC_OR_PARTITION "
        "5 LEADER_NOT_AVAILABLE 6 NOT_LEADER_OR_FOLLOWER 7 REQUEST_TIMED_OUT "
        "8 BROKER_NOT_AVAILABLE 9 REPLICA_NOT_AVAILABLE 11 STALE_CONTROLLER_EPOCH "
        "13 NETWORK_EXCEPTION 14 COORDINATOR_LOAD_IN_PROGRESS 15 COORDINATOR_NOT_AVAILABLE "
        "16 NOT_COORDINATOR 36 TOPIC_ALREADY_EXISTS 41 NOT_CONTROLLER 51 CONCURRENT_TRANSACTIONS "
        "52 TRANSACTION_COORDINATOR_FENCED 55 OPERATION_NOT_ATTEMPTED 56 KAFKA_STORAGE_ERROR "
        "57 LOG_DIR_NOT_FOUND 60 REASSIGNMENT_IN_PROGRESS 68 NON_EMPTY_GROUP "
        "69 GROUP_ID_NOT_FOUND 70 FETCH_SESSION_ID_NOT_FOUND 71 INVALID_FETCH_SESSION_EPOCH "
        "74 FENCED_LEADER_EPOCH 75 UNKNOWN_LEADER_EPOCH 77 STALE_BROKER_EPOCH "
        "78 OFFSET_NOT_AVAILABLE 80 PREFERRED_LEADER_NOT_AVAILABLE "
        "83 ELIGIBLE_LEADERS_NOT_AVAILABLE 84 ELECTION_NOT_NEEDED 85 NO_REASSIGNMENT_IN_PROGRESS "
        "86 GROUP_SUBSCRIBED_TO_TOPIC 88 UNSTABLE_OFFSET_COMMIT 89 THROTTLING_QUOTA_EXCEEDED "
        "91 RESOURCE_NOT_FOUND 92 DUPLICATE_RESOURCE 95 INVALID_UPDATE_VERSION "
        "96 FEATURE_UPDATE_FAILED 98 SNAPSHOT_NOT_FOUND 99 POSITION_OUT_OF_RANGE "
        "100 UNKNOWN_TOPIC_ID 102 BROKER_ID_NOT_REGISTERED 103 INCONSISTENT_TOPIC_ID "
        "106 FETCH_SESSION_TOPIC_ID_ERROR 107 INELIGIBLE_REPLICA 108 NEW_LEADER_ELECTED "
        "109 OFFSET_MOVED_TO_TIERED_STORAGE 116 UNKNOWN_CONTROLLER_ID "
        "117 UNKNOWN_SUBSCRIPTION_ID 118 TELEMETRY_TOO_LARGE 122 SHARE_SESSION_NOT_FOUND "
        "123 INVALID_SHARE_SESSION_EPOCH 129 REBOOTSTRAP_REQUIRED "
        "133 SHARE_SESSION_LIMIT_REACHED",
    ),
    **_rows(
        Cure.ANEW,
        "1 OFFSET_OUT_OF_RANGE 22 ILLEGAL_GENERATION 25 UNKNOWN_MEMBER_ID "
        "27 REBALANCE_IN_PROGRESS 45 OUT_OF_ORDER_SEQUENCE_NUMBER 46 DUPLICATE_SEQUENCE_NUMBER "
        # Since Kafka 2.7 an epoch that is too old may be one that the coordinator raised as it
        # ended a transaction: no verdict about another producer, which 90 is (KIP-588).
        "47 INVALID_PRODUCER_EPOCH 48 INVALID_TXN_STATE 49 INVALID_PRODUCER_ID_MAPPING "
        "59 UNKNOWN_PRODUCER_ID 79 MEMBER_ID_REQUIRED 105 TRANSACTIONAL_ID_NOT_FOUND "
        "110 FENCED_MEMBER_EPOCH 111 UNRELEASED_INSTANCE_ID 113 STALE_MEMBER_EPOCH "
        "120 TRANSACTION_ABORTABLE 121 INVALID_RECORD_STATE 124 FENCED_STATE_EPOCH",
    ),
    **_acts(
        Cure.STOP,
        {90: ("PRODUCER_FENCED", "a newer producer has this connector's transactional id")},
    ),
    **_acts(
        Cure.GRANT,
        {
            29: (
                "TOPIC_AUTHORIZATION_FAILED",
                "the principal lacks a right on the topic: it needs Describe, Read and Write on "
                "Verity's topics, and Create where they are missing",
            ),
            30: (
                "GROUP_AUTHORIZATION_FAILED",
                "the principal may not read the consumer group VERITY_APP_ID: grant it Read and "
                "Describe on that group",
            ),
            31: (
                "CLUSTER_AUTHORIZATION_FAILED",
                "the principal lacks a right on the cluster: IdempotentWrite before Kafka 3, "
                "Create where topics are to be created",
            ),
            53: (
                "TRANSACTIONAL_ID_AUTHORIZATION_FAILED",
                "the principal may not use the connector's transactional id: grant it Write and "
                "Describe on all that begin with `verity.`",
            ),
            58: ("SASL_AUTHENTICATION_FAILED", f"the broker does not take {_CREDENTIALS}"),
            61: ("DELEGATION_TOKEN_AUTH_DISABLED", _TOKENS),
            62: ("DELEGATION_TOKEN_NOT_FOUND", _TOKENS),
            63: ("DELEGATION_TOKEN_OWNER_MISMATCH", _TOKENS),
            64: ("DELEGATION_TOKEN_REQUEST_NOT_ALLOWED", _TOKENS),
            65: ("DELEGATION_TOKEN_AUTHORIZATION_FAILED", _TOKENS),
            66: ("DELEGATION_TOKEN_EXPIRED", _TOKENS),
            93: ("UNACCEPTABLE_CREDENTIAL", f"the broker does not take {_CREDENTIALS}"),
            97: (
                "PRINCIPAL_DESERIALIZATION_FAILURE",
                "the brokers do not understand each other about who is logged in: the cluster's "
                "principal.builder.class differs between brokers",
            ),
        },
    ),
    **_acts(
        Cure.CHANGE,
        {
            4: ("INVALID_FETCH_SIZE", _BUG),
            10: (
                "MESSAGE_TOO_LARGE",
                "the broker refused a record's size: the topic's max.message.bytes (or the "
                "broker's message.max.bytes) must have room for a value of "
                "VERITY_KAFKA__MAX_RECORD_BYTES, its key and its headers: raise the one, or lower "
                "the other",
            ),
            12: (
                "OFFSET_METADATA_TOO_LARGE",
                "the broker's offset.metadata.max.bytes is too small for a commit of the group",
            ),
            17: (
                "INVALID_TOPIC_EXCEPTION",
                "the broker does not allow a topic of this name: it is longer than 249 "
                "characters, holds others than letters, digits, '.', '_' and '-', or differs "
                "from another only in '.' and '_'; rename the platform",
            ),
            18: (
                "RECORD_LIST_TOO_LARGE",
                "the broker refused a batch's size: the topic's segment.bytes must be above "
                "VERITY_KAFKA__MAX_RECORD_BYTES",
            ),
            21: ("INVALID_REQUIRED_ACKS", _BUG),
            23: (
                "INCONSISTENT_GROUP_PROTOCOL",
                "the consumer group VERITY_APP_ID has members that are not Verity's workers, or "
                "of another kind: give the workers a group of their own, or stop the others",
            ),
            24: ("INVALID_GROUP_ID", "VERITY_APP_ID is not a name for a consumer group"),
            26: (
                "INVALID_SESSION_TIMEOUT",
                "VERITY_SESSION_TIMEOUT_SECONDS is outside of what the broker allows: from its "
                "group.min.session.timeout.ms to its group.max.session.timeout.ms",
            ),
            28: (
                "INVALID_COMMIT_OFFSET_SIZE",
                "the broker's message.max.bytes for __consumer_offsets is too small for a commit "
                "of the group",
            ),
            32: (
                "INVALID_TIMESTAMP",
                "the broker refused a record's time: this machine's clock is ahead of the "
                "broker's by more than the topic's message.timestamp.after.max.ms, an hour by "
                "default (or behind it by more than message.timestamp.before.max.ms): set the "
                "clock",
            ),
            33: (
                "UNSUPPORTED_SASL_MECHANISM",
                "the broker does not offer VERITY_KAFKA__SASL_MECHANISM on this listener",
            ),
            34: (
                "ILLEGAL_SASL_STATE",
                "the listener expects another login: VERITY_KAFKA__SECURITY_PROTOCOL or "
                "VERITY_KAFKA__SASL_MECHANISM is not the listener's",
            ),
            35: ("UNSUPPORTED_VERSION", _VERSIONS),
            37: (
                "INVALID_PARTITIONS",
                "the cluster does not allow so many partitions: VERITY_KAFKA__EVENT_PARTITIONS "
                "or VERITY_CHECKPOINT_PARTITIONS",
            ),
            38: (
                "INVALID_REPLICATION_FACTOR",
                "VERITY_KAFKA__REPLICATION_FACTOR is not possible: it is more than the cluster "
                "has brokers",
            ),
            39: (
                "INVALID_REPLICA_ASSIGNMENT",
                "the cluster can't place the topic's replicas: create it by hand "
                "(docs/operating.md, The topics)",
            ),
            40: (
                "INVALID_CONFIG",
                "the cluster refuses a topic's settings: create it by hand (docs/operating.md, "
                "The topics)",
            ),
            42: ("INVALID_REQUEST", _BUG),
            43: (
                "UNSUPPORTED_FOR_MESSAGE_FORMAT",
                "the topic's message.format.version is older than 0.11, which has neither "
                "headers nor transactions: raise it",
            ),
            44: (
                "POLICY_VIOLATION",
                "the cluster's policy refuses it: create the topic by hand (docs/operating.md, "
                "The topics)",
            ),
            50: (
                "INVALID_TRANSACTION_TIMEOUT",
                "VERITY_TRANSACTION_TIMEOUT is above the broker's transaction.max.timeout.ms",
            ),
            54: (
                "SECURITY_DISABLED",
                "the cluster has no authorizer, so access rules can't be asked for",
            ),
            67: ("INVALID_PRINCIPAL_TYPE", _BUG),
            72: (
                "LISTENER_NOT_FOUND",
                "some broker lacks the listener at VERITY_KAFKA__BOOTSTRAP_SERVERS: every broker "
                "must have the same listeners",
            ),
            73: (
                "TOPIC_DELETION_DISABLED",
                "the cluster has delete.topic.enable=false: an administrator must delete the topic",
            ),
            76: (
                "UNSUPPORTED_COMPRESSION_TYPE",
                "a codec that one side lacks: VERITY_KAFKA__COMPRESSION_TYPE, or "
                "compression.type of the topic or broker",
            ),
            81: (
                "GROUP_MAX_SIZE_REACHED",
                "the consumer group VERITY_APP_ID has as many members as the broker's "
                "group.max.size allows: run fewer workers, or raise it",
            ),
            82: (
                "FENCED_INSTANCE_ID",
                "another worker runs under the same group.instance.id: give each its own",
            ),
            87: (
                "INVALID_RECORD",
                "the broker's own validation refuses the record: a compacted topic takes none "
                "without a key, and some clusters check schemas (confluent.value.schema.validation)"
                ": turn that off for Verity's topics",
            ),
            94: ("INCONSISTENT_VOTER_SET", _OTHER_PROTOCOL),
            101: ("DUPLICATE_BROKER_REGISTRATION", _OTHER_PROTOCOL),
            104: ("INCONSISTENT_CLUSTER_ID", _OTHER_PROTOCOL),
            112: (
                "UNSUPPORTED_ASSIGNOR",
                "the consumer group VERITY_APP_ID is of the new kind (group.protocol=consumer), "
                "which has no place for the workers' assignor: give them a group of their own",
            ),
            114: (
                "MISMATCHED_ENDPOINT_TYPE",
                "VERITY_KAFKA__BOOTSTRAP_SERVERS names a controller, not a broker",
            ),
            115: (
                "UNSUPPORTED_ENDPOINT_TYPE",
                "VERITY_KAFKA__BOOTSTRAP_SERVERS names a controller, not a broker",
            ),
            119: ("INVALID_REGISTRATION", _OTHER_PROTOCOL),
            125: ("INVALID_VOTER_KEY", _OTHER_PROTOCOL),
            126: ("DUPLICATE_VOTER", _OTHER_PROTOCOL),
            127: ("VOTER_NOT_FOUND", _OTHER_PROTOCOL),
            128: ("INVALID_REGULAR_EXPRESSION", _OTHER_PROTOCOL),
            130: ("STREAMS_INVALID_TOPOLOGY", _OTHER_PROTOCOL),
            131: ("STREAMS_INVALID_TOPOLOGY_EPOCH", _OTHER_PROTOCOL),
            132: ("STREAMS_TOPOLOGY_FENCED", _OTHER_PROTOCOL),
        },
    ),
    # A broker that is away comes back; that of min.insync.replicas above the replicas never does,
    # so the sentence is shown while it is waited.
    **{
        code: Verdict(f"NOT_ENOUGH_REPLICAS{when}", Cure.WAIT, _FEW_REPLICAS)
        for code, when in ((19, ""), (20, "_AFTER_APPEND"))
    },
}
"""Every code that a broker of 4.3 can answer, by number; another one is `Unavailable`."""

_OF_THE_CLIENT: Mapping[type[Exception], int] = {
    kafka_errors.ProducerFenced: 90,
    kafka_errors.AuthenticationFailedError: 58,
    kafka_errors.AuthenticationMethodNotSupported: 33,
    kafka_errors.UnsupportedCodecError: 76,
    kafka_errors.IncompatibleBrokerVersion: 35,
    kafka_errors.UnrecognizedBrokerVersion: 35,
    kafka_errors.RecordTooLargeError: 10,
    kafka_errors.CommitFailedError: 25,
}
"""What aiokafka finds out by itself, as the code with which a broker would have said it."""

_KINDS: Mapping[Cure, type[VerityError]] = {
    Cure.WAIT: Unavailable,
    Cure.ANEW: Unavailable,
    Cure.STOP: Fenced,
    Cure.GRANT: Denied,
    Cure.CHANGE: Misconfigured,
}
CAUSES_MAX = 10
"""How many errors behind an error are looked at."""


class _AllCodes(dict[int, Any]):
    """aiokafka's classes by code; one that it lacks gets a class that keeps its number.

    aiokafka 0.14 ends at 79 and makes "UnknownError, -1" of every other code (errors.py,
    `for_code`, which asks this dictionary by `get`), so that nobody could tell them apart.
    """

    def get(self, code: int, default: Any = None) -> Any:
        if code not in self:
            verdict = VERDICTS.get(code)
            name = "".join(word.title() for word in verdict.name.split("_")) if verdict else ""
            self[code] = type(
                f"{name or 'UnknownCode'}Error",
                (kafka_errors.BrokerResponseError,),
                {"errno": code, "message": verdict.name if verdict else f"UNKNOWN_CODE_{code}"},
            )
        return self[code]


kafka_errors.kafka_errors = _AllCodes(kafka_errors.kafka_errors)


def error_of_code(code: int, what: str) -> VerityError:
    """The one of the five errors for a code that stands in an answer; `what` was being done."""
    return as_verity_error(kafka_errors.for_code(code)(what))


def as_verity_error(error: BaseException) -> VerityError:
    """The one of the five errors that says who must act on an error of Kafka's client."""
    if isinstance(error, VerityError):
        return error
    code, told = _code_of(error)
    what = _shown(told)
    verdict = None if code is None else VERDICTS.get(code)
    if verdict is None:
        return Unavailable(f"Kafka: {what}")
    kind, sentence = _KINDS[verdict.cure], verdict.sentence
    if kind is Fenced:
        return Fenced(sentence)
    if kind is Denied:
        return Denied(f"Kafka refused: {what}: {sentence}")
    if kind is Misconfigured:
        return Misconfigured(f"{sentence} (Kafka: {what})")
    return Unavailable(f"Kafka: {what}: {sentence}".removesuffix(": "))


def _code_of(error: BaseException) -> tuple[int | None, BaseException]:
    """The broker's code behind an error, and the error that has it; None where there is none.

    Some of aiokafka's tasks raise a bare `KafkaError` that was raised from what the broker said,
    or only quotes it (group_coordinator.py and sender.py, `KafkaError(repr(err))`).
    """
    one: BaseException | None = error
    for _ in range(CAUSES_MAX):
        for kind, code in _OF_THE_CLIENT.items():
            if isinstance(one, kind):
                return code, one
        if isinstance(one, kafka_errors.BrokerResponseError):
            return one.errno, one
        if type(one) is kafka_errors.KafkaError:
            names = set(re.findall(r"\b(\w+)\(", str(one)))
            for known in kafka_errors.kafka_errors.values():
                if known.__name__ in names:
                    return known.errno, known()
        if one is None or one.__cause__ is None:
            break
        one = one.__cause__
    return None, error


def _shown(error: BaseException) -> str:
    """Kafka's name of an error, its number and what else is known, in one line."""
    number = f" ({error.errno})" if isinstance(error, kafka_errors.BrokerResponseError) else ""
    details = ", ".join(str(one) for one in error.args)
    return f"{type(error).__name__}{number}: {details}".removesuffix(": ")
