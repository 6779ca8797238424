"""Clean raw records into examples (train | eval) and rejects, in SQL, and make the result current
in one step.

accepted + rejected = read. The result depends neither on the order of the records nor on the number
of threads. The side of a record follows from a hash of the seed and its topic cell, or its
instruction and input. So the side never changes when other records come or go.
"""

from collections.abc import Callable, Iterable

from pipelines.clean.duplicates import reject_duplicates
from pipelines.clean.judged import reject_by_reading, reject_damaged
from pipelines.clean.language import reject_wrong_languages
from pipelines.clean.personal_data import judge_personal_data
from pipelines.clean.results import CleaningResult, current, examples, publish, rejects
from pipelines.clean.rules import reject_by_length, start_verdicts
from pipelines.clean.stage import stage
from pipelines.clean.work import workspace
from pipelines.lake.paths import DataRoot
from pipelines.records.reading import RawRecord
from pipelines.settings.cleaning import Cleaning

__all__ = ["CleaningResult", "clean", "current", "examples", "rejects"]


def clean(
    data: DataRoot, records: Iterable[RawRecord], settings: Cleaning, *, say: Callable[[str], None] = lambda _: None
) -> CleaningResult:
    """Clean `records` and make the result the current one. If it already is, nothing is written.

    Raises:
        UsageError: `records` reads a file that is missing or broken.
        WorkError: no record is left to train or evaluate on, or the lake cannot be written. The
            last result stays current.
    """
    with workspace(data, settings) as work:
        staged = stage(work, records, settings.shape_options)
        say(f"{staged.read:,} records read")
        start_verdicts(work)
        reject_damaged(work, settings)
        reject_by_length(work, settings)
        reject_by_reading(work, settings)
        judge_personal_data(work, settings)
        say("rules done")
        reject_wrong_languages(work, settings)
        say("languages done")
        reject_duplicates(work, settings)
        say("duplicates done")
        return publish(data, work, staged)
