"""The console script `featherweight`: every stage without Dagster.

Exit codes: 0 done, 1 the work failed, 2 bad usage or configuration, 3 finished and recorded, but the outcome is not ok.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import get_args

from pipelines.errors import UnavailableError, UsageError, WorkError
from pipelines.lake.disk import explained
from pipelines.lake.files import announce
from pipelines.lake.paths import data_root
from pipelines.project import Project
from pipelines.records.foreign_text import plain
from pipelines.runs.cells import CellKey
from pipelines.runs.process import end_as_interrupt, print_anything
from pipelines.runs.run import Watch
from pipelines.settings import experiments as configuration
from pipelines.upkeep.upgrade import noticed

Arguments = argparse.Namespace
OK, NOT_OK = 0, 3
MOST_RATE = 100.0  # no learning rate is near it


def project_now() -> Project:
    experiments = configuration.load()
    profile = configuration.profile_name(experiments, os.environ.get("FEATHERWEIGHT_PROFILE"))
    return Project(data_root(), experiments, profile)


def rows_now() -> Project:
    """The same, for a command that works on rows: the first time after an upgrade it is said which of them are older."""
    project = project_now()
    if older := noticed(project):
        announce(older.in_words())
    return project


def fetch(arguments: Arguments) -> int:
    from pipelines.train.chosen_layers import note_on_choice
    from pipelines.weights import store

    project = project_now()
    project.experiments.model(arguments.model)
    if store.is_present(project.data, arguments.model, project.experiments.model(arguments.model)):
        print(f"{arguments.model}: already in {store.fetch(project.data, project.experiments, arguments.model)}")
    else:
        print(f"{arguments.model}: now in {store.fetch(project.data, project.experiments, arguments.model)}")
    if note := note_on_choice(project.data, arguments.model, project.experiments.model(arguments.model)):
        print(f"{arguments.model}: {note}")
    return OK


def generate(arguments: Arguments) -> int:
    from pipelines.generate import coverage, show
    from pipelines.generate import estimate as estimates
    from pipelines.generate.generate import generate_again, generate_all, release_in_doubt

    project = project_now()
    experiments = project.experiments
    total = experiments.generation.budget_usd
    if arguments.estimate:
        for line in estimates.in_words(list(estimates.estimate(project.data, experiments, arguments.provider)), total):
            print(line)
        return OK
    if arguments.release_in_doubt is not None:
        released = release_in_doubt(project.data, arguments.release_in_doubt, arguments.provider)
        for name, held in released.items():
            print(f"{name}: ${held.usd:.4f} of {held.requests} requests given back; nothing was sent")
        if not released:
            print("nothing to give back: no request of unknown fate or cost is charged")
        return OK
    if arguments.resend_in_doubt:
        print(
            f"{generate_again(project.data)} requests that were given up may be sent once more; what they may have cost "
            "stays charged"
        )
    bar = show.ProgressBar(total if arguments.budget_usd is None else arguments.budget_usd)
    try:
        result = generate_all(
            project.data,
            experiments,
            only=arguments.provider,
            progress=bar,
            budget_usd=arguments.budget_usd,
            batch=arguments.batch,
        )
    finally:
        bar.close()
    if not result.providers:
        nobody = "no provider is enabled, and sources.local_generator is off"
        missing = "no enabled provider has batch: true" if arguments.batch else nobody
        print(f"nobody to ask: {missing} (experiments.yaml)")
    covered = coverage.coverage(project.data, experiments, result.providers)
    barren = show.barren(result, covered)
    for line in [*show.summary(result), *show.covered(covered), *(f"{name}: {why}" for name, why in barren.items())]:
        print(line)
    return OK if result.complete and not barren else NOT_OK


def judge(arguments: Arguments) -> int:
    from pipelines.compare.providers import duel_rows
    from pipelines.evaluate import answers
    from pipelines.generate import estimate as estimates
    from pipelines.generate import judge as judged_records
    from pipelines.generate import show

    project = project_now()
    experiments = project.experiments
    if experiments.generation.judge is None and not experiments.judging.judge and not experiments.judging.teachers:
        raise UsageError(
            "no judge is configured: set generation.judge: {providers: [NAME, …]} (of the providers' records) or judging.judge: "
            "NAME (of the models' answers) in experiments.yaml"
        )
    if arguments.estimate:
        own = answers.estimates(project.resolve()) if answers.is_configured(project) else ()
        found = [*judged_records.estimates(project.data, experiments), *own]
        nothing = ["nothing would be asked: no records and no answers are kept yet that a judge or a teacher could see"]
        for line in estimates.in_words(found, experiments.generation.budget_usd) if found else nothing:
            print(line)
        return OK
    bar = show.ProgressBar(experiments.generation.budget_usd)
    try:
        results = [judged_records.judge(project.data, experiments, progress=bar, again=arguments.again)]
        if answers.is_configured(project):
            results.append(answers.ask(project.resolve(), progress=bar, again=arguments.again))
    finally:
        bar.close()
    for line in [line for result in results for line in show.summary(result)]:
        print(line)
    for line in show.duels(duel_rows(project.data, experiments)):
        print(line)
    return OK if all(result.complete for result in results) else NOT_OK


def clean(arguments: Arguments) -> int:
    from pydantic import ValidationError

    from pipelines.clean import clean as cleaning
    from pipelines.clean import read
    from pipelines.clean.summary import lines, next_steps
    from pipelines.records.reading import explain
    from pipelines.settings.experiments import FileSource

    project = project_now()
    if arguments.input:
        try:
            own = [
                FileSource(path=path, encoding=arguments.encoding, columns=arguments.columns)
                for path in arguments.input
            ]
        except ValidationError as error:
            raise UsageError(f"--columns: {explain(error)}") from None
        records = read.file_records(read.named_files(own))
    else:
        records = read.raw_records(project.data, project.experiments)
    before = None
    with suppress(UsageError):  # a damaged note of what is current is written anew
        before = cleaning.current(project.data)
    place = project.data.tried if arguments.tried else project.data
    result = cleaning.clean(place, records, project.experiments.cleaning)
    for line in lines(result, examples=bool(arguments.input or arguments.tried)):
        print(line)
    for line in next_steps(result, before, tried=arguments.tried, files=arguments.input or ()):
        print(line)
    return OK


def train(arguments: Arguments) -> int:
    from pipelines.estimate.estimate import foresee
    from pipelines.runs.progress import CellProgress
    from pipelines.train.cell import train as train_cell

    project = rows_now()
    keys = _keys(project, arguments)
    if arguments.dry_run:
        from pipelines.train.dry_run import dry_run

        try:
            for line in dry_run(project.resolve(), keys[0]):
                print(line)
        except ValueError as error:  # what would end the cell as `failed`
            raise WorkError(str(error)) from error
        return OK
    resolved, statuses = project.resolve(), []
    foresee(project, resolved)
    for key in keys:
        progress = CellProgress()
        attempt, reused = train_cell(resolved, key, force=arguments.force, watch=Watch(on_tick=progress.show))
        progress.close()
        statuses.append(attempt.status)
        print(f"{key}: {attempt.status}{' (current, reused)' if reused else ''}, {attempt.folder}")
        if attempt.status != "ok":
            print(f"{key}: {attempt.result.status_detail}", file=sys.stderr)
    return OK if set(statuses) == {"ok"} else NOT_OK


def _keys(project: Project, arguments: Arguments) -> list[CellKey]:
    project.experiments.model(arguments.model)
    project.experiments.method(arguments.method)
    seeds = project.settings.seeds if arguments.seed is None else [arguments.seed]
    return [CellKey(arguments.model, arguments.method, seed) for seed in seeds]


def evaluate(arguments: Arguments) -> int:
    from pipelines.evaluate import answers
    from pipelines.evaluate.cell import base_method, evaluate_base, trained
    from pipelines.evaluate.cell import evaluate as evaluate_cell
    from pipelines.generate.show import summary

    project = rows_now()
    keys, statuses, judged = _keys(project, arguments), [], []
    resolved = project.resolve()
    for key in keys:
        resolved.require_same_weights(trained(project, key))
    if arguments.method != base_method(project):
        evaluate_base(resolved, arguments.model)  # the row is compared with it
    for key in keys:
        evaluation, reused = evaluate_cell(resolved, key, force=arguments.force)
        bits = evaluation.result.measured.get("eval_bits_per_byte")
        statuses.append(evaluation.result.status)
        numbers = evaluation.result.status_detail if bits is None else f"{bits:.4f} bits per byte"
        print(f"{key}: {statuses[-1]}{' (current, reused)' if reused else ''}, {numbers}")
        if evaluation.ok:
            judged.append(answers.ask(resolved, [evaluation]))
    for line in [line for result in judged for line in summary(result)]:
        print(line)
    return OK if set(statuses) == {"ok"} and all(result.complete for result in judged) else NOT_OK


def export(arguments: Arguments) -> int:
    from pipelines.export.cell import Wanted
    from pipelines.export.cell import export as export_cell

    project, statuses = rows_now(), []
    schemes = list(dict.fromkeys(arguments.gguf or []))
    wanted = Wanted(arguments.merge or not schemes, schemes, Path(arguments.output) if arguments.output else None)
    keys = _keys(project, arguments)
    if wanted.output and len(keys) > 1:
        raise UsageError(
            f"--output holds one seed's export: name it with --seed ({', '.join(str(k.seed) for k in keys)})"
        )
    resolved = project.resolve()
    for key in keys:
        made = export_cell(resolved, key, wanted)
        result = made.result
        statuses.append(result.status)
        print(f"{key}: {result.status}")
        if not made.ok:
            print(f"{key}: {result.status_detail}", file=sys.stderr)
            continue
        for path in [*([made.merged] if made.merged else []), *made.gguf.values()]:
            print(f"  {path}")
        for name, value in result.measured.items():
            if name.endswith(("_per_byte", "_nats")):
                print(f"  {name.replace('_', ' ')}: {value:.6g}")
    return OK if set(statuses) == {"ok"} else NOT_OK


def bit_widths(arguments: Arguments) -> int:
    from pipelines.export import bit_widths

    project, statuses = rows_now(), set()
    keys, resolved = _keys(project, arguments), project.resolve()
    for key in keys:
        found = bit_widths.measure(resolved, key, arguments.format or bit_widths.ALL, force=arguments.force)
        print(f"{key}")
        for line in bit_widths.lines(found):
            print(line)
        statuses |= {row["status"] for row in found}
    return OK if statuses == {"ok"} else NOT_OK


def compare(_: Arguments) -> int:
    from pipelines.compare.compare import compare as publish
    from pipelines.compare.show import render

    publication = publish(rows_now())
    print(render(publication.rows, "text", publication.picks))
    print(f"\nwarehouse: {publication.warehouse}\nreport:    {publication.report}")
    return OK


def table(arguments: Arguments) -> int:
    from pipelines.compare.compare import published_rows
    from pipelines.compare.show import render, wide

    with suppress(UsageError):  # the table can be read whatever the configuration says
        rows_now()
    data = data_root()
    rows = published_rows(data)
    if arguments.wide:
        print(wide(rows, arguments.format))
        return OK
    print(render(rows, arguments.format, published_rows(data, "picks")))
    return OK


def decide(arguments: Arguments) -> int:
    from pipelines.compare.compare import decision
    from pipelines.compare.decide import Limits, in_words

    found = decision(rows_now(), Limits(arguments.memory, arguments.minutes, arguments.max_loss))
    print("\n".join(in_words(found)))
    return OK if found.verdict == "use" else NOT_OK


def not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text}; expected a number from 0 on")
    return value


def estimate(arguments: Arguments) -> int:
    from pipelines.compare.estimates import render
    from pipelines.estimate.estimate import estimates

    project = project_now()
    experiments = project.experiments
    models = [arguments.model] if arguments.model else list(experiments.models)
    methods = [arguments.method] if arguments.method else list(experiments.methods)
    for model in models:
        experiments.model(model)
    for method in methods:
        experiments.method(method)
    cells = [(model, method) for model in models for method in methods]
    print(render(estimates(project, cells, on_cards=True), arguments.format))
    return OK


def models(arguments: Arguments) -> int:
    from pipelines.compare.models import listed, render

    print(render(listed(project_now()), arguments.format))
    return OK


def plan(arguments: Arguments) -> int:
    from pipelines.plan import fleet, show
    from pipelines.plan.plan import make

    project = rows_now()
    if arguments.profile:
        project = replace(project, profile=configuration.profile_name(project.experiments, arguments.profile))
    here = project.settings
    devices = fleet.load(Path(arguments.cluster)) if arguments.cluster else fleet.this_machine(here)
    made = make(project, devices, everything=arguments.all)
    print(json.dumps(show.as_plain(made), ensure_ascii=False, indent=1) if arguments.json else show.render(made))
    return NOT_OK if made.left else OK


def tune(arguments: Arguments) -> int:
    from pipelines.tune.tune import Range, tune

    project = project_now()
    if arguments.profile:
        project = replace(project, profile=configuration.profile_name(project.experiments, arguments.profile))
    if (arguments.low is None) != (arguments.high is None):
        raise UsageError("--low and --high go together: the least and the highest learning rate to try")
    asked = None if arguments.low is None else Range(arguments.low, arguments.high)
    if asked and not 0 < asked.low < asked.high < MOST_RATE:
        raise UsageError(f"--low {asked.low:g} --high {asked.high:g}: expected 0 < low < high < {MOST_RATE:g}")
    (key, *_) = _keys(project, arguments)
    found = tune(project.resolve(), key, trials=arguments.trials, asked=asked, tell=print)
    print(f"\nbest of {found.trials} trials: {found.rate:.2e}, loss {found.loss:.4f} on the slice held back from train")
    if found.at_edge:
        print("it lies at the edge of what was tried: run again with --low and --high moved that way")
    print(f"\n# experiments.yaml\n{found.yaml()}")
    return OK


RANKS = [[8, 128, 256]]  # of a sweep that names none


def sweep(arguments: Arguments) -> int:
    from pipelines.compare.compare import compare as publish
    from pipelines.runs.progress import CellProgress
    from pipelines.sweep.ranks import run_sweep, with_ranks, write_picture
    from pipelines.sweep.ranks import table as rank_table

    project = rows_now()
    model = arguments.model or project.settings.models[0]
    if arguments.layers:
        return _sweep_layers(project, model, arguments)
    if arguments.methods:
        raise UsageError("--methods belongs to --layers: a sweep over ranks makes its own methods")
    ranks = [rank for part in arguments.ranks for rank in part]
    swept = with_ranks(project, model, ranks, alpha=arguments.alpha, targets=arguments.targets)
    progress = CellProgress()
    rows = run_sweep(swept, on_tick=progress.show, tell=print)
    publish(project)
    print(f"\n{rank_table(rows, swept, arguments.format)}")
    print(f"\npicture: {write_picture(rows, swept)}", file=sys.stderr)
    return OK if all(row["status"] == "ok" for row in rows) else NOT_OK


def chat(arguments: Arguments) -> int:
    from pipelines.chat.command import Wanted
    from pipelines.chat.command import chat as begin

    given = {name: value for name, value in vars(arguments).items() if name not in ("command", "work")}
    return begin(project_now(), Wanted(**given))


def _sweep_layers(project: Project, model: str, arguments: Arguments) -> int:
    from pipelines.compare.compare import compare as publish
    from pipelines.runs.progress import CellProgress
    from pipelines.sweep.layers import run_sweep, table, with_layers, write_picture

    if arguments.ranks is not RANKS or arguments.alpha != "fixed" or arguments.targets:
        raise UsageError("--layers goes with --methods; --ranks, --alpha and --targets make methods of their own")
    counts = [count for part in arguments.layers for count in part]
    swept = with_layers(project, model, counts, arguments.methods and arguments.methods.split(","))
    rows = run_sweep(swept, on_tick=CellProgress().show, tell=print)
    publish(project)
    print(f"\n{table(rows, swept, arguments.format)}")
    if picture := write_picture(rows, swept):
        print(f"\npicture: {picture}", file=sys.stderr)
    return OK if all(row["status"] == "ok" for row in rows) else NOT_OK


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


def doctor(_: Arguments) -> int:
    from pipelines.upkeep.doctor import examine

    project = project_now()
    for line in examine(project.data, project.experiments):
        print(line)
    return OK


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="featherweight", description="Full fine-tuning, LoRA or QLoRA: one measured table."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, work: Callable[[Arguments], int], about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about)
        added.set_defaults(work=work)
        return added

    command("fetch", fetch, "fetch a model's weights, once").add_argument("model")
    generating = command(
        "generate", generate, "ask the configured generators for SFT records; answers held are never asked for again"
    )
    generating.add_argument(
        "--provider",
        action="append",
        metavar="NAME",
        help="only this one (again for more); default: all that are enabled",
    )
    generating.add_argument("--estimate", action="store_true", help="print requests, tokens and dollars; send nothing")
    generating.add_argument(
        "--budget-usd", type=_dollars, metavar="X", help="this run's own cap, below those of experiments.yaml"
    )
    generating.add_argument(
        "--batch",
        choices=["submit", "collect"],
        help="only this step, of the providers with batch: true; default: both",
    )
    generating.add_argument(
        "--resend-in-doubt",
        action="store_true",
        help="send requests once more whose fate was lost twice (they may cost twice)",
    )
    generating.add_argument(
        "--release-in-doubt",
        metavar="REASON",
        help="give back what is charged for requests of unknown fate or cost (of --provider, else of all), once the provider's own "
        "bill shows none of it; the reason is kept in the journal, and nothing is sent",
    )
    judging = command(
        "judge",
        judge,
        "have the configured judges compare the providers' records, in pairs, and score the models' answers",
    )
    judging.add_argument(
        "--again", action="store_true", help="ask once more where an answer held no verdict that can be read"
    )
    judging.add_argument(
        "--estimate", action="store_true", help="what would be asked and what it would cost; sends nothing"
    )
    cleaning = command("clean", clean, "clean records into examples and rejects")
    cleaning.add_argument(
        "--input",
        action="append",
        metavar="FILE",
        help="JSON, JSONL, CSV, TSV or Parquet, instead of sources: (again for more)",
    )
    cleaning.add_argument(
        "--try",
        dest="tried",
        action="store_true",
        help="show what would become of the records; the current examples stay as they are",
    )
    cleaning.add_argument(
        "--encoding",
        choices=get_args(configuration.Encoding),
        default="utf-8",
        help="of the files of --input; a CSV file's is detected where none is given",
    )
    cleaning.add_argument(
        "--columns",
        type=_columns,
        metavar="OURS=THEIRS,…",
        help="which field of --input is what, such as instruction=질문,output=답변",
    )
    for name, work, about in (
        ("train", train, "train one cell"),
        ("evaluate", evaluate, "evaluate a trained cell"),
    ):
        added = command(name, work, about)
        added.add_argument("model")
        added.add_argument("method")
        added.add_argument("--seed", type=int, help="default: the profile's seeds")
        added.add_argument("--force", action="store_true", help="also where the last one is current")
        if name == "train":
            added.add_argument(
                "--dry-run", action="store_true", help="show one example token by token and the loss at step 0"
            )
    exporting = command("export", export, "write a trained result as plain weights, as GGUF for llama.cpp, or both")
    exporting.add_argument("model")
    exporting.add_argument("method")
    exporting.add_argument("--seed", type=int, help="default: the profile's seeds")
    exporting.add_argument("--merge", action="store_true", help="a transformers folder (the default without --gguf)")
    exporting.add_argument(
        "--gguf", nargs="?", action="append", const="F16", choices=["F32", "F16", "Q8_0", "Q4_K_M"], help="default: F16"
    )
    exporting.add_argument("--output", metavar="DIR", help="default: exports/ of the data folder")
    widths = command(
        "bit-widths", bit_widths, "measure a trained result at 32, 16, 8 and 4 bits, llama.cpp's among them"
    )
    widths.add_argument("model")
    widths.add_argument("method")
    widths.add_argument("--seed", type=int, help="default: the profile's seeds")
    widths.add_argument(
        "--format",
        action="append",
        metavar="FORMAT",
        help="fp32, bf16, int8, nf4, gguf-f16, gguf-q8_0, gguf-q4_k_m (again for more); default: all",
    )
    widths.add_argument("--force", action="store_true", help="also where the last measurement is current")
    command("compare", compare, "rebuild and publish the comparison and the report")
    shown = command("table", table, "print the published comparison")
    shown.add_argument("--format", choices=["text", "markdown", "json", "csv"], default="text")
    shown.add_argument("--wide", action="store_true", help="every column, a table for each cell")
    wished = command(
        "decide", decide, "the cell to use within these limits, with its interval; else the one to run next to know"
    )
    for name, unit, about in (
        ("--memory", "GB", "peak memory of training; default: any"),
        ("--minutes", "N", "time to train; default: any"),
        ("--max-loss", "X", "bits per byte above the best cell measured, the whole interval; default: any"),
    ):
        wished.add_argument(name, type=not_negative, metavar=unit, help=about)
    foretold = command("estimate", estimate, "predict peak memory of cells, without their weights, and what fits where")
    foretold.add_argument("model", nargs="?", help="default: every model of the grid")
    foretold.add_argument("method", nargs="?", help="default: every method")
    foretold.add_argument("--format", choices=["text", "markdown", "json", "csv"], default="text")
    known = command("models", models, "the models of the grid: size, licence, whether they are here, what fits")
    known.add_argument("--format", choices=["text", "markdown", "json", "csv"], default="text")
    planned = command(
        "plan", plan, "what the due cells would take: memory, time, order, dollars, here or on the devices of a file"
    )
    planned.add_argument("--profile", metavar="P", help="default: this machine's")
    planned.add_argument("--cluster", metavar="FILE", help="YAML that lists machines; default: this one alone")
    planned.add_argument("--all", action="store_true", help="every cell of the profile, also what is current")
    planned.add_argument("--json", action="store_true", help="for programs; seconds, GB and dollars")
    tuned = command(
        "tune", tune, "search a cell's learning rate over a slice of train (Optuna); goes on where it stopped"
    )
    tuned.add_argument("model")
    tuned.add_argument("method")
    tuned.add_argument(
        "--trials", type=_positive, default=12, metavar="N", help="in all, with those done before; default 12"
    )
    tuned.add_argument("--profile", metavar="P", help="default: this machine's")
    tuned.add_argument("--low", type=float, metavar="RATE", help="default: the configured rate / 10")
    tuned.add_argument("--high", type=float, metavar="RATE", help="default: the configured rate × 10")
    tuned.add_argument("--seed", type=int, help="default: the profile's first")
    swept = command("sweep", sweep, "train and evaluate LoRA at several ranks (dropout 0.1): loss, minutes, memory")
    swept.add_argument("model", nargs="?", help="default: the profile's first")
    swept.add_argument(
        "--ranks",
        type=_ranks,
        nargs="+",
        default=RANKS,
        metavar="R",
        help="2,8,32 or 2 8 32; default 8,128,256",
    )
    swept.add_argument(
        "--alpha",
        choices=["fixed", "scaled", "rslora"],
        default="fixed",
        help="fixed: 32 at every rank (default); scaled: 4 × rank, with which a larger rank also learns faster; rslora: 16 at "
        "every rank, divided by the root of the rank",
    )
    swept.add_argument("--targets", choices=["all-linear", "attention"], help="default: what the profile says")
    swept.add_argument(
        "--layers",
        type=_counts,
        nargs="+",
        metavar="N",
        help="instead of ranks: the model without so many of its layers, as it is and trained: 0,4,8,12",
    )
    swept.add_argument(
        "--methods", metavar="M,M", help="with --layers; default: the untouched model, full, lora-r8, qlora-r8"
    )
    swept.add_argument("--format", choices=["text", "markdown", "json", "csv"], default="text")
    talking = command(
        "chat",
        chat,
        "ask the base and trained cells the same and see their answers side by side, here or on a local page",
    )
    talking.add_argument(
        "cells",
        nargs="*",
        metavar="MODEL/METHOD[@SEED]",
        help="the base of each model answers, too; default: what the comparison prefers",
    )
    talking.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default): the likeliest token")
    talking.add_argument("--max-new-tokens", type=_positive, default=256, metavar="N", help="default 256")
    talking.add_argument("--system", default="", metavar="TEXT", help="a system prompt; default: none")
    talking.add_argument(
        "--now", dest="beside", action="store_true", help="also while a measurement runs, which that disturbs"
    )
    talking.add_argument(
        "--format", choices=["text", "json"], default="text", help="json: a line for each prompt that is piped in"
    )
    talking.add_argument("--page", action="store_true", help="on a page of this machine (127.0.0.1), with a blind vote")
    talking.add_argument("--port", type=int, default=3100, metavar="N", help="of the page; default 3100")
    command("prune", prune, "what nobody needs any more; removed with --yes alone").add_argument(
        "--yes", action="store_true", help="remove it"
    )
    command("doctor", doctor, "what this machine has and what each profile can run")
    return top


def _columns(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(ours.strip() and theirs.strip() for ours, _, theirs in pairs):
        raise argparse.ArgumentTypeError(
            f"got {text!r}; expected OURS=THEIRS,…, such as instruction=question,output=answer"
        )
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def _dollars(text: str) -> float:
    try:
        return not_negative(text)
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected dollars from 0 on, such as 0.50") from None


def _ranks(text: str) -> list[int]:
    try:
        return [_positive(rank) for rank in text.split(",")]
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected ranks of 1 or more, such as 8,128,256") from None


def _counts(text: str) -> list[int]:
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        numbers = [-1]
    if min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected numbers of layers, 0 or more, such as 0,4,8,12")
    return numbers


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    if argv is None:  # we are the process, not a call from one
        print_anything()
    arguments = parser().parse_args(argv)
    if argv is None:  # being ended is an interrupt, so that nothing stays behind
        end_as_interrupt()
    try:
        return arguments.work(arguments)
    except (UsageError, WorkError, UnavailableError) as error:
        print(f"featherweight: {plain(str(error), 20_000)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("featherweight: interrupted; nothing is lost, run the same command again", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if (said := explained(error, data_root().root)) is None:
            raise
        print(f"featherweight: {said}", file=sys.stderr)
        return WorkError.exit_code


if __name__ == "__main__":
    sys.exit(main())
