"""Model weights: fetched, converted, made at random or shortened."""
