"""The wording of expectations in errors, the same for settings and for fields of records."""

import difflib
import re
from collections.abc import Mapping
from typing import Any

SLUG = r"^[a-z0-9][a-z0-9.-]*$"
# A longer value gets no suggestion.
SHOWN_CHARS = 1000
# The expected value, by pydantic's type of the error.
EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a mapping of names to values",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of at most 64 bits",
    "int_type": "a whole number",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "list_type": "a list",
    "model_type": "a mapping of names to values",
    "string_pattern_mismatch": "a text that matches {pattern}",
    "string_too_short": "a text of {min_length} or more characters",
    "string_type": "a text",
    "too_long": "at most {max_length} of them",
    "too_short": "{min_length} of them or more",
}
# Types of errors whose messages do not show the value.
NO_VALUE = ("missing", "value_error", "unknown_key")


def what_is_wrong(item: Mapping[str, Any]) -> str:
    """Our message for a pydantic error (one of `ValidationError.errors()`).

    It names the expected value, not a class.
    """
    kind, context = item["type"], item.get("ctx", {})
    if kind == "missing":
        return "is missing"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", context["expected"])
        return expected_one_of(str(item["input"]), allowed)
    if kind == "string_pattern_mismatch" and context["pattern"] == SLUG:
        return "expected small letters, digits, dots and dashes, a letter or a digit first"
    if kind in EXPECTED:
        return f"expected {EXPECTED[kind].format(**context)}"
    return str(item["msg"]).removeprefix("Value error, ").replace("Input should be", "expected")


def expected_one_of(value: str, allowed: list[str]) -> str:
    """The list of allowed values, with the closest one as a suggestion."""
    close = difflib.get_close_matches(value, allowed, n=1) if len(value) <= SHOWN_CHARS else []
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"expected one of {', '.join(allowed)}{hint}"
