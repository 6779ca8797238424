"""The work of a night: the due cells with their reasons, the budget, and the order."""
