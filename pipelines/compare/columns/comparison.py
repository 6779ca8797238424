"""The tables that people decide by: comparison, its short view, picks and history."""

from pipelines.compare.columns.costs import LATENCY, MEMORY, TIME
from pipelines.compare.columns.origin import CELL, MODEL, OUTCOME, PROVENANCE, RECIPE, RECORDS, SEED
from pipelines.compare.columns.quality import ANSWERS, BITS, JUDGE, PAIRS, QUALITY, VOTES
from pipelines.lake.schema import Table, View, count, flag, group, real, text, whole

# Readers that address columns by position rely on this order. Columns that are missing here come
# last.
ORDER = """
model method status phase status_detail is_stale stale_because seeds seeds_ok train_loss eval_loss eval_bits_per_byte
eval_bits_per_byte_low eval_bits_per_byte_high eval_bits_per_byte_std base_bits_per_byte train_seconds speedup_vs_full
tokens_per_second load_seconds quantize_seconds examples_to_target seconds_to_target train_usd learning_rate optimizer
weights_dtype layers hidden_size truncated_share peak_memory_gb memory_vs_full estimated_memory_gb memory_budget_gb
process_memory_mean_mb process_memory_std_mb process_memory_min_mb process_memory_max_mb gpu_allocated_peak_gb
gpu_allocated_pct gpu_memory_access_pct trainable_params total_params artifact_mb bleu chrf rouge_l meteor
judge_correctness judge_helpfulness answer_tokens p50_latency_ms is_pareto advice data_fingerprint recipe_fingerprint
code_version device finished_at run_id profile eval_records eval_set evaluation_fingerprint load_peak_memory_gb
ratios_because model_note estimated_half_batch_gb p95_latency_ms latency_mode answer_tokens_per_second answers
general_bits_per_byte forgetting_bits_per_byte general_set judge_correctness_low judge_correctness_high
judge_helpfulness_low judge_helpfulness_high judged_answers judge_agreement judge_model judge_because target_loss
quantize_peak_memory_gb search_seconds learning_rate_source learning_rate_at_edge rank alpha weights_revision
delta_base delta_base_low delta_base_high delta_full delta_full_low delta_full_high other_cpu_pct speed_disturbed
devices sharding launcher memory_in_all_gb unshown_share template_arguments weights_fingerprint best_step last_step
max_length train_records train_records_left_out eval_records_left_out stopped_seconds fast_paths peft other_seconds
host_peak_memory_gb gpu_reserved_peak_gb gpu_device_peak_gb pageable_gb rates seed_spread_bits_per_byte seed_spread_source
evaluation_seconds fast_path adapter_start_seconds answers_ended_pct metrics_because
win_rate_vs_base win_rate_vs_base_low win_rate_vs_base_high pair_wins pair_ties pair_losses pair_agreement pair_judge pair_note
preference_win_rate preference_win_rate_low preference_win_rate_high preference_votes preference_note dropped_layers
retrieved retrieval_method delta_retrieval delta_retrieval_low delta_retrieval_high delta_retrieval_chrf
delta_retrieval_chrf_low delta_retrieval_chrf_high benchmark_seconds benchmark_accuracy benchmark_accuracy_low
benchmark_accuracy_high forgetting_accuracy forgetting_accuracy_low forgetting_accuracy_high outside_profile
"""
PLACES = {name: place for place, name in enumerate(ORDER.split())}
GROUPS = (
    CELL,
    OUTCOME,
    QUALITY,
    MEMORY,
    TIME,
    LATENCY,
    ANSWERS,
    JUDGE,
    PAIRS,
    VOTES,
    MODEL,
    RECIPE,
    RECORDS,
    PROVENANCE,
)
COMPARISON = Table(
    "comparison",
    "One row for each model and method of the profile, and for each cell outside it that was run by hand: measured numbers are "
    "means over the seeds, and outcome and recipe are those of the attempt with the worst status.",
    tuple(
        sorted(
            (column for columns in GROUPS for column in columns),
            key=lambda column: PLACES.get(column.name, len(PLACES)),
        )
    ),
)
COMPARISON_SHORT = View(
    "comparison_short",
    "The columns of comparison that are read most, in reading order.",
    COMPARISON,
    COMPARISON.pick(
        "model", "method", "status", "is_stale", "eval_bits_per_byte", "delta_base", "delta_base_low", "delta_base_high", "rates",
        "chrf", "peak_memory_gb", "memory_vs_full", "estimated_memory_gb", "train_seconds", "speedup_vs_full", "tokens_per_second",
        "speed_disturbed", "train_usd", "trainable_params", "artifact_mb", "p50_latency_ms", "is_pareto", "advice",
    ),
)  # fmt: skip
PICKS = Table(
    "picks",
    "The cells to prefer, one row for each question: best quality, best value, least memory.",
    (
        *group("pick", "comparison",
            text("pick", "Question that the row answers: best quality, best value or least memory.")),
        *COMPARISON.pick("model", "method"),
        *group("pick", "comparison",
            text("verdict", "How sure the pick is: clear, no clear winner, the only one, or nothing to pick."),
            text("candidates", "Rows that the numbers cannot tell apart, or the one that was picked."),
            text("reason", "Why this row is picked, or why none is."),
        ),
        *COMPARISON.pick("eval_bits_per_byte", "delta_base", "delta_base_low", "delta_base_high", "peak_memory_gb",
                         "train_seconds", "train_usd", "eval_records"),
        *group("pick", "comparison",
            whole("compared", "Number of rows that the pick was made among."),
            text("left_out", "How many trained rows were not compared, and why."),
        ),
        *COMPARISON.pick("run_id", "rates", "speed_disturbed"),
    ),
)  # fmt: skip
HISTORY = Table(
    "history",
    "One row for each run that ended ok and was evaluated, compared with the run of the same cell before it.",
    (
        *COMPARISON.pick("model", "method"),
        *SEED,
        *COMPARISON.pick("finished_at", "run_id"),
        *group("change", "comparison",
            count("shared_records",
                  "Number of evaluation records that this run shares with the one before it; all for a cell's first run."),
            real("bits_per_byte", "Bits that the model needs for each byte of the completions of the shared records.", BITS, 4,
                 better="lower", heading="bits/byte"),
        ),
        *group("change", "comparison", real("minutes", "Time of the optimizer steps.", "min", 1, better="lower")),
        *COMPARISON.pick("peak_memory_gb"),
        *group("change", "comparison",
            real("delta_previous", "bits_per_byte minus that of the run before, on the shared records.", BITS, 4, better="lower",
                 heading="change"),
            real("low", "Lower end of the 95 % interval of delta_previous.", BITS, 4, heading="from"),
            real("high", "Upper end of the 95 % interval of delta_previous.", BITS, 4, heading="to"),
            text("changed", "What differs from the run before: data, recipe, code, machine.", heading="what changed"),
            flag("is_newest", "Whether this is the newest run of its cell."),
            text("worse", "How the newest run is worse than the ones before it, beyond noise."),
        ),
        *COMPARISON.pick("other_cpu_pct", "speed_disturbed"),
    ),
)  # fmt: skip
