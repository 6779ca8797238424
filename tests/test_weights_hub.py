"""A model of the hub: exactly its files, each once, whatever the connection does; and every refusal
with its reason."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file

from pipelines.clean.read import hub_records
from pipelines.errors import UnavailableError, WorkError
from pipelines.lake.weights_record import RECORD, revision_of
from pipelines.settings.sources import HubSource
from pipelines.weights import hub, hub_download
from pipelines.weights.hub_download import Downloaded, download
from tests.fakes.hub import Hub, Repo, serving
from tests.tiny import tiny_model, tiny_tokenizer

NAME = "nobody/tiny"
INDEX = "model.safetensors.index.json"


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A repository's files in one piece, beside other frameworks' weights, like gpt2-large."""
    folder = tmp_path_factory.mktemp("whole")
    tiny_model("gpt2").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return content_of(folder)


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("sharded")
    tiny_model("llama").save_pretrained(folder, max_shard_size="60KB")
    tiny_tokenizer().save_pretrained(folder)
    hashes = content_of(folder)
    assert "model.safetensors.index.json" in hashes
    return hashes


@pytest.fixture(scope="session")
def torch_only(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Only PyTorch's weights, like opt-1.3b."""
    import torch

    folder = tmp_path_factory.mktemp("torch")
    model = tiny_model("opt")
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return content_of(folder)


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process uses, with an empty cache and without a token."""
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", *hub.PROXIES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with serving({}) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


def got(tmp_path: Path, lines: list[str] | None = None, revision: str | None = None) -> Downloaded:
    return download(NAME, revision, tmp_path / "models" / "tiny", (lines if lines is not None else []).append)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_of_many_frameworks_weights_one_is_fetched(online: Hub, tmp_path: Path, whole: dict[str, bytes]) -> None:
    others = ("pytorch_model.bin", "tf_model.h5", "onnx/decoder.onnx", "flax_model.msgpack")
    more = dict.fromkeys(others, b"w" * 9000)
    online.repos[NAME] = Repo({**whole, **more, "README.md": b"# Tiny"})
    downloaded = got(tmp_path)
    assert (downloaded.commit, downloaded.is_torch) == (online.repos[NAME].commit, False)
    assert names(downloaded.folder) == set(whole)
    assert all((downloaded.folder / name).read_bytes() == content for name, content in whole.items())


@pytest.mark.parametrize(
    "twice",
    [
        {"consolidated.safetensors": b"c" * 9000, "params.json": b"{}"},
        {"original/consolidated.00.pth": b"c" * 9000, "original/params.json": b"{}", "original/tokenizer.model": b"t"},
        {"original/model.safetensors": b"c" * 9000},
    ],
)  # fmt: skip
def test_weights_that_stand_there_twice_are_fetched_once(
    online: Hub, tmp_path: Path, sharded: dict[str, bytes], twice: dict[str, bytes]
) -> None:
    online.repos[NAME] = Repo({**sharded, **twice})
    downloaded = got(tmp_path)
    shards = {name: len(held) for name, held in sharded.items() if name.endswith(".safetensors")}
    assert len(shards) > 1 and {name for name in names(downloaded.folder) if name.endswith(".safetensors")} == set(
        shards
    )
    assert {name: size for name, size in online.sent.items() if size >= 9000 and name != "tokenizer.json"} == shards


def test_a_connection_that_breaks_off_is_gone_on_with(online: Hub, tmp_path: Path, whole: dict[str, bytes]) -> None:
    half = len(whole["model.safetensors"]) // 2
    online.repos[NAME] = Repo(whole, cut={"model.safetensors": half}, times=1)
    downloaded = got(tmp_path)
    assert (downloaded.folder / "model.safetensors").read_bytes() == whole["model.safetensors"]
    assert online.ranges == [("model.safetensors", f"bytes={half}-")]
    assert online.sent["model.safetensors"] == len(whole["model.safetensors"])


def test_what_a_download_that_failed_has_fetched_is_not_fetched_again(
    online: Hub, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    # The connection closes before the first byte.
    online.repos[NAME] = Repo(whole, cut={"model.safetensors": 0})
    with pytest.raises(
        UnavailableError, match=r"the connection to the hub was lost .* the same command again resumes there"
    ):
        got(tmp_path)
    online.repos[NAME] = Repo(whole)
    online.sent.clear()
    downloaded = got(tmp_path)
    assert (downloaded.folder / "model.safetensors").read_bytes() == whole["model.safetensors"]
    # The small files were there already.
    assert set(online.sent) == {"model.safetensors"}


def test_a_hub_that_falls_silent_is_unavailable(
    online: Hub, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "SILENCE", 0.5)
    online.repos[NAME] = Repo(whole, answers="silent")
    with pytest.raises(UnavailableError, match="the hub does not answer for nobody/tiny"):
        got(tmp_path)
    online.repos[NAME] = Repo(whole, stalled={"model.safetensors": 1000})
    with pytest.raises(
        UnavailableError, match=r"the hub does not answer for nobody/tiny.*the same command again resumes there"
    ):
        got(tmp_path)
    online.repos[NAME] = Repo(whole)
    lines: list[str] = []
    assert got(tmp_path, lines).folder.joinpath("model.safetensors").read_bytes() == whole["model.safetensors"]
    assert lines and lines[0].startswith("resuming ")


@pytest.mark.parametrize(
    ("repo", "token", "words"),
    [
        ({"answers": 429}, None, "HTTP 429.*too many requests: wait some minutes"),
        ({"answers": 500}, None, "HTTP 500.*an internal error: try again later"),
        ({"answers": 503, "says": "Over capacity"}, None, "HTTP 503.*it says: Over capacity"),
        ({"answers": 403, "says": "fine-grained"}, "hf_planted0123456789", "HTTP 403.*HF_TOKEN may not read it.*fine-grained"),
        ({"token": "hf_right"}, None, "is gated: accept its terms .* set HF_TOKEN$"),
        ({"token": "hf_right", "says": "not in the list"}, "hf_planted0123456789", "is gated: accept its terms .*not in the list"),
    ],
)  # fmt: skip
def test_a_refusal_is_named(
    online: Hub, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch,
    repo: dict[str, Any], token: str | None, words: str,
) -> None:  # fmt: skip
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    online.repos[NAME] = Repo(whole, **repo)
    with pytest.raises(UnavailableError, match=words) as raised:
        got(tmp_path)
    assert "hf_planted" not in str(raised.value)


def test_a_name_and_a_revision_that_are_not_there_are_named(
    online: Hub, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    with pytest.raises(UnavailableError, match="the hub knows no nobody/tiny: check the name"):
        got(tmp_path)
    online.repos[NAME] = Repo(whole)
    with pytest.raises(UnavailableError, match="has no such revision"):
        got(tmp_path, revision="v9")


@pytest.mark.parametrize(
    ("without", "more", "words"),
    [
        ("config.json", {}, "has no config.json: it is no transformers model. Its files: "),
        ("model.safetensors", {"model.gguf": b"g"}, r"holds no weights that transformers loads; expected model.safetensors"),
        ("model.safetensors", {"adapter_config.json": b"{}"}, "is an adapter, not a model"),
        ("model.safetensors", {INDEX: b'{"weight_map": {"a": "gone.safetensors"}}'}, "names 'gone.safetensors'"),
        ("model.safetensors", {INDEX: b'{"weight_map": {"a": "../x.safetensors"}}'}, "names '../x.safetensors'"),
        ("model.safetensors", {INDEX: b"[]"}, "index.json names no weights"),
    ],
)  # fmt: skip
def test_a_repository_that_holds_no_model_is_named(
    online: Hub, tmp_path: Path, whole: dict[str, bytes], without: str, more: dict[str, bytes], words: str
) -> None:
    online.repos[NAME] = Repo({**{name: held for name, held in whole.items() if name != without}, **more})
    with pytest.raises((UnavailableError, WorkError), match=words):
        got(tmp_path)


def test_what_came_damaged_is_thrown_away(online: Hub, tmp_path: Path, whole: dict[str, bytes]) -> None:
    online.repos[NAME] = Repo(whole, damaged=True)
    with pytest.raises(WorkError, match=r"arrived damaged.* is not the hub's.* deleted: fetch again"):
        got(tmp_path)
    online.repos[NAME].damaged = False
    assert got(tmp_path).folder.joinpath("config.json").read_bytes() == whole["config.json"]


def fill_cache() -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(NAME, endpoint=constants.ENDPOINT)


@pytest.mark.parametrize("away", ["offline", "no network", "the hub has a fault"])
def test_a_filled_cache_is_used_where_the_hub_cannot_be_asked(
    online: Hub, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    online.repos[NAME] = Repo(whole)
    fill_cache()
    if away == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    elif away == "no network":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    else:
        online.repos[NAME].answers = 500
    assert hub.out_of_reach(NAME, None) is None
    lines: list[str] = []
    downloaded = got(tmp_path, lines)
    assert lines[0].startswith("taking nobody/tiny at 0123456789ab from the hub's cache: ")
    assert downloaded.commit == online.repos[NAME].commit
    assert (downloaded.folder / "model.safetensors").read_bytes() == whole["model.safetensors"]


def test_what_lies_in_the_cache_is_not_fetched_again(online: Hub, tmp_path: Path, whole: dict[str, bytes]) -> None:
    online.repos[NAME] = Repo(whole)
    fill_cache()
    online.sent.clear()
    got(tmp_path)
    assert online.sent == {}


def test_a_cache_without_the_weights_says_so(
    online: Hub, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import snapshot_download

    online.repos[NAME] = Repo(whole)
    snapshot_download(NAME, endpoint=constants.ENDPOINT, allow_patterns=["*.json"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UnavailableError, match="the hub's cache holds no weights of it"):
        got(tmp_path)


def test_a_damaged_file_of_the_cache_is_not_taken(
    online: Hub, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    online.repos[NAME] = Repo(whole)
    fill_cache()
    folder = hub.cached_folder(NAME, None)
    assert folder
    blob = (folder / "model.safetensors").resolve()
    # The damaged file has the same size.
    blob.write_bytes(whole["model.safetensors"][::-1])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        UnavailableError, match=r"the cache has no intact copy of model.safetensors, and HF_HUB_OFFLINE is set"
    ):
        got(tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert (got(tmp_path).folder / "model.safetensors").read_bytes() == whole["model.safetensors"]


def test_a_cache_that_does_not_suffice_hides_no_refusal(online: Hub, tmp_path: Path, whole: dict[str, bytes]) -> None:
    from huggingface_hub import snapshot_download

    online.repos[NAME] = Repo(whole)
    snapshot_download(NAME, endpoint=constants.ENDPOINT, allow_patterns=["config.json"])
    online.repos[NAME].answers = 429
    with pytest.raises(UnavailableError, match=r"no weights of it, and the hub refuses .*HTTP 429"):
        got(tmp_path)


def test_a_part_outlives_a_fault_of_the_hub_and_another_models_fetch(
    online: Hub, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    online.repos[NAME] = Repo(whole, cut={"model.safetensors": 1000})
    with pytest.raises(UnavailableError):
        got(tmp_path)
    (part,) = (tmp_path / "models").glob(".tiny.*/model.safetensors.part")
    online.repos[NAME].answers = 500
    with pytest.raises(UnavailableError, match="HTTP 500"):
        got(tmp_path)
    # The folder of another model whose name begins in the same way.
    longer = tmp_path / "models" / ".tiny.5.0123456789ab.partial"
    longer.mkdir()
    assert part.exists() and hub_download.leftovers(tmp_path / "models" / "tiny") == [part.parent]


@pytest.mark.parametrize("refuses", [False, True])
def test_a_part_that_is_whole_already_or_cannot_be_gone_on_with(
    online: Hub, tmp_path: Path, whole: dict[str, bytes], refuses: bool
) -> None:
    online.repos[NAME] = Repo(whole, no_ranges=refuses, no_sizes=not refuses)
    downloaded = got(tmp_path)
    content = (downloaded.folder / "model.safetensors").read_bytes()
    (downloaded.folder / "model.safetensors").unlink()
    (downloaded.folder / "model.safetensors.part").write_bytes(content[: 1000 if refuses else len(content)])
    assert (got(tmp_path).folder / "model.safetensors").read_bytes() == whole["model.safetensors"]


def test_a_listing_that_is_none_is_named(online: Hub, tmp_path: Path, whole: dict[str, bytes]) -> None:
    online.repos[NAME] = Repo(whole, portal=True)
    with pytest.raises(UnavailableError, match="the server at the hub's address is no hub"):
        got(tmp_path)


def test_a_url_is_no_name(online: Hub) -> None:
    assert "expected owner/name" in str(hub.out_of_reach("https://example.com/nobody/tiny", None))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("HF_ENDPOINT", "http://[::1", "HF_ENDPOINT is no address"),
        ("HF_ENDPOINT", "mirror", "HF_ENDPOINT is no address"),
        ("http_proxy", "ftp://planted-key@here:1", "http_proxy is no proxy's address"),
        ("http_proxy", "socks5://127.0.0.1:1", "a SOCKS proxy, which needs a package: `pip install socksio`"),
        ("HF_TOKEN", "hf_planted-key\nhf_twice", "HF_TOKEN holds a character that no token has"),
        ("HF_TOKEN", "hf_planted-kéy", "HF_TOKEN holds a character that no token has"),
        ("SSL_CERT_FILE", "/nowhere.pem", "SSL_CERT_FILE names no file with certificates"),
        ("SSL_CERT_FILE", "/etc/passwd", "SSL_CERT_FILE names no file with certificates"),
        ("SSL_CERT_FILE", "/etc", "SSL_CERT_FILE names no file with certificates"),
        ("SSL_CERT_DIR", "/nowhere:/nor/here", "SSL_CERT_DIR names no folder"),
        ("HF_ENDPOINT", "https://hf mirror", "HF_ENDPOINT is no address"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_and_not_shown(
    online: Hub,
    tmp_path: Path,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    words: str,
) -> None:
    online.repos[NAME] = Repo(whole)
    for own in ("NO_PROXY", "no_proxy", "SSL_CERT_FILE"):
        monkeypatch.delenv(own, raising=False)
    monkeypatch.setenv(name, value)
    refusals = [str(hub.out_of_reach(NAME, None)), str(hub.dataset_refused(NAME))]
    with pytest.raises(UnavailableError) as error:
        got(tmp_path)
    for message in (*refusals, str(error.value)):
        assert words in message and "planted" not in message


# --- a data set


@pytest.fixture
def datasets_too(online: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    from datasets import config

    monkeypatch.setattr(config, "HF_ENDPOINT", online.url)
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    lines = b'{"instruction": "A heron?", "output": "A bird."}\n{"instruction": "An otter?", "output": "No bird."}\n'
    online.repos["nobody/set"] = Repo({"train.jsonl": lines, "README.md": b"# Set"})
    return online


@pytest.mark.slow
def test_a_data_set_whose_file_stalls_is_unavailable_with_what_to_do(
    datasets_too: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "PATIENCE", 0.2)
    datasets_too.repos["nobody/set"].stalled["train.jsonl"] = 20
    with pytest.raises(UnavailableError, match="nothing came for a while"):
        list(hub_records(HubSource(dataset="nobody/set", split="train")))


@pytest.mark.parametrize("away", [500, "silent"])
def test_a_data_set_in_the_cache_is_used_where_the_hub_fails(
    datasets_too: Hub, monkeypatch: pytest.MonkeyPatch, away: int | str
) -> None:
    source = HubSource(dataset="nobody/set", split="train")
    fetched = [record.value for record in hub_records(source)]
    assert [value["output"] for value in fetched] == ["A bird.", "No bird."]
    monkeypatch.setattr(hub, "SILENCE", 0.5)
    datasets_too.repos["nobody/set"].answers = away
    assert [record.value for record in hub_records(source)] == fetched


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ("silent", "cannot load nobody/new: the hub does not answer"),
        (503, "HTTP 503.*try again later"),
        (403, "HTTP 403.*set HF_TOKEN"),
    ],
)
def test_a_data_set_that_cannot_be_had_is_unavailable_with_a_word(
    datasets_too: Hub, monkeypatch: pytest.MonkeyPatch, answers: int | str, words: str
) -> None:
    monkeypatch.setattr(hub, "SILENCE", 0.5)
    datasets_too.repos["nobody/new"] = Repo({}, answers=answers)
    with pytest.raises(UnavailableError, match=words):
        list(hub_records(HubSource(dataset="nobody/new", split="train")))


# --- the whole command, in a separate process


def fetch(online: Hub, project: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "fetch", "mine"],
        capture_output=True, text=True, check=False, timeout=900, env=told_to(online, project, **environment),
    )  # fmt: skip


def told_to(online: Hub, project: Any, **environment: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    return {**own, "HF_ENDPOINT": online.url, "HF_HOME": str(project.data.root / "hf"), **environment}


@pytest.fixture
def mine(project: Any) -> Any:
    project.change(models={"mine": {"source": {"hub": NAME}, "prompt": "chat", "lora_targets": ["q_proj"]}})
    return project


def test_a_gated_model_without_safetensors_is_converted(online: Hub, mine: Any, torch_only: dict[str, bytes]) -> None:
    import torch

    online.repos[NAME] = Repo(torch_only, token="hf_planted0123456789")
    done = fetch(online, mine, HF_TOKEN="hf_planted0123456789")
    assert done.returncode == 0, done.stderr
    assert "converting its PyTorch weights" in done.stderr and "hf_planted" not in done.stdout + done.stderr
    folder = mine.data.models / "mine"
    assert names(folder) >= {"model.safetensors", "tokenizer.json", RECORD} and not list(folder.glob("*.bin"))
    made, expected = load_file(folder / "model.safetensors"), tiny_model("opt").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in made.items())
    assert revision_of(folder) == online.repos[NAME].commit
    assert not list(mine.data.models.glob(".mine.*"))


@pytest.mark.slow
def test_weights_that_lack_a_tensor_are_refused(
    online: Hub, mine: Any, torch_only: dict[str, bytes], tmp_path: Path
) -> None:
    import torch

    (tmp_path / "whole.bin").write_bytes(torch_only["pytorch_model.bin"])
    held = torch.load(tmp_path / "whole.bin", weights_only=True)
    lacking = {name: value for name, value in held.items() if ".layers.1." not in name}
    torch.save(lacking, tmp_path / "lacking.bin")
    online.repos[NAME] = Repo({**torch_only, "pytorch_model.bin": (tmp_path / "lacking.bin").read_bytes()})
    done = fetch(online, mine)
    assert (
        done.returncode == 1 and "Its weights lack" in done.stderr and "random values would replace them" in done.stderr
    )


def test_a_repository_that_wants_to_run_code_of_its_own_is_not_asked_for_leave(
    online: Hub, mine: Any, whole: dict[str, bytes]
) -> None:
    own = {"auto_map": {"AutoConfig": f"{NAME}--c.Cfg"}, "model_type": "weird"}
    config = json.dumps({**json.loads(whole["config.json"]), **own}).encode()
    tokenizer_config = json.loads(whole["tokenizer_config.json"]) | {
        "auto_map": {"AutoTokenizer": [f"{NAME}--c.Tok", None]}
    }
    tokenizer_config["tokenizer_class"] = "Tok"
    code = {"c.py": b"raise SystemExit('it ran')", "tokenizer_config.json": json.dumps(tokenizer_config).encode()}
    online.repos[NAME] = Repo({**whole, "config.json": config, **code})
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "fetch", "mine"],
        input="y\ny\n", capture_output=True, text=True, check=False, timeout=900, env=told_to(online, mine),
    )  # fmt: skip
    assert "it ran" not in done.stderr and not any("c.py" in requested for requested in online.requested)


@pytest.mark.slow
def test_a_killed_download_goes_on(online: Hub, mine: Any, whole: dict[str, bytes]) -> None:
    half = len(whole["model.safetensors"]) // 2
    online.repos[NAME] = Repo(whole, stalled={"model.safetensors": half}, times=1)
    command = [sys.executable, "-m", "pipelines.cli", "fetch", "mine"]
    with subprocess.Popen(
        command, env=told_to(online, mine), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as begun:
        while online.sent.get("model.safetensors", 0) < half or not list(mine.data.models.glob(".mine.*/model.*.part")):
            assert begun.poll() is None
            time.sleep(0.05)
        begun.send_signal(signal.SIGKILL)
    (part,) = mine.data.models.glob(".mine.*/model.*.part")
    size = part.stat().st_size
    done = fetch(online, mine)
    assert done.returncode == 0, done.stderr
    assert (mine.data.models / "mine" / "model.safetensors").read_bytes() == whole["model.safetensors"]
    assert online.ranges == ([("model.safetensors", f"bytes={size}-")] if size else [])


def test_a_tokenizer_that_cannot_be_loaded_is_named_at_fetch(online: Hub, mine: Any, whole: dict[str, bytes]) -> None:
    spared = {name: held for name, held in whole.items() if not name.startswith("tokenizer")}
    online.repos[NAME] = Repo({**spared, "tokenizer.model": b"\x0a\x07no model"})
    done = fetch(online, mine)
    assert done.returncode == 3 and len(done.stderr.splitlines()) < 12
    assert "its tokenizer cannot be loaded here" in done.stderr and "tokenizer.model" in done.stderr


def test_a_hub_that_refuses_ends_the_command_with_a_word(online: Hub, mine: Any, whole: dict[str, bytes]) -> None:
    online.repos[NAME] = Repo(whole, answers=500)
    done = fetch(online, mine)
    assert done.returncode == 3 and "Traceback" not in done.stderr and len(done.stderr.splitlines()) < 6
    assert "HTTP 500" in done.stderr
