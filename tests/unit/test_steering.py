"""What a rewind makes of a position."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from verity_sdk.errors import Misconfigured
from verity_stream.checkpoints import decide_start
from verity_stream.records import Checkpoint, Seen
from verity_stream.steering import rewound

AT = datetime(2026, 1, 2, tzinfo=UTC)
EARLIER = AT - timedelta(hours=5)
STORED = Checkpoint("c", 7, 3, AT, {"next": 9}, AT, Seen({}, AT))
AHEAD = Checkpoint("c", 8, 3, AT + timedelta(hours=1), {"next": 10}, AT, Seen({}, AT))


@pytest.mark.parametrize("published", [STORED, AHEAD, None])
def test_the_next_start_goes_on_from_there_whatever_the_topic_has(
    published: Checkpoint | None,
) -> None:
    after = rewound(STORED, published, to=EARLIER, cursor=None)
    start = decide_start(after, published)
    assert start.publish
    assert start.repair_database_from is None
    assert (start.checkpoint.last_ts, start.checkpoint.cursor) == (EARLIER, None)
    assert start.checkpoint.seen is None, "ids are forgotten, to replay them"
    assert start.checkpoint.complete_through is None


def test_a_cursor_moves_the_cursor_and_a_time_the_watermark() -> None:
    after = rewound(STORED, STORED, to=None, cursor={"next": 2})
    assert (after.version, after.last_ts, after.cursor) == (8, AT, {"next": 2})
    after = rewound(STORED, STORED, to=EARLIER, cursor={"next": 2})
    assert (after.last_ts, after.cursor) == (EARLIER, {"next": 2})


def test_forward_is_refused_because_it_would_leave_out_events() -> None:
    with pytest.raises(Misconfigured, match="would never be fetched"):
        rewound(STORED, STORED, to=AT + timedelta(seconds=1), cursor=None)
    assert rewound(STORED, AHEAD, to=AT + timedelta(seconds=1), cursor=None).version == 9
    with pytest.raises(Misconfigured, match="--to, --cursor, or both"):
        rewound(STORED, STORED, to=None, cursor=None)
