"""An export goes to the hub complete, and only on request; every refusal names its reason, and no
token is shown."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants, utils

from pipelines.errors import UsageError, WorkError
from pipelines.extras.export import push
from pipelines.extras.export.push import Upload
from pipelines.weights import hub
from tests.fakes.hub import Repo
from tests.fakes.hub_uploads import Uploads, taking_uploads

NAME, TOKEN = "somebody/tiny-lora", "hf_planted0123456789"
CARD = b"---\nlibrary_name: peft\n---\n# Tiny\n"


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Uploads]:
    """A hub that this process uses, and that knows the token."""
    for name in ("HF_HUB_OFFLINE", *hub.PROXIES, *(name for names in hub.PROXIES.values() for name in names)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # Xet's store is no HTTP server that a test could stand in for.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    # No pause between its tries.
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    with taking_uploads({TOKEN: "somebody"}) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "export"
    folder.mkdir()
    held = {
        "README.md": CARD,
        "adapter_config.json": b"{}",
        "adapter_model.safetensors": b"w" * 9000,
        "tokenizer.json": b"t" * 8000,
    }
    for name, content in held.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in held}


def pushed(files: dict[str, Path], *, yes: bool = True, public: bool = False) -> list[str]:
    lines: list[str] = []
    push.run(Upload(NAME, files, public), yes=yes, say=lines.append)
    assert not [line for line in lines if TOKEN in line]
    return lines


def test_without_yes_it_says_what_it_would_do_and_does_nothing(online: Uploads, files: dict[str, Path]) -> None:
    lines = pushed(files, yes=False)
    assert lines[0] == f"{NAME}: the hub shows no such repository; a private one would be created"
    assert [line.split()[-1] for line in lines[1:5]] == list(files)
    assert lines[5].split()[:4] == ["0.02", "MB", "in", "4"] and lines[-1] == "nothing was uploaded: --yes uploads it"
    assert online.repos == {} and not [path for path in online.requested if path.startswith("POST")]
    assert "a public one would be created" in pushed(files, yes=False, public=True)[0]


@pytest.mark.parametrize("public", [False, True])
def test_with_yes_the_files_are_there_as_one_commit(online: Uploads, files: dict[str, Path], public: bool) -> None:
    lines = pushed(files, public=public)
    assert lines[-1] == f"uploaded: {online.url}/{NAME}"
    repo = online.repos[NAME]
    assert {name: held for name, held in repo.files.items() if name != ".gitattributes"} == {
        name: path.read_bytes() for name, path in files.items()
    }
    assert repo.private is not public and len(online.commits) == 1


def test_what_is_there_already_is_said_and_stays(online: Uploads, files: dict[str, Path]) -> None:
    online.repos[NAME] = Repo({"README.md": b"old", "notes.txt": b"mine"}, private=True)
    lines = pushed(files)
    assert lines[0] == f"{NAME}: exists, private"
    assert "README.md, replaces the existing file" in lines[1] and "1 other files there stay: notes.txt" in lines[6]
    assert online.repos[NAME].files["notes.txt"] == b"mine" and online.repos[NAME].files["README.md"] == CARD
    assert pushed(files, yes=False, public=True)[0].endswith(
        "private and stays private (this can be changed on its page)"
    )


def test_a_public_repository_gets_nothing_unless_that_was_meant(online: Uploads, files: dict[str, Path]) -> None:
    online.repos[NAME] = Repo({}, private=False)
    with pytest.raises(UsageError, match=r"is public: anyone could see the upload. Confirm with --public"):
        pushed(files)
    assert online.repos[NAME].files == {}
    pushed(files, public=True)
    assert set(online.repos[NAME].files) == set(files)


def test_an_upload_that_broke_off_shows_nothing_and_goes_on(online: Uploads, files: dict[str, Path]) -> None:
    online.cuts = 1
    with pytest.raises(WorkError, match=r"refuses somebody/tiny-lora.*the same command sends the rest"):
        pushed(files)
    assert set(online.repos[NAME].files) == {".gitattributes"}, "nobody sees half of it"
    sent = list(online.puts)
    assert len(sent) <= 1
    pushed(files)
    assert set(files) <= set(online.repos[NAME].files)
    assert len(online.puts) == len(set(online.puts)) == 2, "what had come is not sent again"


def test_a_commit_that_was_lost_is_made_by_the_same_again(online: Uploads, files: dict[str, Path]) -> None:
    online.refuses["commit/main"] = (500, "")
    with pytest.raises(WorkError, match=r"HTTP 500\): the hub has an internal error"):
        pushed(files)
    sent, online.refuses = list(online.puts), {}
    pushed(files)
    assert online.puts == sent and len(online.commits) == 1
    # Nothing has changed since.
    pushed(files)
    assert online.puts == sent and len(online.commits) == 1


def test_without_a_token_nothing_is_uploaded(
    online: Uploads, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert "no token: set HF_TOKEN" in pushed(files, yes=False)[-1]
    with pytest.raises(UsageError, match=r"no token: set HF_TOKEN .*hf auth login"):
        pushed(files)
    assert online.repos == {}


def test_the_hubs_own_store_of_tokens_is_used(
    online: Uploads, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "no-token").write_text(TOKEN, encoding="utf-8")
    pushed(files)
    assert set(files) <= set(online.repos[NAME].files)


@pytest.mark.parametrize(
    ("path", "status", "says", "words"),
    [
        ("repos/create", 401, "Invalid credentials in Authorization header", "HTTP 401.*does not accept the token: make a new one"),
        ("repos/create", 403, f"no rights for {TOKEN}", "HTTP 403.*may not write there.*other than somebody"),
        ("repos/create", 409, "", "HTTP 409.*at the same moment"),
        ("api/models", 429, "", "HTTP 429.*too many requests"),
        ("preupload", 403, "", "HTTP 403.*may not write there"),
        ("objects/batch", 403, "", "HTTP 403.*may not write there"),
        ("commit/main", 412, "", "HTTP 412.*at the same moment"),
        ("commit/main", 413, "", "HTTP 413.*a file is too large"),
        ("validate-yaml", 400, "", "rejects the front matter of README.md"),
    ],
)  # fmt: skip
def test_a_refusal_is_named(
    online: Uploads, files: dict[str, Path], path: str, status: int, says: str, words: str
) -> None:
    online.refuses[path] = (status, says)
    with pytest.raises(WorkError, match=words) as raised:
        pushed(files)
    assert TOKEN not in str(raised.value)
    assert not online.commits


def test_a_name_of_somebody_else_is_refused(online: Uploads, files: dict[str, Path]) -> None:
    with pytest.raises(WorkError, match=r"HTTP 403.*may not write there.*other than another"):
        push.run(Upload("another/tiny", files, public=False), yes=True, say=lambda _line: None)


def test_a_wrong_token_is_named(online: Uploads, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong0123456789")
    with pytest.raises(WorkError, match=r"does not accept the token") as raised:
        pushed(files)
    assert "hf_wrong" not in str(raised.value)


def test_what_changed_since_it_was_looked_at_is_not_written_over(online: Uploads, files: dict[str, Path]) -> None:
    online.repos[NAME] = Repo({}, private=True)
    seen = push.look(NAME)
    online.repos[NAME].commit = "f" * 40
    with pytest.raises(WorkError, match=r"HTTP 412.*at the same moment"):
        push.send(Upload(NAME, files, public=False), seen)


def test_a_hub_that_is_away_is_named(files: dict[str, Path], online: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WorkError, match=r"connection to the hub was lost for somebody/tiny-lora"):
        pushed(files)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WorkError, match="HF_HUB_OFFLINE is set"):
        pushed(files)


def test_a_hub_that_falls_silent_is_named(
    online: Uploads, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "SILENCE", 0.5)
    online.repos[NAME] = Repo({}, answers="silent")
    with pytest.raises(WorkError, match=r"does not answer for somebody/tiny-lora"):
        pushed(files)
    assert utils.get_session().timeout != push.PATIENCE, "the client is left as it was"


def test_what_a_library_says_holds_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret-of-another-kind")
    assert push.scrubbed(f"x secret-of-another-kind\n{TOKEN} y") == "x … … y"
