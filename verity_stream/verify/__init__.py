"""Are the views equal, is the topic continuous, is an hour complete.

`verity verify`: do the three views of a checkpoint agree, and does the topic prove it?

Two questions, each decided by pure code over what was read:

1. **Views.** A connector's position stands in Postgres, in the topic and in the Faust table. They
   may differ by the page in flight; `judge` says whether that is all.
2. **Continuity** (deep). Every checkpoint record says how many events its page had and which
   offsets they took. `Continuity` holds that against the events that are there: none is missing,
   none stands outside of a page, none has the id of another.

What is read is never read at one moment, so the order of reading is what makes it comparable:
table, row, topic, row again for the views; for continuity the ends of the event topics (the last
stable offsets: everything below is decided), then the checkpoints, then the events.
"""
