"""Requests to a vendor's HTTP API: authorised, within budget, retried, and never to a stranger.

The only package that imports the HTTP client (httpx2). Errors are the SDK's five, and carry the
method, the URL without its query, the status, the vendor's error code and request id.
Decisions and what was rejected: docs/decisions/0007-http.md.

    client        HttpClient and follow: one request, and the pages of a listing
    settings      HttpSettings, the table `[connectors.<id>.http]`
    answers       Answer
    urls, shown   what is sent, to which hosts, and what of it may be shown
    budgets       a vendor's request budget
    retries       whether and when something is tried again
    connections   httpx2
"""

from typing import TYPE_CHECKING

from verity_sdk.deprecation import moved
from verity_sdk.http.answers import Answer
from verity_sdk.http.budgets import ANNOUNCED_SECONDS_MIN, Budget, shared_budget
from verity_sdk.http.client import REDIRECTS_MAX, Authorizer, HttpClient, follow
from verity_sdk.http.connections import KEEP_ALIVE_SECONDS
from verity_sdk.http.retries import BACKOFF_SECONDS_MAX, RETRIED_STATUSES, retry_after_seconds
from verity_sdk.http.settings import HttpSettings
from verity_sdk.http.urls import encoded, with_params

__all__ = [
    "ANNOUNCED_SECONDS_MIN",
    "BACKOFF_SECONDS_MAX",
    "KEEP_ALIVE_SECONDS",
    "REDIRECTS_MAX",
    "RETRIED_STATUSES",
    "Answer",
    "Authorizer",
    "Budget",
    "HttpClient",
    "HttpSettings",
    "encoded",
    "follow",
    "retry_after_seconds",
    "shared_budget",
    "with_params",
]

if not TYPE_CHECKING:
    __getattr__ = moved(__name__, {"report_wait": "verity_sdk.context.OLD_REPORT_WAIT"})
