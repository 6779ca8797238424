"""Training and evaluating single cells: `fetch`, `train`, `evaluate`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import TYPE_CHECKING

from pipelines.cli.arguments import add_cell, add_force, add_model, add_profile, add_seeds, dollars, some_of, whole
from pipelines.cli.command import NOT_OK, OK, Arguments, Command
from pipelines.cli.working import keys_of, project_now, rows_now
from pipelines.errors import WorkError

if TYPE_CHECKING:
    from pipelines.choices import Choices
    from pipelines.project import Project
    from pipelines.runs.cells import CellKey

FINGERPRINTS = ("data", "recipe", "code", "machine", "evaluation")


def fetch(arguments: Arguments) -> int:
    from pipelines.train.chosen_layers import note_on_choice
    from pipelines.weights import store

    project = project_now()
    model = project.experiments.model(arguments.model)
    there = "already" if store.is_present(project.data, arguments.model, model) else "now"
    print(f"{arguments.model}: {there} in {store.fetch(project.data, project.experiments, arguments.model)}")
    if note := note_on_choice(project.data, arguments.model, model):
        print(f"{arguments.model}: {note}")
    return OK


def train(arguments: Arguments) -> int:
    from pipelines.estimate.estimate import ensure_predictions
    from pipelines.runs.clock import now
    from pipelines.runs.progress import CellProgress
    from pipelines.runs.run import RunHooks
    from pipelines.train.cell import train as train_cell

    project, began, statuses = rows_now(arguments.profile), now(), []
    keys = keys_of(project, arguments.model, arguments.method, arguments.seed)
    if arguments.dry_run:
        return _dry_run(project, keys[0])
    resolved, choices = project.resolve(), _choices(project, arguments)
    ensure_predictions(project, resolved)
    for key in keys:
        progress = CellProgress()
        attempt, reused = train_cell(
            choices.applied(resolved, (key.model, key.method), began),
            key,
            force=arguments.force,
            hooks=RunHooks(on_tick=progress.show),
            rerun_for=arguments.rerun_for,
            retime=arguments.retime,
        )
        progress.close()
        statuses.append(attempt.status)
        print(f"{key}: {attempt.status}{' (current, reused)' if reused else ''}, {attempt.folder}")
        if attempt.status != "ok":
            print(f"{key}: {attempt.result.status_detail}", file=sys.stderr)
    return OK if set(statuses) == {"ok"} else NOT_OK


def _dry_run(project: Project, key: CellKey) -> int:
    from safetensors import SafetensorError

    from pipelines.lake.disk import explained
    from pipelines.train.dry_run import dry_run
    from pipelines.weights import store

    try:
        for line in dry_run(project.resolve(), key):
            print(line)
    except (ValueError, OSError) as error:
        # In a real run this error would end the cell as `failed`.
        if explained(error, project.data.root):
            raise
        raise WorkError(str(error)) from error
    except SafetensorError as error:
        # The error itself names no file.
        folder = store.model_folder(project.data, key.model, project.experiments.model(key.model))
        raise WorkError(f"the weights in {folder} cannot be read: {error}; replace them with complete files") from error
    return OK


def _choices(project: Project, arguments: Arguments) -> Choices:
    from pipelines.choices import Choices
    from pipelines.lake.files import announce

    choices = Choices(arguments.max_examples, arguments.budget_usd)
    if why := choices.no_cap(project):
        announce(why)
    return choices


def _train_arguments(parser: ArgumentParser) -> None:
    add_cell(parser)
    add_seeds(parser)
    add_profile(parser)
    add_force(parser, "train again even if the last attempt is current")
    parser.add_argument(
        "--max-examples",
        type=whole(1),
        metavar="N",
        help="a trial on at most N examples; the row is stale afterwards, since the profile asks for more",
    )
    _add_budget(parser)
    parser.add_argument(
        "--retime",
        action="store_true",
        help="train a current row again to measure its speed; the old row stays unless the new attempt ends ok",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show one example token by token and the loss at step 0; trains nothing"
    )


def _add_budget(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--budget-usd",
        type=dollars,
        metavar="X",
        help="stop (timed_out, with a checkpoint) at this cost by the profile's price_per_hour; default: no cap",
    )
    parser.add_argument(
        "--rerun-for",
        type=some_of(*FINGERPRINTS),
        default=list(FINGERPRINTS),
        metavar="WHAT,…",
        help="rerun a good row only if one of these has changed: data, recipe, code, machine, evaluation; default: any",
    )


def evaluate(arguments: Arguments) -> int:
    from pipelines.choices import Choices
    from pipelines.evaluate import answers
    from pipelines.evaluate.cell import base_method, evaluate_base, trained
    from pipelines.evaluate.cell import evaluate as evaluate_cell
    from pipelines.generate.show import summary
    from pipelines.runs.clock import now

    project, began, statuses, judged = rows_now(arguments.profile), now(), [], []
    keys = keys_of(project, arguments.model, arguments.method, arguments.seed)
    resolved, choices = project.resolve(), Choices(budget_usd=arguments.budget_usd)
    for key in keys:
        resolved.require_same_weights(trained(project, key))
    if arguments.method != base_method(project):
        # The new row is compared with the untouched model.
        evaluate_base(resolved, arguments.model)
    for key in keys:
        allowed = choices.applied(resolved, (key.model, key.method), began)
        evaluation, reused = evaluate_cell(allowed, key, force=arguments.force, rerun_for=arguments.rerun_for)
        bits = evaluation.result.measured.get("eval_bits_per_byte")
        statuses.append(evaluation.result.status)
        numbers = evaluation.result.status_detail if bits is None else f"{bits:.4f} bits per byte"
        print(f"{key}: {statuses[-1]}{' (current, reused)' if reused else ''}, {numbers}")
        if evaluation.ok:
            judged.append(answers.ask(resolved, [evaluation]))
    for line in [line for result in judged for line in summary(result)]:
        print(line)
    return OK if set(statuses) == {"ok"} and all(result.complete for result in judged) else NOT_OK


def _evaluate_arguments(parser: ArgumentParser) -> None:
    add_cell(parser)
    add_seeds(parser)
    add_profile(parser)
    add_force(parser, "evaluate again even if the last evaluation is current")
    _add_budget(parser)


COMMANDS = (
    Command("fetch", "fetch a model's weights, once", fetch, add_model),
    Command(
        "train",
        "train one cell: a model by a method",
        train,
        _train_arguments,
        "The profile need not name the cell. The options have the same meaning as in Dagster's launchpad. "
        "Exit code 3: the attempt is recorded, and its status is not ok.",
    ),
    Command("evaluate", "evaluate a trained cell", evaluate, _evaluate_arguments),
)
