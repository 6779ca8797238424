"""Looking after machine and data: `doctor`, `prune`."""

import sys
from argparse import ArgumentParser

from pipelines.cli.command import OK, Arguments, Command
from pipelines.cli.working import project_now


def doctor(_: Arguments) -> int:
    from pipelines.upkeep.doctor import examine

    project = project_now()
    for line in examine(project.data, project.experiments):
        print(line)
    return OK


def prune(arguments: Arguments) -> int:
    from pipelines.upkeep.prune import leftovers, remove, superseded_exports

    project = project_now()
    found = leftovers(project)
    total = 0
    for leftover in found:
        total += (size := leftover.bytes)
        print(f"{size / 1e6:10.1f} MB  {leftover.path}: {leftover.why}")
    print(
        f"{total / 1e6:10.1f} MB in {len(found)} places{'' if arguments.yes or not found else '; --yes removes them'}"
    )
    for export in superseded_exports(project.data):
        print(f"{export.bytes / 1e6:10.1f} MB  {export.path}: {export.why}")
    kept = [(leftover, why) for leftover, why in remove(found) if why] if arguments.yes else []
    for leftover, why in kept:
        print(f"kept {leftover.path}: {why}", file=sys.stderr)
    return OK


def _prune_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="remove it")


COMMANDS = (
    Command("doctor", "what this machine has and what each profile can run", doctor),
    Command("prune", "what nobody needs any more; removed with --yes alone", prune, _prune_arguments),
)
