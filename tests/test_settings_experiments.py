"""Loading checks the whole of experiments.yaml, and each setting is looked up at its documented
level."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from pipelines.clean.read import raw_records
from pipelines.errors import UsageError
from pipelines.hardware import machine
from pipelines.lake.files import write_json, write_jsonl
from pipelines.lake.paths import PROJECT, DataRoot
from pipelines.settings import experiments
from pipelines.settings.experiments import Experiments, profile_name
from pipelines.settings.method_settings import Method
from pipelines.settings.training import TrainingOverrides

SMALL = """\
models:
  tiny:
    source: {path: /models/tiny}
    prompt: alpaca
    lora_targets: [q_proj, v_proj]
  other:
    source: {hub: somebody/other}
    prompt: chat
    lora_targets: [c_attn, c_fc]
    attention_targets: [c_attn]
methods:
  base: {kind: none}
  full: {kind: full}
  lora-r8: {kind: lora, rank: 8}
training:
  epochs: 1
profiles:
  local:
    models: [tiny]
    methods: [base, full, lora-r8]
sources:
  corpus: true
providers:
  local: {kind: local, model: tiny}
"""
Load = Callable[..., Experiments]


def written(folder: Path, text: str) -> Path:
    path = folder / "experiments.yaml"
    path.write_text(text, encoding="utf-8")
    return path


RAY = "launcher: ray\n    models: [tiny]\n    ray: "
SLURM = RAY.replace("ray", "slurm")
ZERO = "launcher: torchrun\n    devices: 2\n    sharding: zero2\n    models: [tiny]\n    deepspeed: "


def changed(*changes: tuple[str, str]) -> str:
    text = SMALL
    for old, new in changes:
        assert text.count(old) >= 1, old
        text = text.replace(old, new, 1)
    return text


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load the small file with these replacements made."""
    return lambda *changes: experiments.load(written(tmp_path, changed(*changes)))


def refusal(path: Path | None) -> str:
    """The message of the error.

    pytest.raises would not do: pydantic keeps the contents alive until the process ends.
    """
    try:
        experiments.load(path)
    except UsageError as error:
        return str(error)
    pytest.fail(f"{path} was accepted")


@pytest.fixture(scope="module")
def shipped() -> Experiments:
    return experiments.load(PROJECT / "experiments.yaml")


# --- refused settings, and their messages


@pytest.mark.parametrize("section", [*Experiments.model_fields, "methods.full", "models.tiny", "profiles.local"])
@pytest.mark.parametrize("value", ["3", "[]", "text"])
def test_a_section_of_the_wrong_kind_is_refused_in_our_words_alone(section: str, value: str, tmp_path: Path) -> None:
    tree = yaml.safe_load(SMALL)
    inner, _, name = section.rpartition(".")
    (tree[inner] if inner else tree)[name] = yaml.safe_load(value)
    message = refusal(written(tmp_path, yaml.safe_dump(tree)))
    assert f"got {yaml.safe_load(value)!r}; expected a mapping of names to values" in message
    assert not re.search(r"Input|instance|valid|should|pydantic", message)


@pytest.mark.parametrize("key", sorted(set(Method.model_fields) - set(TrainingOverrides.model_fields)))
def test_a_methods_setting_under_training_is_refused_with_where_it_goes(key: str, tmp_path: Path) -> None:
    path = written(tmp_path, changed(("epochs: 1", f"{key}: 8")))
    with pytest.raises(UsageError) as caught:
        experiments.load(path)
    assert f"training.{key}: unknown key '{key}'; it is a method's" in str(caught.value)
    assert f"methods: {{lora-r8: {{{key}: …}}}}" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "line", "place", "message"),
    [
        ("    prompt: alpaca", "    promt: alpaca", 4, "models.tiny.promt", "did you mean 'prompt'?"),
        ("full: {kind: full}", "full: {kind: full, ranks: 8}", 13, "methods.full.ranks", "rank, alpha, dropout"),
        ("sources:", "sourcs:", 21, "sourcs", "models, methods, training, profiles, sources"),
        ("    models: [tiny]", "    model: [tiny]", 19, "profiles.local.model", "models, methods, languages"),
        ("  epochs: 1", "  epoch: 1", 16, "training.epoch", "did you mean 'epochs'?"),
        (
            "  corpus: true",
            "  corpus: true\n  s3: x",
            23,
            "sources.s3",
            "corpus, local_generator, providers, files, hub",
        ),
        ("{path: /models/tiny}", "{url: /models/tiny}", 3, "models.tiny.source.url", "wheel, file, sha256, hub"),
        ("  epochs: 1", "  learning_rate: {ful: 1.0e-5}", 16, "training.learning_rate.ful", "full, lora"),
    ],
)
def test_an_unknown_key_is_named_with_its_line_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, line: int, place: str, message: str
) -> None:
    # Two comment lines come first, so that a line number that is always 1 would be noticed.
    path = written(tmp_path, "# a\n# b\n" + changed((old, new)))
    first = refusal(path).splitlines()[0]
    assert first.startswith(f"{path}:{line + 2}: {place}: unknown key ")
    assert message in first


@pytest.mark.parametrize(
    ("old", "new", "line", "place", "message_part"),
    [
        (
            "models: [tiny]",
            "models: [tiny, tny]",
            19,
            "profiles.local.models[1]",
            "'tny'; expected one of tiny, other (did you",
        ),
        (
            "[base, full,",
            "[base, fulll,",
            20,
            "profiles.local.methods[1]",
            "'fulll'; expected one of base, full, lora-r8",
        ),
        (
            "local, model: tiny}",
            "local, model: gpt5}",
            24,
            "providers.local.model",
            "'gpt5'; expected one of tiny, other",
        ),
        ("  corpus: true", "  providers: [cloud]", 22, "sources.providers[0]", "'cloud'; expected one of "),
        (
            "{kind: lora, rank: 8}",
            "{kind: lora, rank: 8, data: {provider: cloud}}",
            14,
            "methods.lora-r8.data.provider",
            "'cloud'; expected one of local",
        ),
        (
            "    prompt: alpaca",
            "    prompt: alpaca\n    overrides:\n      lora-r9: {epochs: 2}",
            6,
            "models.tiny.overrides.lora-r9",
            "'lora-r9'; expected one of base, full, lora-r8 (did you mean 'lora-r8'?)",
        ),
        (
            "training:",
            "nightly: {profile: gpu}\ntraining:",
            15,
            "nightly.profile",
            "'gpu'; expected one of auto, local",
        ),
    ],
)
def test_a_name_that_does_not_exist_is_named_with_its_line_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, line: int, place: str, message_part: str
) -> None:
    path = written(tmp_path, changed((old, new)))
    message = refusal(path)
    assert message.startswith(f"{path}:{line}: {place}: got ")
    assert message_part in message


@pytest.mark.parametrize(
    ("old", "new", "line", "detail"),
    [
        ("  epochs: 1", "  epochs: 1\n  epochs: 2", 17, "'epochs' is given twice (first in line 16)"),
        ("  other:", "  tiny:", 6, "'tiny' is given twice (first in line 2)"),
        ("providers:", "models: {}\nproviders:", 23, "'models' is given twice (first in line 1)"),
        ("{kind: none}", "{kind: none, kind: full}", 12, "'kind' is given twice (first in line 12)"),
    ],
)
def test_a_key_given_twice_is_refused(tmp_path: Path, old: str, new: str, line: int, detail: str) -> None:
    path = written(tmp_path, changed((old, new)))
    assert refusal(path) == f"{path}:{line}: {detail}"


@pytest.mark.parametrize(
    ("old", "new", "line", "place", "message_part"),
    [
        ("epochs: 1", "epochs: often", 16, "training.epochs", "got 'often'"),
        ("epochs: 1", "epochs: -1", 16, "training.epochs", "got -1; expected more than 0"),
        ("epochs: 1", "epochs: .inf", 16, "training.epochs", "finite"),
        ("epochs: 1", "epochs: .nan", 16, "training.epochs", "got nan"),
        ("epochs: 1", "max_length: 4", 16, "training.max_length", "got 4"),
        ("epochs: 1", "learning_rate: fast", 16, "training.learning_rate", "got 'fast'"),
        ("epochs: 1", "learning_rate: {}", 16, "training.learning_rate", "expected full, lora or both"),
        ("epochs: 1", "learning_rate: [1.0e-5]", 16, "training.learning_rate", "one rate, two or more"),
        ("epochs: 1", "learning_rate: {lora: [1.0e-4, 1.0e-4]}", 15, "training", "expected different rates to try"),
        (
            "epochs: 1",
            "report_to: [tensorbord]",
            16,
            "training.report_to[0]",
            "tensorboard, wandb, mlflow (did you mean 'tensorboard'?)",
        ),
        ("epochs: 1", "optimizer: sgd", 16, "training.optimizer", "got 'sgd'"),
        ("prompt: alpaca", "prompt: poem", 4, "models.tiny.prompt", "got 'poem'; expected one of chat, alpaca"),
        ("    prompt: alpaca\n", "", 2, "models.tiny.prompt", "is missing"),
        (
            "lora_targets: [q_proj, v_proj]",
            "lora_targets: []",
            5,
            "models.tiny.lora_targets",
            "expected 1 of them or more",
        ),
        (
            "{path: /models/tiny}",
            "{path: /m, hub: a/b}",
            3,
            "models.tiny.source",
            "exactly one of wheel, hub, path, random or from",
        ),
        ("{path: /models/tiny}", "{wheel: a==1}", 3, "models.tiny.source", "file and sha256"),
        (
            "{path: /models/tiny}",
            f"{{wheel: [a==1, b==1], file: [a/0, b/1, b/2], sha256: {'0a' * 32}}}",
            3,
            "models.tiny.source",
            "got 2 packages and 3 files",
        ),
        ("lora_targets: [", "license_link: ftp://x\n    lora_targets: [", 5, "models.tiny.license_link", "https"),
        ("lora_targets: [", "license_link: https://x.y\n    lora_targets: [", 2, "models.tiny", "needs license"),
        ("{kind: full}", "{kind: full, shots: 4}", 13, "methods.full", "belong to kind none, not full"),
        ("sources:", "judging: {judge: nobody}\nsources:", 21, "judging.judge", "expected one of"),
        ("{kind: none}", "{kind: nothing}", 12, "methods.base.kind", "expected one of none, full, lora, adapter"),
        ("rank: 8", "alpha: 8", 14, "methods.lora-r8", "needs rank"),
        (
            "{kind: full}",
            "{kind: full, quantization: nf4}",
            13,
            "methods.full",
            "only the base of an adapter is quantized, not that of kind full",
        ),
        ("rank: 8", "rank: 8, double_quantization: true", 14, "methods.lora-r8", "needs quantization: nf4 or fp4"),
        (
            "{kind: full}",
            "{kind: full, dora: true, rslora: true}",
            13,
            "methods.full",
            "rslora, dora: such settings belong",
        ),
        (
            "rank: 8",
            "rank: 8, quantization: int4",
            14,
            "methods.lora-r8.quantization",
            "expected one of nf4, fp4, int8",
        ),
        ("epochs: 1", "precision: half", 16, "training.precision", "expected one of auto, bf16, fp16, fp32"),
        ("epochs: 1", "attention: flash", 16, "training.attention", "flash_attention_2"),
        ("epochs: 1", "early_stop_patience: 0", 16, "training.early_stop_patience", "expected more than 0"),
        ("  other:", "  Big Model:", 6, "models.Big Model", "expected small letters, digits, dots and dashes"),
        ("  corpus: true", "  files: x.jsonl", 22, "sources.files", "expected a list"),
        ("  corpus: true", "  corpus: false", 21, "sources", "names nothing to train on"),
        ("sources:\n  corpus: true\n", "", 1, "sources", "is missing"),
        ("models: [tiny]", "models: tiny", 19, "profiles.local.models", "expected a list"),
        ("models: [tiny]", "models: []", 19, "profiles.local.models", "expected 1 of them or more"),
        (
            "models: [tiny]",
            "launcher: mpi\n    models: [tiny]",
            19,
            "profiles.local.launcher",
            "local, torchrun, ray, slurm",
        ),
        (
            "models: [tiny]",
            "devices: 2\n    models: [tiny]",
            18,
            "profiles.local",
            "torchrun, ray",
        ),
        ("models: [tiny]", "sharding: ddp\n    models: [tiny]", 18, "profiles.local", "set devices to 2 or more"),
        (
            "models: [tiny]",
            "devices: 2\n    launcher: torchrun\n    models: [tiny]",
            18,
            "profiles.local",
            "sharding ddp, fsdp, zero2 or zero3",
        ),
        ("models: [tiny]", "launcher: ray\n    models: [tiny]", 18, "profiles.local", "needs ray:"),
        (
            "models: [tiny]",
            "deepspeed: {x: 1}\n    models: [tiny]",
            18,
            "profiles.local",
            "belongs to sharding zero2 and",
        ),
        (
            "models: [tiny]",
            ZERO + "{optimizer: {}}",
            18,
            "profiles.local",
            "deepspeed: optimizer: set it under training:",
        ),
        ("models: [tiny]", ZERO + "{zero_optimization: {stage: 1}}", 18, "profiles.local", "sharding: zero2 or zero3"),
        ("models: [tiny]", ZERO + "{zero_optimization: 5}", 18, "profiles.local", "expected a mapping"),
        ("models: [tiny]", "models: [tiny]\n    seeds: [1, 1]", 18, "profiles.local", "seeds: each of them once"),
        (
            "sources:\n",
            "nightly: {cron: 0 25 * * *}\nsources:\n",
            21,
            "nightly.cron",
            "its hour '25' is none from 0 to 23",
        ),
        (
            "sources:\n",
            "nightly:\n  cron: '0 2 31 2 *'\nsources:\n",
            22,
            "nightly.cron",
            "its day 31 never comes in month 2; expected a day that does",
        ),
        (
            "sources:\n",
            "nightly: {cron: '0 2 31 4,jun *'}\nsources:\n",
            21,
            "nightly.cron",
            "never comes in month 4,jun",
        ),
        ("sources:\n", "nightly: {cron: 0 2 * * feb}\nsources:\n", 21, "nightly.cron", "its weekday 'feb' is none"),
        ("sources:\n", "nightly: {cron: mon 2 * * *}\nsources:\n", 21, "nightly.cron", "its minute 'mon' is none"),
        ("sources:\n", "nightly: {cron: 0 ٣ * * *}\nsources:\n", 21, "nightly.cron", "its hour '٣' is none"),
        ("sources:\n", "nightly: {timezone: ../UTC}\nsources:\n", 21, "nightly.timezone", "time zone database"),
        ("sources:\n", "nightly: {timezone: ''}\nsources:\n", 21, "nightly.timezone", "time zone database"),
        ("sources:\n", "nightly: {cron: '@midnight'}\nsources:\n", 21, "nightly.cron", "expected minute, hour"),
        ("sources:\n", "nightly: {timezone: Mars/X}\nsources:\n", 21, "nightly.timezone", "time zone database"),
        (
            "sources:\n",
            "nightly: {alarm_after_hours: 1.0e+12}\nsources:\n",
            21,
            "nightly.alarm_after_hours",
            "expected at most 87600",
        ),
        (
            "models: [tiny]",
            RAY + "{address: 'http://127.0.0.1:abc'}",
            21,
            "profiles.local.ray.address",
            "http://HOST:PORT",
        ),
        ("models: [tiny]", RAY + "{address: 'http://a:secret@b'}", 21, "profiles.local.ray.address", "http://…@b"),
        (
            "epochs: 1",
            "learning_rate: [1.0e-4]",
            16,
            "training.learning_rate",
            "got [0.0001]; expected one rate, two or more",
        ),
        ("models: [tiny]", "ray: {}\n    models: [tiny]", 18, "profiles.local", "belongs to launcher ray, not local"),
        ("models: [tiny]", "launcher: slurm\n    models: [tiny]", 18, "profiles.local", "needs slurm:"),
        ("models: [tiny]", RAY + "{}\n    slurm: {}", 18, "profiles.local", "belongs to launcher slurm, not ray"),
        ("models: [tiny]", SLURM + "{gpu: 1}", 21, "profiles.local.slurm.gpu", "did you mean 'gpus'?"),
        (
            "models: [tiny]",
            SLURM + "{options: [-N2]}",
            21,
            "profiles.local.slurm.options[0]",
            "a long option of sbatch",
        ),
        ("models: [tiny]", SLURM + "{options: [--exp=ALL]}", 21, "profiles.local.slurm.options[0]", "sets that itself"),
        (
            "models: [tiny]",
            SLURM + "{options: [--qos=x]}",
            21,
            "profiles.local.slurm.options[0]",
            "set slurm.qos instead",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_line_and_what_was_expected(
    tmp_path: Path, old: str, new: str, line: int, place: str, message_part: str
) -> None:
    path = written(tmp_path, changed((old, new)))
    message = refusal(path)
    assert message.startswith(f"{path}:{line}: {place}: ")
    assert message_part in message


def test_crontab_fields_are_taken_as_they_are(tmp_path: Path) -> None:
    for cron in (
        "0 2 * * *",
        "*/15 0-6 1,15 jan-mar MON-FRI",
        "5 4 * * 7",
        "0 22 * * 1-5/2",
        "0 2 29 2 *",
        "0 2 31 */2 *",
    ):
        path = written(tmp_path, changed(("sources:\n", f"nightly: {{cron: '{cron}'}}\nsources:\n")))
        assert experiments.load(path).nightly.cron == cron


def test_all_mistakes_are_said_at_once(tmp_path: Path) -> None:
    message = refusal(written(tmp_path, changed(("epochs: 1", "epochs: x"), ("prompt: chat", "prompt: poem"))))
    assert "training.epochs" in message
    assert "models.other.prompt" in message


@pytest.mark.parametrize(
    ("text", "message_part"),
    [
        ("models: [tiny", ":1:14: not YAML"),
        ("models:\n\tx: 1", ":2:1: not YAML"),
        (SMALL + "\x00", "not YAML"),
        (SMALL + "nightly: {cron: 2020-99-99}", "not YAML: month must be in 1..12"),
        (SMALL + "x: &x [*x]", "not YAML"),
        ("? [a, b]\n: 1\n" + SMALL, ":1: a key is a list or a mapping"),
        ("", "got None"),
        ("- a\n- b", "got ['a', 'b']"),
        ("just words", "got 'just words'"),
    ],
)
def test_what_is_no_yaml_mapping_is_refused_with_its_place(tmp_path: Path, text: str, message_part: str) -> None:
    path = written(tmp_path, text)
    message = refusal(path)
    assert message.startswith(str(path))
    assert message_part in message


def test_a_file_that_is_missing_a_folder_or_not_utf8_is_named(tmp_path: Path) -> None:
    assert "no such file; set FEATHERWEIGHT_EXPERIMENTS" in refusal(tmp_path / "none.yaml")
    assert str(tmp_path) in refusal(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"# caf\xe9\n" + SMALL.encode())
    assert "latin.yaml: byte 5 is not UTF-8" in refusal(tmp_path / "latin.yaml")


def test_the_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATHERWEIGHT_EXPERIMENTS", str(written(tmp_path, changed(("epochs: 1", "epochs: 7")))))
    assert experiments.load().training.epochs == 7
    monkeypatch.setenv("FEATHERWEIGHT_EXPERIMENTS", str(tmp_path / "gone.yaml"))
    assert str(tmp_path / "gone.yaml") in refusal(None)


def test_loaded_settings_cannot_be_changed(load: Load) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load().training.epochs = 3


@pytest.mark.parametrize("what", ["model", "method", "profile"])
def test_asking_for_an_unknown_name_says_which_there_are(load: Load, what: str) -> None:
    known = {"model": "tiny, other", "method": "base, full, lora-r8", "profile": "local"}[what]
    with pytest.raises(UsageError, match=f"unknown {what} 'nope'; expected one of {known}"):
        getattr(load(), what)("nope")


# --- levels and their order

LEVELS = [
    ("  epochs: 1", "  epochs: 11"),
    ("    models: [tiny]", "    models: [tiny]\n    training: {epochs: 12}"),
    ("{kind: lora, rank: 8}", "{kind: lora, rank: 8, epochs: 13}"),
    ("    prompt: alpaca", "    prompt: alpaca\n    epochs: 14"),
    (
        "    lora_targets: [q_proj, v_proj]",
        "    lora_targets: [q_proj, v_proj]\n    overrides: {lora-r8: {epochs: 15}}",
    ),
]


@pytest.mark.parametrize("levels", range(1, 6))
def test_each_level_goes_over_those_before_it(load: Load, levels: int) -> None:
    loaded = load(*LEVELS[:levels])
    assert loaded.training_for("local", "tiny", "lora-r8").epochs == 10 + levels


@pytest.mark.parametrize("level", range(1, 5))
def test_each_level_is_heard_when_it_alone_speaks(load: Load, level: int) -> None:
    loaded = load(("  epochs: 1", "  weight_decay: 0.0"), LEVELS[level])
    assert loaded.training_for("local", "tiny", "lora-r8").epochs == 11 + level


def test_a_level_speaks_only_for_its_own_model_and_method(load: Load) -> None:
    loaded = load(*LEVELS)
    assert loaded.training_for("local", "tiny", "full").epochs == 14, "the override is for lora-r8, the model for both"
    assert loaded.training_for("local", "other", "lora-r8").epochs == 13
    assert loaded.training_for("local", "other", "full").epochs == 12


def test_a_later_false_or_zero_goes_over_an_earlier_value(load: Load) -> None:
    loaded = load(
        ("  epochs: 1", "  weight_decay: 0.5\n  gradient_checkpointing: true"),
        ("{kind: full}", "{kind: full, gradient_checkpointing: false, weight_decay: 0}"),
    )
    settings = loaded.training_for("local", "tiny", "full")
    assert (settings.gradient_checkpointing, settings.weight_decay) == (False, 0.0)
    assert loaded.training_for("local", "tiny", "lora-r8").gradient_checkpointing is True


def test_each_kind_has_its_own_learning_rate(load: Load) -> None:
    loaded = load(("epochs: 1", "learning_rate: {full: 3.0e-5, lora: 4.0e-4}"))
    assert loaded.training_for("local", "tiny", "full").learning_rate == 3e-5
    assert loaded.training_for("local", "tiny", "lora-r8").learning_rate == 4e-4


def test_the_source_of_a_learning_rate_is_the_level_that_named_it(load: Load) -> None:
    pair = "attention_targets: [c_attn]\n    overrides: {full: {learning_rate: 3e-5, learning_rate_source: tune}}"
    methods = "    methods: [base, full, lora-r8]"
    rates = "    training: {learning_rate: {lora: [1e-4, 3e-4]}}"
    loaded = load((methods, f"{methods}\n{rates}"), ("attention_targets: [c_attn]", pair))
    chosen = [
        loaded.training_for("local", model, method) for model in ("tiny", "other") for method in ("full", "lora-r8")
    ]
    assert [(one.learning_rate, one.learning_rate_source) for one in chosen] == [
        (2e-5, "default"), ([1e-4, 3e-4], "search"), (3e-5, "tune"), ([1e-4, 3e-4], "search"),
    ]  # fmt: skip
    one = load(("rank: 8", "rank: 8, learning_rate: 5e-4")).training_for("local", "tiny", "lora-r8")
    assert one.learning_rate_source == "method"


def test_a_method_may_set_one_learning_rate(load: Load) -> None:
    loaded = load(("rank: 8", "rank: 8, learning_rate: 5e-4"))
    assert loaded.training_for("local", "tiny", "lora-r8").learning_rate == 5e-4, (
        "5e-4 is a text to YAML, a number to people"
    )
    assert loaded.training_for("local", "tiny", "full").learning_rate == 2e-5


def test_targets_are_the_models_its_attentions_or_a_list(load: Load) -> None:
    more = ["lora-a: {kind: lora, rank: 8, targets: attention}", "lora-x: {kind: lora, rank: 8, targets: [x]}"]
    loaded = load(("rank: 8}", "\n  ".join(["rank: 8}", *more])))

    def targets(model: str, method: str) -> list[str] | str:
        return loaded.targets_for(model, loaded.training_for("local", model, method))

    assert targets("other", "lora-r8") == ["c_attn", "c_fc"]
    assert targets("other", "lora-a") == ["c_attn"]
    assert targets("tiny", "lora-a") == ["q_proj", "k_proj", "v_proj"]
    assert targets("tiny", "lora-x") == ["x"]


# --- training data

RECORD = {
    "instruction": "What do I read tonight?",
    "input": "",
    "output": "Something short, with the phone in another room.",
}


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ("{corpus: true}", {"corpus"}),
        ("{corpus: true, files: [FILE]}", {"mine.jsonl"}),
        ("{corpus: true, local_generator: true, files: [FILE]}", {"mine.jsonl"}),
        ("{corpus: true, files: [FILE], mix: true}", {"corpus", "mine.jsonl"}),
        ("{files: [FILE], mix: true}", {"mine.jsonl"}),
    ],
)
def test_own_files_replace_the_corpus_unless_mixed(
    load: Load, tmp_path: Path, sources: str, expected: set[str]
) -> None:
    data = DataRoot(tmp_path / "data")
    write_json(data.root / "corpus.json", [RECORD])
    write_jsonl(tmp_path / "mine.jsonl", [RECORD])
    loaded = load(("sources:\n  corpus: true", f"sources: {sources.replace('FILE', str(tmp_path / 'mine.jsonl'))}"))
    assert {record.source for record in raw_records(data, loaded)} == expected


@pytest.mark.parametrize(
    ("sources", "corpus", "generator"),
    [
        ("{corpus: true}", True, False),
        ("{local_generator: true}", False, True),
        ("{corpus: true, local_generator: true, hub: [{dataset: a/b}]}", False, False),
        ("{corpus: true, local_generator: true, hub: [{dataset: a/b}], mix: true}", True, True),
        ("{local_generator: true, files: [x.csv], mix: true}", False, True),
    ],
)
def test_hub_and_files_replace_both_built_in_sources(load: Load, sources: str, corpus: bool, generator: bool) -> None:
    named = load(("sources:\n  corpus: true", f"sources: {sources}")).sources
    assert (named.uses_corpus, named.uses_local_generator) == (corpus, generator)


def test_a_day_of_a_template_needs_no_quotes(load: Load) -> None:
    named = load(("prompt: alpaca", "prompt: chat\n    template: {strftime_now: 2025-07-08}"))
    assert named.models["tiny"].template == {"strftime_now": "2025-07-08"}


# --- the shipped file


def test_the_shipped_file_holds_the_promised_grid(shipped: Experiments) -> None:
    assert {
        "smollm2-135m", "gpt2-large", "gpt2-xl", "opt-350m", "opt-1.3b", "gpt-neo-1.3b", "gemma-2b-it", "llama-3-8b",
    } <= set(shipped.models)  # fmt: skip
    assert {
        "base", "full", "full-8bit", "lora-r8", "lora-r128", "lora-r256", "lora-r8-qkv", "qlora-r8", "qlora-r64",
    } <= set(shipped.methods)  # fmt: skip
    assert len(shipped.cells) == len(shipped.models) * len(shipped.methods)


def test_every_shipped_cell_of_every_profile_can_be_decided(shipped: Experiments) -> None:
    for profile in shipped.profiles:
        for model, method in shipped.cells:
            settings = shipped.training_for(profile, model, method)
            assert shipped.targets_for(model, settings)


def test_shipped_lora_scales_alpha_with_its_rank_unless_its_name_says_another(shipped: Experiments) -> None:
    for name, method in shipped.methods.items():
        if method.kind == "lora":
            alpha = int(name.partition("-a")[2] or 4 * (method.rank or 0))
            assert (method.alpha, method.dropout) == (alpha, 0.1), name


def test_shipped_rows_share_their_examples_per_step(shipped: Experiments) -> None:
    for name, profile in shipped.profiles.items():
        steps = {
            shipped.training_for(name, *cell).examples_per_step for cell in shipped.cells if cell[1] in profile.methods
        }
        assert len(steps) == 1


# --- choice of the profile


@pytest.mark.parametrize(
    ("requested", "gpu", "expected"),
    [
        (None, None, "local"),
        ("auto", None, "local"),
        ("", "NVIDIA T4", "gpu"),
        ("auto", "NVIDIA T4", "gpu"),
        ("local", "NVIDIA T4", "local"),
        ("gpu", None, "gpu"),
    ],
)
def test_auto_is_gpu_with_cuda_and_local_without(
    shipped: Experiments, monkeypatch: pytest.MonkeyPatch, requested: str | None, gpu: str | None, expected: str
) -> None:
    monkeypatch.setattr(machine, "cuda_name", lambda: gpu)
    assert profile_name(shipped, requested) == expected


def test_auto_stays_local_where_no_gpu_profile_is_configured(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cuda_name", lambda: "NVIDIA T4")
    assert profile_name(load(), "auto") == "local"


def test_an_unknown_profile_is_refused(shipped: Experiments) -> None:
    with pytest.raises(UsageError, match=r"unknown profile 'locl'.*did you mean 'local'"):
        profile_name(shipped, "locl")


def test_what_is_written_of_settings_is_read_again(load: Load, shipped: Experiments, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("A passage.\n", encoding="utf-8")
    named = load(
        (
            "  base: {kind: none}",
            "  base: {kind: none}\n"
            "  arm: {kind: none, retrieval: {from: train}}\n"
            "  notes: {kind: none, retrieval: {from: {documents: [notes.md]}, by: multi-query, ranked_by: ensemble}}",
        ),
        ("methods:\n", "  short: {source: {from: tiny, drop_layers: [1, 2]}}\nmethods:\n"),
        (
            "sources:\n",
            "embeddings: {wheel: some-model==1.0, folder: some/model, sha256: " + 64 * "a" + "}\n"
            "judging: {judge: gpt, pairs: base, teachers: [local, {provider: local, retrieval: {from: train, k: 2}}]}\n"
            "sources:\n",
        ),
        (
            "  local: {kind: local, model: tiny}",
            "  local: {kind: local, model: tiny}\n  gpt: {kind: openai, model: gpt-5.4-mini}",
        ),
        (
            "    models: [tiny]\n",
            "    models: [tiny, short]\n    evaluation: {metrics: [exact_match, {regex: x, name: y}], benchmarks: [basics_en]}\n",
        ),
    )
    for one in (named, shipped):
        plain = one.model_dump()
        assert Experiments.model_validate(plain, context={"folder": tmp_path}).model_dump() == plain
