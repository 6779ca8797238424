"""How many records a cell may leave out, since they are longer than max_length or its chat template cannot show them."""

MUCH = 0.2  # a larger share is a warning, and no pick is made of the cell
NEARLY_ALL = 0.9  # a larger share fails the cell: what is left says nothing of the data
HELD = 0.95  # of the records: what the length that is advised would hold


def is_nearly_all(left_out: int, records: int) -> bool:
    return left_out > NEARLY_ALL * records


def reasons(too_long: int, unshown: int, max_length: int | None) -> str:
    """Why records are left out, in words; `max_length` None: not known."""
    length = "max_length" if max_length is None else f"max_length {max_length}"
    causes = [f"{too_long} longer than {length}"] if too_long else []
    causes += [f"{unshown} that the chat template cannot show"] if unshown else []
    return ", ".join(causes)
