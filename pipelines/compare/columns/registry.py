"""Every published table and view."""

from pipelines.compare.columns.calls import LLM_CALLS
from pipelines.compare.columns.comparison import COMPARISON, COMPARISON_SHORT, HISTORY, PICKS
from pipelines.compare.columns.evaluation import (
    BENCHMARK_ANSWERS,
    EVALUATION_ANSWERS,
    EVALUATION_RECORDS,
    PAIR_VERDICTS,
    PREFERENCE_DUELS,
    PREFERENCES,
    QUANTIZED_INFERENCE,
    SERVING,
)
from pipelines.compare.columns.examples import CLEANING_SUMMARY, SFT_EXAMPLES, SFT_REJECTS
from pipelines.compare.columns.nights import NIGHTS
from pipelines.compare.columns.providers import PROVIDER_COMPARISON, PROVIDER_DUELS
from pipelines.compare.columns.training import TRAINING_CURVE, TRAINING_RUNS

TABLES = (
    COMPARISON, PICKS, HISTORY, TRAINING_RUNS, TRAINING_CURVE, EVALUATION_ANSWERS, EVALUATION_RECORDS, BENCHMARK_ANSWERS, SERVING,
    QUANTIZED_INFERENCE, SFT_EXAMPLES, SFT_REJECTS, CLEANING_SUMMARY, LLM_CALLS, PROVIDER_COMPARISON, PROVIDER_DUELS,
    PAIR_VERDICTS, PREFERENCES, PREFERENCE_DUELS, NIGHTS,
)  # fmt: skip
VIEWS = (COMPARISON_SHORT,)
