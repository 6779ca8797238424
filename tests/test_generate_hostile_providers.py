"""Wrong, broken or hostile servers: their cost, the messages about them, and which of their texts
reach a terminal."""

import gzip
import json
import ssl
import sys
import threading
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pipelines import cli
from pipelines.cli.command import NOT_OK, OK
from pipelines.errors import UsageError
from pipelines.generate import pacing, send, show
from pipelines.generate.bodies import EXCERPT_BYTES
from pipelines.generate.generate import release_in_doubt
from pipelines.generate.keys import without
from pipelines.generate.prices import costs_of, worst_cost
from pipelines.generate.requests import request_source
from pipelines.records.foreign_text import one_line
from tests.asking import KEY, NAMES, Asking, asking, ready
from tests.fakes.behavior import Behavior, Wire
from tests.fakes.llm_server import Answers, ChatServer, Reply, chat_server, completion
from tests.fakes.provider import FakeProvider

RECORD = {"instruction": "What could I read tonight?", "input": "", "output": "Stoner, by John Williams: calm and sad."}
GOOD = completion(json.dumps(RECORD))
PRICE = {"input": 3, "output": 15}
WIRES: list[Wire] = ["anthropic", "openai"]


@pytest.fixture(scope="module")
def compatible() -> Iterator[ChatServer]:
    with chat_server(lambda *_: Reply(GOOD)) as server:
        yield server


@pytest.fixture
def server(running: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> FakeProvider:
    monkeypatch.setattr(pacing, "FIRST_BACKOFF_SECONDS", 0.01)
    return ready(running, monkeypatch, Behavior(batch_seconds=0.0))


@pytest.fixture
def mine(quick_path: Path, server: FakeProvider, compatible: ChatServer) -> Asking:
    """Forty requests of a single compatible server, under a budget of $0.50."""
    ask = asking(quick_path, server, providers={"claude": {"enabled": False}, "gpt": {"enabled": False}})
    settings = {"kind": "openai-compatible", "model": "m", "base_url": compatible.url, "enabled": True, "price": PRICE}
    ask.configure(providers={"mine": {**settings, "budget_usd": 0.5, "api_key_env": "OPENAI_API_KEY"}})
    return ask.configure(sources={"providers": ["mine"]}, generation={"requests": 40})


def always(body: str | bytes, status: int = 200, **more: Any) -> Answers:
    return lambda *_: Reply(body, status, **more)


def dearest(ask: Asking, name: str = "mine") -> float:
    with request_source(ask.data, ask.experiments) as reading:
        costs = costs_of(ask.experiments.provider(name))
        return max(worst_cost(costs, request) or 0.0 for request in reading.requests(name))


def why_stopped(result: Any) -> str:
    (why,) = result.stopped.values()
    return why


# --- a wrong server


@pytest.mark.parametrize(
    ("answers", "cause"),
    [
        (always("<html>Sign in to the proxy</html>", content_type="text/html"), "Sign in to the proxy"),
        (always("", 204), "HTTP 204"),
    ],
    ids=["login page", "204"],
)
def test_a_wrong_server_costs_a_handful_of_requests_says_why_and_is_given_back(
    mine: Asking, compatible: ChatServer, answers: Answers, cause: str
) -> None:
    compatible.answer_with(answers)
    worst = dearest(mine)
    result = mine.generate()
    assert cause in why_stopped(result) and "--release-in-doubt" in why_stopped(result)
    assert compatible.most_at_once == 1, "one at a time until an answer was read"
    assert len(compatible.bodies) == send.FIRST_DOUBTS and 0 < mine.charged() <= send.FIRST_DOUBTS * worst
    with pytest.raises(UsageError, match="no reason"):
        release_in_doubt(mine.data, "  ")
    with pytest.raises(UsageError, match="knows no provider 'other'"):
        release_in_doubt(mine.data, "the bill", ["other"])
    held, before = mine.charged(), mine.rows()
    released = release_in_doubt(mine.data, "bill of November: nothing", ["mine"])
    assert released["mine"].usd == pytest.approx(held) and mine.charged() == 0
    (row,) = mine.rows("SELECT * FROM releases")
    assert (row["provider"], row["reason"], row["requests"]) == ("mine", "bill of November: nothing", len(before))
    assert sum(row["released_usd"] for row in mine.rows()) == pytest.approx(held)
    assert [(r["status"], r["in_doubt_count"]) for r in mine.rows()] == [
        (r["status"], r["in_doubt_count"]) for r in before
    ]
    assert release_in_doubt(mine.data, "again") == {}, "nothing is given back twice"
    compatible.answer_with(always(GOOD))
    assert mine.generate().complete


def test_connections_that_close_cost_a_handful_too(quick_path: Path, server: FakeProvider) -> None:
    ask = asking(quick_path, server, "openai", generation={"requests": 48, "budget_usd": 0.5})
    server.behavior = Behavior(script=lambda *_: "cut")
    assert "disconnected" in why_stopped(ask.generate())
    assert server.ledger.openai.requests == send.FIRST_DOUBTS


def test_a_server_that_goes_wrong_after_an_answer_is_given_up_without_spending_the_budget(
    mine: Asking, compatible: ChatServer
) -> None:
    mine.configure(providers={"mine": {"concurrency": 2, "budget_usd": 5}})
    compatible.answer_with(lambda *_: Reply(GOOD) if len(compatible.bodies) == 1 else Reply("<html>Sign in</html>"))
    result = mine.generate()
    assert result.answered == 1 and "since the last answer" in why_stopped(result)
    assert send.LATER_DOUBTS < len(compatible.bodies) <= send.LATER_DOUBTS + 4


def test_what_lies_in_a_batch_is_not_given_back(quick_path: Path, server: FakeProvider) -> None:
    server.behavior = Behavior(batch_seconds=3600)
    ask = asking(quick_path, server, "openai", providers={"gpt": {"batch": True}})
    ask.generate("submit")
    held = ask.charged()
    assert release_in_doubt(ask.data, "the bill") == {} and ask.charged() == held > 0


def test_a_page_in_place_of_a_batch_interface_holds_no_money(
    quick_path: Path, server: FakeProvider, compatible: ChatServer
) -> None:
    # This page answers every request with something else.
    page = server.anthropic_url + "/_ledger?"
    ask = asking(quick_path, server, "anthropic", providers={"claude": {"batch": True, "base_url": page}})
    assert "no list of batches" in why_stopped(ask.generate()) and ask.rows() == []


# --- immediate messages


class _Silent(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def self_signed(quick_path: Path) -> Iterator[str]:
    """The address of a server with an untrusted certificate."""
    key, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]),
    )
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1)).sign(
        key, hashes.SHA256()
    )
    pem = quick_path / "both.pem"
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pem.write_bytes(key.private_bytes(*form) + made.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Silent)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_certificate_that_nobody_trusts_is_said_at_once(mine: Asking, self_signed: str) -> None:
    mine.configure(providers={"mine": {"base_url": self_signed}})
    why = why_stopped(mine.generate())
    assert "certificate is not trusted (self-signed certificate)" in why and "SSL_CERT_FILE" in why
    assert [row["attempts"] for row in mine.rows()] == [1] and mine.charged() == 0


def test_a_redirect_is_said_at_once_with_where_it_leads(mine: Asking, compatible: ChatServer) -> None:
    compatible.answer_with(always("", 307, location="https://elsewhere.example/v1"))
    assert "redirects to https://elsewhere.example/v1" in why_stopped(mine.generate())
    assert len(compatible.bodies) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_of_days_gives_the_provider_up_for_this_run(mine: Asking, compatible: ChatServer, status: int) -> None:
    compatible.answer_with(always('{"error": {"message": "later"}}', status, headers={"retry-after": "259200"}))
    assert "asks to wait 72 hours" in why_stopped(mine.generate())
    assert len(compatible.bodies) == 1 and mine.charged() == 0


@pytest.mark.parametrize("amount", ["nan", "-1", "inf", "much"])
def test_a_budget_that_is_none_is_refused_in_words(amount: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["generate", f"--budget-usd={amount}"])
    assert ended.value.code == 2 and f"got '{amount}'; expected dollars from 0 on" in capsys.readouterr().err


@pytest.mark.parametrize("amount", [float("nan"), -1.0, float("inf")])
def test_a_budget_that_is_none_is_refused_from_the_ui_too(mine: Asking, amount: float) -> None:
    with pytest.raises(UsageError, match="expected dollars from 0 on"):
        mine.generate(budget_usd=amount)


# --- token counts and models


def completion_with(**changes: Any) -> str:
    return json.dumps({**json.loads(GOOD), **changes})


ODD = {
    "huge": ({"prompt_tokens": 10**11, "completion_tokens": 7}, "100,000,000,000 input tokens"),
    "beyond max_tokens": ({"prompt_tokens": 11, "completion_tokens": 201}, "201 output tokens, although at most 200"),
    "none": ({"prompt_tokens": 0, "completion_tokens": 0}, "no input tokens"),
    "too few": ({"prompt_tokens": 11, "completion_tokens": 0}, "0 output tokens for a text of"),
    "negative": ({"prompt_tokens": -5, "completion_tokens": 7}, "prompt_tokens is -5"),
    "a fraction": ({"prompt_tokens": 11, "completion_tokens": 7.5}, "completion_tokens is 7.5"),
    "words": ({"prompt_tokens": "many", "completion_tokens": 7}, 'prompt_tokens is "many"'),
    "null": (None, "reports no token counts"),
}


@pytest.mark.parametrize("name", ODD)
def test_token_counts_that_cannot_be_charge_the_reservation_and_are_said(
    mine: Asking, compatible: ChatServer, name: str
) -> None:
    usage, note = ODD[name]
    compatible.answer_with(always(completion_with(usage=usage)))
    mine.configure(generation={"requests": 3})
    worst = dearest(mine)
    result = mine.generate()
    assert result.complete and 0 < mine.charged() <= 3 * worst
    for row in mine.rows():
        assert (row["cost_usd"], row["input_tokens"]) == (None, None) and note in row["note"]
        assert row["reserved_usd"] == row["attempt_reserved_usd"] > 0
    (line,) = [line for line in show.summary(result) if show.is_warning(line)]
    assert "3 ×" in line and note in line


@pytest.mark.parametrize(
    ("named", "model", "is_noted"),
    [
        ("gpt-4o", "gpt-4o-2024-08-06", False),
        ("claude-3-5-haiku-latest", "claude-3-5-haiku-20241022", False),
        ("my-model", "/models/my-model.gguf", False),
        ("llama3", "llama3:latest", False),
        ("gpt-4o", None, False),
        ("gpt-4o", "gpt-4o-mini", True),
        ("gpt-4o", "llama-3-8b\x1b[31m\n2026 ERROR forged", True),
    ],
)
def test_another_model_is_said_once_and_a_dated_name_is_the_same_model(
    mine: Asking, compatible: ChatServer, named: str, model: str | None, is_noted: bool
) -> None:
    compatible.answer_with(always(completion_with(model=model)))
    mine.configure(generation={"requests": 3}, providers={"mine": {"model": named}})
    result = mine.generate()
    lines = [line for line in show.summary(result) if show.is_warning(line)]
    assert len(lines) == is_noted and all("answered by" in line and line.isprintable() for line in lines)
    assert all(bool(row["note"]) == is_noted and row["cost_usd"] for row in mine.rows())


@pytest.mark.parametrize("content", [None, ""])
def test_answers_without_content_are_no_success(
    mine: Asking, compatible: ChatServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    content: str | None,
) -> None:  # fmt: skip
    compatible.answer_with(always(completion(content)))
    mine.configure(generation={"requests": 3})
    monkeypatch.setenv("FEATHERWEIGHT_DATA", str(mine.data.root))
    monkeypatch.setenv("FEATHERWEIGHT_EXPERIMENTS", str(mine.path))
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    for _ in range(2):
        assert cli.main(["generate"]) == NOT_OK
        assert "mine: none of its 3 answers is a valid record, such as: " in capsys.readouterr().out
    compatible.answer_with(always(GOOD))
    mine.configure(generation={"requests": 4})
    assert cli.main(["generate"]) == OK


# --- texts of others


EVIL = "\x1b[2J\x1b]0;owned\x07 \u202egnp.exe\u2066 \u200b\r\nmine stopped: forged"


def test_no_text_of_a_provider_moves_a_terminal_or_forges_a_line(mine: Asking, compatible: ChatServer) -> None:
    compatible.answer_with(always(json.dumps({"error": {"message": EVIL, "code": EVIL}}), 401))
    result = mine.generate()
    lines = list(show.summary(result))
    assert sum(line.startswith("mine stopped: ") for line in lines) == 1
    assert all(line.isprintable() for line in [*lines, why_stopped(result)]), "the error"
    body = json.loads(GOOD)
    body["choices"][0]["finish_reason"] = EVIL
    compatible.answer_with(always(json.dumps(body)))
    mine.generate()
    assert {row["stop_reason"].isprintable() for row in mine.rows() if row["stop_reason"]} == {True}
    assert all(row["error"] is None or row["error"].isprintable() for row in mine.rows())


def test_text_in_any_script_and_emoji_pass_as_they_are() -> None:
    assert one_line("열쇠가 없다, 鍵, مفتاح, 👩‍🚀, naïve – “x”", 200) == "열쇠가 없다, 鍵, مفتاح, 👩‍🚀, naïve – “x”"
    assert one_line("a\nb\ud83d\x9b\u2028", 200) == "a b\ufffd\ufffd\ufffd"


@pytest.mark.parametrize("body", [b"x" * 50_000_000, completion("x" * 50_000_000).encode()], ids=["garbage", "answer"])
def test_a_small_body_that_unpacks_to_a_huge_one_is_broken_off(
    mine: Asking, compatible: ChatServer, body: bytes
) -> None:
    packed = gzip.compress(body, 6)
    compatible.answer_with(always(packed, headers={"content-encoding": "gzip"}))
    assert "larger than 8 MB (max_answer_mb" in why_stopped(mine.generate())
    assert mine.data.journal.stat().st_size < 10 * EXCERPT_BYTES
    compatible.answer_with(always(gzip.compress(GOOD.encode()), headers={"content-encoding": "gzip"}))
    mine.configure(generation={"requests": 3})
    assert mine.generate().answered > 0, "what is packed and small is read"
    compatible.answer_with(always(GOOD))
    mine.configure(generation={"requests": 6}, providers={"mine": {"max_answer_mb": 0.0001}})
    assert "larger than 0.0001 MB" in why_stopped(mine.generate()), "the setting"


SLASHED = "sk-ant-api03-AbC/d+eFg0123456789xyzZY-qrs_tuv"
REPEATED = {
    "itself": SLASHED,
    "lower case": SLASHED.lower(),
    "upper case": SLASHED.upper(),
    "url": quote(SLASHED, safe=""),
    "base64": b64encode(SLASHED.encode()).decode(),
    "base64 behind a word": b64encode(f"Bearer {SLASHED}".encode()).decode(),
    "base64 behind a name": urlsafe_b64encode(f"me:{SLASHED}".encode()).decode(),
    "hexadecimal": SLASHED.encode().hex(),
    "percents": "".join(f"%{byte:02X}" for byte in SLASHED.encode()),
    "its start": SLASHED[:12],
    "its middle": SLASHED[17:31],
    "its end": SLASHED[-12:],
}


@pytest.mark.parametrize("form", REPEATED)
def test_a_key_is_taken_out_in_every_form(form: str) -> None:
    shown = without(f"열쇠 <{REPEATED[form]}> 끝", SLASHED)
    assert "…" in shown and shown.startswith("열쇠 <") and shown.endswith("> 끝")
    parts = [REPEATED[form][at : at + 12].lower() for at in range(len(REPEATED[form]) - 11)]
    left = [part for part in parts if part in shown.lower()]
    assert len(left) <= (2 if "behind" in form else 0), "but for what stood before the key"


def test_what_only_looks_like_a_key_stays() -> None:
    assert without("sk-ant-api0 and 0123456789x are not it", SLASHED) == "sk-ant-api0 and 0123456789x are not it"
    assert without("a word", "word") == "a word"


def test_a_key_in_another_form_stands_nowhere(mine: Asking, compatible: ChatServer) -> None:
    packed = b64encode(f"Bearer {KEY}".encode()).decode()
    body = {"error": {"message": f"no: {KEY.upper()} {packed} {KEY[3:20]}"}}
    compatible.answer_with(always(json.dumps(body), 401, headers={"x-key": KEY.lower()}))
    why = why_stopped(mine.generate())
    forms = [KEY.upper(), packed, KEY[3:20]]
    assert "no: … QmVhcmVyI" in why
    files = [path.read_bytes() for path in mine.data.root.rglob("*") if path.is_file()]
    assert not [form for form in forms if form in why or any(form.encode() in held for held in files)]


# --- batches with bad results


def bent(change: Any) -> Any:
    """The lines of a batch's results, changed by `change`."""
    return lambda _, lines: change(lines)


def without_id(line: str) -> str:
    return json.dumps({**json.loads(line), "custom_id": None}) + "\n"


def another_id(line: str) -> str:
    return json.dumps({**json.loads(line), "custom_id": "somebody-elses"}) + "\n"


BAD = {
    "a cut line": lambda lines: [lines[0][:40] + "\n", *lines[1:]],
    "no custom_id": lambda lines: [without_id(lines[0]), *lines[1:]],
    "null": lambda lines: ["null\n", *lines[1:]],
    "a list": lambda lines: ["[]\n", *lines[1:]],
    "an unknown custom_id": lambda lines: [another_id(lines[0]), *lines[1:]],
    "one twice, one missing": lambda lines: [lines[1], *lines[1:]],
}


# On one of the two wires each fault is quick.
EACH_WIRE = [
    pytest.param(name, wire, marks=[pytest.mark.slow] if (at + WIRES.index(wire)) % 2 else [])
    for at, name in enumerate(BAD)
    for wire in WIRES
]


@pytest.mark.parametrize(("name", "wire"), EACH_WIRE)
def test_one_bad_result_of_a_batch_costs_no_other(
    quick_path: Path, server: FakeProvider, name: str, wire: Wire
) -> None:
    ask = asking(quick_path, server, wire, providers={NAMES[wire]: {"batch": True}})
    ask.generate("submit")
    server.behavior = replace(server.behavior, batch_lines=bent(BAD[name]))
    end_all(server, wire)
    result = ask.finish()
    assert ask.statuses() == {"answered": 5, "in_doubt": 1} and result.stopped == {}
    (lost,) = [row for row in ask.rows() if row["status"] == "in_doubt"]
    assert lost["reserved_usd"] > 0 and "no readable result for it" in lost["error"]
    (line,) = [line for line in show.summary(result) if show.is_warning(line)]
    assert "1 requests are in doubt: still charged, sent again once" in line
    server.behavior = Behavior(batch_seconds=0.0)
    ask.generate("submit")
    ask.finish()
    assert ask.statuses() == {"answered": 6}, "the provider is not held up"


@pytest.mark.parametrize("wire", WIRES)
def test_results_that_are_empty_are_read_again_once_and_then_in_doubt(
    quick_path: Path, server: FakeProvider, wire: Wire
) -> None:
    ask = asking(quick_path, server, wire, providers={NAMES[wire]: {"batch": True}})
    ask.generate("submit")
    server.behavior = replace(server.behavior, batch_lines=bent(lambda _: []))
    end_all(server, wire)
    assert "run it again later" in why_stopped(ask.generate("collect"))
    assert ask.statuses() == {"in_flight": 6}
    assert ask.generate("collect").stopped == {} and ask.statuses() == {"in_doubt": 6}
    assert ask.charged() > 0


@pytest.mark.parametrize("wire", WIRES)
def test_results_of_another_batch_are_not_taken(quick_path: Path, server: FakeProvider, wire: Wire) -> None:
    ask = asking(quick_path, server, wire, providers={NAMES[wire]: {"batch": True}})
    ask.generate("submit")
    server.behavior = replace(server.behavior, batch_lines=bent(lambda lines: [another_id(line) for line in lines]))
    end_all(server, wire)
    result = ask.finish()
    assert ask.statuses() == {"in_doubt": 6} and "6 results are of no request of this batch" in str(result)


def test_answers_and_errors_in_two_files_are_both_read_though_a_line_is_bad(
    quick_path: Path, server: FakeProvider
) -> None:
    server.behavior = Behavior(batch_seconds=3600, batch_error_share=0.4, seed=2)
    ask = asking(quick_path, server, "openai", providers={"gpt": {"batch": True}}, generation={"requests": 20})
    ask.generate("submit")
    server.behavior = replace(server.behavior, batch_lines=bent(BAD["null"]))
    end_all(server, "openai")
    ask.finish()
    statuses = ask.statuses()
    assert statuses["in_doubt"] == 1 and statuses["failed"] > 0 and sum(statuses.values()) == 20


def test_token_counts_of_a_batch_are_believed_within_bounds_too(quick_path: Path, server: FakeProvider) -> None:
    ask = asking(quick_path, server, "openai", providers={"gpt": {"batch": True}})

    def inflated(line: str) -> str:
        answer = json.loads(line)
        answer["response"]["body"]["usage"]["prompt_tokens"] = 10**11
        return json.dumps(answer) + "\n"

    ask.generate("submit")
    held = ask.charged()
    server.behavior = replace(server.behavior, batch_lines=bent(lambda lines: [inflated(line) for line in lines]))
    end_all(server, "openai")
    result = ask.finish()
    assert ask.statuses() == {"answered": 6} and ask.charged() == pytest.approx(held)
    assert "100,000,000,000 input tokens" in str(result)


def end_all(server: FakeProvider, wire: Wire) -> None:
    """End every batch now, with the results of the server's behavior."""
    for batch in (server._batches.anthropic if wire == "anthropic" else server._batches.openai).values():
        if batch.timer:
            batch.timer.cancel()
        batch.outcomes, batch.output_file_id, batch.error_file_id = [], None, None
        server._batches._end(wire, batch)
