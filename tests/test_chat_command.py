"""`featherweight chat`: names of members, output on a terminal and in a pipe, turns on the device,
and the answering process."""

import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines import cli
from pipelines.chat import engine as engines
from pipelines.chat import terminal
from pipelines.chat.conversation import Conversation
from pipelines.chat.engine import Engine, Event
from pipelines.chat.members import Member, Roster
from pipelines.chat.settings import MAX_PROMPT_CHARS, Settings
from pipelines.chat.terminal import Terminal, width_of, wrapped
from pipelines.errors import UsageError
from pipelines.lake.files import locked
from pipelines.runs import devices
from pipelines.runs.cells import CellKey
from tests import chats
from tests.fakes.planted import Lake

ANSI = "\x1b[31mred\x1b[0m"
SETTINGS = Settings(8)


@pytest.fixture(scope="module")
def planted_lake(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Lake:
    made = chats.lake(tmp_path_factory.mktemp("chat") / "data", tiny_folder)
    chats.with_adapter(made.trained("lora-r8"), seed=1)
    chats.with_adapter(made.trained("lora-r4", seed=7), seed=2)
    made.trained("full", "out_of_memory")
    # The cell was pruned and has no model left.
    made.trained("qlora-r8")
    return made


@pytest.fixture
def lake(planted_lake: Lake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lake:
    monkeypatch.setenv("FEATHERWEIGHT_DATA", str(planted_lake.data.root))
    monkeypatch.setenv("FEATHERWEIGHT_EXPERIMENTS", str(planted_lake.data.root / "experiments.yaml"))
    monkeypatch.setenv("FEATHERWEIGHT_PROFILE", "local")
    monkeypatch.setenv("FEATHERWEIGHT_LOCKS", str(tmp_path / "locks"))
    return planted_lake


def names(members: Sequence[Member]) -> list[str]:
    return [member.name for member in members]


# members


def test_cells_are_named_in_several_ways_and_the_base_comes_along(lake: Lake) -> None:
    roster = Roster(lake.project)
    for name in ("tiny/lora-r8", "tiny×lora-r8", "tiny × lora-r8", "tiny/lora-r8@1"):
        assert names(roster.named([name])) == ["tiny/base@1", "tiny/lora-r8@1"]
    assert names(roster.named(["tiny/lora-r4", "tiny/base", "tiny/few-shot"])) == [
        "tiny/base@1", "tiny/lora-r4@7", "tiny/few-shot@1",
    ]  # fmt: skip
    assert names(roster.named([])) == ["tiny/base@1", "tiny/lora-r8@1"], (
        "nothing is picked: the trained ones of the grid"
    )
    assert names(roster.all_members()) == ["tiny/base@1", "tiny/lora-r4@7", "tiny/lora-r8@1"]
    assert [member.label for member in roster.all_members()] == ["tiny/base", "tiny/lora-r4", "tiny/lora-r8"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny/lora-r9", "did you mean 'lora-r8'.*ok in the lake: tiny/lora-r4, tiny/lora-r8"),
        ("tyny/lora-r8", "did you mean 'tiny'"),
        ("lora-r8", "expected MODEL/METHOD.*such as tiny/lora-r4"),
        ("tiny/lora-r8@x", "expected MODEL/METHOD"),
        ("tiny/lora-r8@", "expected MODEL/METHOD"),
        ("tiny/", "expected MODEL/METHOD"),
        ("", "expected MODEL/METHOD"),
        ("../x/y", "expected MODEL/METHOD"),
        ("tiny/lora-r8@3", "is missing.*featherweight train tiny lora-r8 --seed 3"),
        ("tiny/full", "is out_of_memory; only an ok cell can answer.*featherweight train tiny full"),
        ("tiny/bm25", "which chat does not do.*choose another cell"),
        ("tiny/qlora-r8", "only its measurements are left.*--force"),
    ],
)
def test_what_cannot_answer_is_refused_with_what_to_do(lake: Lake, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Roster(lake.project).named([name])


def test_other_weights_are_not_taken_for_those_that_a_cell_was_made_with(lake: Lake, tmp_path: Path) -> None:
    base = Roster(lake.project).member(CellKey("tiny", "base", 1))
    assert base.why_not is None and base.is_base
    from tests.tiny import save_tiny

    elsewhere = save_tiny(tmp_path / "other", "llama-tied")
    other = lake.configured(models={"tiny": {"source": {"path": str(elsewhere)}}})
    try:
        with pytest.raises(UsageError, match="made with other weights"):
            Roster(other.project).named(["tiny/lora-r8"])
    finally:
        lake.configured(models={"tiny": {"source": {"path": str(base.folder)}}})


@pytest.mark.parametrize(
    "settings", [{"max_new_tokens": 0}, {"temperature": float("nan")}, {"temperature": -1.0}, {"system": "x" * 30_000}]
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        Settings(**{"max_new_tokens": 8, **settings})


def test_two_models_of_one_name_differ_in_what_they_are_shown_later() -> None:
    members = [Member(CellKey("tiny", method, 1), {}, Path("/x")) for method in ("base", "lora-r8")]
    conversation = Conversation(members, Settings(8, system="Be brief."))
    conversation.add_answer(members[0], "One?", "Two.")
    first, second = (conversation.messages_for(member, "And?") for member in members)
    assert [turn["content"] for turn in first] == ["Be brief.", "One?", "Two.", "And?"]
    assert [turn["content"] for turn in second] == ["Be brief.", "And?"], "it did not answer the first"
    conversation.start_over()
    assert conversation.messages_for(members[0], "And?") == second
    assert conversation.messages_for(members[0], "half \ud800")[-1]["content"] == "half ?"


# a terminal's output


class Scripted(Engine):
    """An engine that gives the test's answers."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.events, self.prompts, self.is_closed = events, [], False

    def ask(self, conversation: Conversation, prompt: str, **_: Any) -> Iterator[Event]:
        conversation.turns += 1
        self.prompts.append((conversation.turns, prompt))
        yield from self.events

    def close(self) -> None:
        self.is_closed = True


class Window(io.StringIO):
    def isatty(self) -> bool:
        return True


EVENTS = [
    Event(0, "loading", "loading the model"),
    Event(0, "text", f"Olive {ANSI}"),
    Event(0, "text", " Kitteridge, 올리브 키터리지, and more of it that needs a second line."),
    Event(
        0,
        "done",
        f"Olive {ANSI} Kitteridge, 올리브 키터리지, and more of it that needs a second line.",
        12,
        2.0,
        "itself",
    ),
    Event(1, "error", "out of memory: 3 bytes"),
]


def run(engine: Scripted, monkeypatch: pytest.MonkeyPatch, typed: str, out: io.StringIO, **more: Any) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    members = [Member(CellKey("tiny", method, 1), {}, Path("/x"), run_id="r") for method in ("base", "lora-r8")]
    return Terminal(engine, Conversation(members, SETTINGS), out=out, **more).run()


def test_json_is_one_line_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, out = Scripted(EVENTS), io.StringIO()
    assert run(engine, monkeypatch, "One?\n\n  \n둘?\r\n/new\nThree?\n/quit\nnever\n", out, format="json") == 3
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert engine.prompts == [(1, "One?"), (2, "둘?"), (1, "Three?")] and engine.is_closed
    assert [(row["prompt"], row["turn"]) for row in rows] == [("One?", 1), ("둘?", 2), ("Three?", 1)]
    first, second = rows[0]["answers"]
    assert (first["method"], first["tokens_per_second"], first["ended"], first["error"]) == (
        "base",
        6.0,
        "itself",
        None,
    )
    assert first["answer"] == EVENTS[3].text, "as the model wrote it: JSON escapes what a terminal obeys"
    assert "\x1b" not in out.getvalue()
    assert (second["answer"], second["tokens"], second["error"]) == (None, None, "out of memory: 3 bytes")
    with pytest.raises(UsageError, match="expected at most"):
        run(Scripted(EVENTS), monkeypatch, "x" * (MAX_PROMPT_CHARS + 1), io.StringIO(), format="json")


def test_a_pipe_gets_one_answer_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    assert run(Scripted(EVENTS), monkeypatch, "One?\n", out) == 3
    output = out.getvalue()
    assert (
        output.index("tiny/base")
        < output.index("Kitteridge")
        < output.index("12 tokens, 6.0 tokens/s")
        < output.index("tiny/lora-r8")
    )
    assert "no answer: out of memory" in output and "\x1b" not in output and output.count("Kitteridge") == 1


@pytest.mark.parametrize(("columns", "beside"), [(100, True), (50, False)])
def test_answers_stand_beside_one_another_where_the_window_is_wide(
    columns: int, beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", "12")
    out = Window()
    run(Scripted(EVENTS), monkeypatch, "One?\n", out)
    last = re.sub(r"\x1b\[[01]m", "", out.getvalue().split("\x1b[J")[-1]).splitlines()
    together = [line for line in last if "tiny/base" in line and "tiny/lora-r8" in line]
    assert bool(together) == beside
    assert "red" in out.getvalue() and "\x1b[31m" not in out.getvalue(), "a model's escapes do nothing"
    if beside:
        assert all(width_of(line) < columns for line in last)
        assert "Kitteridge" in " ".join(last) and "needs a second line" in " ".join(" ".join(last).split())


def test_lines_are_as_wide_as_a_terminal_shows_them() -> None:
    text = "한국어로 소설을 추천해 주세요 " * 4 + "x" * 30 + "\n\nend"
    lines = wrapped(text, 21)
    assert all(width_of(line) <= 21 for line in lines) and lines[-2:] == ["", "end"]
    assert "".join(lines).replace(" ", "") == text.replace(" ", "").replace("\n", "")
    assert wrapped("", 9) == [""] and wrapped("ab cd", 4) == ["ab", "cd"]


# turns


class Quick:
    """A child that answers at once."""

    is_alive = True

    def __init__(self) -> None:
        self.groups: set[str] = set()
        self.names: set[str] = set()
        self.memory = {"free": 10e9, "held": 1e9}

    def answer(self, conversation: Any, stop: Any) -> Iterator[dict[str, Any]]:
        yield {"event": "begun"}
        yield {"event": "done", "text": "Yes.", "tokens": 2, "seconds": 1.0, "ended": "itself"}

    def end(self) -> None:
        pass


def conversation_of(lake: Lake, *methods: str) -> Conversation:
    roster = Roster(lake.project)
    return Conversation([roster.member(CellKey("tiny", method, 1)) for method in methods], SETTINGS)


def test_an_answer_waits_for_a_measurement_unless_told_not_to(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_Child", lambda _budget: Quick())
    engine, conversation = Engine(lake.project), conversation_of(lake, "base")
    (cpu,) = devices.locks_of()
    beside, measuring = threading.Event(), locked(cpu, "tiny × full")
    with measuring:
        events = engine.ask(conversation, "Well?", beside=beside)
        first = next(events)
        assert first.kind == "waiting" and "tiny × full" in first.text
        beside.set()
        assert [event.kind for event in events] == ["loading", "done"]
        stop = threading.Event()
        events = engine.ask(conversation, "Well?", stop=stop)
        next(events)
        stop.set()
        assert [event.ended for event in events] == ["stopped"]
    events = engine.ask(conversation, "Well?")
    assert next(events).kind == "done"
    assert "featherweight chat" in (devices.holder([cpu]) or ""), "a cell that begins now waits for the answer"
    assert not list(events) and devices.holder([cpu]) is None
    assert len(conversation.messages_for(conversation.members[0], "?")) == 5, "the stopped round is no part of it"


def test_models_stay_together_only_where_they_are_predicted_to_fit(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Quick] = []

    def child(_budget: float | None) -> Quick:
        made.append(Quick())
        return made[-1]

    monkeypatch.setattr(engines, "_Child", child)
    members = [replace(one, trained=Path("/x"), run_id=str(i), recipe={**one.recipe, "kind": "full"})
               for i, one in enumerate(conversation_of(lake, "base", "base").members)]  # fmt: skip
    members = [replace(one, key=CellKey("tiny", f"full-{i}", 1)) for i, one in enumerate(members)]
    for needed, expected in ((2e9, 1), (9.5e9, 2), (None, 2)):
        made.clear()
        predicted = {member.name: needed for member in members}
        monkeypatch.setattr(engines, "_predicted_bytes", lambda _project, _members, predictions=predicted: predictions)
        events = list(Engine(lake.project).ask(Conversation(members, SETTINGS), "Well?"))
        assert [event.slot for event in events if event.kind == "done"] == [0, 1]
        assert len(made) == expected, needed


def test_what_a_model_adds_is_predicted_from_a_cell_like_it(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    class Estimate:
        def __init__(self, model: str, method: str) -> None:
            self.model, self.method = model, method

        def gb(self, *, part: str) -> float | None:
            known = {"base": {"weights": 2.0, "load": 5.0, "framework": 1.0}, "qlora-r8": {"weights": 3.0, "load": 3.5}}
            return known[self.method].get(part, 1.0)

    predicted_cells: list[Any] = []
    monkeypatch.setattr(
        engines,
        "estimates",
        lambda _project, cells, say: predicted_cells.extend(cells) or [Estimate(*one) for one in cells],
    )
    base, lora = conversation_of(lake, "base", "lora-r8").members
    quantized = replace(lora, key=CellKey("tiny", "qlora-r8", 1), recipe={**lora.recipe, "quantization": "nf4"})
    swept = replace(quantized, key=CellKey("tiny", "of-a-sweep", 1))
    predictions = engines._predicted_bytes(lake.project, [base, lora, quantized, swept])
    assert predicted_cells == [("tiny", "base"), ("tiny", "qlora-r8")]
    assert list(predictions.values()) == [4e9, 4e9, 3e9, None], "a cell outside the configuration has no prediction"


# the answering process


def test_a_pipe_through_the_real_process_says_what_evaluation_says(lake: Lake, capsys: pytest.CaptureFixture[str],
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    from tests.test_chat_loaded_models import LIMIT, alone

    monkeypatch.setattr(sys, "stdin", io.StringIO("A novel for a nurse?\n/new\n짧은 소설 한 권\n"))
    assert cli.main(["chat", "tiny/lora-r8", "--format", "json", "--max-new-tokens", str(LIMIT)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    from pipelines.train.trainer.prompts import PromptFormat

    form = PromptFormat.of(Roster(lake.project).member(CellKey("tiny", "base", 1)).folder, {"prompt": "chat"})
    for place, method in enumerate(("base", "lora-r8")):
        expected = [
            form.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in alone(lake, method)[:2]
        ]
        assert [row["answers"][place]["answer"] for row in rows] == expected
        assert all(row["answers"][place]["tokens_per_second"] > 0 for row in rows)


@pytest.mark.slow
def test_a_process_that_is_killed_costs_a_message_and_the_next_prompt_begins_another(lake: Lake) -> None:
    engine, conversation = Engine(lake.project), conversation_of(lake, "base", "lora-r8")
    assert [event.kind for event in engine.ask(conversation, "Well?")].count("done") == 2
    assert engine._child
    os.kill(engine._child._process.pid, 9)
    engine._child._process.wait()
    long, seen, killed = Conversation(conversation.members, replace(SETTINGS, max_new_tokens=400)), [], False
    for event in engine.ask(long, "Well?"):
        seen.append(event)
        if event.kind == "text" and not killed:
            killed = True
            os.kill(engine._child._process.pid, 9)
    engine.close()
    first, second = ([event for event in seen if event.slot == slot][-1] for slot in (0, 1))
    assert first.kind == "error" and "exit code -9" in first.text and "the next prompt starts another" in first.text
    assert second.kind == "done" and second.tokens, "in a process of its own"
    assert len(long.messages_for(long.members[0], "?")) == 1 and len(long.messages_for(long.members[1], "?")) == 3


@pytest.mark.slow
def test_the_process_ends_with_whoever_asked_also_where_that_is_killed(lake: Lake) -> None:
    import psutil

    parent = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "chat", "tiny/lora-r8", "--max-new-tokens", "400", "--format", "json"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    assert parent.stdin
    parent.stdin.write(b"Well?\n")
    parent.stdin.flush()
    deadline = time.monotonic() + 600
    while not (children := psutil.Process(parent.pid).children()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=600)
    assert not alive


@pytest.mark.slow
def test_memory_that_runs_out_is_a_message(lake: Lake) -> None:
    small = lake.configured(profiles={"local": {"training": {"memory_budget_gb": 0.05}}})
    try:
        engine = Engine(small.project)
        events = list(engine.ask(conversation_of(small, "base"), "Well?"))
        engine.close()
    finally:
        lake.configured(profiles={"local": {"training": {"memory_budget_gb": None}}})
    assert events[-1].kind == "error" and "memory" in events[-1].text, events


def test_a_window_that_is_too_small_for_columns_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert (
        terminal._column(2) > 50 and terminal._column(3) > 34 and terminal._column(4) == 0 and terminal._column(1) == 0
    )
