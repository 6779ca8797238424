"""Record files with random mutations, hundreds of each kind: an exit code and a sentence, never a
traceback. All slow."""

import contextlib
import io
import json
import multiprocessing
import os
import random
import traceback
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from pipelines.cli import main
from tests.peak import own_peak_bytes
from tests.sft_records import stories

MUTATIONS = 300
# Bytes.
MOST_MEMORY = 1_000_000_000
SECONDS = 600
# Every command reads this file anew: the shipped one would take longer than the cleaning.
EXPERIMENTS = """
models: {tiny: {source: {path: /nowhere}, prompt: chat, lora_targets: [q_proj]}}
methods: {base: {kind: none}}
training: {learning_rate: {full: 1.0e-5}}
profiles: {local: {models: [tiny], methods: [base]}}
sources: {corpus: true}
"""
SIGNS = (
    b'"', b"'", b",", b";", b"\t", b"|", b"\n", b"\r", b"\0", b"{", b"}", b"[", b"]", b"\\", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe",
    b"\xed\xa0\x80", b"\xe2\x80\x8b", b"null", b"NaN", b"1e999", b"=1+1", b"\\ud83d", b"9" * 5000, b"[" * 3000,
)  # fmt: skip


def records() -> list[dict[str, Any]]:
    """Good records with fields of other types beside them."""
    good = [record.value for record in stories(24)]
    return [value | {"rating": number, "tags": ["a", None], "of": {"at": 1.5}} for number, value in enumerate(good)]


def as_json() -> bytes:
    return json.dumps(records(), ensure_ascii=False, indent=1).encode()


def as_jsonl() -> bytes:
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records()).encode()


def delimited(separator: str) -> bytes:
    rows = [[*(record[name] for name in ("instruction", "input", "output")), "5"] for record in records()]
    lines = [[cell.replace('"', '""') for cell in row] for row in rows]
    quoted = [separator.join(f'"{cell}"' for cell in line) for line in lines]
    return "\n".join([separator.join(("instruction", "input", "output", "rating")), *quoted]).encode()


def as_parquet() -> bytes:
    out = io.BytesIO()
    table = pa.Table.from_pylist(records())
    times = pa.array(range(table.num_rows), pa.int64()).cast(pa.timestamp("ms"))
    parquet.write_table(table.append_column("at", times), out, row_group_size=10)
    return out.getvalue()


WHOLE: dict[str, Callable[[], bytes]] = {
    "json": as_json,
    "jsonl": as_jsonl,
    "csv": lambda: delimited(","),
    "tsv": lambda: delimited("\t"),
    "parquet": as_parquet,
}


def mutated(content: bytes, rng: random.Random) -> bytes:
    """`content` with one to four mutations: a flipped bit, other bytes, an inserted sign, a piece
    cut, doubled or moved, a lost end."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) or 1)
        end = at + rng.choice([1, 2, 8, 100, 2000])
        kind = rng.choice(["bit", "bytes", "sign", "sign", "cut", "double", "move", "end"])
        if kind == "bit" and changed:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == "bytes":
            changed[at:end] = rng.randbytes(len(changed[at:end]))
        elif kind == "sign":
            changed[at:at] = rng.choice(SIGNS)
        elif kind == "cut":
            del changed[at:end]
        elif kind == "double":
            changed[at:at] = changed[at:end] * rng.choice([1, 1, 50])
        elif kind == "move":
            piece = bytes(changed[at:end])
            del changed[at:end]
            to = rng.randrange(len(changed) or 1)
            changed[to:to] = piece
        elif rng.random() < 0.2:
            del changed[at:]
    return bytes(changed)


def clean_each(folder: str, numbers: range, seed: str, suffix: str, results: Connection) -> None:
    """Send (number, exit code, stderr) for each number, and the peak memory last.

    It runs in a child process, which a crash would end.
    """
    whole = WHOLE[suffix]()
    for number in numbers:
        path = Path(folder) / f"{number}.{suffix}"
        path.write_bytes(mutated(whole, random.Random(f"{seed} {suffix} {number}")))
        results.send((number, "begun", ""))
        err = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
            try:
                code: Any = main(["clean", "--input", str(path)])
            except BaseException:
                code = traceback.format_exc()
        results.send((number, code, err.getvalue()))
        path.unlink()
    results.send((-1, own_peak_bytes(), ""))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", WHOLE)
def test_no_mutation_of_a_file_ends_in_a_traceback(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATHERWEIGHT_DATA", str(tmp_path / "data"))
    (tmp_path / "experiments.yaml").write_text(EXPERIMENTS, encoding="utf-8")
    monkeypatch.setenv("FEATHERWEIGHT_EXPERIMENTS", str(tmp_path / "experiments.yaml"))
    monkeypatch.setenv("FEATHERWEIGHT_PROFILE", "local")
    seed = os.environ.get("MUTATIONS_SEED", str(random.SystemRandom().randrange(10**6)))
    print(f"MUTATIONS_SEED={seed} repeats this run of {MUTATIONS} mutations")
    context = multiprocessing.get_context("spawn")
    end, start = context.Pipe(duplex=False)
    child = context.Process(target=clean_each, args=(str(tmp_path), range(MUTATIONS), seed, suffix, start))
    child.start()
    start.close()
    codes: Counter[Any] = Counter()
    wrong, number, memory = [], None, 0
    while end.poll(SECONDS):
        try:
            number, code, err = end.recv()
        except EOFError:
            break
        if number == -1:
            memory = code
        elif code != "begun":
            codes[code] += 1
            # A line on how the file was read may come first.
            is_explained = any(line.startswith("featherweight: ") for line in err.splitlines())
            sentence = code == 0 or (code in (1, 2) and is_explained)
            if not sentence or "Traceback" in err:
                wrong.append(f"number {number}: exit {code}, {err[-1000:]}")
    child.join(10)
    print(f"{suffix}: exit codes {dict(codes)}, at most {memory / 1e6:.0f} MB")
    assert child.exitcode == 0, f"seed {seed}: number {number} ended or hung the process ({child.exitcode})"
    assert not wrong, f"seed {seed}: {len(wrong)} of {MUTATIONS}, such as " + "\n".join(wrong[:3])
    assert codes.total() == MUTATIONS and codes[0], "some are read"
    assert suffix == "jsonl" or codes[1] or codes[2], (
        "and some are not, but of JSONL, where a broken line costs that line only"
    )
    assert memory < MOST_MEMORY
