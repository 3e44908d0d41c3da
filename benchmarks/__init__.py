"""Measurements at full size, run by hand: ``python -m benchmarks.NAME``."""
