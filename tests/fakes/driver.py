"""A fake nvidia-smi: it prints a test's cards as the driver's own tool does, and refuses unknown
fields."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAM = """#!{python}
import json, sys
driver = json.loads({driver!r})
if driver["failure"]:
    print(driver["failure"])
    sys.exit(driver["code"])
if sys.argv[1:] == ["-L"]:
    for index, card in enumerate(driver["cards"]):
        print(f"GPU {{index}}: {{card['name']}} (UUID: {{card['uuid']}})")
        for place, (profile, uuid) in enumerate(card["slices"] or []):
            print(f"  MIG {{profile}}     Device  {{place}}: (UUID: {{uuid}})")
    sys.exit()
chosen = [int(word.removeprefix("--id=")) for word in sys.argv if word.startswith("--id=")]
(query,) = [word.removeprefix("--query-gpu=") for word in sys.argv if word.startswith("--query-gpu=")]
for index, card in enumerate(driver["cards"]):
    if chosen and index not in chosen:
        continue
    said = {{
        "index": index, "memory.used": card["used"], "uuid": card["uuid"], "name": card["name"], "memory.total": card["memory"],
        "driver_version": driver["version"], "compute_cap": card["capability"],
        "mig.mode.current": "[N/A]" if card["slices"] is None else "Enabled",
    }}
    print(", ".join(str(said[field]) for field in query.split(",")))
"""


@dataclass(frozen=True)
class FakeCard:
    """`memory` and `used` are MiB, as in nvidia-smi; `slices` are (profile, UUID) pairs of a card
    with MIG."""

    name: str = "Tesla T4"
    uuid: str = "GPU-11111111"
    memory: str = "15360"
    used: str = "0"
    capability: str = "7.5"
    slices: tuple[tuple[str, str], ...] | None = None


def install(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *cards: FakeCard,
    version: str = "535.129.03",
    failure: str = "",
    code: int = 9,
) -> None:
    """Put the fake first on PATH: a machine with these cards, all of them visible.

    `failure` is its output in place of the list, with exit code `code`.
    """
    program = folder / "driver" / "nvidia-smi"
    program.parent.mkdir(parents=True, exist_ok=True)
    settings = {"cards": [vars(card) for card in cards], "version": version, "failure": failure, "code": code}
    program.write_text(PROGRAM.format(python=sys.executable, driver=json.dumps(settings)), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
