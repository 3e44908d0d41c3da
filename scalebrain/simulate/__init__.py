"""Cohorts with known truth, written as real image files."""
