"""How many records a cell may leave out because they exceed max_length or the chat template cannot
show them."""

# A larger share is worth a warning, and the cell is no pick.
MUCH = 0.2
# A larger share fails the cell: the rest does not represent the data.
NEARLY_ALL = 0.9
# The advised max_length fits this share of the records.
HELD = 0.95


def is_nearly_all(left_out: int, records: int) -> bool:
    return left_out > NEARLY_ALL * records


def reasons(too_long: int, unshown: int, max_length: int | None) -> str:
    """The reasons why records are left out, in words; `max_length` is None if it is not known."""
    length = "max_length" if max_length is None else f"max_length {max_length}"
    causes = [f"{too_long} longer than {length}"] if too_long else []
    causes += [f"{unshown} that the chat template cannot show"] if unshown else []
    return ", ".join(causes)
