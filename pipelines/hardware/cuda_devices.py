"""The CUDA devices of this machine without torch: nvidia-smi lists them, and CUDA_VISIBLE_DEVICES
may hide some.

A device is a card or, if MIG divides the card, a slice of it. Numbers are those of nvidia-smi. CUDA
uses the same ones if CUDA_DEVICE_ORDER is PCI_BUS_ID, which we set for children.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

VISIBLE = "CUDA_VISIBLE_DEVICES"
# The first compute capability with bfloat16, flash attention, and kernels for grouped queries.
AMPERE = (8, 0)
# The timeout of nvidia-smi: a driver may take long to wake up, and longer beside other work.
DRIVER_SECONDS = 600
# The name comes last, since only it may hold a comma.
FIELDS = ("uuid", "memory.total", "mig.mode.current", "name")
CARD_LINE = re.compile(r"GPU (\d+): ")
SLICE_LINE = re.compile(r"\s+MIG (\S+)\s+Device\s+\d+: \(UUID: (MIG-[^)]+)\)")


@dataclass(frozen=True)
class CudaDevice:
    """A card, or a slice of the card with that `index`.

    `memory_bytes` is None if the driver does not report it, as for a card that shares the machine's
    memory. `slices` is None unless MIG divides the card.
    """

    index: int
    uuid: str
    name: str
    memory_bytes: int | None = None
    slices: tuple["CudaDevice", ...] | None = None


def query(*fields: str) -> dict[int, list[str]]:
    """nvidia-smi's values of `fields`, by its number of the card; empty without nvidia-smi.

    Each query runs once per process, so `fields` must be constant. Lines that describe no card (`No
    devices were found`) are skipped.
    """
    rows = {}
    for line in _of_cards(fields)[0].splitlines():
        index, *values = [value.strip() for value in line.split(",", len(fields))]
        if index.isdigit() and len(values) == len(fields):
            rows[int(index)] = values
    return rows


def used_bytes() -> int | None:
    """All memory in use now on the card of the first visible device; None if the driver does not
    report it."""
    first = next(iter(visible()), None)
    if first is None:
        return None
    command = (
        shutil.which("nvidia-smi"),
        f"--id={first.index}",
        "--query-gpu=memory.used",
        "--format=csv,noheader,nounits",
    )
    output = _answer.__wrapped__(*command)[0].strip()
    return int(output) * 2**20 if output.isdigit() else None


def trouble() -> str | None:
    """nvidia-smi's error message; None if it lists cards or is not installed."""
    return _of_cards(FIELDS)[1]


def listed() -> list[CudaDevice]:
    """All cards, regardless of CUDA_VISIBLE_DEVICES."""
    cards = []
    for index, (uuid, memory, mig, name) in query(*FIELDS).items():
        card = CudaDevice(index, uuid, name, int(memory) * 2**20 if memory.isdigit() else None)
        cards.append(replace(card, slices=tuple(_slices(card))) if mig == "Enabled" else card)
    return cards


def visible() -> list[CudaDevice]:
    """The devices that a process started now would see, in CUDA's order.

    CUDA shows at most one slice, and no card beside it.
    """
    setting, cards = os.environ.get(VISIBLE), listed()
    chosen = cards if setting is None else _named(setting, cards)
    cards_alone = [device for device in chosen if device.slices is None and not _is_slice(device)]
    slices = [one for device in chosen for one in (device.slices or ([device] if _is_slice(device) else []))]
    return slices[:1] or cards_alone


def _of_cards(fields: Sequence[str]) -> tuple[str, str | None]:
    return _answer(shutil.which("nvidia-smi"), f"--query-gpu=index,{','.join(fields)}", "--format=csv,noheader,nounits")


def _named(setting: str, cards: Sequence[CudaDevice]) -> list[CudaDevice]:
    """The devices that CUDA_VISIBLE_DEVICES names, by CUDA's rules.

    The first word that names no device ends the list. A device that is named twice makes it empty.
    """
    chosen: list[CudaDevice] = []
    for word in setting.split(","):
        device = _device(word.strip(), cards)
        if device is None:
            break
        if device in chosen:
            return []
        chosen.append(device)
    return chosen


def _device(word: str, cards: Sequence[CudaDevice]) -> CudaDevice | None:
    """The card with that number, or the only card or slice whose UUID begins with the word."""
    if number := re.match(r"[+-]?\d+", word):
        index = int(number.group())
        return cards[index] if 0 <= index < len(cards) else None
    if not word.startswith(("GPU-", "MIG-")):
        return None
    matches = [device for card in cards for device in (card, *(card.slices or ())) if device.uuid.startswith(word)]
    return matches[0] if len(matches) == 1 else None


def _is_slice(device: CudaDevice) -> bool:
    return device.uuid.startswith("MIG-")


def _slices(card: CudaDevice) -> Iterator[CudaDevice]:
    """The MIG slices of a card, with torch's names for them. Their memory is that of their profile
    (`1g.5gb`)."""
    index = None
    for line in _answer(shutil.which("nvidia-smi"), "-L")[0].splitlines():
        if match := CARD_LINE.match(line):
            index = int(match.group(1))
        elif index == card.index and (match := SLICE_LINE.match(line)):
            profile, uuid = match.groups()
            size = re.search(r"(\d+)gb", profile)
            memory = int(size.group(1)) * 10**9 if size else None
            yield CudaDevice(card.index, uuid, f"{card.name} MIG {profile}", memory)


@cache
def _answer(program: str | None, *arguments: str) -> tuple[str, str | None]:
    """(output, error) of the program; with an error the output is empty."""
    if program is None:
        return "", None
    try:
        process = subprocess.run(
            [program, *arguments], capture_output=True, encoding="utf-8", errors="replace", timeout=DRIVER_SECONDS
        )
    except (subprocess.SubprocessError, OSError) as error:
        return "", str(error)
    if process.returncode:
        output = (process.stdout + process.stderr).strip()
        return "", output.splitlines()[0] if output else f"exit code {process.returncode}"
    return process.stdout, None
