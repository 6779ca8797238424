"""Names of columns that come from settings: `metric_has_number`, `benchmark_gsm8k`.

Reading the settings checks them.
"""

import re
from collections.abc import Sequence

from pipelines.settings.yaml_file import cut

# Suffixes of a name: the value itself, its 95 % interval, the untouched model's value, and the
# difference from that.
METRIC_ENDINGS = ("", "_low", "_high", "_base")
BENCHMARK_ENDINGS = (*METRIC_ENDINGS, "_vs_base", "_vs_base_low", "_vs_base_high")
# Fixed columns of table comparison whose names a setting might collide with; a test compares them
# with the table.
FIXED = ("benchmark_seconds", "benchmark_accuracy", "benchmark_accuracy_low", "benchmark_accuracy_high")
MAX_NAME_CHARS = 60
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def column_name(kind: str, name: str) -> str:
    """`kind_name` in lower case; every character but letters and digits becomes an underscore.

    (metric, has-number) → metric_has_number.

    `kind` is metric or benchmark.
    """
    return f"{kind}_{re.sub('[^a-z0-9]', '_', name.lower())}"


def require_columns(kind: str, names: Sequence[str], endings: Sequence[str]) -> None:
    """Check names that become columns.

    Raises:
        ValueError: a name that cannot become a column, a column that already exists, or two names
            with the same column (endings included).
    """
    owners: dict[str, str] = {}
    for name in names:
        _require_name(kind, name)
        for ending in endings:
            column = column_name(kind, name) + ending
            if column in FIXED:
                raise ValueError(
                    f"got the name {name!r}, whose column {column} is there for all {kind}s; give it another"
                )
            if column in owners:
                raise ValueError(
                    f"{owners[column]!r} and {name!r} both make the column {column}; give each {kind} a name of its own"
                )
            owners[column] = name


def _require_name(kind: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise ValueError(
            f"got the name {cut(repr(name))}; a {kind} names a column: expected a letter or digit of ASCII first, then "
            "letters, digits, '_', '.' or '-'"
        )
    if len(name) > MAX_NAME_CHARS:
        raise ValueError(
            f"got the name {cut(repr(name), MAX_NAME_CHARS)} of {len(name)} characters; a {kind} names a column: expected at most "
            f"{MAX_NAME_CHARS}"
        )
