"""Files in and out: BIDS trees, NIfTI images, the cohort store."""
