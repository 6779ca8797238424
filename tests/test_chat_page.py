"""The chat page in a real browser with scripted answers: model output stays text, votes are stored,
strangers are refused."""

import http.client
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from pipelines.chat import page as pages
from pipelines.chat.conversation import Conversation
from pipelines.chat.engine import Engine, Event
from pipelines.chat.members import Roster
from pipelines.chat.rounds import MAX_SESSIONS, ChatSessions
from pipelines.chat.settings import Settings
from pipelines.compare import votes
from pipelines.errors import UsageError
from tests import chats
from tests.fakes.planted import Lake

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed; .ci/run installs it")
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
KOREAN = "한국어로 소설 한 권을 추천해 주세요. "


@dataclass
class Scripted(Engine):
    """Answers in pieces, and holds each answer back until `go` is set; records which were
    stopped."""

    go: threading.Event = field(default_factory=threading.Event)
    stopped: list[str] = field(default_factory=list)
    rounds: list[tuple[str, list[str]]] = field(default_factory=list)

    def ask(self, conversation: Conversation, prompt: str, *, stop: Any = None, beside: Any = None) -> Iterator[Event]:
        conversation.turns += 1
        self.rounds.append((prompt, [member.key.method for member in conversation.members]))
        for slot, member in enumerate(conversation.members):
            if prompt == "measuring" and slot == 0:
                yield Event(slot, "waiting", "waiting until no measurement runs: tiny × full")
                while not (beside.is_set() or stop.is_set()):
                    time.sleep(0.02)
            yield Event(slot, "text", f"{member.key.method} says ")
            while not (self.go.is_set() or stop.is_set()):
                time.sleep(0.02)
            if stop.is_set():
                self.stopped.append(prompt)
                yield Event(slot, "done", "", ended="stopped")
                continue
            text = f"{member.key.method} says {HOSTILE} {KOREAN * 20}{'x' * 200}"
            yield Event(slot, "done", text, 30, 2.0, "itself")

    def close(self) -> None:
        pass


@dataclass
class Served:
    engine: Scripted
    lake: Lake
    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def post(self, path: str, payload: Any, **headers: str) -> tuple[int, Any]:
        """A request like the page's own, with `headers` on top; one that is "" is left out."""
        own = {"Host": f"127.0.0.1:{self.port}", "Origin": self.address[:-1], "Content-Type": "application/json"}
        sent = {name: value for name, value in {**own, **headers}.items() if value}
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        line.putrequest("POST", path, skip_host=True)
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        for name, value in {**sent, "Content-Length": str(len(body))}.items():
            line.putheader(name.replace("_", "-"), value)
        line.endheaders(body)
        answer = line.getresponse()
        read = answer.read().decode()
        lines = [json.loads(one) for one in read.splitlines()]
        return answer.status, lines if path == "/ask" and answer.status == 200 else lines[0]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Lake:
    made = chats.lake(tmp_path_factory.mktemp("page") / "data", tiny_folder)
    for method in ("lora-r8", "lora-r4"):
        attempt = made.trained(method)
        attempt.model_folder.mkdir()
    return made


@pytest.fixture
def served(lake: Lake) -> Iterator[Served]:
    engine = Scripted()
    listening = pages._bound(0)
    port = listening.getsockname()[1]
    page = pages.Page(lake.project, engine, Roster(lake.project).named(["tiny/lora-r8"]), Settings(64))
    server = uvicorn.Server(
        uvicorn.Config(pages.application(page, port), log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield Served(engine, lake, port)
    engine.go.set()
    server.should_exit = True
    thread.join(600)
    page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


def opened(browser: Browser, served: Served, width: int = 1024, scheme: str = "light") -> tuple[Page, list[str]]:
    """The page, and its error messages."""
    page = browser.new_page(viewport={"width": width, "height": 760}, color_scheme=scheme)  # pyright: ignore[reportArgumentType]
    page.set_default_timeout(600_000)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(served.address)
    expect(page.locator("#chosen")).to_contain_text("tiny/lora-r8", timeout=600_000)
    return page, complaints


def wait(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def is_cut(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth > innerWidth")


@needs_browser
def test_a_blind_vote_by_keyboard_alone_is_kept_and_names_come_after_it(browser: Browser, served: Served) -> None:
    page, complaints = opened(browser, served)
    # From the prompt to the control before it.
    page.keyboard.press("Shift+Tab")
    page.locator("summary").press("Enter")
    page.locator("#blind").press("Space")
    page.locator("summary").press("Enter")
    page.locator("#prompt").press_sequentially("Which?")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .under", has_text="answering")).to_have_count(1)
    assert "tiny/" not in page.locator("main").inner_text(), "a name before the vote"
    served.engine.go.set()
    page.get_by_role("group", name="Which is better?").wait_for()
    shown = page.locator(".answer .text").all_inner_texts()
    assert page.locator(".answer img, .answer script").count() == 0 and all(HOSTILE in text for text in shown)
    assert page.title() != "owned" and not is_cut(page)
    assert "tokens/s" not in page.locator("main").inner_text(), "a speed before the vote"
    page.keyboard.press("2")
    page.get_by_text("Your vote is saved").wait_for()
    (vote,) = votes.read(served.lake.data).votes
    order = served.engine.rounds[-1][1]
    assert (vote.prompt, vote.chosen, [one.method for one in vote.shown]) == ("Which?", 1, order)
    assert vote.shown[0].answer.startswith(f"{order[0]} says") and vote.settings["turn"] == 1
    assert page.locator(".answer h2").all_inner_texts() == [f"tiny/{method}" for method in order]
    assert page.locator(".answer.best h2").inner_text() == f"tiny/{order[1]}"
    expect(page.locator(".answer .under").first).to_have_text("30 tokens · 15.0 tokens/s")
    assert page.locator("#prompt").evaluate("e => e === document.activeElement"), "the next prompt can be typed at once"
    assert not complaints
    page.close()


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(1024, "light"), (390, "dark")])
def test_nothing_is_cut_and_everyone_can_read_it(browser: Browser, served: Served, width: int, scheme: str) -> None:
    served.engine.go.set()
    page, complaints = opened(browser, served, width, scheme)
    page.locator("summary").click()
    page.get_by_label("lora-r4", exact=True).check()
    page.locator("#prompt").fill(KOREAN * 30)
    page.locator("#send").click()
    expect(page.locator(".answer .under", has_text="tokens/s")).to_have_count(3)
    assert not is_cut(page)
    report = Axe().run(page)
    assert report.violations_count == 0, report.generate_report()
    assert not complaints
    page.close()


@needs_browser
def test_two_tabs_take_turns_and_stop_and_closing_one_ends_its_answer(browser: Browser, served: Served) -> None:
    first, _ = opened(browser, served)
    second, _ = opened(browser, served)
    first.locator("#prompt").fill("one")
    first.keyboard.press("Enter")
    expect(first.locator(".answer .under", has_text="answering")).to_have_count(1)
    second.locator("#prompt").fill("two")
    second.keyboard.press("Enter")
    expect(second.locator("#status")).to_contain_text("another question is being answered")
    assert [prompt for prompt, _ in served.engine.rounds] == ["one"]
    third, _ = opened(browser, served)
    third.locator("#prompt").fill("three")
    third.keyboard.press("Enter")
    expect(third.locator("#status")).to_contain_text("another question is being answered")
    third.locator("#stop").click()
    expect(third.locator("#send")).to_be_enabled()
    third.close()
    first.keyboard.press("Escape")
    expect(first.locator(".answer .under", has_text="stopped")).to_have_count(2)
    wait(lambda: [prompt for prompt, _ in served.engine.rounds] == ["one", "two"], "the second tab's turn")
    second.close()
    wait(lambda: "two" in served.engine.stopped, "the closed tab's answer to end")
    assert "three" not in [prompt for prompt, _ in served.engine.rounds], "it was stopped before its turn"
    first.locator("#prompt").fill("measuring")
    first.keyboard.press("Enter")
    served.engine.go.set()
    first.get_by_role("button", name="Answer now anyway").click()
    expect(first.locator(".answer .under", has_text="15.0 tokens/s")).to_have_count(2)
    first.close()


def test_requests_of_other_sites_are_refused(served: Served) -> None:
    other, own = f"evil.example:{served.port}", f"http://127.0.0.1:{served.port}"
    assert served.post("/cells", {})[0] == 200
    assert (
        served.post("/cells", {}, Host=f"localhost:{served.port}", Origin=f"http://localhost:{served.port}")[0] == 200
    )
    refused = [
        {"Host": other, "Origin": f"http://{other}"},
        {"Host": "127.0.0.1"},
        {"Host": ""},
        {"Origin": ""},
        {"Origin": "null"},
        {"Origin": f"http://{other}"},
        {"Origin": f"http://localhost:{served.port}"},
        {"Origin": own + "0"},
        {"Content-Type": "text/plain"},
        {"Content-Type": ""},
    ]
    for path in ("/cells", "/ask", "/stop", "/vote", "/now"):
        for headers in refused:
            status, answer = served.post(path, {"prompt": "x", "cells": ["tiny/base@1"]}, **headers)
            assert status in (400, 403), (path, headers, answer)
    assert not served.engine.rounds
    line = http.client.HTTPConnection("127.0.0.1", served.port)
    line.request("GET", "/", headers={"Host": other})
    assert line.getresponse().status == 403
    line = http.client.HTTPConnection("127.0.0.1", served.port)
    line.request("GET", "/")
    policy = line.getresponse().getheader("content-security-policy") or ""
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy


NONSENSE: list[tuple[Any, str]] = [
    (b"{", "JSON object"),
    (b"[]", "JSON object"),
    (b"[" * 100_000, "JSON object"),
    (b'"' + b"x" * 500_000 + b'"', "shorten the prompt"),
    ({"cells": ["tiny/base@1"]}, "prompt is None"),
    ({"prompt": "  "}, "the prompt is empty"),
    ({"prompt": "x" * 20_001}, "expected at most"),
    ({"prompt": "x", "cells": "tiny/base@1"}, "expected list"),
    ({"prompt": "x", "cells": [], "max_new_tokens": 5}, "0 cells"),
    ({"prompt": "x", "cells": [{}]}, "can no longer answer"),
    ({"prompt": "x", "cells": ["tiny/full@1"]}, "can no longer answer"),
    ({"prompt": "x", "cells": ["tiny/base@1"] * 99}, "at most 8"),
    ({"prompt": "x", "cells": ["tiny/base@1"], "max_new_tokens": 1e9}, "expected int"),
    ({"prompt": "x", "cells": ["tiny/base@1"], "max_new_tokens": 9_999_999}, "expected 1 to"),
    ({"prompt": "x", "cells": ["tiny/base@1"], "max_new_tokens": 5, "temperature": float("nan")}, "temperature"),
    ({"prompt": "x", "cells": ["tiny/base@1"], "max_new_tokens": 5, "blind": True}, "two or more"),
    ({"prompt": "x", "conversation": "gone"}, "no longer open"),
    ({"prompt": "x", "conversation": 5}, "expected str"),
]


def test_what_makes_no_sense_is_refused(served: Served) -> None:
    for payload, message in NONSENSE:
        status, answer = served.post("/ask", payload)
        assert status == 400 and message in answer["error"], (message, answer)
    assert not served.engine.rounds


def test_a_vote_counts_once_and_only_where_all_have_answered(served: Served) -> None:
    before = len(votes.read(served.lake.data).votes)
    new = {"prompt": "x", "cells": ["tiny/base@1", "tiny/lora-r8@1"], "max_new_tokens": 9}
    served.engine.go.set()
    _, events = served.post("/ask", {**new, "blind": False})
    assert served.post("/vote", {"conversation": events[0]["conversation"], "choice": 0})[0] == 400, "names were seen"
    _, events = served.post("/ask", {**new, "blind": True})
    assert [slot["label"] for slot in events[0]["slots"]] == ["Answer A", "Answer B"] and events[-1]["can_vote"]
    assert not [event for event in events if event.get("seconds") or event.get("tokens")]
    blind = events[0]["conversation"]
    for choice in (2, -1, True, "left", None, 0.0, [], "Tie"):
        assert served.post("/vote", {"conversation": blind, "choice": choice})[0] == 400, choice
    assert served.post("/vote", {"conversation": blind, "choice": "tie"})[0] == 200
    assert served.post("/vote", {"conversation": blind, "choice": 0})[0] == 400
    assert "the vote has ended" in served.post("/ask", {"prompt": "more", "conversation": blind})[1]["error"]
    cast = votes.read(served.lake.data).votes[before:]
    assert [vote.chosen for vote in cast] == ["tie"]
    members = Roster(served.lake.project).named(["tiny/lora-r8"])
    drawn = [ChatSessions().new(members, Settings(9), blind=True).conversation.members for _ in range(40)]
    assert {one[0].key.method for one in drawn} == {"base", "lora-r8"}, "the order is drawn"
    assert ChatSessions().new(members, Settings(9), blind=False).conversation.members == members


def test_of_very_many_conversations_the_oldest_is_closed(lake: Lake) -> None:
    opened_now, members = ChatSessions(), Roster(lake.project).named(["tiny/lora-r8"])
    made = [opened_now.new(members, Settings(9), blind=False).id for _ in range(MAX_SESSIONS)]
    # This conversation was used just now.
    opened_now.get(made[0])
    opened_now.new(members, Settings(9), blind=False)
    assert opened_now.get(made[0])
    with pytest.raises(UsageError, match="no longer open"):
        opened_now.get(made[1])


def test_a_port_that_is_taken_is_named_with_another() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(UsageError, match=rf"port {port} is in use.*make chat PORT={port + 1}"):
            pages._bound(port)
    with pytest.raises(UsageError, match="expected 1 to 65535"):
        pages._bound(70_000)
