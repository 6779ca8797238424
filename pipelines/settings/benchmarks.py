"""Benchmarks by name: shipped sets of questions, tasks of lm-evaluation-harness, and the user's own
task files.

A shipped set is data/benchmarks/NAME.json. NAME.yaml beside it is the same set as a task of the
harness. The prompt is read from the YAML, so that both ask the same.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import UnavailableError
from pipelines.lake.files import file_sha256, stable_hash
from pipelines.lake.paths import PROJECT

FOLDER = PROJECT / "data" / "benchmarks"
# The module of lm-evaluation-harness.
HARNESS = "lm_eval"
INSTALL = "make extras E=benchmarks"
ENDINGS = (".yaml", ".yml")
# Keys of a task file that make the harness run code from the file or from a hub.
CODE_KEYS = ("class", "custom_dataset", "hf_evaluate", "include", "trust_remote_code", "unsafe_code", "use_prompt")
Json = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """One item of a set: its prompt, the possible answers, and the index of the right one."""

    item_id: str
    category: str
    prompt: str
    choices: tuple[str, ...]
    answer: int


@cache
def shipped() -> tuple[str, ...]:
    """The names of the shipped sets."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def most_shots(name: str) -> int:
    """The number of solved examples of a shipped set."""
    return len(_read(f"{name}_shots"))


def questions(name: str, *, limit: int | None = None, shots: int = 0) -> list[Question]:
    """The first `limit` questions of a shipped set, each after the first `shots` solved examples,
    as the harness asks them."""
    task = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))

    def prompt_of(item: Json) -> str:
        return task["doc_to_text"].replace("{{question}}", item["question"])

    examples = [
        prompt_of(one) + task["target_delimiter"] + one["choices"][one["answer"]] + task["fewshot_delimiter"]
        for one in _read(f"{name}_shots")[:shots]
    ]
    return [
        Question(one["id"], one["category"], "".join(examples) + prompt_of(one), tuple(one["choices"]), one["answer"])
        for one in _read(name)[:limit]
    ]


def target_delimiter(name: str) -> str:
    """The text between the prompt and the answer of a shipped set."""
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))["target_delimiter"]


@cache
def _read(name: str) -> list[Json]:
    return yaml.safe_load((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def content(name: str) -> str:
    """A hash of the questions of a shipped set."""
    return stable_hash([file_sha256(FOLDER / f"{name}{end}") for end in (".json", "_shots.json", ".yaml")])


# Task files


class _NoTags(yaml.SafeLoader):
    """Reads plain values only.

    The harness's `!function`, which would import Python code, is an error.
    """


def _refuse_tag(_loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> None:
    raise yaml.constructor.ConstructorError(
        problem=f"the tag !{suffix} is refused: a task file may hold plain values, no code",
        problem_mark=node.start_mark,
    )


_NoTags.add_multi_constructor("!", _refuse_tag)


def is_file(task: str) -> bool:
    """Whether the task is the path of a file."""
    return task.endswith(ENDINGS)


def read_task(path: Path) -> Json:
    """The content of a task file, with absolute paths for the data files that lie beside it.

    Raises:
        ValueError: the file is missing, is not YAML, is not a task, or would make the harness run
            code.
    """
    try:
        # A subclass of the safe loader that refuses more.
        task = yaml.load(path.read_text(encoding="utf-8"), Loader=_NoTags)  # noqa: S506
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: {reason[:300] or type(error).__name__}; expected a task file of lm-evaluation-harness"
        ) from None
    if (
        not isinstance(task, dict)
        or not isinstance(task.get("task"), str)
        or not isinstance(task.get("dataset_path"), str)
    ):
        raise ValueError(
            f"{path}: expected a mapping with `task` and `dataset_path`, as lm-evaluation-harness has its tasks"
        )
    if code_keys := sorted(_keys(task) & set(CODE_KEYS)):
        raise ValueError(
            f"{path}: {', '.join(code_keys)}: refused, because the harness would run other code through it; "
            "write the task out in this file"
        )
    return _placed(task, path.parent)


def _keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return {str(key) for key in value}.union(*map(_keys, value.values()))
    return set().union(*map(_keys, value)) if isinstance(value, list) else set()


def _named_files(task: Json) -> Any:
    """`dataset_kwargs.data_files`: a text, lists or mappings of texts, or None."""
    kwargs = task.get("dataset_kwargs")
    return kwargs.get("data_files") if isinstance(kwargs, dict) else None


def _placed(task: Json, folder: Path) -> Json:
    return _with_files(task, lambda text: str((folder / text).resolve()) if (folder / text).is_file() else text)


def task_content(task: Json) -> str:
    """A hash of a task file and of the bytes of the local files that hold its questions.

    Moving those files does not change it.
    """
    return stable_hash(_with_files(task, lambda text: [file_sha256(Path(text))] if Path(text).is_file() else text))


def _with_files(task: Json, change: Callable[[str], Any]) -> Json:
    """The task with `change` applied to each name of a data file."""
    data_files = _named_files(task)
    if not data_files:
        return task
    return task | {"dataset_kwargs": task["dataset_kwargs"] | {"data_files": _mapped(data_files, change)}}


def _mapped(value: Any, change: Callable[[str], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(one, change) for key, one in value.items()}
    if isinstance(value, list):
        return [_mapped(one, change) for one in value]
    return change(value) if isinstance(value, str) else value


# The harness


def harness_version() -> str | None:
    """The installed version of lm-evaluation-harness, or None."""
    try:
        return version(HARNESS) if find_spec(HARNESS) else None
    except PackageNotFoundError:
        return None


def require(tasks: list[str]) -> None:
    """Check that this machine can run these tasks of the harness (no shipped sets), before anything
    is trained.

    Raises:
        UnavailableError: the harness is not installed, or has no task of that name.
    """
    if not tasks:
        return
    if harness_version() is None:
        raise UnavailableError(
            f"benchmarks: {', '.join(tasks)}: lm-evaluation-harness is not installed; run `{INSTALL}`, or take them out of "
            "evaluation.benchmarks in experiments.yaml"
        )
    if unknown := [task for task in tasks if not is_file(task) and not is_known(task)]:
        raise UnavailableError(
            f"benchmarks: {', '.join(unknown)}: no task of lm-evaluation-harness {harness_version()}, and none of the sets that "
            f"ship ({', '.join(shipped())}); `lm_eval ls tasks` lists them"
        )


@cache
def is_known(task: str) -> bool:
    """Whether the installed harness has a task, a group or a tag of that name.

    Its files are searched, because importing it takes longer than everything else before a cell
    starts.
    """
    module = find_spec(HARNESS)
    folder = Path(module.origin).parent / "tasks" if module and module.origin else None
    pattern = re.compile(rf"^\s*(?:-\s*)?(?:(?:task|group|tag)\s*:\s*)?[\"']?{re.escape(task)}[\"']?\s*$", re.MULTILINE)
    files = folder.rglob("*.yaml") if folder else ()
    return any(pattern.search(file.read_text(encoding="utf-8", errors="replace")) for file in files)
