"""The tables of what was measured record by record and mode by mode: answers, losses, serving, bit widths."""

from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.columns.origin import SEED
from pipelines.compare.columns.quality import BITS, POINTS
from pipelines.schema import Table, count, flag, group, real, text, whole

RUN = COMPARISON.pick("run_id", "model", "method")
EXAMPLE_ID = group("record", "cleaning", text("example_id", "Hash of the example's text, its name in sft_examples."))
LANGUAGE = group("record", "cleaning", text("language", "Language of the record, such as en or ko."))
EVALUATION_ANSWERS = Table(
    "evaluation_answers",
    "One row for each answer of a trained model, or of a teacher, to an evaluation prompt.",
    (
        *RUN, *EXAMPLE_ID,
        *group("answer", "evaluation",
            text("prompt", "What was asked."),
            text("reference", "Answer that the record holds."),
            text("answer", "Answer that was generated."),
            whole("answer_tokens", "Number of tokens of the answer."),
            real("latency_ms", "Time of the answer by itself; NULL where it was only generated in a batch.", "ms", 0,
                 better="lower"),
            real("chrf", "chrF (overlap of character n-grams) of the answer against the reference.", POINTS, 1, better="higher",
                 heading="chrF"),
            real("bleu", "Sentence BLEU of the answer against the reference.", POINTS, 1, better="higher", heading="BLEU"),
            real("rouge_l", "ROUGE-L (longest common subsequence of words) of the answer, as F1.", POINTS, 1, better="higher",
                 heading="ROUGE-L"),
            real("meteor", "METEOR (exact and stem matches of words) of the answer.", POINTS, 1, better="higher",
                 heading="METEOR"),
        ),
        *LANGUAGE,
        *group("answer", "evaluation", whole("shots", "Number of examples shown in the prompt; NULL where there are none.")),
        *group("judge", "judge",
            flag("judge_correct", "Whether the judge calls the answer correct."),
            whole("judge_helpfulness", "Helpfulness that the judge gives the answer.", "points, 1 to 5", better="higher"),
            text("judge_reasons", "Reasons that the judge gives for its verdict."),
            text("judge_model", "Model that judged the answer."),
        ),
        *group("answer", "evaluation",
            flag("ended", "Whether the answer ended by itself, not by the limit of tokens; NULL where that is not known.")),
    ),
)  # fmt: skip
EVALUATION_RECORDS = Table(
    "evaluation_records",
    "One row for each evaluation record and attempt: its loss, from which intervals are computed.",
    (
        *RUN, *EXAMPLE_ID, *LANGUAGE,
        *group("loss", "evaluation",
            real("nats", "Negative log-likelihood of all completion tokens of the record.", "nats", 2, better="lower"),
            whole("tokens", "Number of completion tokens, end and template tokens included."),
            real("scored_nats", "Negative log-likelihood of the tokens of the answer itself, without end and template tokens.",
                 "nats", 2, better="lower"),
            whole("bytes", "UTF-8 length of the answers of the record.", "bytes"),
        ),
        *group("loss", "comparison",
            real("bits_per_byte", "Bits that the model needs for each byte: scored_nats / (ln 2 × bytes).", BITS, 4, better="lower",
                 heading="bits/byte")),
    ),
)  # fmt: skip
SERVING = Table(
    "serving",
    "One row for each way of serving a trained model and each batch size: its speed and memory.",
    (
        *COMPARISON.pick("model", "method", "run_id"),
        *group("serving", "evaluation",
            text("mode",
                 "How the model answers: merged (nothing beside its weights), attached (an adapter), or mixed (several adapters)."),
            whole("batch_size", "Number of requests answered together."),
            whole("new_tokens", "Number of tokens generated for each request."),
            real("p50_latency_ms", "Median time that a request waits for its whole answer.", "ms", 0, better="lower",
                 heading="p50 ms"),
            real("tokens_per_second", "Tokens generated per second, over all requests of the batch.", "tokens/s", 1,
                 better="higher", heading="tok/s"),
            real("peak_memory_gb", "Peak memory while answering: the GPU's on CUDA, else the process's.", "GB", 2,
                 better="lower", heading="peak GB"),
        ),
    ),
)  # fmt: skip
QUANTIZED_INFERENCE = Table(
    "quantized_inference",
    "One row for each trained result and bit width that it was run at: quality, size, speed and memory.",
    (
        *COMPARISON.pick("model", "method"), *SEED, *COMPARISON.pick("run_id"),
        *group("bit width", "configuration",
            text("format", "Bit width: fp32, bf16, int8, nf4, or a GGUF type such as gguf-q4_k_m.")),
        *group("bit width", "export", text("engine", "What ran the model: transformers or llama.cpp, and on which device.")),
        *group("outcome", "result",
            text("status", "How the measurement ended: ok, or why there are no numbers."),
            text("phase", "Phase in which it ended: load or evaluate; export where no file could be written."),
            text("detail", "Why the status is what it is, or what to know about this bit width."),
        ),
        *group("bit width", "export",
            real("bits_per_byte", "Bits that the model needs for each byte of the held-out completions.", BITS, 4,
                 better="lower", heading="bits/byte")),
        *group("bit width", "comparison",
            real("bits_per_byte_vs_fp32", "bits_per_byte minus that of the same result in fp32.", BITS, 4, better="lower",
                 heading="vs fp32")),
        *group("bit width", "export",
            real("size_mb", "Size of the weights in memory; of a GGUF file, on disk.", "MB", 1, better="lower", heading="MB"),
            real("p50_latency_ms", "Median time of one answer that is generated alone.", "ms", 0, better="lower",
                 heading="p50 ms"),
            real("tokens_per_second", "Tokens generated per second, one answer at a time.", "tokens/s", 1, better="higher",
                 heading="tok/s"),
            real("peak_memory_gb", "Peak memory while answering: the GPU's on CUDA, else the process's.", "GB", 2,
                 better="lower", heading="peak GB"),
            real("load_seconds", "Time to load the model.", "s", 1, better="lower"),
            count("answer_tokens", "Number of tokens generated in all answers together."),
            count("eval_records", "Number of examples measured; a conversation may make several."),
            text("eval_set", "Hash of the ids of the evaluation records."),
        ),
        *group("outcome", "comparison", flag("is_stale", "Whether a newer attempt at the same cell exists.")),
        *COMPARISON.pick("device", "memory_budget_gb", "finished_at", "model_note"),
    ),
)  # fmt: skip
