"""Kafka: the only package but those of Faust that knows its client."""
