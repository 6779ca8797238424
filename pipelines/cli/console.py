"""One call of the console script: read the command line, run the command, report errors."""

import os
import sys
from collections.abc import Sequence

from pipelines.cli import completion
from pipelines.cli.command import OK
from pipelines.cli.stages import parse, parser
from pipelines.errors import UnavailableError, UsageError, WorkError

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    completion.answer(parser)
    from pipelines.runs.process import end_as_interrupt, print_anything

    # Without `argv` we are the process itself, not a call from other code.
    if argv is None:
        print_anything()
    try:
        arguments, command = parse(sys.argv[1:] if argv is None else argv)
        if arguments.version:
            return _print_version()
        if command is None:
            parser().print_help()
            return OK
        # A termination signal counts as an interrupt, so that child processes are cleaned up.
        if argv is None:
            end_as_interrupt()
        return command.work(arguments)
    except (UsageError, WorkError, UnavailableError) as error:
        return _print_error(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _print_error("interrupted; nothing is lost, run the same command again", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output, such as `head`, went away.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if (message := _machine_error(error)) is None:
            raise
        return _print_error(message, WorkError.exit_code)


def _print_error(message: str, exit_code: int) -> int:
    from pipelines.records.foreign_text import plain

    print(f"featherweight: {plain(message, 20_000)}", file=sys.stderr)
    return exit_code


def _machine_error(error: Exception) -> str | None:
    """Explain an error that the machine caused, such as a full disk; None for any other error."""
    from pipelines.lake.disk import explained
    from pipelines.lake.paths import data_root

    return explained(error, data_root().root)


def _print_version() -> int:
    from importlib.metadata import version

    print(f"featherweight {version('featherweight')}")
    return OK
