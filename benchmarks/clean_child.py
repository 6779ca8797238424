"""One run of cleaning in a separate process, with times by stage:
`python -m benchmarks.clean_child FILE FOLDER`."""

import json
import sys
import time
from pathlib import Path

from pipelines.clean.clean import clean
from pipelines.lake.paths import DataRoot
from pipelines.records.reading import read_file
from pipelines.settings.cleaning import Cleaning


def main() -> int:
    file, folder = map(Path, sys.argv[1:])
    began = last = time.perf_counter()
    stages: dict[str, float] = {}

    def say(done: str) -> None:
        nonlocal last
        now = time.perf_counter()
        stages[done.removesuffix(" done")], last = round(now - last, 2), now

    result = clean(DataRoot(folder), read_file(file), Cleaning(), say=say)
    stages["writing"] = round(time.perf_counter() - last, 2)
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - began, "stages": stages, "read": result.read, "accepted": result.accepted,
                "train": result.train, "eval": result.eval, "reasons": result.reasons, "folder": str(result.folder),
            }
        )
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
