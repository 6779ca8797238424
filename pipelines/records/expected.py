"""What was expected in the place of a value, in words: the same for a setting and for a field of a record."""

import difflib
import re
from collections.abc import Mapping
from typing import Any

SLUG = r"^[a-z0-9][a-z0-9.-]*$"
SHOWN_CHARS = 1000  # a longer value is compared with no other
# by pydantic's name of what is wrong with a value
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
NO_VALUE = ("missing", "value_error", "unknown_key")  # whose words stand without the value that was found


def what_is_wrong(item: Mapping[str, Any]) -> str:
    """An error of pydantic's (one of `ValidationError.errors()`) in our words, which name what was expected and no class."""
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
    close = difflib.get_close_matches(value, allowed, n=1) if len(value) <= SHOWN_CHARS else []
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"expected one of {', '.join(allowed)}{hint}"
