"""Scripts that measure; nothing here asserts a time. `make bench` runs `benchmarks.run`."""
