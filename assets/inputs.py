"""Inputs of results, as assets with our own fingerprints as data versions. Dagster and the
comparison then agree on which cells are stale.

Dagster's code version covers a whole asset, and its data version of `sft_examples` covers all
cells. A cell's own fingerprint is finer: a changed recipe of one method makes only its cells stale,
and records that no profile selects make nothing stale.
"""

from collections.abc import Iterator, Sequence

import dagster as dg

from assets.cleaning import sft_examples
from assets.described import ROWS
from assets.metadata import table
from assets.partitions import CELLS, shown_cells
from assets.picked import NOTHING, unknown
from assets.project import cell_of, partition_of, project_now
from pipelines.evaluate.cell import base_is_evaluated, evaluated_by
from pipelines.lake.files import stable_hash
from pipelines.nightly.due import why_due
from pipelines.project import Resolved

VERSION = "dagster/data_version"
USER_PROVIDED = "dagster/data_version_is_user_provided"
CODE = "dagster/code_version"
INPUT, POINTER = "dagster/input_data_version/", "dagster/input_event_pointer/"
REPORTED = {CODE: "reported", USER_PROVIDED: "true"}


@dg.asset(group_name="train", kinds={"json"}, partitions_def=CELLS, deps=[sft_examples])
def cell_inputs(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """One partition is one cell (one model × one method): the versions of all its inputs.

    The inputs are its examples, recipe, trainer's code and machine. Nothing is stored. The data
    version is the hash of these four fingerprints. When one of them changes, a new version is
    recorded and `trained_model` becomes stale.
    """
    project, cell = project_now(), cell_of(context.partition_key)
    if why := unknown(project, *cell):
        context.log.warning(why)
        return dg.MaterializeResult(data_version=dg.DataVersion(NOTHING), metadata={"not run": why})
    resolved = project.resolve()
    plan, by = resolved.cell(*cell), evaluated_by(resolved)
    due = {key.seed: why_due(resolved, key, by) for key in plan.keys}
    return dg.MaterializeResult(
        data_version=dg.DataVersion(stable_hash(plan.fingerprints)),
        metadata={
            ROWS: 1,
            "due": ", ".join(f"seed {seed}: {why or 'current'}" for seed, why in due.items()),
            "fingerprints": table([{"of": k, "is": v} for k, v in plan.fingerprints.items()], ["of", "is"]),
            "recipe": table([{"setting": k, "is": v} for k, v in plan.recipe.items()], ["setting", "is"]),
        },
    )


BASE_EVALUATION = dg.AssetKey("base_evaluation")
evaluation_inputs = dg.AssetSpec(
    "evaluation_inputs",
    group_name="evaluate",
    kinds={"json"},
    description="One version is the inputs of all evaluations of the profile: records, settings, models to fit, code. "
    "Its data version is the hash of these, recorded at every change. A change makes `evaluation` stale, but not "
    "`trained_model`.",
)


def note_inputs(
    instance: dg.DagsterInstance, resolved: Resolved, cells: Sequence[tuple[str, str]] | None = None
) -> int:
    """Report new input versions of `cells` (None: the whole grid) and evaluations to Dagster.

    Returns the number of new versions.
    """
    count = 0
    for event in _events(instance, resolved, cells if cells is not None else shown_cells()):
        instance.report_runless_asset_event(event)
        count += 1
    return count


def _events(
    instance: dg.DagsterInstance, resolved: Resolved, cells: Sequence[tuple[str, str]]
) -> Iterator[dg.AssetMaterialization]:
    # The code location may still have names that experiments.yaml no longer has.
    known = set(resolved.experiments.cells)
    configured = [cell for cell in cells if cell in known]
    provenance = _provenance(instance, sft_examples.key)
    cell_tags = {
        str(partition_of(*cell)): {VERSION: stable_hash(resolved.cell(*cell).fingerprints), **provenance}
        for cell in configured
    }
    for partition, tags in _new(instance, cell_inputs.key, cell_tags):
        yield dg.AssetMaterialization(cell_inputs.key, partition=partition, tags={**REPORTED, **tags})
    yield from _evaluation_events(instance, resolved, sorted({model for model, _ in configured}))


def _evaluation_events(
    instance: dg.DagsterInstance, resolved: Resolved, models: Sequence[str]
) -> Iterator[dg.AssetMaterialization]:
    """A new version of `evaluation_inputs`, and a new `base_evaluation` for each model with a
    current one."""
    by = evaluated_by(resolved)
    version = {VERSION: by.fingerprint}
    latest = instance.fetch_materializations(evaluation_inputs.key, limit=1).records
    if not latest or _tags(latest[0]).get(VERSION) != by.fingerprint:
        yield dg.AssetMaterialization(evaluation_inputs.key, tags={**version, USER_PROVIDED: "true"})
    # This reads the event that may have been reported just above.
    provenance = _provenance(instance, evaluation_inputs.key)
    done = {model: {**version, **provenance} for model in models if base_is_evaluated(resolved, model, by)}
    for model, tags in _new(instance, BASE_EVALUATION, done):
        yield dg.AssetMaterialization(BASE_EVALUATION, partition=model, tags={**REPORTED, **tags})


def _new(
    instance: dg.DagsterInstance, asset: dg.AssetKey, tags_by_partition: dict[str, dict[str, str]]
) -> Iterator[tuple[str, dict[str, str]]]:
    """The partitions and tags that Dagster knows with other tags or not at all."""
    known = _known(instance, asset, list(tags_by_partition))
    for partition, tags in tags_by_partition.items():
        if any(known.get(partition, {}).get(name) != value for name, value in tags.items()):
            yield partition, tags


def _known(instance: dg.DagsterInstance, asset: dg.AssetKey, partitions: list[str]) -> dict[str, dict[str, str]]:
    """The tags of each partition's latest version."""
    records_filter = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=partitions)
    tags: dict[str, dict[str, str]] = {}
    cursor = None
    while len(tags) < len(partitions):
        page = instance.fetch_materializations(records_filter, limit=500, cursor=cursor)
        for record in page.records:
            tags.setdefault(str(record.partition_key), _tags(record))
        cursor = page.cursor
        if not page.has_more:
            break
    return tags


def _provenance(instance: dg.DagsterInstance, asset: dg.AssetKey) -> dict[str, str]:
    """The tags that Dagster sets on an asset made from `asset`, so that a reported version counts
    as made from its newest version."""
    record = instance.fetch_materializations(asset, limit=1).records
    if not record:
        return {}
    name = asset.to_user_string()
    return {INPUT + name: _tags(record[0]).get(VERSION, ""), POINTER + name: str(record[0].storage_id)}


def _tags(record: dg.EventLogRecord) -> dict[str, str]:
    return dict(record.asset_materialization.tags or {}) if record.asset_materialization else {}
