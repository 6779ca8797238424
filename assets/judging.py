"""What LLM APIs say of the answers that the evaluations kept. It needs no model, so no device waits for them."""

import dagster as dg

from assets.described import ROWS
from assets.launchpad import JudgingConfig
from assets.metadata import table
from assets.project import project_now
from assets.training import evaluation
from pipelines.errors import InUseError
from pipelines.evaluate import answers
from pipelines.generate.show import ProgressLines, is_warning, summary, unreadable

JUDGES_ANSWER = "judges_answer"


@dg.asset(
    group_name="evaluate",
    kinds={"anthropic", "openai", "sqlite"},
    deps=[evaluation],
    check_specs=[
        dg.AssetCheckSpec(
            JUDGES_ANSWER,
            asset="judged_answers",
            description="No judge or teacher had to stop, and verdicts are readable.",
        )
    ],
)
def judged_answers(context: dg.AssetExecutionContext, config: JudgingConfig) -> dg.MaterializeResult:
    """One row is one call of a judge or a teacher: its word on an answer that the comparison shows, or an answer of its own.

    They lie in `data/lake/journal.sqlite`. Only enabled providers are asked, within their budgets; what the journal holds is not
    asked again. Without `judging:` in experiments.yaml nothing is done. Runs beside training, before every publication; while
    somebody else is asking APIs it waits for nobody, and what is missing is asked before the next one.
    """
    project = project_now(config.profile)
    if not answers.is_configured(project):
        return _nothing_asked(
            context, "nobody was asked: judging: in experiments.yaml names neither a judge nor teachers"
        )
    try:
        result = answers.ask(
            project.resolve(),
            progress=ProgressLines(context.log.info),
            budget_usd=config.cap(project, context.run),
            wait=False,
        )
    except InUseError as error:
        return _nothing_asked(context, f"nobody was asked now, the next publication asks: {error}")
    problems = result.stopped | unreadable(result)
    for line in summary(result):
        (context.log.warning if is_warning(line) else context.log.info)(line)
    rows = [{"asked": name, **vars(one), "missing": one.missing} for name, one in result.providers.items()]
    metadata = {
        ROWS: sum(one.wanted for one in result.providers.values()),
        "answered now": result.answered,
        "missing": result.missing,
        "asked": table(rows, COLUMNS),
    }
    return dg.MaterializeResult(metadata=metadata, check_results=[_check(problems)])


COLUMNS = ("asked", "wanted", "reused", "answered", "refused", "failed", "missing", "unreadable", "usd", "reserved_usd")


def _nothing_asked(context: dg.AssetExecutionContext, why: str) -> dg.MaterializeResult:
    context.log.info(why)
    return dg.MaterializeResult(metadata={ROWS: 0, "answered now": 0, "why": why}, check_results=[_check({})])


def _check(problems: dict[str, str]) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=JUDGES_ANSWER, passed=not problems, severity=dg.AssetCheckSeverity.WARN, metadata=problems
    )
