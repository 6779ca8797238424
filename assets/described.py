"""What the UI shows for every asset besides its description: owners, tags, documentation, table and
columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import dagster as dg

from assets.shown import grid
from pipelines.compare.columns.calls import LLM_CALLS
from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.columns.evaluation import EVALUATION_ANSWERS
from pipelines.compare.columns.examples import SFT_EXAMPLES
from pipelines.compare.columns.nights import NIGHTS
from pipelines.compare.columns.providers import PROVIDER_COMPARISON
from pipelines.compare.columns.training import TRAINING_RUNS
from pipelines.lake.paths import PROJECT
from pipelines.lake.schema import Column, Table

# DuckDB's name for the schema in data/warehouse.duckdb.
DATABASE = "warehouse.main"
ROWS = "dagster/row_count"


@dataclass(frozen=True)
class AssetDetails:
    """`cost` is the cost class of one materialization; `page` a file of docs/; `table` the
    published table, if any."""

    cost: Literal["seconds", "device-minutes", "api-dollars"]
    page: str
    columns: Sequence[Column]
    table: Table | None = None


def _with_table(cost: Literal["seconds", "device-minutes", "api-dollars"], page: str, table: Table) -> AssetDetails:
    return AssetDetails(cost, page, table.columns, table)


RECORD = SFT_EXAMPLES.pick("instruction", "input", "output", "language")
ASSETS = {
    "corpus_records": AssetDetails("seconds", "data.md", RECORD),
    "local_records": _with_table("device-minutes", "data.md", LLM_CALLS),
    "generated_records": _with_table("api-dollars", "data.md", LLM_CALLS),
    "sft_examples": _with_table("seconds", "data.md", SFT_EXAMPLES),
    "provider_comparison": _with_table("api-dollars", "comparing.md", PROVIDER_COMPARISON),
    "cell_inputs": AssetDetails(
        "seconds", "training.md", COMPARISON.pick("model", "method", "data_fingerprint", "recipe_fingerprint", "device")
    ),
    "trained_model": _with_table("device-minutes", "training.md", TRAINING_RUNS),
    "evaluation_inputs": AssetDetails(
        "seconds", "training.md", COMPARISON.pick("evaluation_fingerprint", "eval_set", "eval_records")
    ),
    "base_evaluation": _with_table("device-minutes", "training.md", EVALUATION_ANSWERS),
    "evaluation": _with_table("device-minutes", "training.md", EVALUATION_ANSWERS),
    "judged_answers": _with_table("api-dollars", "comparing.md", LLM_CALLS),
    "comparison": _with_table("seconds", "comparing.md", COMPARISON),
    "nights": _with_table("seconds", "operating.md", NIGHTS),
}


def described(spec: dg.AssetSpec) -> dg.AssetSpec:
    """The asset with its details. Its group is its stage."""
    known = ASSETS[spec.key.to_user_string()]
    return spec.replace_attributes(
        owners=list(grid().dagster.owners),
        tags={**spec.tags, "stage": spec.group_name or "", "cost": known.cost},
        metadata={
            **spec.metadata,
            "docs": _documentation(known.page),
            "dagster/column_schema": dg.TableSchema(
                columns=[dg.TableColumn(one.name, one.type, description=one.description) for one in known.columns]
            ),
            **({"dagster/table_name": f"{DATABASE}.{known.table.name}"} if known.table else {}),
        },
    )


def _documentation(page: str) -> dg.MetadataValue:
    """A link to the page if `dagster.docs` has an address, else the path of the file."""
    address = grid().dagster.docs
    file = dg.MetadataValue.path(PROJECT / "docs" / page)
    return dg.MetadataValue.url(f"{address.rstrip('/')}/{page}") if address else file
