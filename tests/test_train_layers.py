"""A model without some of its layers: which ones go, the written files, and outputs equal to the
whole model's without them."""

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipelines.compare.models import _source
from pipelines.compare.table import note_on
from pipelines.errors import UnavailableError, UsageError, WorkError
from pipelines.estimate.question import config_of
from pipelines.lake.files import read_object, stable_hash, write_json
from pipelines.lake.weights_record import RECORD
from pipelines.settings import experiments as configuration
from pipelines.settings.model_settings import Model
from pipelines.train import chosen_layers
from pipelines.train import shorten as shortening
from pipelines.train.provenance import base_of, front_matter
from pipelines.train.shorten import ShortenRequest, run_distances, shorten, stack_of, write_weights
from pipelines.weights import shortened, store
from tests import tiny
from tests.in_process import clean_for
from tests.project import MODEL, TinyProject

LAYERS = 6
IDS = torch.tensor([[5, 17, 40, 8, 99, 3, 250, 7]])
QUICK = ("llama", "gemma3_text")
EVERY = [*tiny.ARCHITECTURES, *tiny.MORE_ARCHITECTURES]


def deep(folder: Path, architecture: str = "llama", **more: Any) -> Path:
    """A saved tiny model of six layers."""
    known = tiny.ARCHITECTURES if architecture in tiny.ARCHITECTURES else tiny.MORE_ARCHITECTURES
    config = dict(known[architecture])
    key = next(name for name in shortened.COUNTS if name in config)
    config |= {key: LAYERS, **more}
    if "attention_types" in config:
        config["attention_types"] = [[["global", "local"], LAYERS // 2]]
    with patch.dict(known, {architecture: config}):
        return tiny.save_tiny(folder, architecture)


def short(parent: Path, drop: shortened.Drop, root: Path | None = None) -> Path:
    """The shortened model beside it."""
    folder = parent.with_name(f"{parent.name}-short")
    folder.mkdir()
    shorten(ShortenRequest(parent, folder, drop, root or parent, {"prompt": "chat"}))
    return folder


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def by_hand(parent: Path, dropped: list[int]) -> torch.Tensor:
    """Logits of the whole model, whose dropped blocks are replaced by identities."""
    model = loaded(parent)
    for layer in dropped:
        block = stack_of(model).blocks[layer]
        plain = block.forward

        def same(hidden_states: torch.Tensor, *given: Any, plain: Any = plain, **named: Any) -> Any:
            made = plain(hidden_states, *given, **named)
            return (hidden_states, *made[1:]) if isinstance(made, tuple) else hidden_states

        block.forward = same
    return model(IDS, use_cache=False).logits


@pytest.mark.parametrize(
    "architecture", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EVERY]
)
def test_it_says_what_the_whole_model_does_without_these_blocks(architecture: str, tmp_path: Path) -> None:
    parent = deep(tmp_path / "whole", architecture)
    folder = short(parent, [1, 2, 4])
    model, whole = loaded(folder), read_object(parent / "config.json")
    with torch.no_grad():
        torch.testing.assert_close(model(IDS, use_cache=False).logits, by_hand(parent, [1, 2, 4]))
        cached, plain = (model.generate(IDS, max_new_tokens=6, do_sample=False, use_cache=use) for use in (True, False))
    assert cached.tolist() == plain.tolist() and len(cached[0]) > IDS.shape[1]
    config = read_object(folder / "config.json")
    kinds, before = shortened.per_layer(config), shortened.per_layer(whole)
    assert shortened.layers_of(config) == 3 and shortened.layers_of(whole) == LAYERS
    assert kinds == {name: [values[layer] for layer in (0, 3, 5)] for name, values in before.items()}
    assert not {*before} ^ {*kinds} and {**config, **kinds}.keys() == whole.keys()
    assert read_object(folder / shortened.RECORD)["dropped"] == [1, 2, 4]
    assert (folder / "tokenizer.json").read_bytes() == (parent / "tokenizer.json").read_bytes()


def test_the_run_whose_ends_are_nearest_goes(tmp_path: Path, project: TinyProject) -> None:
    """Blocks 2 and 3 do nothing: of one layer the first of them goes, of two both."""
    clean_for(project)
    parent = deep(tmp_path / "whole")
    held = load_file(parent / "model.safetensors")
    for layer in (2, 3):
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            held[f"model.layers.{layer}.{name}.weight"].zero_()
    save_file(held, parent / "model.safetensors", metadata={"format": "pt"})
    two = short(parent, 2, project.data.root)
    record = read_object(two / shortened.RECORD)
    assert record["dropped"] == [2, 3] and record["distances"][2] == 0 and len(record["distances"]) == LAYERS - 1
    assert min(record["distances"][:2] + record["distances"][3:]) > 0 and record["records"] == chosen_layers.RECORDS
    with torch.no_grad():
        assert torch.equal(loaded(two)(IDS).logits, loaded(parent)(IDS).logits), "nothing was lost"
    # The distances are those of the first model.
    again = short(two, 1, project.data.root)
    second = read_object(again / shortened.RECORD)
    assert second["of"] == LAYERS and {2, 3} < set(second["dropped"]) and len(second["left"]) == 3
    base = base_of(two)
    assert base.name == "whole-short without its layers 2-3" and not base.of_hub
    write_json(two / RECORD, {"source": {"from": "x"}, "parent": {"source": {"hub": "a/b"}, "commit": "c"}})
    named = front_matter(base_of(two), [], library="peft", tags=(), relation="adapter")
    assert "a/b without its layers 2-3" in base_of(two).name and not any("base_model" in line for line in named)


def test_distances_are_angles_over_pi() -> None:
    right, up = [1.0, 0.0], [0.0, 1.0]
    states = torch.tensor([[right, up, up, [-1.0, 0.0]], [right, right, up, up]], dtype=torch.float64)
    assert run_distances(states, 1) == [0.25, 0.25, 0.25]
    assert run_distances(states, 3) == [0.75]


def test_layers_in_words() -> None:
    assert shortened.in_words([18, 19, 20, 21, 25]) == "18-21, 25" and shortened.in_words([0]) == "0"


def test_a_configuration_without_layers() -> None:
    gemma = {"num_hidden_layers": 4, "layer_types": ["s", "s", "s", "f"], "eos_token_id": [1, 2, 3, 4]}
    assert shortened.without(gemma, [0, 2]) == {**gemma, "num_hidden_layers": 2, "layer_types": ["s", "f"]}
    sees = {"model_type": "gemma3", "text_config": gemma, "vision_config": {"num_hidden_layers": 4}}
    inner = shortened.without(sees, [3])
    assert inner["text_config"]["layer_types"] == ["s"] * 3 and inner["vision_config"] == sees["vision_config"]
    neo = {"num_layers": 4, "attention_types": [[["g", "l"], 2]], "attention_layers": ["g", "l", "g", "l"]}
    assert shortened.without(neo, [1]) == {
        "num_layers": 3,
        "attention_types": [[["g", "g", "l"], 1]],
        "attention_layers": ["g", "g", "l"],
    }
    with pytest.raises(UnavailableError, match="names no number of layers"):
        shortened.without({"model_type": "odd"}, [1])


@pytest.mark.parametrize(
    ("drop", "words"),
    [
        (0, "got 0; expected how many layers"),
        (-2, "got -2; expected how many layers"),
        (True, "got True; expected"),
        (1.5, "got 1.5; expected"),
        ("4", "got '4'; expected"),
        ([], "got .*; expected"),
        ([3, -1], "expected how many layers"),
        ([3, 3], "expected each layer once"),
    ],
)
def test_what_cannot_be_dropped_is_refused(project: TinyProject, drop: Any, words: str) -> None:
    project.change(models={"short": {"source": {"from": MODEL, "drop_layers": drop}}})
    with pytest.raises(UsageError, match=rf"short\.source\.drop_layers: .*{words}"):
        configuration.load(project.experiments)


def _model(project: TinyProject, drop: Any, name: str = "short") -> Model:
    project.change(models={name: {"source": {"from": MODEL, "drop_layers": drop}}})
    return project.now().experiments.model(name)


def test_it_belongs_to_a_model_that_is_made_from_another(project: TinyProject) -> None:
    project.change(models={"short": {"source": {"hub": "a/b", "drop_layers": 1}, "prompt": "chat"}})
    with pytest.raises(UsageError, match="drop_layers needs from"):
        configuration.load(project.experiments)


def test_ids_of_other_models_are_what_they_were(project: TinyProject) -> None:
    """Rows of existing lakes name these ids."""
    project.change(models={"made": {"source": {"from": MODEL}}})
    made, whole = (project.now().experiments.model(name) for name in ("made", MODEL))
    assert store.source_id(whole) == stable_hash({"path": whole.source.path})
    assert store.source_id(made) == stable_hash({"from": MODEL, "of": store.source_id(whole)})
    one, other, more = (_model(project, drop) for drop in ([1, 0], [0, 1], 2))
    assert store.source_id(one) == store.source_id(other) != store.source_id(more)
    assert note_on(one) == f"{whole.note} Without layers 0-1 of {MODEL}." if whole.note else note_on(one)
    assert _source(more.source.model_dump(exclude_none=True)) == f"from {MODEL} without 2 layers"


def test_its_shape_is_known_before_it_is_there(project: TinyProject) -> None:
    project.change(models={MODEL: {"source": {"path": None, "random": "smollm2-135m"}}})
    for drop, left in ((4, 26), ([0, 5], 28)):
        config = config_of(project.data, "short", _model(project, drop))
        assert config and config["num_hidden_layers"] == left and config["hidden_size"] == 576
    assert config_of(project.data, "short", _model(project, 30)) is None


def test_too_many_layers_are_refused_in_words(project: TinyProject) -> None:
    for drop, words in (
        (2, "the model has 2 layers: expected 1 to 1"),
        ([0, 7], "got layer 7"),
        ([0, 1], "at least one must remain"),
    ):
        _model(project, drop)
        with pytest.raises(UsageError, match=words):
            store.fetch(project.data, project.now().experiments, "short", say=lambda _: None)
    assert not list(project.data.models.glob("short*"))


def test_layers_are_chosen_only_where_there_are_records(tmp_path: Path, project: TinyProject) -> None:
    with pytest.raises(UsageError, match=r"run `featherweight clean` first .* or name the layers"):
        short(deep(tmp_path / "whole"), 2, project.data.root)


def _here(arguments: list[str], *_: Any) -> None:
    """The child's work without a separate process."""
    with patch.object(sys, "argv", arguments[1:]):
        shortening.main()


@pytest.mark.parametrize("in_a_child", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_is_made_whole_or_not_at_all(
    in_a_child: bool, project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remains of a killed process are removed, too."""
    if not in_a_child:
        monkeypatch.setattr(store, "_run_child", _here)
    project.change(models={MODEL: {"source": {"path": str(deep(tmp_path / "whole"))}}})
    made = _model(project, [4, 2])
    left = project.data.models / ".short.77.partial"
    left.mkdir(parents=True)
    folder = store.fetch(project.data, project.now().experiments, "short", say=lambda _: None)
    assert folder == project.data.models / "short" and not left.exists()
    assert store.is_present(project.data, "short", made)
    assert chosen_layers.dropped(project.data, "short", made) == "2, 4"
    whole = project.now().experiments.model(MODEL)
    assert chosen_layers.dropped(project.data, MODEL, whole) is None
    assert store.content(project.data, "short", made) != store.content(project.data, MODEL, whole)
    assert chosen_layers.note_on_choice(project.data, "short", made) is None, "they were named"


@pytest.mark.slow
def test_the_childs_words_are_the_users(project: TinyProject, tmp_path: Path) -> None:
    parent = deep(tmp_path / "whole", "gpt2", scale_attn_by_inverse_layer_idx=True, initializer_range=0.5)
    project.change(models={MODEL: {"source": {"path": str(parent)}}})
    for drop, kind, words in (
        (2, UsageError, "^drop_layers: no train records"),
        ([1], UnavailableError, "^drop_layers: a model of"),
    ):
        _model(project, drop)
        with pytest.raises(kind, match=words):
            store.fetch(project.data, project.now().experiments, "short", say=lambda _: None)
    assert not list(project.data.models.glob("*short*"))


def test_other_train_records_are_said_and_change_nothing(project: TinyProject) -> None:
    clean_for(project)
    made, folder = _model(project, 1), project.data.models / "short"
    folder.mkdir(parents=True)
    now = chosen_layers.sample(project.data).data_fingerprint
    record = {"of": 2, "left": [0], "dropped": [1], "data_fingerprint": now}
    write_json(folder / shortened.RECORD, record)
    assert chosen_layers.note_on_choice(project.data, "short", made) is None
    write_json(folder / shortened.RECORD, {**record, "data_fingerprint": "other"})
    assert "by other train records than the current ones" in (
        chosen_layers.note_on_choice(project.data, "short", made) or ""
    )


def test_blocks_that_depend_on_their_place_are_no_shorter_model(tmp_path: Path) -> None:
    """GPT-2's attention may be divided by its layer's number: renumbered, it would compute
    something else."""
    parent = deep(tmp_path / "whole", "gpt2", scale_attn_by_inverse_layer_idx=True, initializer_range=0.5)
    with pytest.raises(UnavailableError, match=r"its blocks depend on their place or on one another .*logits are off"):
        short(parent, [1])


def test_a_model_without_a_known_stack_is_unavailable(tmp_path: Path) -> None:
    model = tiny.tiny_model("llama")
    model.model.layers = torch.nn.Sequential(*model.model.layers)
    with pytest.raises(UnavailableError, match="LlamaForCausalLM has 0 stacks of 2 blocks"):
        stack_of(model)
    model = tiny.tiny_model("llama")
    model.more = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
    with pytest.raises(UnavailableError, match=r"2 stacks of 2 blocks \(model\.layers, more\)"):
        stack_of(model)


def test_weights_in_parts_and_under_shorter_names(tmp_path: Path) -> None:
    """A part whose layers all go is not written; a bfloat16 weight stays one, bit by bit."""
    parent, folder = tmp_path / "whole", tmp_path / "short"
    parent.mkdir()
    folder.mkdir()
    parts = {
        "a": {"wte": torch.ones(2), "h.0.w": torch.full((2,), 0.1, dtype=torch.bfloat16)},
        "b": {"h.1.w": torch.ones(1)},
        "c": {"h.2.w": torch.full((3,), 2.0)},
    }
    for name, held in parts.items():
        save_file(held, parent / f"{name}.safetensors", metadata={"format": "pt"})
    places = {name: f"{part}.safetensors" for part, held in parts.items() for name in held}
    write_json(parent / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": places})
    write_weights(parent, folder, "transformer.h", [0, 2])
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index == {
        "metadata": {"total_size": 8 + 4 + 12},
        "weight_map": {"wte": "a.safetensors", "h.0.w": "a.safetensors", "h.1.w": "c.safetensors"},
    }
    held = load_file(folder / "a.safetensors") | load_file(folder / "c.safetensors")
    assert held["h.0.w"].dtype is torch.bfloat16 and torch.equal(held["h.0.w"], parts["a"]["h.0.w"])
    assert torch.equal(held["h.1.w"], parts["c"]["h.2.w"]) and not (folder / "b.safetensors").exists()
    with pytest.raises(UnavailableError, match="no weight in the files belongs to model"):
        write_weights(parent, folder, "model.layers", [0, 2])


def test_weights_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    parent = deep(tmp_path / "whole")
    held = load_file(parent / "model.safetensors")
    del held["model.layers.3.mlp.up_proj.weight"]
    save_file(held, parent / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WorkError, match=r"lack 1 tensors of the model, the first is model\.layers\.3"):
        short(parent, [1])


def test_weights_in_pytorchs_own_format_become_safetensors(tmp_path: Path) -> None:
    parent = deep(tmp_path / "whole")
    torch.save(load_file(parent / "model.safetensors"), parent / "pytorch_model.bin")
    (parent / "model.safetensors").unlink()
    folder = short(parent, [1])
    assert [path.name for path in folder.glob("*model*")] == ["model.safetensors"] and not (folder / ".whole").exists()
    with torch.no_grad():
        torch.testing.assert_close(loaded(folder)(IDS, use_cache=False).logits, by_hand(parent, [1]))
