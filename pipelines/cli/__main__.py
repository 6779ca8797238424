import sys

from pipelines.cli.console import main

if __name__ == "__main__":
    sys.exit(main())
