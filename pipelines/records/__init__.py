"""What a record is: its shapes, and readers of the files that records come in."""
