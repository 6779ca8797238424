"""Every benchmark after another. Each line states the figure, what it is compared with in the same run, and that both agree."""

import json
import sys

from benchmarks import dropout, publish, step


def main() -> int:
    for benchmark in (dropout, publish, step):
        for line in benchmark.measure():
            print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
