"""The parent process of the chat: it manages one child with the models, and access to the device.

A model never runs in the process that shows its answers, so running out of memory or a crash only
causes an error message. If models do not fit into memory together, the child is replaced by a new
one, since only the end of a process frees all of its memory.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from queue import Empty, SimpleQueue
from tempfile import TemporaryFile
from threading import Event as Flag
from threading import Thread
from typing import Any, Literal

from pipelines.chat.conversation import Conversation
from pipelines.chat.members import Member
from pipelines.errors import InUseError, UsageError, WorkError
from pipelines.estimate.estimate import estimates
from pipelines.evaluate.cell import base_method
from pipelines.hardware import machine
from pipelines.project import Project
from pipelines.runs import devices
from pipelines.runs.process import child_environment, stop_group
from pipelines.settings.methods import traits_of

CHILD = "pipelines.chat.child"
POLL_SECONDS = 0.1
# Time for the current token after a stop; then the process is ended.
STOP_SECONDS = 10
# Safety factor on the predicted size of the weights, for the cache of keys and values.
MARGIN = 1.1
Json = dict[str, Any]
Kind = Literal["waiting", "loading", "text", "done", "error"]


@dataclass(frozen=True)
class Event:
    """An event of the answer in place `slot`.

    `text` depends on the kind: a status (waiting, loading), the next piece of the answer (text),
    the whole answer (done) or the error. `ended` is `itself`, `limit`, `window` or `stopped`.
    """

    slot: int
    kind: Kind
    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    ended: str = ""

    @property
    def tokens_per_second(self) -> float | None:
        """New tokens per second, including the time to read the prompt."""
        return self.tokens / self.seconds if self.tokens and self.seconds else None

    def to_json(self) -> Json:
        return {**asdict(self), "tokens_per_second": self.tokens_per_second}


class Engine:
    """Answers conversations one after the other. All calls of `ask` must come from one thread,
    since the child dies with it."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._child: _Child | None = None
        # Predicted bytes of each member's model.
        self._needed: dict[str, float | None] = {}

    def close(self) -> None:
        """End the child; the next answer starts another."""
        if self._child:
            self._child.end()
        self._child = None

    def ask(
        self, conversation: Conversation, prompt: str, *, stop: Flag | None = None, beside: Flag | None = None
    ) -> Iterator[Event]:
        """The answers of all members to `prompt`, as a stream of events.

        Each answer holds this machine's device, so that answers and measurements wait for each
        other. Once `beside` is set, answers no longer wait. `stop` ends the round.
        """
        stop, beside = stop or Flag(), beside or Flag()
        conversation.turns += 1
        for slot in self._order(conversation.members):
            member = conversation.members[slot]
            with ExitStack() as device:
                yield from _device(device, slot, stop, beside)
                if stop.is_set():
                    yield Event(slot, "done", ended="stopped")
                    continue
                for event in self._answer(conversation, slot, prompt, stop):
                    if event.kind == "done" and event.tokens:
                        conversation.add_answer(member, prompt, event.text)
                    yield event

    def _order(self, members: Sequence[Member]) -> list[int]:
        """The places of the members; those whose model is in memory come first."""
        held = self._child.groups if self._child and self._child.is_alive else set()
        first = {group: place for place, group in enumerate(dict.fromkeys(member.group for member in members))}
        return sorted(range(len(members)), key=lambda i: (members[i].group not in held, first[members[i].group], i))

    def _answer(self, conversation: Conversation, slot: int, prompt: str, stop: Flag) -> Iterator[Event]:
        member, settings = conversation.members[slot], conversation.settings
        try:
            if not self._child or not self._child.is_alive or member.name not in self._child.names:
                if self._must_predict(member):
                    yield Event(slot, "loading", "predicting once whether the models fit into memory together")
                    self._needed |= _predicted_bytes(self._project, conversation.members)
                yield Event(slot, "loading", "loading the model")
            child = self._child_for(member)
            request = {
                "member": _member_fields(self._project, member),
                "messages": conversation.messages_for(member, prompt),
                "limit": settings.max_new_tokens,
                "temperature": settings.temperature,
            }
        except (WorkError, UsageError, OSError) as error:
            yield Event(slot, "error", f"cannot start to answer: {error}")
            return
        for event in child.answer(request, stop):
            if event["event"] == "text":
                yield Event(slot, "text", event["text"])
            elif event["event"] == "done":
                child.groups.add(member.group)
                child.names.add(member.name)
                child.memory = event if "free" in event else child.memory
                yield Event(slot, "done", event["text"], event["tokens"], event["seconds"], event["ended"])
            elif event["event"] == "error":
                # After running out of memory the process is unreliable.
                if event["kind"] != "failed":
                    self.close()
                yield Event(slot, "error", _in_words(event))
        if not child.is_alive:
            self.close()

    def _child_for(self, member: Member) -> "_Child":
        """The child; a new one if the member's model does not fit into the current one."""
        child = self._child
        if child and (not child.is_alive or not self._has_room(child, member)):
            self.close()
            child = None
        if child is None:
            child = self._child = _Child(_budget_gb(self._project, member))
        return child

    def _must_predict(self, member: Member) -> bool:
        """Whether the member's model would be loaded beside others and its size is unknown."""
        others = self._child.groups if self._child and self._child.is_alive else set()
        return bool(others) and member.group not in others and member.name not in self._needed

    def _has_room(self, child: "_Child", member: Member) -> bool:
        """Whether the member's model fits beside the child's models by prediction; False without
        one."""
        if not child.groups or member.group in child.groups:
            return True
        needed, budget = self._needed.get(member.name), _budget_gb(self._project, member)
        if needed is None or not child.memory:
            return False
        free = child.memory["free"]
        if budget:
            free = min(free, budget * 1e9 - child.memory["held"])
        return needed * MARGIN <= free


def _device(stack: ExitStack, slot: int, stop: Flag, beside: Flag) -> Iterator[Event]:
    """Hold this machine's device in `stack` when it is free; yields a message while it waits."""
    paths, announced = devices.watched_locks(), False
    while not (stop.is_set() or beside.is_set()):
        try:
            stack.enter_context(devices.held(paths, "featherweight chat", seconds=0))
            return
        except InUseError:
            user = devices.holder(paths)
            if user and not announced:
                announced = True
                yield Event(slot, "waiting", f"waiting for a measurement, which an answer would disturb: {user}")
            time.sleep(POLL_SECONDS)


def _budget_gb(project: Project, member: Member) -> float | None:
    key = member.key
    method = key.method if key.method in project.experiments.methods else next(iter(project.experiments.methods))
    return project.training_of(key.model, method).memory_budget_gb


def _predicted_bytes(project: Project, members: Sequence[Member]) -> dict[str, float | None]:
    """The peak bytes that loading each member's model adds to a process with loaded libraries."""
    cells = {member.name: _size_cell(project, member) for member in members}
    size_cells = list(dict.fromkeys(cell for cell in cells.values() if cell))
    sizes: dict[tuple[str, str], float] = {}
    with suppress(WorkError):
        for estimate in estimates(project, size_cells, say=lambda _: None):
            weights, load, framework = (estimate.gb(part=part) for part in ("weights", "load", "framework"))
            if weights is not None and load is not None and framework is not None:
                sizes[estimate.model, estimate.method] = max(weights, load - framework) * 1e9
    return {name: sizes.get(cell) if cell else None for name, cell in cells.items()}


def _size_cell(project: Project, member: Member) -> tuple[str, str] | None:
    """The cell whose predicted size applies to the member's model: its own if quantized, else the
    untouched model's."""
    method = member.key.method if traits_of(member.recipe).quantization else base_method(project)
    return (member.key.model, method) if method in project.experiments.methods else None


def _member_fields(project: Project, member: Member) -> Json:
    """The member's fields in a request to the child."""
    fields: Json = {
        "name": member.name,
        "group": member.group,
        "shares_base": member.shares_base,
        "recipe": dict(member.recipe),
        "folder": str(member.folder),
        "trained": str(member.trained) if member.trained else None,
    }
    if member.recipe.get("shots"):
        fields |= {"examples": str(project.resolve().selected.examples), "selection": asdict(project.selection)}
    return fields


def _in_words(event: Json) -> str:
    if event["kind"] == "out_of_memory":
        return f"out of memory: {event['text']}. Choose a smaller or a quantized cell, or stop other programs that use memory."
    return event["text"]


class _Child:
    """The process that holds models and answers.

    `groups` are its loaded models, `names` the members that can answer without loading, `memory`
    its last report on memory.
    """

    def __init__(self, budget_gb: float | None) -> None:
        self.groups: set[str] = set()
        self.names: set[str] = set()
        self.memory: Json = {}
        self._number = 0
        self._kills = machine.oom_kills()
        self._held = ExitStack()
        self._log = self._held.enter_context(TemporaryFile("w+", encoding="utf-8", errors="replace"))  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", CHILD, *([str(budget_gb)] if budget_gb else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            encoding="utf-8",
            errors="replace",
            env=child_environment({"HF_HUB_OFFLINE": "1"}),
            start_new_session=True,
        )
        self._events: SimpleQueue[Json | None] = SimpleQueue()
        Thread(target=self._listen, daemon=True).start()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def answer(self, request: Json, stop: Flag) -> Iterator[Json]:
        """The child's events of one answer; the last is `done` or `error`."""
        self._number += 1
        number, is_loading, stopped_at = self._number, True, 0.0
        self._tell({"do": "answer", "id": number, **request})
        while True:
            if stop.is_set() and not stopped_at:
                stopped_at = time.monotonic()
                self._tell({"do": "stop", "id": number})
            if stopped_at and (is_loading or time.monotonic() > stopped_at + STOP_SECONDS):
                # Loading cannot be interrupted, so the process is ended.
                self.end()
                yield {"event": "done", "text": "", "tokens": 0, "seconds": 0.0, "ended": "stopped"}
                return
            try:
                event = self._events.get(timeout=POLL_SECONDS)
            except Empty:
                continue
            if event is None:
                yield {"event": "error", "kind": "ended", "text": self._why_it_ended()}
                return
            if event["id"] != number:
                continue
            is_loading = is_loading and event["event"] != "begun"
            yield event
            if event["event"] in ("done", "error"):
                return

    def end(self) -> None:
        stop_group(self._process)
        with suppress(OSError):
            assert self._process.stdin
            self._process.stdin.close()
        self._held.close()

    def _tell(self, request: Json) -> None:
        assert self._process.stdin
        # If the child has ended, its event queue reports it.
        with suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout
        with self._process.stdout as lines:
            for line in lines:
                # A killed child may leave an incomplete line.
                with suppress(ValueError):
                    self._events.put(json.loads(line))
        self._events.put(None)

    def _why_it_ended(self) -> str:
        code = self._process.wait()
        if machine.oom_kills() > self._kills and code == -9:
            return "out of memory: the kernel ended the answering process. Choose a smaller or a quantized cell."
        self._log.seek(0)
        last = " | ".join(self._log.read().strip().splitlines()[-2:])
        return f"the answering process ended with exit code {code}{f': {last}' if last else ''}; the next prompt starts another"
