"""Values of Parquet as Python objects, or as text if Python has no such value, such as a date after
the year 9999."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

# Errors of a value that is out of Python's range, not in UTF-8, or in an unknown time zone.
UNREADABLE = (OverflowError, ValueError, LookupError)
LISTS = (pa.ListScalar, pa.LargeListScalar, pa.FixedSizeListScalar)
TEXTS = (pa.StringScalar, pa.LargeStringScalar, pa.StringViewScalar)


def rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """The rows of `batch`; invalid UTF-8 becomes lone surrogates, which cleaning rejects."""
    try:
        yield from batch.to_pylist()
    except UNREADABLE:
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        for at in range(batch.num_rows):
            yield {name: _value(column[at]) for name, column in columns.items()}


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UNREADABLE:
        pass
    if isinstance(scalar, pa.StructScalar):
        return {name: _value(scalar[name]) for name in scalar}
    if isinstance(scalar, LISTS):
        return [_value(each) for each in scalar.values]
    if isinstance(scalar, TEXTS):
        return scalar.as_buffer().to_pybytes().decode(errors="surrogateescape")
    try:
        return scalar.cast(pa.string()).as_py()
    except (pa.ArrowException, *UNREADABLE):
        return f"{scalar.type}: a value that cannot be shown"
