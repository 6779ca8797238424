"""Model weights: fetched, converted, made at random, shortened."""
