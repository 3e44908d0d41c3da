"""Short benchmarks that pytest-benchmark runs, each with a result that is checked."""
