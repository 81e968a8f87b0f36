"""Puts a worker together: settings, logs, connectors, the runner and the Faust app."""

from __future__ import annotations

import sys
from typing import Any

from verity_sdk.errors import Misconfigured
from verity_stream.redaction import SECRETS
from verity_stream.settings import load_connectors, load_settings
from verity_stream.worker import logs
from verity_stream.worker.app import create_worker_app
from verity_stream.worker.runner import ConnectorRunner


def make_app() -> Any:
    """The app of `faust -A verity_stream worker`; exits with 2 where the settings are wrong."""
    try:
        settings = load_settings()
        # A connector may quote its token in an error: it stays out of logs and states.
        SECRETS.add_settings(settings)
        SECRETS.add_references(settings.config)
        specs = load_connectors(settings.config)
        logs.configure(settings)
        return create_worker_app(
            settings,
            lambda: ConnectorRunner(settings, specs),
            [spec.connector_id for spec in specs if spec.options.enabled],
        )
    except Misconfigured as error:
        sys.stderr.write(f"verity: the configuration is wrong; nothing was started\n{error}\n")
        raise SystemExit(2) from None
