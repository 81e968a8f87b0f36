"""Public names that moved: the old ones lead to the new ones for one release, and say so."""

from __future__ import annotations

import warnings
from importlib import import_module

import pytest

MOVED = {
    "verity_sdk.chunks.ABANDON_SECONDS": "verity_sdk.batches.ABANDON_SECONDS",
    "verity_sdk.chunks.Basket": "verity_sdk.batches.Batch",
    "verity_sdk.chunks.Limits": "verity_sdk.batches.Limits",
    "verity_sdk.chunks.Watermark": "verity_sdk.position.Watermark",
    "verity_sdk.chunks.chunked": "verity_sdk.batches.batched",
    "verity_sdk.chunks.closing": "verity_sdk.batches.closing",
    "verity_sdk.chunks.filled": "verity_sdk.batches.batched_into",
    "verity_sdk.chunks.not_after": "verity_sdk.position.not_after",
    "verity_sdk.connector_base.ACK_SECONDS_MAX": "verity_sdk.run.ACK_SECONDS_MAX",
    "verity_sdk.connector_base.RUN_LIMITS": "verity_sdk.run.RUN_LIMITS",
    "verity_sdk.completeness.Answer": "verity_sdk.completeness.Coverage",
    "verity_sdk.connector_base.asked_since": "verity_sdk.position.asked_since",
    "verity_sdk.auth.AzureCredential": "connectors._azure.credential.AzureCredential",
    "verity_sdk.http.report_wait": "verity_sdk.context.OLD_REPORT_WAIT",
    "verity_sdk.log_analytics.API_URL": "connectors._azure.log_analytics.API_URL",
    "verity_sdk.references.databricks.Place": "connectors.databricks.references.Workspace",
    "verity_sdk.references.fabric.item": "connectors.fabric.references.item",
    "verity_sdk.waits.WaitReport": "verity_sdk.context.WaitReport",
    "verity_sdk.testing.Grant": "verity_sdk.testing.source.GrantTuple",
    "verity_sdk.testing.source.Grant": "verity_sdk.testing.source.GrantTuple",
    "verity_stream.completeness.Answer": "verity_sdk.completeness.Coverage",
    "verity_stream.completeness.Completeness": "verity_sdk.completeness.Completeness",
    "verity_stream.completeness.is_complete": "verity_stream.verify.completeness.is_complete",
}


def found(name: str) -> object:
    """What stands under a dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_the_old_name_leads_to_the_new_one_and_warns(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"{old} is {new} now") as seen:
        there = found(old)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert there is found(new)
    assert {one.filename for one in seen} == {__file__}, "it names who used the old name"


@pytest.mark.parametrize("module", sorted({old.rpartition(".")[0] for old in MOVED}))
def test_a_name_that_never_was_is_an_attribute_error(module: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'nothing'"):
        found(f"{module}.nothing")
