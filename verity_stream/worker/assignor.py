"""Faust's assignor, corrected so that workers get about as many connectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import faust
import faust.assignor

from verity_stream.records import CHECKPOINTS_TOPIC
from verity_stream.worker.placement import balanced, kept


class EvenAssignor(faust.assignor.PartitionAssignor):
    """Faust's assignor; and then partitions are swapped until workers have as many connectors.

    The group's leader decides, by its own configuration. What moves is started anew elsewhere, so
    as little as possible does.
    """

    _owned_before: Mapping[str, frozenset[int]] = {}

    def _perform_assignment(self, cluster: Any, member_metadata: Any) -> Any:
        self._owned_before = {
            member: frozenset(
                self._get_client_metadata(metadata).assignment.actives.get(CHECKPOINTS_TOPIC, ())
            )
            for member, metadata in member_metadata.items()
        }
        return super()._perform_assignment(cluster, member_metadata)

    def _global_table_standby_assignments(self, assignments: Any, *arguments: Any) -> Any:
        # Called between Faust's own assignment and its encoding for the members.
        weights = getattr(self.app, "partition_weights", {})
        owned = {
            client: frozenset(one.actives.get(CHECKPOINTS_TOPIC, ()))
            for client, one in assignments.items()
        }
        before = self._owned_before
        for client, partitions in balanced(kept(owned, before), weights, before).items():
            actives = assignments[client].actives
            for topic, before in actives.items():
                # The changelog goes where its topic goes.
                if frozenset(before) == owned[client]:
                    actives[topic] = sorted(partitions)
        return super()._global_table_standby_assignments(assignments, *arguments)
