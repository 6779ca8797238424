"""Maintenance of the machine and the data: `doctor`, `prune`."""

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
    from pipelines.upkeep.prune import leftovers, listing, megabytes, remove, superseded_exports

    project = project_now()
    removable, exports = leftovers(project), superseded_exports(project.data)
    for line in listing(removable, project.data, every=arguments.list):
        print(line)
    print(
        f"{megabytes(removable)}  {len(removable):4} in all{'; --yes removes them' if removable and not arguments.yes else ''}"
    )
    for line in listing(exports, project.data, every=arguments.list):
        print(line)
    failures = [(leftover, why) for leftover, why in remove(removable) if why] if arguments.yes else []
    if arguments.yes and removable:
        print(f"removed {len(removable) - len(failures)} of {len(removable)}")
    for leftover, why in failures:
        print(f"kept {leftover.path}: {why}", file=sys.stderr)
    return OK


def _prune_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--list", action="store_true", help="list every file and folder, not only some of each kind")
    parser.add_argument("--yes", action="store_true", help="remove them")


COMMANDS = (
    Command("doctor", "show what this machine has and what each profile can run", doctor),
    Command("prune", "list files that nothing needs; only --yes removes them", prune, _prune_arguments),
)
