"""Columns that say what a row is about: the cell, how it ended, the model, the recipe, the
records and the fingerprints."""

from pipelines.compare.columns.quality import SHARE
from pipelines.lake.schema import count, flag, group, moment, real, text, whole

# These describe a single run, so they are no columns of comparison.
SEED = group("cell", "spec", whole("seed", "Seed of the random numbers that the run was trained with."))
STARTED_AT = group("outcome", "result", moment("started_at", "Time at which the attempt started."))
CELL = (
    *group(
        "cell", "configuration",
        text("model", "Name of the model in experiments.yaml; for a teacher, the name of its provider."),
        text("method", "Name of the method in experiments.yaml; teacher for answers that came from a provider."),
        text("profile", "Name of the profile in experiments.yaml."),
        whole("seeds", "Number of seeds that the profile asks for; outside the profile, that were run."),
        text("model_note", "What to know about the model before reading its numbers, such as random or 4-bit weights."),
    ),
    *group(
        "cell", "result",
        text("run_id", "Id of the attempt, unique and in order of time; in comparison, of the newest among the seeds."),
    ),
    *group(
        "cell", "comparison",
        whole("seeds_ok", "Number of seeds whose status is ok.", better="higher"),
        flag("outside_profile",
             "Whether the cell was run by hand and the profile does not name it; such a row is never picked.",
             heading="outside"),
    ),
)  # fmt: skip
OUTCOME = (
    *group(
        "outcome", "result",
        text(
            "status",
            "How it ended or stands: ok, out_of_memory, killed, timed_out, diverged, failed, unavailable, queued, running, lost or "
            "missing.",
        ),
        text("phase", "Phase that it reached: load, probe, search, train, save or evaluate."),
        text("status_detail", "Why the status is what it is, or what could not be measured."),
        moment("finished_at", "Time at which the attempt ended.", heading="finished"),
        text("device", "Processor or GPU that it ran on; for a teacher, the model of its provider."),
    ),
    *group(
        "outcome", "comparison",
        flag("is_stale",
             "Whether data, recipe, code, machine or evaluation have changed, or its memory budget is now below its peak.",
             heading="stale"),
        text("stale_because",
             "What has changed since: data, recipe, code, machine, evaluation, or a memory budget that is now below its peak."),
        text("advice", "What the numbers say, or what to do about the outcome, in one sentence."),
    ),
)  # fmt: skip
MODEL = (
    *group(
        "model", "training",
        text("weights_dtype", "Data type of the base weights while training, such as float32, bfloat16, int8 or nf4."),
        text("fast_paths",
             "Parts that Featherweight's faster code computed: head, gates, adapters, products; none if there are none."),
        whole("layers", "Number of transformer layers."),
        whole("hidden_size", "Width of the hidden states."),
        count("trainable_params", "Number of parameters that training changes; 0 for an untouched model.", heading="trainable"),
        count("total_params", "Number of parameters of the model, the adapter's included."),
        real("artifact_mb", "Size on disk of the trained model or adapter.", "MB", 0, better="lower", heading="MB on disk"),
    ),
    *group(
        "model", "comparison",
        flag("fast_path",
             "Whether Featherweight's faster code computed the adapters, not PEFT's; times compare where it is equal."),
    ),
    *group(
        "model", "comparison",
        text("dropped_layers",
             "Layers that were left out of the model it is made from, such as 12-15 (0 is the first); NULL for a whole model."),
    ),
    *group(
        "model", "result",
        text("weights_revision", "Commit of the model hub, or version of the package, that the weights came from."),
    ),
    *group(
        "model", "spec",
        text("weights_fingerprint", "Hash of the content of the weights and tokenizer that the attempt used."),
    ),
)  # fmt: skip
RECIPE = (
    *group(
        "recipe", "spec",
        real("learning_rate", "Peak learning rate: the configured one, or the best of those that were tried.", None, None),
        text("learning_rate_source",
             "Level of experiments.yaml that set the learning rate; search or tune where it was searched for."),
        text("optimizer", "Name of the optimizer; with LoRA+ also the ratio of B's learning rate to A's."),
        whole("rank", "Rank of the adapter, where the method's settings name one."),
        real("alpha",
             "Scaling of the adapter as set: LoRA's update is multiplied by alpha / rank, with rslora by alpha / √rank.",
             None, 0),
        text("peft", "Settings of an adapter by PEFT's own configuration class, as JSON; NULL for every other method."),
        whole("max_length", "Length of the longest example that the recipe allows.", "tokens"),
        whole("micro_batch_tokens",
              "Padded tokens of one forward pass, as used; rows that differ are not compared in memory and speed.", "tokens"),
        whole("devices", "Number of devices that train the cell together."),
        text("sharding", "How the work is divided over the devices: none, ddp, fsdp or a stage of DeepSpeed ZeRO."),
        text("launcher", "What started the training processes: the launcher that the profile names."),
    ),
    *group(
        "recipe", "training",
        flag("learning_rate_at_edge", "Whether the chosen learning rate is the smallest or largest of those tried."),
        whole("best_step", "Optimizer step with the lowest validation loss, where early stopping is on."),
        whole("last_step", "Number of optimizer steps done."),
    ),
    *group(
        "recipe", "comparison",
        text("rates",
             "How the learning rate was chosen: tuned, shared (preset, not searched for) or edge (smallest or largest tried)."),
    ),
    *group(
        "recipe", "evaluation",
        text("template_arguments", "Arguments given to the chat template, as JSON; NULL where there are none."),
    ),
)  # fmt: skip
RECORDS = (
    *group(
        "records", "training",
        count("train_records", "Number of training records selected for the cell."),
        count("train_records_left_out", "Number of training records from which nothing could be learned.", better="lower"),
        real("truncated_share", "Share of training records with a part too long for max_length or for the model.", SHARE, 3,
             better="lower"),
        real("unshown_share", "Share of training records that the model's chat template cannot show.", SHARE, 3,
             better="lower"),
    ),
    *group(
        "records", "evaluation",
        count("eval_records", "Number of evaluation records measured: those that fit every model of the profile.",
              heading="records"),
        count("eval_records_left_out", "Number of evaluation records left out because some model of the profile cannot read them.",
              better="lower"),
        text("eval_set", "Hash of the ids of the evaluation records; only rows with the same one are compared."),
        text("general_set", "Hash of the general texts that were measured."),
    ),
)  # fmt: skip
PROVENANCE = group(
    "provenance", "spec",
    text("data_fingerprint", "Hash of the training examples."),
    text("recipe_fingerprint", "Hash of the weights and of every setting that decides training and measurements."),
    text("code_version", "Hash of the training code."),
    text("evaluation_fingerprint", "Hash of the records, settings and code of the evaluation that is shown."),
)  # fmt: skip
