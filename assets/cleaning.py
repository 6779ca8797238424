"""The user's own files, the corpus and the generators' answers, cleaned into one set of examples."""

import dagster as dg

from assets.metadata import picture, table
from assets.project import stage_now
from pipelines.clean import clean as cleaning
from pipelines.clean.clean import CleaningResult
from pipelines.clean.read import raw_records
from pipelines.compare import plots


@dg.asset(group_name="clean", kinds={"duckdb", "parquet"}, deps=["corpus_records", "generated_records"])
def sft_examples(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Examples on their side of the split, and every reject with its reason, in `data/lake/clean/`.

    What goes in is what `sources:` in experiments.yaml names.
    """
    stage = stage_now()
    result = cleaning.clean(stage.data, raw_records(stage.data, stage.experiments), stage.experiments.cleaning)
    if result.reused:
        context.log.info("reused: the same records gave the same examples")
    return dg.MaterializeResult(
        data_version=dg.DataVersion(result.fingerprint),
        metadata={
            "read": result.read,
            "accepted": result.accepted,
            "rejected": result.rejected,
            "train": result.train,
            "eval": result.eval,
            "folder": dg.MetadataValue.path(result.folder),
            "sample rejects": table(cleaning.rejects(result)[:10], ["reason", "detail", "source", "record"], limit=160),
            **picture(plots.reasons_bar(result.reasons, "png"), "records dropped, by reason"),
        },
    )


def _current() -> CleaningResult:
    current = cleaning.current(stage_now().data)
    assert current is not None, "sft_examples has not been materialized"
    return current


@dg.asset_check(asset=sft_examples, blocking=True, description="accepted + rejected = read: no record went missing.")
def every_record_is_accounted_for() -> dg.AssetCheckResult:
    current = _current()
    accepted, rejected = len(cleaning.examples(current)), len(cleaning.rejects(current))
    return dg.AssetCheckResult(
        passed=accepted + rejected == current.read,
        metadata={"read": current.read, "accepted": accepted, "rejected": rejected},
    )


@dg.asset_check(asset=sft_examples, blocking=True, description="No example stands on both sides of the split.")
def train_and_eval_do_not_overlap() -> dg.AssetCheckResult:
    sides: dict[str, set[tuple[str, str]]] = {"train": set(), "eval": set()}
    for example in cleaning.examples(_current()):
        sides[example["split"]].add((example["instruction"], example["input"]))
    both = sides["train"] & sides["eval"]
    return dg.AssetCheckResult(
        passed=not both, metadata={"train": len(sides["train"]), "eval": len(sides["eval"]), "on both sides": len(both)}
    )
