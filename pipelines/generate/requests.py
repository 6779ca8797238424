"""Prompts from the topic grid or from the user's own file, and each provider's requests made of
them."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

from jsonschema.exceptions import best_match

from pipelines.errors import UsageError
from pipelines.generate.answers import REFUSALS, TRUNCATIONS, text_of
from pipelines.generate.journal import Journal, Request, opened
from pipelines.generate.topics import JsonSchema, TopicGrid, load_topics
from pipelines.lake.paths import DataRoot
from pipelines.records.reading import RawRecord, expand, read_file
from pipelines.settings.experiments import Experiments
from pipelines.settings.providers import Generation, Provider

LOCAL_SOURCE, API_SOURCE = "local_generator", "providers"
HALF_CHARACTER = re.compile("[\ud800-\udfff]")
FENCE = re.compile(r"\s*```(?:json)?\s*(.*?)\s*```\s*", re.DOTALL)


@dataclass(frozen=True)
class Prompt:
    """One task, the same for every provider. `record_fields` are the fields of the record known
    before the answer."""

    messages: list[dict[str, str]]
    schema: dict[str, Any] = field(default_factory=dict)
    topic: str | None = None
    language: str | None = None
    record_fields: dict[str, str] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptedRequest:
    """A request and its prompt."""

    request: Request
    prompt: Prompt


class Prompts:
    """All prompts of the configuration, in the order in which they are sent."""

    def __init__(
        self, ordered: Callable[[list[str] | None], Iterator[Prompt]], record: dict[Any, str] | None = None
    ) -> None:
        self.ordered = ordered
        self.record = record or {}


@dataclass(frozen=True)
class RequestSource:
    """The configured requests of each provider, and the journal's answers to them. Reading it needs
    no lock."""

    experiments: Experiments
    journal: Journal
    prompts: Prompts

    def prompted_requests(self, name: str) -> list[PromptedRequest]:
        """The requests of one provider by the current configuration."""
        provider = self.experiments.provider(name)
        return requests_for(name, provider, self.experiments.generation, self.prompts, self.journal.given_up())

    def requests(self, name: str) -> list[Request]:
        return [prompted.request for prompted in self.prompted_requests(name)]

    def records(self, name: str) -> Iterator[tuple[PromptedRequest, RawRecord]]:
        """The answers of one provider to its current requests, each as a raw record, valid or
        not."""
        local = self.experiments.provider(name).kind == "local"
        for prompted in self.prompted_requests(name):
            row = self.journal.row(prompted.request.key)
            if row is not None and row["status"] == "answered":
                yield prompted, raw_record(prompted, row, self.prompts, local=local)


@contextmanager
def request_source(data: DataRoot, experiments: Experiments) -> Iterator[RequestSource]:
    """Open the journal for reading.

    Raises:
        UsageError: the prompts are missing or broken.
        WorkError: the journal cannot be opened.
    """
    prompts = load_prompts(data, experiments.generation)
    with opened(data.journal) as journal:
        yield RequestSource(experiments, journal, prompts)


def load_prompts(data: DataRoot, generation: Generation) -> Prompts:
    """The prompts that the configuration names.

    Raises:
        UsageError: data/topics.yaml or the file of prompts is missing or broken.
    """
    if generation.prompts == "file":
        assert generation.prompts_file is not None
        file_prompts = list(_prompts_in(expand([generation.prompts_file], generation.folder), generation.system))
        return Prompts(lambda languages: (p for p in file_prompts if not languages or p.language in (None, *languages)))
    grid = load_topics(data.tracked("topics.yaml"))
    return Prompts(lambda languages: _grid_prompts(grid, generation.seed, languages), grid.record)


def _grid_prompts(grid: TopicGrid, seed: int, languages: list[str] | None) -> Iterator[Prompt]:
    system = [{"role": "system", "content": grid.system}] if grid.system else []
    for cell in grid.cells(seed=seed, languages=languages):
        yield Prompt(
            messages=[*system, {"role": "user", "content": grid.render(cell)}],
            schema=grid.record_schema,
            topic=grid.topic_of(cell),
            language=grid.language_of(cell),
            axes=cell,
        )


def _prompts_in(files: list[Path], system: str) -> Iterator[Prompt]:
    system_messages = [{"role": "system", "content": system}] if system else []
    for file in files:
        # A file of prompts holds no answers. Naming its one required column keeps the reader from
        # expecting examples.
        for number, record in enumerate(read_file(file, columns={"instruction": "instruction"}), start=1):
            value = record.value if isinstance(record.value, dict) else {}
            instruction, extra = value.get("instruction"), value.get("input") or ""
            if record.problem or not _is_text(instruction) or not instruction.strip() or not _is_text(extra):
                raise UsageError(
                    f"{file}: record {number}: {record.problem or repr(record.value)[:80]}; expected an object with the text "
                    "`instruction` (and optionally `input`)."
                )
            text = f"{instruction}\n\n{extra}" if extra else instruction
            yield Prompt(
                messages=[*system_messages, {"role": "user", "content": text}],
                topic=_text(value.get("topic")),
                language=_text(value.get("language")),
                record_fields={"instruction": instruction, "input": extra},
            )


def _is_text(value: Any) -> TypeGuard[str]:
    """Whether `value` is text that can be sent: without the lone surrogates that a file in another
    encoding leaves."""
    return isinstance(value, str) and not HALF_CHARACTER.search(value)


def _text(value: Any) -> str | None:
    return value if _is_text(value) else None


def requests_for(
    name: str,
    provider: Provider,
    generation: Generation,
    prompts: Prompts,
    given_up: frozenset[str] | set[str] = frozenset(),
) -> list[PromptedRequest]:
    """The requests of one provider: as many as configured, over the same prompts as for every
    provider.

    A request that was given up (its fate became unknown twice) makes room for the next prompt. If
    there is none, it stays, unanswered.

    Raises:
        UsageError: there are fewer prompts than configured requests.
    """
    count = (generation.requests if provider.requests is None else provider.requests) * generation.replicates
    languages = generation.languages if provider.languages is None else provider.languages
    chosen: list[PromptedRequest] = []
    cells, abandoned = set[str](), list[PromptedRequest]()
    for prompted in _all_requests(name, provider, generation, prompts.ordered(languages)):
        if len(chosen) == count:
            break
        # A user's file may hold the same prompt twice.
        if prompted.request.cell in cells:
            continue
        cells.add(prompted.request.cell)
        if prompted.request.key in given_up:
            abandoned.append(prompted)
        else:
            chosen.append(prompted)
    chosen += abandoned[: count - len(chosen)]
    if generation.prompts == "topics" and len(chosen) < count:
        raise UsageError(
            f"data/topics.yaml: {count} topics wanted for {name}, the grid has {len(chosen)}: add values to its axes, or "
            "ask for fewer (generation.requests)."
        )
    return chosen


def _all_requests(
    name: str, provider: Provider, generation: Generation, prompts: Iterator[Prompt]
) -> Iterator[PromptedRequest]:
    max_tokens = provider.max_tokens or generation.max_tokens
    seeded = provider.kind in ("local", "openai-compatible") and "seed" not in provider.parameters
    for number, prompt in enumerate(prompts):
        for replicate in range(generation.replicates):
            parameters = {"max_tokens": max_tokens, **provider.parameters}
            if seeded:
                parameters["seed"] = generation.seed + number + 1_000_003 * replicate
            request = Request(
                provider=name,
                model=provider.model,
                messages=prompt.messages,
                parameters=parameters,
                schema=prompt.schema,
                replicate=replicate,
                topic=prompt.topic,
                language=prompt.language,
            )
            yield PromptedRequest(request, prompt)


def raw_record(prompted: PromptedRequest, row: dict[str, Any], prompts: Prompts, *, local: bool) -> RawRecord:
    """The record in an answer. An answer that cannot be read or does not fit the schema becomes one
    with a `problem`."""
    request, text, problem, value = prompted.request, row["response"], None, None
    try:
        text = text_of(row["response"])
        value = _record(text, prompted.prompt, prompts.record)
        if HALF_CHARACTER.search(json.dumps(value, ensure_ascii=False)):
            raise ValueError("it holds half a character")
    except (ValueError, RecursionError) as error:
        stopped = f" (stopped by {row['stop_reason']})" if row["stop_reason"] not in (None, "stop", "end_turn") else ""
        what = "the JSON asked for" if prompted.prompt.schema else "a text"
        value, problem = text, f"answer is not {what}{stopped}: {error}"
    # A text that was refused or cut off is no answer, even if it looks like one.
    broken_off = REFUSALS if prompted.prompt.schema else (*REFUSALS, *TRUNCATIONS)
    if problem is None and row["stop_reason"] in broken_off:
        value, problem = text, f"answer is not whole (stopped by {row['stop_reason']})"
    return RawRecord(
        source=LOCAL_SOURCE if local else API_SOURCE,
        value=value,
        provider=request.provider,
        model=request.model,
        topic=request.topic,
        language=request.language,
        problem=problem,
        call_key=request.key,
    )


def _record(text: str, prompt: Prompt, templates: dict[Any, str]) -> Any:
    if not prompt.schema:
        return {**prompt.record_fields, "output": text}
    value = json_in(text)
    if error := best_match(_validator(json.dumps(prompt.schema)).iter_errors(value)):
        place = ".".join(str(part) for part in error.absolute_path) or "record"
        raise ValueError(f"{place}: {error.message[:200]}")
    return {name: _filled(name, template, value) for name, template in templates.items()} if templates else value


@lru_cache(maxsize=16)
def _validator(schema: str) -> JsonSchema:
    return JsonSchema(json.loads(schema))


def _filled(name: str, template: str, value: Any) -> str:
    try:
        return template.format_map(value)
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"record.{name}: {error} is not a field of it") from None


def json_in(text: str) -> Any:
    """The JSON of an answer, plain or as a Markdown block, which servers without schema support
    write.

    Raises:
        ValueError: the answer is not JSON.
        RecursionError: it is nested too deeply.
    """
    fenced = FENCE.fullmatch(text)
    return json.loads(fenced[1] if fenced else text)
