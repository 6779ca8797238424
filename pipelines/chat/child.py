"""The answering process: `python -m pipelines.chat.child` reads one request per line and writes one
event per line, both in JSON.

Requests: {"do": "answer", "id", "member", "messages", "limit", "temperature"} and {"do": "stop",
"id"}. Events have the id of their request: begun, text, done, error. The process ends with its
input or with its parent.
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import psutil

from pipelines.errors import UnavailableError, UsageError, WorkError
from pipelines.runs.process import die_with_parent, limit_memory, offer_to_oom_killer, print_anything
from pipelines.runs.worker import is_out_of_memory

Json = dict[str, Any]
Say = Callable[..., None]


def main(budget_gb: float | None) -> None:
    """Answer the requests one after the other, within `budget_gb` (10⁹ bytes; None: no limit)."""
    say = _events()
    from pipelines.hardware import machine

    if budget_gb and machine.device_slug() == "cpu":
        limit_memory(round(budget_gb * 1e9))
    requests: SimpleQueue[Json | None] = SimpleQueue()
    stopped: set[int] = set()
    threading.Thread(target=_read, args=(requests, stopped), daemon=True).start()
    answers = _Answers(say, stopped, budget_gb)
    while (request := requests.get()) is not None:
        answers.respond(request)


def _events() -> Say:
    """A function that writes an event. All other output of this process goes to its log."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**event: Any) -> None:
        out.write(json.dumps(event) + "\n")
        out.flush()

    return say


def _read(requests: "SimpleQueue[Json | None]", stopped: set[int]) -> None:
    """Queue the requests as they arrive. A stop request bypasses the queue."""
    for request in _requests():
        if request["do"] == "stop":
            stopped.add(request["id"])
        else:
            requests.put(request)
    requests.put(None)
    # The input has ended, so nobody reads an unfinished answer.
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(0)


def _requests() -> Iterator[Json]:
    for line in sys.stdin:
        yield json.loads(line)


class _Answers:
    """Answers requests with the models of this process, which are loaded on first use."""

    def __init__(self, say: Say, stopped: set[int], budget_gb: float | None) -> None:
        self._say, self._stopped, self._budget_gb = say, stopped, budget_gb
        self._loaded: Any = None

    def respond(self, request: Json) -> None:
        number = request["id"]
        try:
            self._answer(request)
        except Exception as error:
            if is_out_of_memory(error):
                self._say(event="error", id=number, kind="out_of_memory", text=_first_line(error))
                return
            known = isinstance(error, (UnavailableError, UsageError, WorkError, ValueError)) or _is_ours(error)
            if not known:
                import traceback

                traceback.print_exc()
            self._say(event="error", id=number, kind="failed", text=_in_words(error))

    def _answer(self, request: Json) -> None:
        number, member = request["id"], request["member"]
        loaded_models = self._ready()
        if not loaded_models.has(member):
            loaded_models.load(member)
        self._say(event="begun", id=number)
        if number in self._stopped:
            self._say(event="done", id=number, text="", tokens=0, seconds=0.0, ended="stopped", **_memory())
            return
        from pipelines.chat.loaded_models import Question

        answer = loaded_models.answer(
            member,
            Question(request["messages"], request["limit"], request["temperature"]),
            lambda text: self._say(event="text", id=number, text=text),
            lambda: number in self._stopped,
        )
        self._say(
            event="done",
            id=number,
            text=answer.text,
            tokens=len(answer.tokens),
            seconds=answer.seconds,
            ended=answer.ended,
            **_memory(),
        )

    def _ready(self) -> Any:
        """The loaded models. The libraries are imported on the first question."""
        if self._loaded is None:
            import torch

            from pipelines.chat.loaded_models import LoadedModels
            from pipelines.train.trainer import loading
            from pipelines.train.trainer.devices import card

            loading.quiet()
            # Without a random seed, every process would sample the same answers.
            torch.seed()
            card.require_usable()
            if self._budget_gb:
                _limit_card(self._budget_gb)
            self._loaded = LoadedModels()
        return self._loaded


def _limit_card(budget_gb: float) -> None:
    import torch

    from pipelines.train.trainer.devices import card

    if torch.cuda.is_available():
        card.limit_memory(budget_gb)


def _memory() -> Json:
    """Free bytes on the model's device, and the bytes that this process holds there."""
    import torch

    if torch.cuda.is_available():
        return {"free": torch.cuda.mem_get_info()[0], "held": torch.cuda.memory_reserved()}
    return {"free": psutil.virtual_memory().available, "held": psutil.Process().memory_info().rss}


def _is_ours(error: Exception) -> bool:
    return type(error).__module__.startswith("pipelines.")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]


def _in_words(error: Exception) -> str:
    message = " ".join(str(error).split())[:600]
    return message if _is_ours(error) else f"{type(error).__name__}: {message}"


if __name__ == "__main__":
    die_with_parent()
    offer_to_oom_killer()
    print_anything()
    main(float(sys.argv[1]) if len(sys.argv) > 1 else None)
