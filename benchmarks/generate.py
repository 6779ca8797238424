"""Generation against the fake provider server in a separate process: first with 64 slots at 1 s
latency, then with a limit of 20 requests a second.

The ideal is as many rounds of one second as the slots need. Under the limit it is the burst at once
and the rest at the allowed rate. References in the same run: a bare client (the SDK's calls in 64
slots, without a journal or budget), and other generators.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

from benchmarks.peers import peer_python
from pipelines.generate.generate import generate
from pipelines.generate.journal import opened
from pipelines.generate.requests import request_source
from pipelines.lake.paths import PROJECT, DataRoot
from pipelines.settings.experiments import Experiments

SLOTS, LATENCY, RATE, BURST = 64, 1.0, 20, 20
FREE_REQUESTS, LIMITED_REQUESTS = 1_280, 1_200
LIMITED_IDEAL = (LIMITED_REQUESTS - BURST) / RATE + LATENCY
PEER_SECONDS = 400
PRICES = {"price_input": 3, "price_output": 15}


def measure() -> Iterator[dict[str, Any]]:
    os.environ.setdefault("BENCH_KEY", "no-real-key-1234567890")
    with _server("--latency", str(LATENCY)) as url:
        yield _free(url)
        yield from _peers(url, FREE_REQUESTS, FREE_REQUESTS / SLOTS * LATENCY)
    with _server("--latency", str(LATENCY), "--rate", str(RATE), "--burst", str(BURST)) as url:
        yield _limited(url)
        yield from _peers(url, LIMITED_REQUESTS, LIMITED_IDEAL)


def _peers(url: str, requests: int, ideal: float) -> Iterator[dict[str, Any]]:
    """The same prompts through other generators, each in a separate environment, without start-up
    time."""
    with TemporaryDirectory() as folder, request_source(DataRoot(Path(folder)), _configured(url, requests)) as reading:
        prompts = json.dumps([request.messages[-1]["content"] for request in reading.requests("bench")])
    for name in ("distilabel", "curator"):
        line: dict[str, Any] = {"benchmark": "generate, the same work", "peer": name, "requests": requests}
        python = peer_python(name)
        if python is None:
            yield line | {"skipped": "its packages could not be installed"}
            continue
        _ask(url, "/_reset", {})
        command = [python, str(Path(__file__).with_name(f"peer_{name}.py")), f"{url}/v1", str(SLOTS)]
        try:
            process = subprocess.run(command, input=prompts, capture_output=True, text=True, timeout=PEER_SECONDS)
        except subprocess.TimeoutExpired:
            yield line | {
                "skipped": f"not done after {PEER_SECONDS} s",
                "refused_429": _ask(url, "/_ledger")["openai"]["limited"],
            }
            continue
        results = [text for text in process.stdout.splitlines() if text.startswith("RESULT ")]
        if not results:
            yield line | {"skipped": f"ended with exit code {process.returncode}: {process.stderr.strip()[-200:]}"}
            continue
        result = json.loads(results[-1].removeprefix("RESULT "))
        ledger = _ask(url, "/_ledger")["openai"]
        yield line | {
            "wall_over_ideal": result["seconds"] / ideal,
            "answers": result["answers"],
            "refused_429": ledger["limited"],
            "answers_given_by_server": ledger["answers"],
        }


def _free(url: str) -> dict[str, Any]:
    ours = _run(url, FREE_REQUESTS)
    bare = _bare(url, FREE_REQUESTS)
    ideal = FREE_REQUESTS / SLOTS * LATENCY
    return {
        "benchmark": "generate, 64 slots at 1 s",
        "requests": FREE_REQUESTS,
        "wall_over_ideal": ours["seconds"] / ideal,
        "bare_client_wall_over_ideal": bare["seconds"] / ideal,
        "client_cpu_ms_per_request": 1000 * ours["cpu_seconds"] / FREE_REQUESTS,
        "bare_client_cpu_ms_per_request": 1000 * bare["cpu_seconds"] / FREE_REQUESTS,
        "answers_journaled": ours["journaled"],
        "dollars_by_journal": ours["usd"],
        "dollars_by_server": ours["server_usd"],
    }


def _limited(url: str) -> dict[str, Any]:
    ours = _run(url, LIMITED_REQUESTS)
    return {
        "benchmark": "generate, 20 requests a second allowed",
        "requests": LIMITED_REQUESTS,
        "wall_over_ideal": ours["seconds"] / LIMITED_IDEAL,
        "refused_429": ours["refused"],
        "refused_share": ours["refused"] / LIMITED_REQUESTS,
        "client_cpu_ms_per_request": 1000 * ours["cpu_seconds"] / LIMITED_REQUESTS,
        "answers_journaled": ours["journaled"],
        "dollars_by_journal": ours["usd"],
        "dollars_by_server": ours["server_usd"],
    }


def _configured(url: str, requests: int) -> Experiments:
    provider = {
        "kind": "openai-compatible", "model": "bench", "base_url": f"{url}/v1", "api_key_env": "BENCH_KEY", "enabled": True,
        "concurrency": SLOTS, "budget_usd": 1000, "price": {"input": PRICES["price_input"], "output": PRICES["price_output"]},
    }  # fmt: skip
    return Experiments.model_validate(
        {
            "models": {"tiny": {"source": {"hub": "none/tiny"}, "prompt": "chat", "lora_targets": ["q_proj"]}},
            "methods": {"base": {"kind": "none"}},
            "profiles": {"local": {"models": ["tiny"], "methods": ["base"]}},
            "sources": {"providers": ["bench"]},
            "providers": {"bench": provider},
            "generation": {"requests": requests, "budget_usd": 1000},
        }
    )


def _run(url: str, requests: int) -> dict[str, Any]:
    _ask(url, "/_reset", {})
    with TemporaryDirectory() as folder:
        data, experiments = DataRoot(Path(folder)), _configured(url, requests)
        wall, cpu = time.monotonic(), time.process_time()
        result = generate(data, experiments).providers["bench"]
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
        with opened(data.journal) as journal:
            journaled = sum(row["status"] == "answered" for row in journal.rows())
    ledger = _ask(url, "/_ledger")["openai"]
    return {
        "seconds": wall, "cpu_seconds": cpu, "journaled": journaled, "usd": round(result.usd, 6),
        "server_usd": round(ledger["dollars"], 6), "refused": ledger["limited"],
    }  # fmt: skip


def _bare(url: str, requests: int) -> dict[str, Any]:
    """The same bodies through the same SDK, SLOTS at a time."""
    from pipelines.generate.openai_client import OpenAIClient, openai_body

    async def ask() -> None:
        slots = asyncio.Semaphore(SLOTS)
        async with OpenAIClient(
            base_url=f"{url}/v1", api_key="no-real-key-1234567890", timeout_seconds=60, slots=SLOTS
        ) as client:

            async def one(body: Any) -> None:
                async with slots:
                    await client.sdk.chat.completions.create(**body)

            await asyncio.gather(*(one(body) for body in bodies))

    with TemporaryDirectory() as folder, request_source(DataRoot(Path(folder)), _configured(url, requests)) as reading:
        bodies = [openai_body(request, strict=False) for request in reading.requests("bench")]
    wall, cpu = time.monotonic(), time.process_time()
    asyncio.run(ask())
    return {"seconds": time.monotonic() - wall, "cpu_seconds": time.process_time() - cpu}


@contextmanager
def _server(*options: str) -> Iterator[str]:
    prices = [text for name, value in PRICES.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "tests.fakes.provider", "--port", "0", *prices, *options]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = next(word for line in process.stdout for word in line.split() if word.startswith("http://"))
        yield url.removesuffix("/v1")
    finally:
        process.terminate()
        process.wait()


def _ask(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(HttpRequest(url + path, data=data, headers={"content-type": "application/json"})) as answer:
        return json.loads(answer.read() or b"null")
