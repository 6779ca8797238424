"""The user's files, the corpus and the generators' answers, cleaned into one set of examples."""

from typing import Any

import dagster as dg

from assets.described import ROWS
from assets.metadata import picture, table
from assets.project import project_now
from pipelines.clean import clean as cleaning
from pipelines.clean import summary
from pipelines.clean.clean import CleaningResult
from pipelines.clean.read import raw_records
from pipelines.clean.results import queried
from pipelines.clean.results import summary as summary_rows
from pipelines.compare import plots
from pipelines.settings.cleaning import Cleaning

Metadata = dict[str, Any]


@dg.asset(group_name="clean", kinds={"duckdb", "parquet"}, deps=["corpus_records", "generated_records"])
def sft_examples(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """One row is one example in the train or eval split. The rejects and their reasons lie beside
    it.

    The input is `sources:` in experiments.yaml. The output is in `data/lake/clean/`.
    """
    project = project_now()
    records = raw_records(project.data, project.experiments, say=context.log.info)
    result = cleaning.clean(project.data, records, project.experiments.cleaning, say=context.log.info)
    for warning in result.warnings:
        context.log.warning(warning)
    if result.reused:
        context.log.info("reused: the same records gave the same examples")
    return dg.MaterializeResult(data_version=dg.DataVersion(result.fingerprint), metadata=_metadata(result))


def _metadata(result: CleaningResult) -> Metadata:
    """The dropped records and their reasons first, then the accepted ones."""
    dropped = sorted(result.reasons.items(), key=lambda item: -item[1])
    rows = summary_rows(result)
    return {
        "what was dropped": dg.MetadataValue.text(
            f"{result.rejected:,} of {result.read:,}: {', '.join(f'{count:,} {reason}' for reason, count in dropped)}"
            if dropped
            else f"nothing of {result.read:,}"
        ),
        "why": table(_bars(result), ["reason", "records", "of all read", ""]),
        **picture(plots.reasons_bar(result.reasons, "png"), "records dropped, by reason"),
        "sample rejects": table(summary.sample_rejects(result), ["reason", "detail", "source", "record"], limit=160),
        "by source": table(rows, ["source", "provider", "reason", "records", "share"]),
        "read": result.read,
        ROWS: result.accepted,
        "accepted": result.accepted,
        "rejected": result.rejected,
        "train": result.train,
        "eval": result.eval,
        "languages": table(summary.language_counts(result), ["split", "language", "examples", "share"]),
        **picture(plots.length_histograms(summary.length_counts(result), "png"), "how long the examples are"),
        "fields": table(_fields(result), ["source", "came as", "records", "turns dropped"]),
        **({"not used or changed": table(_notes(result), ["source", "what", "records"])} if result.notes else {}),
        **({"warnings": _warnings(result)} if result.warnings else {}),
        "folder": dg.MetadataValue.path(result.folder),
    }


def _bars(result: CleaningResult) -> list[Metadata]:
    """A bar chart made of characters: the UI shows a short table inline, but a picture only after a
    click."""
    most = max(result.reasons.values(), default=1)
    return [
        {
            "reason": reason,
            "records": count,
            "of all read": f"{count / result.read:.1%}",
            "": "█" * -(-10 * count // most),
        }
        for reason, count in sorted(result.reasons.items(), key=lambda item: -item[1])
    ]


def _fields(result: CleaningResult) -> list[Metadata]:
    return [
        {"source": source, "came as": shape, "records": count, "turns dropped": result.dropped_turns.get(source, 0)}
        for source, shapes in result.shapes.items()
        for shape, count in shapes.items()
    ]


def _notes(result: CleaningResult) -> list[Metadata]:
    return [
        {"source": source, "what": note, "records": count}
        for source, notes in result.notes.items()
        for note, count in notes.items()
    ]


def _warnings(result: CleaningResult) -> dg.MetadataValue:
    """One row per line of a warning, since the UI joins the lines of a text.

    `table` escapes the quoted records.
    """
    lines = [line.strip() for warning in result.warnings for line in warning.split("\n")]
    return table([{"to look at": line} for line in lines], ["to look at"])


def _current() -> tuple[CleaningResult, Cleaning]:
    project = project_now()
    current = cleaning.current(project.data)
    assert current is not None, "sft_examples has not been materialized"
    return current, project.experiments.cleaning


@dg.asset_check(asset=sft_examples, blocking=True, description="accepted + rejected = read: no record is lost.")
def every_record_is_accounted_for() -> dg.AssetCheckResult:
    current, _ = _current()
    (counts,) = queried(
        current, "SELECT (SELECT count(*) FROM examples) AS accepted, (SELECT count(*) FROM rejects) AS rejected"
    )
    summed = sum(row["records"] for row in summary_rows(current))
    return dg.AssetCheckResult(
        passed=counts["accepted"] + counts["rejected"] == current.read == summed,
        metadata={"read": current.read, **counts},
    )


@dg.asset_check(asset=sft_examples, blocking=True, description="No question is in both splits.")
def train_and_eval_do_not_overlap() -> dg.AssetCheckResult:
    current, _ = _current()
    (counts,) = queried(
        current,
        """
        WITH sides AS (SELECT bool_or(split = 'train') AS train, bool_or(split = 'eval') AS eval FROM examples
                       GROUP BY instruction, input, messages)
        SELECT count(*) FILTER (train) AS train, count(*) FILTER (eval) AS eval, count(*) FILTER (train AND eval) AS both
        FROM sides
        """,
    )
    metadata = {"train": counts["train"], "eval": counts["eval"], "on both sides": counts["both"]}
    return dg.AssetCheckResult(passed=counts["both"] == 0, metadata=metadata)


@dg.asset_check(
    asset=sft_examples, blocking=True, description="Both splits hold the minimum number of examples in cleaning:."
)
def enough_examples() -> dg.AssetCheckResult:
    current, settings = _current()
    return dg.AssetCheckResult(
        passed=current.train >= settings.min_train_examples and current.eval >= settings.min_eval_examples,
        metadata={
            "train": current.train,
            "eval": current.eval,
            "expected": f"at least {settings.min_train_examples} train and {settings.min_eval_examples} eval "
            "(cleaning.min_train_examples, cleaning.min_eval_examples)",
        },
    )


@dg.asset_check(asset=sft_examples, description="The share of rejects of each source is within cleaning.reject_share.")
def reject_share_per_source() -> dg.AssetCheckResult:
    current, settings = _current()
    low, high = settings.reject_share
    shares = summary.reject_shares(summary_rows(current))
    outside = {source: share for source, share in shares.items() if not low <= share <= high}
    rows = [{"source": source, "reject share": share, "outside": source in outside} for source, share in shares.items()]
    return dg.AssetCheckResult(
        passed=not outside,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"expected": f"{low:g} to {high:g}", "sources": table(rows, ["source", "reject share", "outside"])},
    )


@dg.asset_check(asset=sft_examples, description="Each configured language has its share of both splits.")
def language_mix() -> dg.AssetCheckResult:
    current, settings = _current()
    counts = summary.language_counts(current)
    shares = {(row["split"], row["language"]): row["share"] for row in counts}
    languages = settings.languages or []
    missing = [
        f"{language} in {split}"
        for split in ("train", "eval")
        for language in languages
        if shares.get((split, language), 0.0) < settings.min_language_share
    ]
    return dg.AssetCheckResult(
        passed=not missing,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "too few": ", ".join(missing) or "none",
            "expected": f"{settings.min_language_share:g} of each side for each of {', '.join(languages) or 'no language'}",
            "languages": table(counts, ["split", "language", "examples", "share"]),
        },
    )
