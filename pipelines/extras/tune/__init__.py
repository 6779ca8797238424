"""A longer search for a cell's learning rate than training itself does (Optuna, the extra
`tune`)."""
