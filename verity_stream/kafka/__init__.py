"""Kafka: the only package but Faust's that knows its client."""
