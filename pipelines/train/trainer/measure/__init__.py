"""The resources that a cell used: memory, time and its share of the processors."""
