"""Make records: topics become requests, those the journal holds no answer for are sent, and every answer is kept raw."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass

from pipelines import machine, weights
from pipelines.experiments import Experiments, LocalGenerator
from pipelines.files import locked
from pipelines.generate.journal import Journal, Request, opened
from pipelines.generate.openai_client import CallError, OpenAIClient
from pipelines.generate.server import local_server
from pipelines.generate.topics import TopicGrid, load_topics
from pipelines.paths import DataRoot
from pipelines.records import RawRecord

LOCAL = "local"
ATTEMPTS = 3
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class GenerationResult:
    """What one call did: `wanted` requests in all, `reused` already answered, `answered` now, `failed`, `in_doubt` before.

    `failed` are all that hold no answer, those among them that are not sent again because they were in doubt twice too.
    """

    wanted: int
    reused: int
    answered: int
    failed: int
    in_doubt: int


def local_requests(grid: TopicGrid, settings: LocalGenerator) -> list[Request]:
    cells = grid.sample(settings.requests, seed=settings.seed, languages=settings.languages)
    system = [{"role": "system", "content": grid.system}] if grid.system else []
    return [
        Request(
            provider=LOCAL,
            model=settings.model,
            messages=[*system, {"role": "user", "content": grid.render(cell)}],
            parameters={
                "max_tokens": settings.max_tokens,
                "temperature": settings.temperature,
                "seed": settings.seed + number,
            },
            schema=grid.record_schema,
            topic=grid.topic_of(cell),
            language=grid.language_of(cell),
        )
        for number, cell in enumerate(cells)
    ]


def generate(data: DataRoot, experiments: Experiments, *, progress: Progress | None = None) -> GenerationResult:
    """Have the local server answer every configured request that the journal holds no answer for.

    Raises:
        UsageError: data/topics.yaml is broken.
        UnavailableError: the generator's model has no packaged GGUF here.
        WorkError: the server did not start.
    """
    settings = experiments.generation.local
    requests = local_requests(load_topics(data.tracked("topics.yaml")), settings)
    with locked(data.locks / "generation.lock", "generate"), opened(data.journal) as journal:
        in_doubt = journal.mark_orphans_in_doubt()
        held = journal.answered_among(requests)
        if pending := journal.to_send(requests):
            gguf = weights.packaged_gguf(data, settings.model, experiments.model(settings.model))
            device = locked(data.locks / f"{machine.device_slug()}.lock", "the local LLM server")
            with device as lock, local_server(gguf, slots=settings.concurrency, keep_open=(lock.fileno(),)) as url:
                asyncio.run(_send_all(journal, pending, settings, url, progress))
        answered = journal.answered_among(requests)
    return GenerationResult(
        wanted=len(requests),
        reused=held,
        answered=answered - held,
        failed=len(requests) - answered,
        in_doubt=in_doubt,
    )


async def _send_all(
    journal: Journal, pending: list[Request], settings: LocalGenerator, url: str, progress: Progress | None
) -> None:
    slots = asyncio.Semaphore(settings.concurrency)
    done = 0

    async def send(client: OpenAIClient, request: Request) -> None:
        nonlocal done
        async with slots:
            await _send(journal, client, request)
        done += 1
        if progress:
            progress(done, len(pending))

    async with OpenAIClient(base_url=url, api_key="local", timeout_seconds=settings.timeout_seconds) as client:
        await asyncio.gather(*(send(client, request) for request in pending))


async def _send(journal: Journal, client: OpenAIClient, request: Request) -> None:
    for attempt in range(ATTEMPTS):
        if attempt:
            await asyncio.sleep(0.1 * 2**attempt)
        journal.sending(request)
        try:
            journal.answered(request, await client.answer(request))
            return
        except CallError as error:
            journal.failed(request, str(error))


def generated_records(data: DataRoot, experiments: Experiments) -> list[RawRecord]:
    """The journal's answers to the requests configured now, each as a raw record, valid or not."""
    settings = experiments.generation.local
    wanted = {request.key for request in local_requests(load_topics(data.tracked("topics.yaml")), settings)}
    with opened(data.journal) as journal:
        rows = [row for row in journal.rows() if row["key"] in wanted and row["status"] == "answered"]
    return [_raw_record(row) for row in rows]


def _raw_record(row: dict) -> RawRecord:
    """The record inside a chat completion; what cannot be read becomes a raw record that says why."""
    text, problem, value = row["response"], None, None
    try:
        text = json.loads(text)["choices"][0]["message"]["content"]
        value = json.loads(text)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        stopped = f" (stopped by {row['stop_reason']})" if row["stop_reason"] != "stop" else ""
        value, problem = text, f"answer is not the JSON asked for{stopped}: {error}"
    return RawRecord(
        source="local_generator",
        value=value,
        provider=row["provider"],
        model=row["model"],
        topic=row["topic"],
        language=row["language"],
        problem=problem,
    )
