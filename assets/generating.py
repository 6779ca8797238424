"""Sources of records: the corpus, a local LLM server, and LLM APIs within their budget."""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from assets.described import ROWS
from assets.launchpad import AskConfig
from assets.metadata import picture, table
from assets.project import DEVICE_POOL, project_now
from pipelines.clean.read import corpus_records as read_corpus_records
from pipelines.compare import plots
from pipelines.generate import coverage
from pipelines.generate.generate import GenerationResult, generate, generate_locally
from pipelines.generate.generate import generated_records as read_generated_records
from pipelines.generate.show import ProgressLines, is_warning, summary, without_valid_records
from pipelines.generate.trained_on import local_off, sources_of, switched_off, untrained
from pipelines.project import Project
from pipelines.weights import store

PROVIDERS_ANSWER = "providers_answer"


@dg.asset(group_name="generate", kinds={"json"})
def corpus_records(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """One row is one record of `data/corpus.json`, validated: a question about books and its
    answer.

    The records are in Korean or English.
    """
    project = project_now()
    records = read_corpus_records(project.data)
    used = project.experiments.sources.uses_corpus
    if not used:
        context.log.info("sources: leaves the corpus out; it is validated, but not used for training")
    for line in switched_off(project.experiments):
        (context.log.info if project.experiments.sources.own_only else context.log.warning)(line)
    return dg.MaterializeResult(
        metadata={
            ROWS: len(records),
            "records": len(records),
            "trained on": used,
            "file": dg.MetadataValue.path(project.data.tracked("corpus.json")),
            "first records": table([r.value for r in records[:5]], ["instruction", "input", "output", "language"]),
        }
    )


@dg.asset(group_name="generate", kinds={"llamacpp", "sqlite"}, pool=DEVICE_POOL)
def local_records(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """One row is one answer of a local language model to a prompt of the topic grid.

    The answers are in `data/lake/journal.sqlite`. The step shares the device's pool with training
    and evaluation, since two at once would distort every speed measurement.
    """
    project = project_now()
    name = project.experiments.local_provider
    if name is None or not project.experiments.sources.uses_local_generator:
        why = local_off(project.experiments)
        if why:
            context.log.warning(why)
        return dg.MaterializeResult(metadata={ROWS: 0, "why": why or "sources: names no local generator"})
    store.fetch(project.data, project.experiments, project.experiments.provider(name).model, say=context.log.info)
    result = generate_locally(project.data, project.experiments, progress=ProgressLines(context.log.info))
    return dg.MaterializeResult(metadata=_metadata(context, project, result, [name]))


@dg.asset(
    group_name="generate",
    kinds={"anthropic", "openai", "sqlite"},
    deps=[local_records],
    check_specs=[
        dg.AssetCheckSpec(
            PROVIDERS_ANSWER,
            asset="generated_records",
            description="No enabled provider stopped early or gave no valid record, and all their records are trained on.",
        )
    ],
)
def generated_records(context: dg.AssetExecutionContext, config: AskConfig) -> dg.MaterializeResult:
    """One row is one answer of a language model, over an API or on this machine.

    The answers are in `data/lake/journal.sqlite`. Only providers with `enabled: true` are asked,
    within `budget_usd`. Stored answers are never requested again. Runs in parallel to training.
    """
    project = project_now()
    total, cap = project.experiments.generation.budget_usd, config.cap(project, context.run)
    result = generate(
        project.data,
        project.experiments,
        only=config.providers or None,
        progress=ProgressLines(context.log.info, total if cap is None else cap),
        budget_usd=cap,
    )
    names = list(dict.fromkeys([*sources_of(project.experiments), *result.providers]))
    useless = without_valid_records(
        result, coverage.coverage(project.data, project.experiments, list(result.providers))
    )
    for name, why in useless.items():
        context.log.warning(f"{name}: {why}")
    unused = {name: why for name, why in untrained(project.experiments).items() if name in result.providers}
    stopped = dg.AssetCheckResult(
        check_name=PROVIDERS_ANSWER,
        passed=not result.stopped and not useless and not unused,
        severity=dg.AssetCheckSeverity.WARN,
        metadata=unused | useless | result.stopped,
    )
    return dg.MaterializeResult(metadata=_metadata(context, project, result, names), check_results=[stopped])


def _metadata(
    context: dg.AssetExecutionContext, project: Project, result: GenerationResult, names: Sequence[str]
) -> dict[str, Any]:
    """Counts, costs, a sample of the records, and their coverage of the grid."""
    for line in summary(result):
        (context.log.warning if is_warning(line) else context.log.info)(line)
    if result.providers and result.reused == result.wanted:
        context.log.info(f"reused: the journal holds all {result.wanted} answers, no request was sent")
    records = read_generated_records(project.data, project.experiments, names)
    shown = [{**r.value, "provider": r.provider} for r in records if r.problem is None and isinstance(r.value, dict)]
    sample = [row for name in names for row in [row for row in shown if row["provider"] == name][:SAMPLE]]
    covered = coverage.coverage(project.data, project.experiments, names)
    costs = [{"provider": name, **vars(one), "missing": one.missing} for name, one in result.providers.items()]
    return {
        ROWS: len(records),
        "records": len(records),
        "requests": result.wanted,
        "answered now": result.answered,
        "reused from the journal": result.reused,
        "missing": result.missing,
        "in doubt": result.orphans,
        "charged by provider": table(costs, COST_COLUMNS),
        "sample": table(sample, ["provider", "instruction", "input", "output"]),
        "coverage and diversity": table([vars(one) for one in covered], COVERAGE_COLUMNS),
        **picture(plots.coverage_bars(covered, "png"), "values of each axis that valid records cover"),
    }


# Number of sample records per provider.
SAMPLE = 3
COST_COLUMNS = ("provider", "wanted", "answered", "refused", "failed", "missing", "usd", "reserved_usd")
COVERAGE_COLUMNS = ("provider", "records", "cells", "topics", "distinct_1", "distinct_2")
