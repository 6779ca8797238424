"""Every benchmark after another, or those that are named: `python -m benchmarks [NAME]… [--records N]`.

Each line states the figure, what it is compared with in the same run, and that both agree. `python -m benchmarks card` is a program
of its own for a CUDA card (`benchmarks/card`), with arguments of its own, and no part of `make bench`. Nor are `rates`, which takes
more than an hour, and `harness`, which needs the extra `benchmarks`: they run where they are named.
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
    if sys.argv[1:2] == ["card"]:  # needs none of the others, nor what they import
        end_as_interrupt()  # so that its weights, gigabytes in a temporary folder, are removed
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
        "train-gemma": partial(train.measure, "gemma-3-270m"),  # its shape, with random weights
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
    parser.add_argument("--records", type=int, help="of clean: this size alone, not 10,000, 100,000 and 1,000,000")
    parser.add_argument("--folder", type=Path, help="of rates: the project to train in, and to go on in")
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods, help="of rates: these alone")
    parser.add_argument(
        "--adapters",
        nargs="*",
        metavar="NAME",
        help="of estimate: adapters of these names, or all, rather than its cells",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
