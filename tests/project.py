"""A whole project in a temporary folder: the shipped experiments.yaml, with a tiny model under the
packaged one's name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.lake.paths import PROJECT, DataRoot
from pipelines.project import Project, Resolved
from pipelines.runs.cells import CellKey
from pipelines.settings import experiments as configuration

MODEL = "smollm2-135m"


@dataclass(frozen=True)
class TinyProject:
    data: DataRoot
    experiments: Path

    def change(self, **sections: Any) -> None:
        """Merge `sections` into experiments.yaml, dictionaries key by key."""
        current = yaml.safe_load(self.experiments.read_text(encoding="utf-8"))
        merge(current, sections)
        self.experiments.write_text(yaml.safe_dump(current), encoding="utf-8")

    def out_of_reach(self) -> None:
        """Let the model come from the hub, which no test reaches."""
        self.change(models={MODEL: {"source": None}})
        self.change(models={MODEL: {"source": {"hub": "openai-community/gpt2-large"}}})

    def now(self) -> Project:
        return Project(self.data, configuration.load(self.experiments), "local")

    def resolved(self) -> Resolved:
        """The project as it is now, with its examples."""
        return self.now().resolve()

    def key(self, method: str) -> CellKey:
        return CellKey(MODEL, method, 1)


def merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    for name, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            merge(into[name], value)
        else:
            into[name] = value


def make_project(folder: Path, model: Path) -> TinyProject:
    folder.mkdir(parents=True, exist_ok=True)
    experiments = folder / "experiments.yaml"
    experiments.write_text((PROJECT / "experiments.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    project = TinyProject(DataRoot(folder / "data"), experiments)
    project.change(
        models={MODEL: {"source": None}},
        sources={"local_generator": False},
        profiles={
            "local": {
                "max_train_examples": 8,
                "max_eval_examples": 3,
                "evaluation": {"answers": 2, "max_new_tokens": 6},
                "training": {"max_length": 512},
            }
        },
    )
    project.change(models={MODEL: {"source": {"path": str(model)}}})
    return project
