"""A longer search for a cell's learning rate than the cell makes itself (Optuna, the extra `tune`)."""
