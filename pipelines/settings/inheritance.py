"""Models that are made `from` another: they inherit its settings before anything is validated."""

from pathlib import Path
from typing import Any

from pipelines.errors import UsageError
from pipelines.records.expected import expected_one_of
from pipelines.settings.yaml_file import Lines, cut, where


def with_parents(models: dict[str, Any], name: str) -> Any:
    """The settings of a model in the file, over those of the models that it is made from."""
    merged = models[name]
    for parent in _parents(models, name):
        inherited = models[parent] if isinstance(models.get(parent), dict) else {}
        overrides = {**_overrides(inherited), **_overrides(merged)}
        merged = {**inherited, **merged, **({"overrides": overrides} if overrides else {})}
    return merged


def _overrides(model: Any) -> dict[str, Any]:
    overrides = model.get("overrides") if isinstance(model, dict) else None
    return overrides if isinstance(overrides, dict) else {}


def _parents(models: dict[str, Any], name: str) -> list[str]:
    """The ancestors of a model, nearest first. A repeated name ends the list."""
    chain = [name]
    while isinstance(parent := _parent_in(models.get(chain[-1])), str):
        chain.append(parent)
        if parent in chain[:-1]:
            break
    return chain[1:]


def require_parents(path: Path, data: Any, lines: Lines) -> None:
    """Raises UsageError if a model is made from itself, or from one that the file does not have."""
    models: Any = data.get("models") if isinstance(data, dict) else None
    for name in models if isinstance(models, dict) else {}:
        chain = [name, *_parents(models, name)]
        place = where(path, lines, ("models", name, "source", "from"))
        if chain[-1] in chain[:-1]:
            words = " is made from ".join(map(str, chain))
            raise UsageError(f"{place}: {words}; expected a model with weights of its own at the end")
        if chain[-1] not in models:
            others = [str(other) for other in models if other != name]
            raise UsageError(f"{place}: got {cut(repr(chain[-1]))}; {expected_one_of(chain[-1], others)}")


def _parent_in(model: Any) -> Any:
    source = model.get("source") if isinstance(model, dict) else None
    return source.get("from") if isinstance(source, dict) else None
