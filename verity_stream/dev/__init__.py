"""Real Kafka and PostgreSQL on a desk, and the demo; no other package imports it."""
