"""What a rewind makes of a position."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from verity_sdk.errors import Misconfigured
from verity_stream.records import Checkpoint, Seen
from verity_stream.relay.cursors import stored_cursor
from verity_stream.relay.start import decide_start, rewound

AT = datetime(2026, 1, 2, tzinfo=UTC)
EARLIER = AT - timedelta(hours=5)
STORED = Checkpoint("c", 7, 3, AT, {"next": 9}, AT, Seen(0, 1))
AHEAD = Checkpoint("c", 8, 3, AT + timedelta(hours=1), {"next": 10}, AT, Seen(0, 1))


@pytest.mark.parametrize("published", [STORED, AHEAD, None])
def test_the_next_start_goes_on_from_there_whatever_the_topic_has(
    published: Checkpoint | None,
) -> None:
    history = [] if published is None else [published]
    after = rewound(STORED, history, to=EARLIER, cursor=None)
    start = decide_start(after, published)
    assert start.publish
    assert start.checkpoint.version == after.version, "the row need not be brought up"
    assert (start.checkpoint.last_ts, start.checkpoint.cursor) == (EARLIER, None)
    assert start.checkpoint.seen is None, "ids are forgotten, to replay them"
    assert start.checkpoint.complete_through is None


FIRST = replace(STORED, version=5, last_ts=EARLIER, cursor={"next": 2})
SECOND = replace(STORED, version=6, last_ts=EARLIER + timedelta(hours=1), cursor={"next": 5})


def test_a_cursor_where_the_connector_stood_goes_back_to_that_checkpoint() -> None:
    history = [FIRST, SECOND, STORED]
    after = rewound(STORED, history, to=None, cursor={"next": 5})
    assert (after.version, after.last_ts, after.cursor) == (8, SECOND.last_ts, {"next": 5})
    after = rewound(STORED, history, to=EARLIER - timedelta(hours=1), cursor={"next": 5})
    assert (after.last_ts, after.cursor) == (EARLIER - timedelta(hours=1), {"next": 5})
    after = rewound(STORED, history, to=AT, cursor={"next": 2})
    assert after.last_ts == FIRST.last_ts, "a later watermark would not fit the cursor"
    # Several pages may share a watermark.
    page = replace(STORED, version=6, cursor={"next": 8})
    after = rewound(STORED, [page, STORED], to=None, cursor={"next": 8})
    assert (after.last_ts, after.cursor) == (AT, {"next": 8})


def test_a_cursor_may_be_given_as_it_is_stored_or_as_the_connector_has_it() -> None:
    """They differ where it holds what Postgres refuses."""
    given = {"next": "\ud800"}
    stored = stored_cursor(given)
    assert stored != given
    history = [replace(FIRST, cursor=stored), STORED]
    for cursor in (given, stored):
        after = rewound(STORED, history, to=None, cursor=cursor)
        assert (after.last_ts, after.cursor) == (FIRST.last_ts, stored)


@pytest.mark.parametrize("to", [None, EARLIER])
@pytest.mark.parametrize(
    ("cursor", "edited_version"),
    [
        ({"next": 99}, 0),  # Ahead, or never there: nobody can tell.
        ({"next": 3}, 0),
        ({"next": 9}, 7),  # An edit moved the connector back since: now it lies ahead.
        ({"next": 5}, 6),
    ],
)
def test_a_cursor_that_may_lie_ahead_is_refused(
    cursor: dict[str, int], edited_version: int, to: datetime | None
) -> None:
    history = [FIRST, SECOND, STORED]
    with pytest.raises(Misconfigured, match="may lie ahead"):
        rewound(STORED, history, to=to, cursor=cursor, edited_version=edited_version)


def test_a_cursor_of_a_later_watermark_lies_ahead_though_no_edit_is_known() -> None:
    """As after a backup was restored, which took the audit trail along."""
    back = replace(STORED, version=8, last_ts=EARLIER, cursor=None)
    with pytest.raises(Misconfigured, match="may lie ahead"):
        rewound(back, [STORED, back], to=None, cursor=dict(STORED.cursor or {}))


def test_forward_is_refused_because_it_would_leave_out_events() -> None:
    with pytest.raises(Misconfigured, match="would never be fetched"):
        rewound(STORED, [STORED], to=AT + timedelta(seconds=1), cursor=None)
    assert rewound(STORED, [AHEAD], to=AT + timedelta(seconds=1), cursor=None).version == 9
    with pytest.raises(Misconfigured, match="--to, --cursor, or both"):
        rewound(STORED, [STORED], to=None, cursor=None)


def test_an_edit_that_took_the_version_of_a_page_is_where_the_connector_stands() -> None:
    """Nothing after the edit was fetched again yet, though the page had come further."""
    edited = replace(STORED, last_ts=EARLIER, cursor=None, complete_through=None, seen=None)
    with pytest.raises(Misconfigured, match="would never be fetched"):
        rewound(edited, [STORED], to=EARLIER + timedelta(hours=1), cursor=None)
