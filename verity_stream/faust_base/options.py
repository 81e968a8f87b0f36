"""Faust's settings out of ours; what differs from Faust's default says why."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

import faust
import faust.assignor

from verity_sdk.errors import Misconfigured
from verity_stream.faust_base.fixes import QuietWorker, SeekFirstTableManager
from verity_stream.settings import StreamSettings

REBALANCE_TIMEOUT_SECONDS = 30.0
YEAR_SECONDS = 365 * 24 * 3600.0


def faust_options(settings: StreamSettings) -> dict[str, Any]:
    """Faust's settings out of ours; what differs from Faust's default says why."""
    session_seconds = settings.session_timeout_seconds
    try:
        client_options = settings.kafka.client_options()
    except ValueError as error:
        raise Misconfigured(str(error)) from error
    return {
        "broker": [f"kafka://{server}" for server in servers(settings)],
        "broker_client_id": client_options.get("client_id", settings.app_id),
        "broker_credentials": broker_credentials(client_options),
        # Faust reads the environment without a prefix, and the environment wins: a stray
        # BROKER_URL or WEB_PORT would take over. An empty one leaves it nothing to read.
        "env": {},
        "env_prefix": "VERITY_FAUST",
        "broker_session_timeout": session_seconds,
        # A member hears of a rebalance by its next heartbeat, and everybody waits for the last.
        "broker_heartbeat_interval": min(0.5, session_seconds / 3),
        "broker_rebalance_timeout": REBALANCE_TIMEOUT_SECONDS,
        # Above the session and above a join, which lasts as long as the slowest member's revoke.
        "broker_request_timeout": max(session_seconds, REBALANCE_TIMEOUT_SECONDS) + 10.0,
        "broker_commit_interval": settings.commit_interval_seconds,
        # A worker without partitions polls nothing, and would leave the group for good.
        "broker_max_poll_interval": YEAR_SECONDS,
        "producer_acks": -1,
        # 1,200 s by default: a SIGTERM with the broker down would wait for it.
        "producer_request_timeout": 30.0,
        "processing_guarantee": "at_least_once",
        "stream_wait_empty": True,
        "store": "memory://",
        "table_standby_replicas": 0,
        "topic_replication_factor": settings.kafka.replication_factor,
        # A topic that the group's leader did not know of yet gets its owners after this, not
        # after five minutes.
        "consumer_metadata_max_age_ms": 30_000,
        # Faust would create topics while it joins its group, without a look at what is there, and
        # let a caller that is cancelled meanwhile, as a rebalance does, take the others along.
        "topic_allow_declare": False,
        # Nothing here runs on a leader only: no topic to elect one.
        "topic_disable_leader": True,
        # `faust worker` binds 0.0.0.0 and ignores web_enabled=False.
        "web_bind": settings.web_bind,
        "web_port": settings.web_port,
        "worker_redirect_stdouts": False,
        "TableManager": SeekFirstTableManager,
        "Worker": QuietWorker,
    }


def broker_credentials(options: Mapping[str, Any]) -> Any:
    """Faust's credentials for the options that aiokafka's clients take; None for plain text.

    Raises:
        Misconfigured: A mechanism that Faust can't carry.
    """
    protocol = options.get("security_protocol", "PLAINTEXT")
    if protocol == "PLAINTEXT":
        return None
    context = None
    if protocol in ("SSL", "SASL_SSL"):
        context = options.get("ssl_context") or ssl.create_default_context()
    if protocol == "SSL":
        return faust.SSLCredentials(context)
    mechanism = options.get("sasl_mechanism", "PLAIN")
    if mechanism not in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
        raise Misconfigured(f"The worker can't log in to Kafka with the mechanism {mechanism}")
    return faust.SASLCredentials(
        username=options.get("sasl_plain_username"),
        password=options.get("sasl_plain_password"),
        mechanism=mechanism,
        ssl_context=context,
    )


def servers(settings: StreamSettings) -> list[str]:
    """The addresses of the brokers."""
    return [server.strip() for server in settings.kafka.bootstrap_servers.split(",")]
