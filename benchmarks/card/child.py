"""The process of one check:
`python -m benchmarks.card.child MODULE:FUNCTION FOLDER --seconds N [--dry]`.

Nothing here imports PyTorch before the check does, so that a broken installation is also reported
as that check's failure.
"""

import argparse
import json
import math
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.card.bench import Bench
from pipelines.runs.process import die_with_parent


def main() -> None:
    die_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("check")
    parser.add_argument("work", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    module, _, function = arguments.check.partition(":")
    bench = Bench(arguments.work, arguments.dry, time.monotonic() + arguments.seconds)
    for line in getattr(import_module(module), function)(bench):
        print(json.dumps(writable(line), ensure_ascii=False, allow_nan=False), flush=True)


def writable(value: Any) -> Any:
    """`value` without numbers that JSON cannot hold: `nan` and `inf` become strings, since a loss
    of `nan` is a result, too."""
    if isinstance(value, dict):
        return {str(name): writable(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [writable(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


if __name__ == "__main__":
    sys.exit(main())
