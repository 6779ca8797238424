"""People's votes: kept whole or not at all, read whatever a kill left, and what they add up to."""

import json
import resource
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import WorkError
from pipelines.paths import DataRoot
from pipelines.preferences import Preference, Shown, append, read

BASE = Shown("tiny", "base", 1, "run-base", "I like it.")
LORA = Shown("tiny", "lora-r8", 1, "run-lora", "서울은\u2028대한민국의 <b>수도</b>\nis.")


def vote(chosen: int | str = 1, **more: Any) -> Preference:
    return Preference("What is Seoul?", (BASE, LORA), chosen, **more)


def test_a_vote_comes_back_as_it_was_cast(tmp_path: Path) -> None:
    data = DataRoot(tmp_path)
    cast = [vote(0, settings={"temperature": 0, "system": None}), vote("tie"), vote("neither")]
    for one in cast:
        append(data, one)
    assert read(data).votes == tuple(cast) and read(data).unreadable == 0
    assert len(data.preferences.read_bytes().split(b"\n")) == 4, "one line each"
    assert (data.preferences.stat().st_mode & 0o777, data.lake.stat().st_mode & 0o777) == (0o600, 0o700)
    append(data, cast[0])
    assert read(data).votes == tuple(cast), "the same vote sent twice is one vote"
    append(data, vote(1, id=cast[0].id))
    assert read(data).votes == tuple(cast), "a vote cannot be changed once the names were shown"


@pytest.mark.parametrize(
    ("shown", "chosen"),
    [
        ((BASE,), 0),
        ((), "tie"),
        ((BASE, BASE), 0),
        ((BASE, Shown("tiny", "base", 1, "another", "x")), 0),
        *(((BASE, LORA), chosen) for chosen in (2, -1, True, "left", "", None, 0.0)),
    ],
)
def test_what_is_no_vote_is_refused(shown: tuple[Shown, ...], chosen: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        Preference("?", shown, chosen)


def test_half_a_line_costs_one_vote_and_other_things_in_the_file_none(tmp_path: Path) -> None:
    data = DataRoot(tmp_path)
    assert read(data).votes == ()
    append(data, vote(0))
    whole = data.preferences.read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 2):  # also in the middle of a Hangul syllable
        data.preferences.write_bytes(whole + whole.replace(b'"id": "', b'"id": "2')[:cut])
        assert (len(read(data).votes), read(data).unreadable) == (1, 0)
        append(data, vote("tie"))
        assert [one.chosen for one in read(data).votes] == [0, "tie"]
    told = json.loads(whole)
    odd = [{**told, "id": "a", "chosen": 2}, {**told, "id": "b", "prompt": None}, {**told, "id": "c", "shown": "xy"},
           {**told, "id": "d", "shown": [{}]}, [], 7, {**told, "id": ["e"]}]  # fmt: skip
    newer = {**told, "id": "f", "later": 1}
    lines = [whole.decode().strip(), *map(json.dumps, [*odd, newer]), "", "\x00", "[" * 100_000]
    data.preferences.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = read(data)
    assert [one.id for one in found.votes] == [told["id"], "f"] and found.unreadable == len(odd) + 2


def test_half_a_surrogate_pair_does_not_cost_the_vote(tmp_path: Path) -> None:
    append(DataRoot(tmp_path), Preference("\ud83d?", (BASE, LORA), 0))
    assert [one.prompt for one in read(DataRoot(tmp_path)).votes] == ["??"]


def test_a_full_disk_keeps_what_was_there_and_says_so(tmp_path: Path) -> None:
    data = DataRoot(tmp_path)
    append(data, vote(0))
    before = data.preferences.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handled = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
        with pytest.raises(WorkError, match="the vote is not kept"):
            append(data, vote(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handled)
    assert data.preferences.read_bytes() == before
    append(data, vote(1))
    assert [one.chosen for one in read(data).votes] == [0, 1]


def test_two_pages_at_once_keep_every_vote(tmp_path: Path) -> None:
    data, votes = DataRoot(tmp_path), [vote(id=str(number)) for number in range(30)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda one: append(data, one), votes))
    assert {one.id for one in read(data).votes} == {one.id for one in votes} and read(data).unreadable == 0
