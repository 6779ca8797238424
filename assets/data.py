"""Where examples come from: the corpus and the generator, and what became of what each provider wrote."""

import dagster as dg

from assets.cleaning import sft_examples
from assets.metadata import table
from assets.project import DEVICE_POOL, stage_now
from pipelines import weights
from pipelines.clean.read import corpus_records as read_corpus_records
from pipelines.compare.tables import PROVIDER_COMPARISON, llm_calls, provider_rows
from pipelines.generate.generate import generate
from pipelines.generate.generate import generated_records as read_generated_records


@dg.asset(group_name="generate", kinds={"json"})
def corpus_records(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """The records of `data/corpus.json`, read and checked: book recommendations in Korean and English."""
    stage = stage_now()
    records = read_corpus_records(stage.data)
    used = stage.experiments.sources.uses_corpus
    if not used:
        context.log.info("sources: leaves the corpus out; it is checked, but nothing is trained on it")
    return dg.MaterializeResult(
        metadata={
            "records": len(records),
            "trained on": used,
            "file": dg.MetadataValue.path(stage.data.tracked("corpus.json")),
            "first records": table([r.value for r in records[:5]], ["instruction", "input", "output", "language"]),
        }
    )


@dg.asset(group_name="generate", kinds={"openai", "sqlite"}, pool=DEVICE_POOL)
def generated_records(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Records that a local LLM server wrote for cells of the topic grid; raw answers lie in `data/lake/journal.sqlite`."""
    stage = stage_now()
    if not stage.experiments.sources.uses_local_generator:
        return dg.MaterializeResult(metadata={"records": 0, "why": "sources: names no generator"})
    name = stage.experiments.generation.local.model
    weights.fetch(stage.data, stage.experiments, name, say=context.log.info)

    def progress(done: int, total: int) -> None:
        if done % 6 == 0 or done == total:
            context.log.info(f"{done} of {total} answers")

    result = generate(stage.data, stage.experiments, progress=progress)
    if result.reused == result.wanted:
        context.log.info(f"reused: the journal holds all {result.wanted} answers, nothing was asked again")
    records = read_generated_records(stage.data, stage.experiments)
    shown = [record.value for record in records if record.problem is None and isinstance(record.value, dict)]
    return dg.MaterializeResult(
        metadata={
            "records": len(records),
            "requests": result.wanted,
            "answered now": result.answered,
            "reused from the journal": result.reused,
            "failed": result.failed,
            "in doubt": result.in_doubt,
            "sample": table(shown[:5], ["instruction", "input", "output"]),
        }
    )


@dg.asset(group_name="compare", kinds={"duckdb"}, deps=[generated_records, sft_examples])
def provider_comparison() -> dg.MaterializeResult:
    """Per provider and model: what was asked, answered, valid and accepted. Published in the warehouse by `comparison`."""
    stage = stage_now()
    rows = provider_rows(stage.data, llm_calls(stage.data))
    return dg.MaterializeResult(metadata={"providers": len(rows), "table": table(rows, list(PROVIDER_COMPARISON))})
