"""Verdicts of LLM APIs on the stored answers of evaluations. They need no model, so they block no
device."""

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
            description="No judge or teacher stopped early, and all verdicts are readable.",
        )
    ],
)
def judged_answers(context: dg.AssetExecutionContext, config: JudgingConfig) -> dg.MaterializeResult:
    """One row is one call of a judge or a teacher: a verdict on a compared answer, or an answer.

    The calls are stored in `data/lake/journal.sqlite`. Only enabled providers are asked, within
    their budgets; stored replies are not requested again. Without `judging:` in experiments.yaml
    the step does nothing. It runs in parallel to training, before every publication. If another
    process is sending requests, it does not wait; the missing requests are sent before the next
    publication.
    """
    project = project_now(config.profile)
    if not answers.is_configured(project):
        return _nothing_asked(context, "no requests: judging: in experiments.yaml names neither a judge nor teachers")
    try:
        result = answers.ask(
            project.resolve(),
            progress=ProgressLines(context.log.info),
            budget_usd=config.cap(project, context.run),
            wait=False,
        )
    except InUseError as error:
        return _nothing_asked(context, f"no requests now; the next publication sends them: {error}")
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
