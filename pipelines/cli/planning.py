"""Before training: `models`, `estimate`, `plan`."""

import json
from argparse import ArgumentParser
from pathlib import Path

from pipelines.cli.arguments import add_format, add_method, add_model, add_profile
from pipelines.cli.command import NOT_OK, OK, Arguments, Command
from pipelines.cli.working import project_now, rows_now


def models(arguments: Arguments) -> int:
    from pipelines.compare.models import listed, render
    from pipelines.compare.terminal import output_width

    print(render(listed(project_now()), arguments.format, output_width()))
    return OK


def estimate(arguments: Arguments) -> int:
    from pipelines.compare.estimates import render
    from pipelines.compare.terminal import output_width
    from pipelines.estimate.estimate import estimates

    project = project_now()
    experiments = project.experiments
    names = [arguments.model] if arguments.model else list(experiments.models)
    methods = [arguments.method] if arguments.method else list(experiments.methods)
    for model in names:
        experiments.model(model)
    for method in methods:
        experiments.method(method)
    cells = [(model, method) for model in names for method in methods]
    print(render(estimates(project, cells, on_cards=True), arguments.format, output_width()))
    return OK


def _estimate_arguments(parser: ArgumentParser) -> None:
    add_model(parser, "default: every model of experiments.yaml", nargs="?")
    add_method(parser, "default: every method", nargs="?")
    add_format(parser)


def plan(arguments: Arguments) -> int:
    from pipelines.compare.terminal import output_width
    from pipelines.plan import fleet, show
    from pipelines.plan.plan import make

    project = rows_now(arguments.profile)
    devices = fleet.load(Path(arguments.cluster)) if arguments.cluster else fleet.this_machine(project.settings)
    schedule = make(project, devices, everything=arguments.all)
    if arguments.json:
        print(json.dumps(show.as_plain(schedule), ensure_ascii=False, indent=1))
    else:
        print(show.render(schedule, output_width()))
    return NOT_OK if schedule.left else OK


def _plan_arguments(parser: ArgumentParser) -> None:
    add_profile(parser)
    parser.add_argument("--cluster", metavar="FILE", help="YAML file that lists machines; default: only this one")
    parser.add_argument("--all", action="store_true", help="every cell of the profile, including the current ones")
    parser.add_argument("--json", action="store_true", help="print JSON; units are seconds, GB and dollars")


COMMANDS = (
    Command("models", "list the models: size, licence, local or not, what fits", models, add_format),
    Command(
        "estimate",
        "predict the peak memory of cells, and what fits where",
        estimate,
        _estimate_arguments,
        "No weights are needed: for a model of the hub its configuration is enough.",
    ),
    Command(
        "plan",
        "predict memory, time, order and dollars of the due cells",
        plan,
        _plan_arguments,
        "For this machine, or for the devices in a file. Exit code 3: a cell fits none of them.",
    ),
)
