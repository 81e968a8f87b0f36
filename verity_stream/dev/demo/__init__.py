"""`make demo`: a PostgreSQL's audit trail arrives in Kafka, exactly once, across a kill -9.

Everything is real and everything is its own: a Kafka and a PostgreSQL on free ports under
`.verity/demo`, workers in processes of their own, and a proof that asks the servers themselves.
"""
