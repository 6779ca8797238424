"""The comparison of providers: quality of their records against price."""

import dagster as dg

from assets.cleaning import sft_examples
from assets.described import ROWS
from assets.generating import generated_records
from assets.launchpad import Spending
from assets.metadata import picture, table
from assets.project import project_now
from pipelines.compare import plots
from pipelines.compare.columns.providers import PROVIDER_COMPARISON, PROVIDER_DUELS
from pipelines.compare.providers import duel_rows, provider_rows
from pipelines.generate.judge import judge
from pipelines.generate.show import ProgressLines, is_warning, summary

# Few enough columns that the UI shows each table inline.
SHORT_COLUMNS = ("provider", "requested", "valid", "refused", "duplicate", "accepted", "usd_per_accepted", "win_rate")
PAIRS = ("provider", "against", "verdict", "win_rate", "cells", "wins", "losses", "ties", "judge")


@dg.asset(group_name="compare", kinds={"duckdb"}, deps=[generated_records, sft_examples])
def provider_comparison(context: dg.AssetExecutionContext, config: Spending) -> dg.MaterializeResult:
    """One row is one provider on the prompts that all received: counts, cost and win rate.

    The counts are requests, answers, valid and accepted records. With `generation.judge`, the judge
    compares the providers' records in pairs, within the same budget. `comparison` publishes the
    tables `provider_comparison` and `provider_duels` in the warehouse.
    """
    project = project_now()
    progress = ProgressLines(context.log.info)
    result = judge(project.data, project.experiments, progress=progress, budget_usd=config.cap(project, context.run))
    for line in summary(result):
        (context.log.warning if is_warning(line) else context.log.info)(f"judge: {line}")
    rows = provider_rows(project.data, project.experiments)
    duels = duel_rows(project.data, project.experiments)
    return dg.MaterializeResult(
        metadata={
            ROWS: len(rows),
            "providers": len(rows),
            "comparison": table(rows, SHORT_COLUMNS),
            "pairs, by the judge": table(duels, PAIRS),
            **picture(plots.provider_shares(rows, "png"), "what became of the requests"),
            "comparison, all columns": table(rows, list(PROVIDER_COMPARISON.by_name)),
            "pairs, all columns": table(duels, list(PROVIDER_DUELS.by_name)),
        }
    )
