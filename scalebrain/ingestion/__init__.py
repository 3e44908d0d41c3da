"""From a BIDS derivatives tree to a cohort store: plan, partition, finalize."""
