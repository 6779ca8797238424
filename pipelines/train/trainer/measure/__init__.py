"""What a cell used: memory, time, the share of the processors."""
