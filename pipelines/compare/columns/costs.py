"""Columns of what a cell costs: memory, time and money."""

from pipelines.schema import count, flag, group, real, text

PERCENT, RATE = "%", "tokens/s"
MEMORY = (
    *group(
        "memory", "training",
        real("peak_memory_gb",
             "Peak memory of training after loading: the GPU's on CUDA, else the process's; of several devices the largest.", "GB",
             2, better="lower", heading="peak GB"),
        real("memory_in_all_gb", "Sum of the peak memory of all devices, where several train together.", "GB", 2, better="lower"),
        real("process_memory_mean_mb", "Mean resident memory of the training process, sampled every 0.1 s.", "MB", 0,
             better="lower"),
        real("process_memory_std_mb", "Standard deviation of the resident memory of the training process.", "MB", 0),
        real("process_memory_min_mb", "Smallest resident memory sampled while training.", "MB", 0),
        real("process_memory_max_mb", "Largest resident memory sampled while training.", "MB", 0, better="lower"),
        real("gpu_allocated_peak_gb", "Peak memory that PyTorch allocated on the GPU.", "GB", 2, better="lower"),
        real("gpu_allocated_pct", "Peak memory that PyTorch allocated on the GPU, as a percentage of the card's memory.",
             PERCENT, 1, better="lower"),
        real("gpu_memory_access_pct", "Percentage of time in which the GPU's memory was read or written, as NVML reports it.",
             PERCENT, 1),
        real("load_peak_memory_gb", "Peak resident memory of the process while it loads and quantizes the model.", "GB", 2,
             better="lower"),
        real("quantize_peak_memory_gb", "Peak memory while weights are quantized: the GPU's on CUDA, else the process's.", "GB", 2,
             better="lower"),
    ),
    *group(
        "memory", "comparison",
        real("memory_vs_full", "Peak memory divided by that of full fine-tuning of the same model.", "ratio", 2, better="lower",
             heading="vs full"),
    ),
    *group(
        "memory", "estimate",
        real("estimated_memory_gb", "Peak memory of training as predicted beforehand; of several seeds the largest.", "GB", 2,
             better="lower", heading="predicted"),
        real("estimated_half_batch_gb", "Predicted peak memory with micro-batches half as large; of several seeds the largest.",
             "GB", 2, better="lower"),
    ),
    *group(
        "memory", "spec",
        real("memory_budget_gb", "Largest memory that the run may use on one device; NULL where there is no limit.", "GB", 2,
             heading="budget GB"),
    ),
)  # fmt: skip
TIME = (
    *group(
        "time and cost", "training",
        real("train_seconds", "Time of the optimizer steps; evaluating, saving and suspended time are left out.", "s", 0,
             better="lower", heading="train s"),
        real("tokens_per_second", "Tokens trained per second, without padding and without the first optimizer step.", RATE, 0,
             better="higher", heading="tok/s"),
        real("load_seconds", "Time to load the model, without quantizing.", "s", 1, better="lower"),
        real("quantize_seconds", "Time to quantize the weights.", "s", 1, better="lower"),
        real("search_seconds", "Time to try the learning rates that the recipe lists.", "s", 0, better="lower"),
        real("stopped_seconds", "Time in which the process was suspended during training.", "s", 1, better="lower"),
        real("other_cpu_pct", "Percentage of all processor time that other programs used during training.", PERCENT, 1,
             better="lower"),
    ),
    *group(
        "time and cost", "comparison",
        real("speedup_vs_full", "train_seconds of full fine-tuning of the same model divided by this row's.", "ratio", 2,
             better="higher", heading="speedup"),
        text("ratios_because", "Why the row is not compared with full fine-tuning."),
        flag("speed_disturbed", "Whether other programs used more than 10 % of the processors, so that the speed is in doubt."),
        real("target_loss", "Held-out loss to reach: as configured, else the worst final loss of comparable rows that learned.",
             "nats per token", 3),
        count("examples_to_target", "Training examples until the held-out loss reached target_loss, as a mean over the seeds.",
              better="lower"),
        real("seconds_to_target", "Training time until the held-out loss reached target_loss, as a mean over the seeds.", "s", 0,
             better="lower"),
        real("train_usd", "Price of train_seconds at the profile's price per hour.", "USD", 2, better="lower"),
    ),
)  # fmt: skip
LATENCY = group(
    "serving", "evaluation",
    real("answer_tokens_per_second", "Tokens generated per second while the prompts are answered in batches.", RATE, 1,
         better="higher"),
    real("p50_latency_ms", "Median time of one answer that is generated alone.", "ms", 0, better="lower", heading="p50 ms"),
    real("p95_latency_ms", "95th percentile of the time of one answer that is generated alone; NULL under 20 answers.", "ms", 0,
         better="lower", heading="p95 ms"),
    text("latency_mode", "How the model answered when latency was measured: merged (no adapter beside the weights) or attached."),
)  # fmt: skip
