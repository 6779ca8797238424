"""All benchmarks one after another, or the named ones:
`python -m benchmarks [NAME]… [--records N]`.

Each line states a figure, its reference from the same run, and whether both agree.

`python -m benchmarks card` is a separate program for a CUDA card (`benchmarks/card`), with its own
arguments. `make bench` leaves out three benchmarks, which run only by name: `card`, `rates` (more
than an hour) and `harness` (needs the extra `benchmarks`).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.card import command as card
from pipelines.errors import UsageError
from pipelines.runs.process import end_as_interrupt

ONLY_BY_NAME = ("harness", "rates")


def main() -> int:
    # `card` needs neither the other benchmarks nor their imports
    if sys.argv[1:2] == ["card"]:
        # SIGTERM must remove its weights, gigabytes in a temporary folder
        end_as_interrupt()
        return card.main(sys.argv[2:])
    from benchmarks import (
        clean,
        clean_quality,
        coverage,
        devices,
        dropout,
        estimate,
        generate,
        harness,
        history,
        orchestration,
        plan,
        publish,
        rate,
        rates,
        ray,
        startup,
        step,
        train,
    )

    benchmarks = {
        "coverage": coverage.measure,
        "devices": devices.measure,
        "dropout": dropout.measure,
        "estimate": estimate.measure,
        "generate": generate.measure,
        "harness": harness.measure,
        "history": history.measure,
        "plan": plan.measure,
        "publish": publish.measure,
        "step": step.measure,
        "clean": clean.measure,
        "clean-quality": clean_quality.measure,
        "train": train.measure,
        # Only the shape of Gemma, with random weights
        "train-gemma": partial(train.measure, "gemma-3-270m"),
        "rate": rate.measure,
        "rates": rates.measure,
        "ray": ray.measure,
        "startup": startup.measure,
        "orchestration": orchestration.measure,
    }
    parser = _parser(list(benchmarks), rates.METHODS)
    arguments = parser.parse_args()
    benchmarks["rates"] = partial(rates.measure, arguments.folder, arguments.methods)
    benchmarks["estimate"] = partial(estimate.measure, arguments.adapters)
    benchmarks["clean"] = partial(clean.measure, records=arguments.records)
    try:
        for name in arguments.names or [name for name in benchmarks if name not in ONLY_BY_NAME]:
            for line in benchmarks[name]():
                print(json.dumps(line, ensure_ascii=False), flush=True)
    except UsageError as error:
        parser.error(str(error))
    return 0


def _parser(names: Sequence[str], methods: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument(
        "names",
        nargs="*",
        choices=[[], *names],
        metavar="NAME",
        help=f"{', '.join(names)}; or `card`, see `card --help`",
    )
    parser.add_argument("--records", type=int, help="clean: only this size, not 10,000, 100,000 and 1,000,000")
    parser.add_argument("--folder", type=Path, help="rates: the project to train in, or to resume in")
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods, help="rates: only these methods")
    parser.add_argument(
        "--adapters",
        nargs="*",
        metavar="NAME",
        help="estimate: adapters of these names, or all, instead of its cells",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
