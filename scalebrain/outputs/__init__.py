"""Files for other programs: BIDS derivatives and Parquet."""
