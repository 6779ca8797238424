"""Raw records → examples and rejects, each reject with its reason; then one side of the split for
every example."""
