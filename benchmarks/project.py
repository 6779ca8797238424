"""A separate project for a benchmark: the corpus's English records, cleaned, in a temporary lake.

Weights come from this project. A model that ships only its shape gets random weights.
"""

from pathlib import Path
from typing import Any

from pipelines.clean import clean as cleaning
from pipelines.clean.read import raw_records
from pipelines.lake.paths import PROJECT, DataRoot, data_root
from pipelines.project import Project
from pipelines.settings import experiments as configuration
from pipelines.settings.experiments import Experiments
from pipelines.weights import store

PACKAGED = "smollm2-135m"


def make(folder: Path, model: str = PACKAGED, *, train: int, held_out: int, **training: Any) -> Project:
    """The local profile with only `model`, `train` and `held_out` examples on its two sides, and
    `training` over its settings. An existing project in `folder` is kept."""
    plain = configuration.load(PROJECT / "experiments.yaml").model_dump()
    # gemma-3's modules have gemma's names
    if model not in plain["models"]:
        like = {**plain["models"]["gemma-2b-it"], "overrides": {}, "note": None, "bos": None, "end": None}
        plain["models"][model] = {**like, "source": {"random": model}}
    profile = plain["profiles"]["local"]
    profile |= {"models": [model], "max_train_examples": train, "max_eval_examples": held_out}
    profile["training"] |= training
    plain["sources"] |= {"local_generator": False}
    data = DataRoot(folder / "data")
    data.root.mkdir(parents=True, exist_ok=True)
    if (data_root().models / model).exists() and not (data.models / model).is_symlink():
        data.models.mkdir(exist_ok=True)
        (data.models / model).symlink_to(data_root().models / model)
    stage = Project(data, Experiments.model_validate(plain), "local")
    store.fetch(data, stage.experiments, model, say=lambda _: None)
    cleaning.clean(data, raw_records(data, stage.experiments), stage.experiments.cleaning)
    return stage
