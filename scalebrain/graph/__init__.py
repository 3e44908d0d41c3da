"""The graph network: from node features to the brain age of every region."""
