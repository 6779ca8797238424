"""Making records and examples: `generate`, `judge`, `clean`."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from contextlib import suppress
from typing import TYPE_CHECKING, get_args

from pipelines.cli import completion
from pipelines.cli.arguments import add_choice, dollars
from pipelines.cli.command import NOT_OK, OK, Arguments, Command
from pipelines.cli.working import project_now
from pipelines.errors import UsageError
from pipelines.records.text_encoding import Encoding

if TYPE_CHECKING:
    from pipelines.project import Project
    from pipelines.settings.sources import FileSource


def generate(arguments: Arguments) -> int:
    project = project_now()
    if arguments.estimate:
        return _estimate(project, arguments)
    if arguments.release_in_doubt is not None:
        return _release(project, arguments)
    if arguments.resend_in_doubt:
        _resend(project)
    return _generate(project, arguments)


def _estimate(project: Project, arguments: Arguments) -> int:
    from pipelines.generate import estimate

    estimates = list(estimate.estimate(project.data, project.experiments, arguments.provider))
    for line in estimate.in_words(estimates, project.experiments.generation.budget_usd):
        print(line)
    return OK


def _release(project: Project, arguments: Arguments) -> int:
    from pipelines.generate.generate import release_in_doubt

    released = release_in_doubt(project.data, arguments.release_in_doubt, arguments.provider)
    for name, held in released.items():
        print(f"{name}: ${held.usd:.4f} of {held.requests} requests given back; nothing was sent")
    if not released:
        print("nothing to give back: no request of unknown fate or cost is charged")
    return OK


def _resend(project: Project) -> None:
    from pipelines.generate.generate import generate_again

    print(f"{generate_again(project.data)} abandoned requests may be sent once more; their possible cost stays charged")


def _generate(project: Project, arguments: Arguments) -> int:
    from pipelines.generate import coverage, show
    from pipelines.generate.generate import generate_all

    total = project.experiments.generation.budget_usd
    bar = show.ProgressBar(total if arguments.budget_usd is None else arguments.budget_usd)
    try:
        result = generate_all(
            project.data,
            project.experiments,
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
    covered = coverage.coverage(project.data, project.experiments, result.providers)
    useless = show.without_valid_records(result, covered)
    for line in [*show.summary(result), *show.covered(covered), *(f"{name}: {why}" for name, why in useless.items())]:
        print(line)
    return OK if result.complete and not useless else NOT_OK


def _generate_arguments(parser: ArgumentParser) -> None:
    named = parser.add_argument(
        "--provider",
        action="append",
        metavar="NAME",
        help="only this provider (repeat for more); default: all enabled providers",
    )
    completion.offer(named, completion.providers)
    parser.add_argument("--estimate", action="store_true", help="print requests, tokens and dollars; send nothing")
    parser.add_argument(
        "--budget-usd", type=dollars, metavar="X", help="a cap for this run, below the caps of experiments.yaml"
    )
    add_choice(
        parser,
        "--batch",
        "submit",
        "collect",
        about="only this step, for providers with batch: true; default: both",
    )
    parser.add_argument(
        "--resend-in-doubt",
        action="store_true",
        help="resend requests whose outcome was lost twice (they may cost twice)",
    )
    parser.add_argument(
        "--release-in-doubt",
        metavar="REASON",
        help="refund the charges of requests with unknown outcome or cost (of --provider, else of all), if the provider's own "
        "bill does not list them; the journal keeps the reason, and nothing is sent",
    )


def judge(arguments: Arguments) -> int:
    from pipelines.compare.providers import duel_rows
    from pipelines.evaluate import answers
    from pipelines.generate import judge as judged_records
    from pipelines.generate import show

    project = project_now()
    experiments = project.experiments
    if experiments.generation.judge is None and not experiments.judging.judge and not experiments.judging.teachers:
        raise UsageError(
            "no judge is configured: set generation.judge: {providers: [NAME, …]} (for the providers' records) or "
            "judging.judge: NAME (for the models' answers) in experiments.yaml"
        )
    if arguments.estimate:
        return _estimate_judging(project)
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


def _estimate_judging(project: Project) -> int:
    from pipelines.evaluate import answers
    from pipelines.generate import estimate
    from pipelines.generate import judge as judged_records

    own = answers.estimates(project.resolve()) if answers.is_configured(project) else ()
    estimates = [*judged_records.estimates(project.data, project.experiments), *own]
    nothing = ["no requests: there are no records and no answers yet for a judge or a teacher"]
    for line in estimate.in_words(estimates, project.experiments.generation.budget_usd) if estimates else nothing:
        print(line)
    return OK


def _judge_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--again", action="store_true", help="ask once more if a reply held no readable verdict")
    parser.add_argument("--estimate", action="store_true", help="print the requests and their cost; send nothing")


def clean(arguments: Arguments) -> int:
    from pipelines.clean import clean as cleaning
    from pipelines.clean import read
    from pipelines.clean.summary import lines, next_steps

    project = project_now()
    if arguments.input:
        records = read.file_records(read.named_files(_named_files(arguments)))
    else:
        records = read.raw_records(project.data, project.experiments)
    before = None
    # If the pointer to the current examples is damaged, cleaning rewrites it.
    with suppress(UsageError):
        before = cleaning.current(project.data)
    place = project.data.tried if arguments.tried else project.data
    result = cleaning.clean(place, records, project.experiments.cleaning)
    for line in lines(result, examples=bool(arguments.input or arguments.tried)):
        print(line)
    for line in next_steps(result, before, tried=arguments.tried, files=arguments.input or ()):
        print(line)
    return OK


def _named_files(arguments: Arguments) -> list[FileSource]:
    from pydantic import ValidationError

    from pipelines.records.reading import explain
    from pipelines.settings.sources import FileSource

    try:
        return [
            FileSource(path=path, encoding=arguments.encoding, columns=arguments.columns) for path in arguments.input
        ]
    except ValidationError as error:
        raise UsageError(f"--columns: {explain(error)}") from None


def _clean_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--input",
        action="append",
        metavar="FILE",
        help="JSON, JSONL, CSV, TSV or Parquet, in place of sources: (repeat for more)",
    )
    parser.add_argument(
        "--try",
        dest="tried",
        action="store_true",
        help="show the outcome for these records; the current examples stay as they are",
    )
    add_choice(
        parser,
        "--encoding",
        *get_args(Encoding),
        metavar="NAME",
        about="encoding of the --input files, such as utf-8 or cp949; that of a CSV file is detected by default",
        default="utf-8",
    )
    parser.add_argument(
        "--columns",
        type=_columns,
        metavar="OURS=THEIRS,…",
        help="map the fields of --input, such as instruction=질문,output=답변",
    )


def _columns(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(ours.strip() and theirs.strip() for ours, _, theirs in pairs):
        raise ArgumentTypeError(f"got {text!r}; expected OURS=THEIRS,…, such as instruction=question,output=answer")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


COMMANDS = (
    Command(
        "generate",
        "ask the configured generators for SFT records",
        generate,
        _generate_arguments,
        "Stored answers are never requested again. Exit code 3: a generator stopped early; its answers so far are kept.",
    ),
    Command(
        "judge",
        "have judges compare records in pairs and score the models' answers",
        judge,
        _judge_arguments,
    ),
    Command("clean", "clean records into examples and rejects", clean, _clean_arguments),
)
