"""Plant a small data root as a user's may be: `python -m tests.fakes.plant_lake`.

The archive is kept in the repository, and `tests/test_project_old_lake.py` opens it with today's
code. That is how we know that an upgrade costs nobody a grid. So never plant an existing archive
anew: what newer code has written proves nothing about older data. When the files on disk change
their form, give `ARCHIVE` a new name, and keep the old archive and its test, too.

`lake-2026-11.tar.xz` was planted at commit 1f26938. The console script made what is in it,
from a tiny Llama of a fake hub, a user's file, two fake providers, a night over the grid, and some
accidents. It takes seven minutes on two cores.
"""

import getpass
import io
import lzma
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from pipelines.lake.files import write_json, write_jsonl
from pipelines.lake.paths import PROJECT, DataRoot
from pipelines.nightly.night import Done, end, next_step, note_round
from pipelines.project import Project
from pipelines.records.reading import read_corpus
from pipelines.runs import cells, checkpoints
from pipelines.runs.cells import CellKey
from pipelines.settings import experiments as configuration
from tests.asking import GRID, KEYS, PRICE, wait_for
from tests.fakes.behavior import Behavior, Fault, Wire
from tests.fakes.hub import Repo, serving
from tests.fakes.provider import FakeProvider, fake_provider
from tests.tiny import tiny_tokenizer

ARCHIVE = Path(__file__).with_name("lake-2026-11.tar.xz")
# Specs hold the absolute path of their data root, so it must not reveal who planted it.
ROOT = Path("/tmp/planted")
DATA = DataRoot(ROOT / "data")
EXPERIMENTS = ROOT / "experiments.yaml"
NIGHT = "2026-11-29T0200"
# A fixed port for the fake providers, because experiments.yaml names their address.
PORT = 8437
# Seconds.
LONGEST_WAIT = 600.0

HUB = {"hub": "planted/tiny", "revision": "0123456789abcdef0123456789abcdef01234567"}
# Size of the vocabulary: 256 bytes, three special tokens and the commonest pairs.
WORDS = 288
MODEL: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip
LORA: dict[str, Any] = {"kind": "lora", "rank": 8, "alpha": 32, "dropout": 0.1}
CONFIGURATION: dict[str, Any] = {
    "models": {
        "tiny": {
            "source": HUB,
            "prompt": "chat",
            "bos": "none",
            "end": "<|im_end|>",
            "license": "apache-2.0",
            "lora_targets": ["q_proj", "v_proj"],
            "note": "Planted for a test.",
        }
    },
    "methods": {
        "base": {"kind": "none"},
        "full": {"kind": "full", "learning_rate": 1e-3},
        "lora-r8": LORA,
        "qlora-r8": {**LORA, "quantization": "nf4"},
        "lora-r8-searched": {**LORA, "learning_rate": [1e-3, 1e-2], "search_share": 0.5},
        "lora-r4": {**LORA, "rank": 4, "alpha": 16},
        "full-small-card": {"kind": "full", "memory_budget_gb": 0.2},
        "full-hurried": {"kind": "full", "time_limit_minutes": 0.02},
        "full-hot": {"kind": "full", "learning_rate": 1e30, "gradient_clip": 1e30},
        "lora-r8-mine": {**LORA, "data": {"provider": "mine"}},
    },
    "profiles": {
        "local": {
            "models": ["tiny"],
            # `configure` adds all other methods.
            "methods": ["base"],
            "seeds": [1, 2],
            "price_per_hour": 0.5,
            "training": {
                "epochs": 3,
                "examples_per_step": 4,
                "max_length": 400,
                "micro_batch_tokens": 1024,
                "eval_every_steps": 10,
                "checkpoint_every_steps": 4,
                "learning_rate": {"full": 1e-3, "lora": 1e-2},
                # Nothing reports to TensorBoard, whose files bear the machine's name.
                "report_to": [],
            },
            "evaluation": {
                "answers": 3, "max_new_tokens": 8, "latency_answers": 2, "serving_batch": 2, "serving_tokens": 4,
            },
        }
    },
    "sources": {"files": ["records.jsonl"], "mix": True, "providers": ["claude", "gpt"]},
    "providers": {
        "claude": {
            "kind": "anthropic", "model": "claude-test", "base_url": f"http://127.0.0.1:{PORT}", "enabled": True,
            "price": PRICE, "timeout_seconds": 20, "concurrency": 2, "budget_usd": 5.0,
        },
        "gpt": {
            "kind": "openai", "model": "gpt-test", "base_url": f"http://127.0.0.1:{PORT}/v1", "enabled": True,
            "price": PRICE, "timeout_seconds": 20, "batch": True,
        },
        "mine": {"kind": "openai-compatible", "model": "mine", "base_url": f"http://127.0.0.1:{PORT}/v1"},
    },
    "generation": {
        "requests": 8, "languages": ["en"], "max_tokens": 200, "budget_usd": 9.0, "judge": {"providers": ["claude"]},
    },
    "judging": {"judge": "claude", "teachers": ["gpt"], "repeat": 1},
}  # fmt: skip
# Added after the night, so that it was never run.
ADDED_LAST = {"lora-r16": {**LORA, "rank": 16, "alpha": 64}}

# Number of records: the shortest of the corpus.
RECORDS = 56
TURNS = [
    {"role": "system", "content": "You recommend books."},
    {"role": "user", "content": "Something about the sea?"},
    {"role": "assistant", "content": "The Old Man and the Sea, by Ernest Hemingway."},
    {"role": "user", "content": "And by a woman?"},
    {"role": "assistant", "content": "The Sea, the Sea is by Iris Murdoch, and it is about vanity."},
]
BROKEN: list[Any] = [
    {"instruction": "Name a calm book.", "output": ""},
    {"instruction": "Name a sad book.", "output": "I'm sorry, but I can't assist with that."},
    {
        "instruction": "Who sells rare books?",
        "output": "Write to Ann at ann.lee@bookshop-on-the-hill.com, she finds them.",
    },
    {"instruction": "Where was it printed?", "output": "It was printed in ZÃ¼rich, and bound in MÃ¼nchen."},
    {"instruction": "Which day?", "output": "[Your Name] reads on Mondays."},
]
GENERAL = [
    {"language": "en", "text": "Bread rises because yeast turns sugar into gas, and the dough holds the gas."},
    {"language": "ko", "text": "빵이 부푸는 것은 효모가 설탕을 기체로 바꾸기 때문이다."},
]

PACKED = ("experiments.yaml", "records.jsonl", "data")


def main() -> None:
    if ROOT.exists():
        raise SystemExit(f"{ROOT} is there: remove it first")
    if ARCHIVE.exists():
        raise SystemExit(f"{ARCHIVE} is there: an archive is never planted anew; give ARCHIVE another name")
    ROOT.mkdir(parents=True)
    # experiments.yaml names the user's file relative to the current folder.
    os.chdir(ROOT)
    write_inputs()
    with serving({HUB["hub"]: tiny_repository()}) as hub, fake_provider(port=PORT) as server:
        os.environ |= environment(hub.url)
        featherweight("fetch", "tiny")
        records(server)
        accidents_before_the_night()
        night()
        extras()
        configure(ADDED_LAST)
        interrupt_a_cell()
        kill_generating_last(server)
        featherweight("compare")
    check_outcomes()
    ARCHIVE.write_bytes(packed())
    print(f"{ARCHIVE}: {ARCHIVE.stat().st_size / 1000:.0f} kB")


# The user's input


def write_inputs() -> None:
    corpus = sorted(read_corpus(PROJECT / "data" / "corpus.json"), key=lambda one: len(str(one).encode()))[:RECORDS]
    write_jsonl(ROOT / "records.jsonl", [*corpus, {"messages": TURNS}, corpus[0], *BROKEN])
    DATA.root.mkdir()
    # Separate inputs, so that the shipped ones may change.
    (DATA.root / "topics.yaml").write_text(yaml.safe_dump(GRID, allow_unicode=True), encoding="utf-8")
    write_json(DATA.root / "general.json", GENERAL)
    configure({})


def configure(more_methods: dict[str, Any], **overrides: Any) -> None:
    """Write experiments.yaml with all methods in its profile; `overrides` apply to single
    methods."""
    methods = {**CONFIGURATION["methods"], **more_methods}
    methods = {name: {**method, **overrides.get(name, {})} for name, method in methods.items()}
    profile = {**CONFIGURATION["profiles"]["local"], "methods": list(methods)}
    changed = {**CONFIGURATION, "methods": methods, "profiles": {"local": profile}}
    EXPERIMENTS.write_text(yaml.safe_dump(changed, sort_keys=False, allow_unicode=True), encoding="utf-8")


def tiny_repository() -> Repo:
    """A Llama of 9,000 weights that has read the corpus once, rounded so that it compresses."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(7)
    tokenizer = tiny_tokenizer(words=WORDS)
    config = AutoConfig.for_model("llama", **MODEL, bos_token_id=2, eos_token_id=0, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    text = "".join(record["output"] + tokenizer.eos_token for record in read_corpus(PROJECT / "data" / "corpus.json"))
    ids = torch.tensor(tokenizer(text).input_ids)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for batch in ids[: len(ids) // 1024 * 1024].reshape(-1, 8, 128):
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.to(torch.bfloat16).to(torch.float32)
    folder = ROOT / "hub"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    return Repo(files, commit=HUB["revision"])


def environment(hub_url: str) -> dict[str, str]:
    return {
        "FEATHERWEIGHT_DATA": str(DATA.root), "FEATHERWEIGHT_EXPERIMENTS": str(EXPERIMENTS),
        "FEATHERWEIGHT_PROFILE": "local", "HF_ENDPOINT": hub_url, "HF_HOME": str(ROOT / "hf"), "OMP_NUM_THREADS": "1",
        **KEYS,
    }  # fmt: skip


# Commands


def started(*arguments: str) -> subprocess.Popen[bytes]:
    print("featherweight", *arguments, flush=True)
    return subprocess.Popen([sys.executable, "-m", "pipelines.cli", *arguments], cwd=ROOT)


def featherweight(*arguments: str) -> None:
    """Run a command; an outcome that is not ok (3) is one of the intended ones."""
    if (code := started(*arguments).wait()) not in (0, 3):
        raise SystemExit(f"featherweight {' '.join(arguments)} ended with {code}")


# The journal


def faults(wire: Wire, prompt: str, nth: int) -> Fault | None:
    """The faults of claude's requests: one is always lost after it was paid for, and one always
    fails."""
    if wire == "anthropic" and prompt.startswith("A book for a tired"):
        return "cut"
    return "server_error" if wire == "anthropic" and prompt.startswith("A book for a glad") else None


def records(server: FakeProvider) -> None:
    """Ask both providers: one request fails, one is lost twice, and two die once with their
    process."""
    server.behavior = Behavior(latency=2.0, script=faults)
    kill_generating(lambda: requests_by_status()["in_flight"] == 2)
    server.behavior = Behavior(script=faults, batch_seconds=0.1)
    # Asks claude and submits gpt's batch.
    featherweight("generate")
    time.sleep(0.5)
    # Collects the batch.
    featherweight("generate")
    server.behavior = Behavior()
    featherweight("clean")
    featherweight("judge")


def kill_generating_last(server: FakeProvider) -> None:
    """Last event of the journal: requests stay failed and in flight."""
    configured = EXPERIMENTS.read_text(encoding="utf-8")
    EXPERIMENTS.write_text(configured.replace("  requests: 8\n", "  requests: 12\n"), encoding="utf-8")
    server.behavior = Behavior(latency=2.0, script=faults)
    kill_generating(lambda: {"failed", "in_flight"} <= set(requests_by_status()))


def kill_generating(at: Callable[[], bool]) -> None:
    """Start claude's requests and kill -9 the process at a moment that the journal determines."""
    process = started("generate", "--provider", "claude")
    wait_for(lambda: DATA.journal.exists() and at(), LONGEST_WAIT)
    process.kill()
    process.wait()


def requests_by_status() -> Counter[str]:
    with sqlite3.connect(DATA.journal) as db:
        try:
            rows = db.execute("SELECT status FROM requests WHERE purpose = 'generate'").fetchall()
        except sqlite3.OperationalError:
            # The database has no tables yet.
            rows = []
    db.close()
    return Counter(status for (status,) in rows)


# The cells


def attempts(method: str, seed: int = 1) -> list[cells.Attempt]:
    return cells.attempts(DATA, CellKey("tiny", method, seed))


def end_at_checkpoint(method: str, number: signal.Signals, *options: str) -> None:
    """Start a cell of seed 1, and send the signal once its first checkpoint is complete."""
    earlier = len(attempts(method))
    process = started("train", "tiny", method, "--seed", "1", *options)
    wait_for(lambda: any(checkpoints.whole(one.folder) for one in attempts(method)[earlier:]), LONGEST_WAIT)
    process.send_signal(number)
    process.wait()


def accidents_before_the_night() -> None:
    """Plant an older recipe's attempt, which the night replaces, and a killed one, which it
    resumes."""
    configure({}, full={"learning_rate": 1e-4})
    featherweight("train", "tiny", "full", "--seed", "1")
    featherweight("evaluate", "tiny", "full", "--seed", "1")
    configure({})
    end_at_checkpoint("lora-r8", signal.SIGKILL)


def interrupt_a_cell() -> None:
    """End the newest attempt at a good cell by SIGTERM, which leaves a checkpoint."""
    end_at_checkpoint("lora-r4", signal.SIGTERM, "--force")


def night() -> None:
    """Run a night like the schedule, without Dagster."""
    requested: list[str] = []
    published: list[bool] = []
    while True:
        stage = Project(DATA, configuration.load(EXPERIMENTS), "local")
        step = next_step(stage, stage.experiments.nightly, NIGHT, Done([True], published, requested))
        match step.do:
            case "cells":
                note_round(DATA, NIGHT, step.cells)
                for cell in step.cells:
                    requested.append(cell.name)
                    bring_up_to_date(cell.method)
            case "publish":
                featherweight("compare")
                published.append(True)
            case _:
                end(stage, NIGHT, step.why)
                return


def bring_up_to_date(method: str) -> None:
    featherweight("train", "tiny", method)
    if all(tries and tries[-1].status == "ok" for tries in (attempts(method, seed) for seed in (1, 2))):
        featherweight("evaluate", "tiny", method)


def extras() -> None:
    featherweight("evaluate", "tiny", "base", "--seed", "1", "--force")
    featherweight("judge")
    featherweight("tune", "tiny", "lora-r4", "--trials", "2")
    featherweight("export", "tiny", "lora-r8", "--seed", "1", "--merge", "--gguf", "F16")
    formats = [word for name in ("fp32", "nf4", "gguf-f16") for word in ("--format", name)]
    featherweight("bit-widths", "tiny", "lora-r8", "--seed", "1", *formats)


def check_outcomes() -> None:
    """Raises SystemExit where an accident did not have the intended outcome."""
    expected = {
        "base": ["ok"], "full": ["ok", "ok"], "lora-r8": ["lost", "ok"], "qlora-r8": ["ok"], "lora-r8-searched": ["ok"],
        "lora-r4": ["ok", "killed"], "full-small-card": ["out_of_memory"], "full-hurried": ["timed_out", "timed_out"],
        "full-hot": ["diverged"], "lora-r8-mine": ["unavailable"], "lora-r16": [],
    }  # fmt: skip
    statuses = {method: [attempt.status for attempt in attempts(method)] for method in expected}
    if statuses != expected:
        raise SystemExit(f"unexpected statuses: {statuses}")
    if set(requests_by_status()) != {"answered", "failed", "in_doubt", "in_flight"}:
        raise SystemExit(f"unexpected requests: {requests_by_status()}")


# The archive


def packed() -> bytes:
    """The root as .tar.xz: equal bytes for equal files, and no trace of who planted them.

    Raises:
        SystemExit: a file names a folder of this machine, or its host or user.
    """
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in PACKED:
            # `add` walks folders in the order of names.
            archive.add(ROOT / name, name, filter=_member)
    return lzma.compress(tar.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def _member(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    path = ROOT / member.name
    old_publication = path.suffix == ".duckdb" and not path.samefile(DATA.warehouse)
    if path.suffix == ".lock" or old_publication:
        return None
    if path.is_file():
        _require_anonymous(path)
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = int(datetime(2026, 11, 29, tzinfo=UTC).timestamp())
    if not member.issym():
        member.mode = 0o755 if member.isdir() else 0o644
    return member


def _require_anonymous(path: Path) -> None:
    content = path.read_bytes()
    folders = (PROJECT, Path(sys.prefix), Path.home())
    matches = [str(folder) for folder in folders if str(folder).encode() in content]
    if path.suffix in (".json", ".jsonl", ".txt", ".md", ".log", ".yaml", ".html"):
        # "root" is also a key of every spec.
        names = {socket.gethostname(), getpass.getuser()} - {"root"}
        words = set(re.findall(r"\w+", content.decode(errors="replace")))
        matches += names & words
    if matches:
        raise SystemExit(f"{path} names {', '.join(matches)}")


if __name__ == "__main__":
    main()
