"""Seeded mutations of experiments.yaml and topics.yaml: each is accepted, or refused with a
message, in little memory."""

import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.errors import UsageError
from pipelines.generate.topics import load_topics
from pipelines.lake.paths import PROJECT
from pipelines.settings import experiments

COUNT, CONSOLE = 300, 6
MEASURED = """
import sys
from pipelines.cli import main
from tests.peak import own_peak_bytes
try:
    code = main(sys.argv[1:])
finally:
    print("peak", own_peak_bytes(), file=sys.stderr)
sys.exit(code)
"""
GIGABYTE = 1 << 30
ODD: list[Any] = [
    None, True, -1, 0, 2**63, 10**30, 1e308, float("inf"), float("nan"), "", "x" * 100_000, "\0", "\ud800", "é" * 50, "../..", [],
    {}, [[]], {"a": {"a": {}}}, [1] * 5000, "{x:>999999999}", "0 2 31 2 *", b"\xff", {1: 2}, "*" * 300, "~nobody/x", "%(x)s", "{",
]  # fmt: skip


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of the tree."""
    items = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    return [place for key, value in items for place in [(tree, key), *places(value)]]


def other_value(text: str, chance: random.Random) -> bytes:
    tree = yaml.safe_load(text)
    for _ in range(chance.choice((1, 1, 1, 3))):
        container, key = chance.choice(places(tree))
        container[key] = chance.choice(ODD)
    return yaml.safe_dump(tree, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")


def moved_or_gone(text: str, chance: random.Random) -> bytes:
    tree = yaml.safe_load(text)
    container, key = chance.choice(places(tree))
    if chance.random() < 0.5:
        del container[key]
    else:
        other, at = chance.choice(places(tree))
        # A container may hold itself; the dumper then writes an alias.
        other[at] = container[key]
    return yaml.safe_dump(tree, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")


def flipped(text: str, chance: random.Random) -> bytes:
    content = bytearray(text.encode())
    for _ in range(chance.choice((1, 3, 30))):
        content[chance.randrange(len(content))] = chance.randrange(256)
    return bytes(content)


def cut_out(text: str, chance: random.Random) -> bytes:
    content = text.encode()
    start, length = chance.randrange(len(content)), chance.choice((1, 5, 200, len(content)))
    return content[:start] + content[start + length :]


def repeated(text: str, chance: random.Random) -> bytes:
    lines = text.splitlines(keepends=True)
    start, length = chance.randrange(len(lines)), chance.choice((1, 2, 20))
    part = lines[start : start + length] * chance.choice((1, 2, 50))
    return "".join([*lines[:start], *part, *lines[start:]]).encode()


def spliced(text: str, chance: random.Random) -> bytes:
    odd = [
        "&a ",
        "*a",
        "<<: ",
        "!!int ",
        "!!binary ",
        "- ",
        "? ",
        "\t",
        "[" * 99,
        "{" * 99,
        "\x00",
        "---\n",
        "#",
        "'",
        "|",
        "\ufeff",
        ": ",
    ]
    at = chance.randrange(len(text))
    return (text[:at] + chance.choice(odd) * chance.choice((1, 1, 3)) + text[at:]).encode()


MUTATIONS: list[Callable[[str, random.Random], bytes]] = [
    other_value, other_value, moved_or_gone, flipped, cut_out, repeated, spliced,
]  # fmt: skip


def mutated(text: str, seed: int) -> bytes:
    chance = random.Random(seed)
    return chance.choice(MUTATIONS)(text, chance)


def console(path: Path, name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The console script on the file."""
    environment = {
        **os.environ,
        "FEATHERWEIGHT_DATA": str(folder),
        "FEATHERWEIGHT_PROFILE": "local",
        "HF_HUB_OFFLINE": "1",
    }
    if name == "experiments.yaml":
        environment["FEATHERWEIGHT_EXPERIMENTS"] = str(path)
    command = [sys.executable, "-c", MEASURED, "generate", "--estimate"]
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "load"),
    [("experiments.yaml", experiments.load), ("topics.yaml", load_topics)],
    ids=["experiments", "topics"],
)
def test_a_mutated_file_is_taken_or_refused_with_words(tmp_path: Path, name: str, load: Callable[[Path], Any]) -> None:
    shipped = PROJECT / (name if name == "experiments.yaml" else f"data/{name}")
    text, path = shipped.read_text(encoding="utf-8"), tmp_path / name
    peaks: list[int] = []
    before, counts = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, {"taken": 0, "refused": 0}
    for seed in range(COUNT):
        path.write_bytes(mutated(text, seed))
        try:
            load(path)
            counts["taken"] += 1
        except UsageError as error:
            counts["refused"] += 1
            assert str(path) in str(error) and len(str(error)) < 50_000, f"seed {seed}: {str(error)[:500]}"
        except Exception as error:
            pytest.fail(f"seed {seed}: {type(error).__name__}: {error}")
        if seed % (COUNT // CONSOLE) == 0:
            done = console(path, name, tmp_path)
            peaks.append(int(done.stderr.split()[-1]))
            assert done.returncode in (0, 2) and "Traceback" not in done.stderr, f"seed {seed}: {done.stderr[-2000:]}"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{name}: {counts}, {grown / 1024:.0f} MB more here, {max(peaks) / 1e6:.0f} MB in the largest command")
    assert grown * 1024 < GIGABYTE and max(peaks) < GIGABYTE
    assert min(counts.values()) > COUNT // 20
