"""Columns of quality: losses on held-out records, differences with their intervals, scores of answers, the judge's word."""

from pipelines.schema import count, flag, group, real, text

BITS, NATS, SHARE = "bits per byte", "nats per token", "share, 0 to 1"
QUALITY = (
    *group(
        "quality", "training",
        real("train_loss", "Loss of the last optimizer step on its own examples, per completion token.", NATS, 3, better="lower",
             heading="training loss"),
    ),
    *group(
        "quality", "evaluation",
        real("eval_loss", "Mean loss per completion token of the evaluation records, the end token included.", NATS, 4,
             better="lower", heading="held-out loss"),
        real("eval_bits_per_byte",
             "Bits that the model needs for each byte of the held-out completions, comparable across tokenizers.", BITS, 4,
             better="lower", heading="bits/byte"),
        real("general_bits_per_byte", "Bits for each byte of short general texts, which nothing is trained on.", BITS, 4,
             better="lower"),
    ),
    *group(
        "quality", "comparison",
        real("eval_bits_per_byte_low", "Lower end of the 95 % interval of eval_bits_per_byte over the records and training runs.",
             BITS, 4),
        real("eval_bits_per_byte_high", "Upper end of the 95 % interval of eval_bits_per_byte over the records and training runs.",
             BITS, 4),
        real("eval_bits_per_byte_std", "Standard deviation of eval_bits_per_byte over the seeds.", BITS, 4, better="lower"),
        real("seed_spread_bits_per_byte",
             "Standard deviation between training runs, beyond what records explain; verdicts on one run are widened by it.",
             BITS, 4, better="lower"),
        text("seed_spread_source", "Methods whose training runs showed seed_spread_bits_per_byte."),
        real("base_bits_per_byte", "eval_bits_per_byte of the untouched model, with the same weights and on the same records.",
             BITS, 4, heading="base"),
        real("delta_base", "eval_bits_per_byte minus the untouched model's; below zero, tuning helped.", BITS, 4, better="lower",
             heading="Δ base"),
        real("delta_base_low", "Lower end of the 95 % interval of delta_base, paired by record.", BITS, 4, heading="from"),
        real("delta_base_high", "Upper end of the 95 % interval of delta_base, paired by record.", BITS, 4, heading="to"),
        real("delta_full", "eval_bits_per_byte minus that of full fine-tuning of the same model.", BITS, 4, better="lower",
             heading="Δ full"),
        real("delta_full_low", "Lower end of the 95 % interval of delta_full, paired by record.", BITS, 4),
        real("delta_full_high", "Upper end of the 95 % interval of delta_full, paired by record.", BITS, 4),
        real("forgetting_bits_per_byte", "general_bits_per_byte minus the untouched model's; above zero, tuning forgot something.",
             BITS, 4, better="lower"),
        flag("is_pareto",
             "Whether no comparable row is as good in quality, memory and time and clearly better in one; "
             "NULL where its speed is disturbed.",
             heading="Pareto"),
    ),
)  # fmt: skip
POINTS = "points, 0 to 100"
ANSWERS = group(
    "answers", "evaluation",
    count("answers", "Number of evaluation prompts that were answered."),
    count("answer_tokens", "Number of tokens generated in all answers together."),
    real("bleu", "BLEU of the answers against the references.", POINTS, 1, better="higher", heading="BLEU"),
    real("chrf", "chrF (overlap of character n-grams) of the answers against the references.", POINTS, 1, better="higher",
         heading="chrF"),
    real("rouge_l", "ROUGE-L (longest common subsequence of words) of the answers, as F1, on average.", POINTS, 1, better="higher",
         heading="ROUGE-L"),
    real("meteor", "METEOR (exact and stem matches of words) of the answers, on average.", POINTS, 1, better="higher",
         heading="METEOR"),
    real("answers_ended_pct", "Percentage of the answers that ended by themselves, not by the limit of tokens; NULL where unknown.",
         "%", 0, better="higher", heading="% ended"),
) + group(
    "answers", "comparison",
    text("metrics_because", "Why the share of a metric of one's own task is missing, and what to do."),
)  # fmt: skip
JUDGE = group(
    "judge", "judge",
    real("judge_correctness", "Share of the judged answers that the judge calls correct.", SHARE, 2, better="higher"),
    real("judge_correctness_low", "Lower end of the 95 % interval of judge_correctness.", SHARE, 2),
    real("judge_correctness_high", "Upper end of the 95 % interval of judge_correctness.", SHARE, 2),
    real("judge_helpfulness", "Share of the judged answers that the judge gives 4 or 5 of 5 for helpfulness.", SHARE, 2,
         better="higher"),
    real("judge_helpfulness_low", "Lower end of the 95 % interval of judge_helpfulness.", SHARE, 2),
    real("judge_helpfulness_high", "Upper end of the 95 % interval of judge_helpfulness.", SHARE, 2),
    count("judged_answers", "Number of answers with a readable verdict of the judge."),
    real("judge_agreement", "Share of the answers judged twice that got the same verdict both times.", SHARE, 2, better="higher"),
    text("judge_model", "Model that judged the answers."),
    text("judge_because", "Why verdicts are missing, and how to get them."),
)  # fmt: skip
PAIRS = group(
    "pairs", "judge",
    real("win_rate_vs_base",
         "Share of the cell's answers that the judge prefers to the untouched model's, a tie as half; NULL without judging.pairs.",
         SHARE, 2, better="higher", heading="win rate"),
    real("win_rate_vs_base_low", "Lower end of the 95 % interval of win_rate_vs_base, paired by record.", SHARE, 2),
    real("win_rate_vs_base_high", "Upper end of the 95 % interval of win_rate_vs_base, paired by record.", SHARE, 2),
    count("pair_wins", "Number of pairs that the cell's answer wins in both orders.", better="higher"),
    count("pair_ties", "Number of pairs that are ties, that are won in one order alone, or whose answers are alike."),
    count("pair_losses", "Number of pairs that the untouched model's answer wins in both orders.", better="lower"),
    real("pair_agreement", "Share of the pairs asked about that the judge judged alike in both orders.", SHARE, 2,
         better="higher"),
    text("pair_judge", "Model that judged the pairs."),
    text("pair_note", "Why pairs or the win rate are missing and how to get them, or what may favour one side."),
)  # fmt: skip
VOTES = group(
    "votes", "vote",
    real("preference_win_rate",
         "Share of people's votes between the cell's answers and the untouched model's that the cell wins, a tie as half.",
         SHARE, 2, better="higher", heading="votes won"),
    real("preference_win_rate_low", "Lower end of the 95 % interval of preference_win_rate.", SHARE, 2),
    real("preference_win_rate_high", "Upper end of the 95 % interval of preference_win_rate.", SHARE, 2),
    count("preference_votes", "Number of votes that preference_win_rate rests on."),
    text("preference_note", "Which votes are left out, and why."),
)  # fmt: skip
