"""Every benchmark after another, or those named: `python -m benchmarks generate publish`.

Each line states the figure, what it is compared with in the same run, and that both agree.
"""

import json
import sys

from benchmarks import dropout, estimate, generate, publish, step


def main() -> int:
    known = {"dropout": dropout, "estimate": estimate, "generate": generate, "publish": publish, "step": step}
    names = sys.argv[1:] or list(known)
    if unknown := [name for name in names if name not in known]:
        print(f"unknown benchmark {unknown[0]!r}; expected some of {', '.join(known)}", file=sys.stderr)
        return 2
    for benchmark in (known[name] for name in names):
        for line in benchmark.measure():
            print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
