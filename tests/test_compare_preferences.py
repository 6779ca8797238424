"""People's votes: stored whole or not at all, readable after a kill, and summed correctly."""

import json
import resource
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import pytest

from pipelines.compare.compare import compare, lake_version
from pipelines.compare.preferences import Ballot, duel_rows, with_votes
from pipelines.compare.table import comparison
from pipelines.compare.votes import Preference, Shown, append, read
from pipelines.errors import WorkError
from pipelines.evaluate.statistics import win_rate_interval
from pipelines.lake.paths import DataRoot
from pipelines.runs import cells
from pipelines.runs.cells import CellKey
from tests.fakes.planted import Lake, lake

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


@pytest.mark.parametrize("at", ["yesterday", "", "2026-11-30T17:00:00"])
def test_a_vote_knows_when_it_was_cast(at: str) -> None:
    with pytest.raises(ValueError):
        vote(at=at)


def test_half_a_line_costs_one_vote_and_other_things_in_the_file_none(tmp_path: Path) -> None:
    data = DataRoot(tmp_path)
    assert read(data).votes == ()
    append(data, vote(0))
    whole = data.preferences.read_bytes()
    # One cut lies in the middle of a Hangul syllable.
    for cut in (1, len(whole) // 2, len(whole) - 2):
        data.preferences.write_bytes(whole + whole.replace(b'"id": "', b'"id": "2')[:cut])
        assert (len(read(data).votes), read(data).unreadable) == (1, 0)
        append(data, vote("tie"))
        assert [one.chosen for one in read(data).votes] == [0, "tie"]
    row = json.loads(whole)
    odd = [{**row, "id": "a", "chosen": 2}, {**row, "id": "b", "prompt": None}, {**row, "id": "c", "shown": "xy"},
           {**row, "id": "d", "shown": [{}]}, [], 7, {**row, "id": ["e"]}, {**row, "id": "g", "at": "now"},
           {**row, "id": "h", "shown": [{**one, "seed": 2**40} for one in row["shown"]]}]  # fmt: skip
    newer = {**row, "id": "f", "later": 1}
    lines = [whole.decode().strip(), *map(json.dumps, [*odd, newer]), "", "\x00", "[" * 100_000]
    data.preferences.write_text("\n".join(lines) + "\n", encoding="utf-8")
    ballot = read(data)
    assert [one.id for one in ballot.votes] == [row["id"], "f"] and ballot.unreadable == len(odd) + 2


def test_half_a_surrogate_pair_does_not_cost_the_vote(tmp_path: Path) -> None:
    data = DataRoot(tmp_path)
    append(data, Preference("\ud83d?", (BASE, LORA), 0))
    escaped = data.preferences.read_text(encoding="utf-8").replace('"??"', r'"\ud83d!"').replace('"id": "', '"id": "2')
    data.preferences.write_text(data.preferences.read_text(encoding="utf-8") + escaped, encoding="utf-8")
    assert [one.prompt for one in read(data).votes] == ["??", "?!"]


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


# --- totals


@pytest.fixture
def voted(tmp_path: Path) -> Lake:
    """A lake with the untouched model and two tuned ones."""
    made = lake(tmp_path)
    for method in ("base", "lora-r8", "full"):
        made.cell(method)
    return made


def shown(voted: Lake, method: str, answer: str | None = None, run_id: str | None = None) -> Shown:
    run_id = run_id or cells.attempts(voted.data, CellKey("tiny", method, 1))[-1].run_id
    return Shown("tiny", method, 1, run_id, answer or f"as {method}")


def cast(voted: Lake, prompt: str, *methods: str, chosen: int | str, **more: Any) -> None:
    append(voted.data, Preference(prompt, tuple(shown(voted, method) for method in methods), chosen, **more))


def rows(voted: Lake) -> dict[str, dict[str, Any]]:
    resolved = voted.resolved()
    return {row["method"]: row for row in with_votes(Ballot(resolved), comparison(resolved).rows)}


def duels(voted: Lake) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["method"], row["against_method"]): row for row in duel_rows(Ballot(voted.resolved()))}


def test_a_vote_compares_the_chosen_answer_with_each_other_and_those_with_nobody(voted: Lake) -> None:
    cast(voted, "a", "base", "lora-r8", "full", chosen=1)
    # The order is blind: the place says nothing.
    cast(voted, "b", "lora-r8", "base", chosen=0)
    cast(voted, "c", "base", "lora-r8", chosen=0)
    cast(voted, "d", "full", "base", "lora-r8", chosen="tie")
    cast(voted, "e", "lora-r8", "base", chosen="neither")
    table = duels(voted)
    ends = {pair: (row["wins"], row["ties"], row["losses"], row["votes"]) for pair, row in table.items()}
    assert ends == {
        ("lora-r8", "base"): (2, 2, 1, 5), ("base", "lora-r8"): (1, 2, 2, 5),
        ("lora-r8", "full"): (1, 1, 0, 2), ("full", "lora-r8"): (0, 1, 1, 2),
        ("full", "base"): (0, 1, 0, 1), ("base", "full"): (0, 1, 0, 1),
    }  # fmt: skip
    assert table["lora-r8", "base"]["win_rate"] == pytest.approx(0.6)
    row = rows(voted)["lora-r8"]
    names = ("preference_win_rate", "preference_win_rate_low", "preference_win_rate_high", "preference_votes")
    low, high = win_rate_interval(2, 1, 2, correction=1) or (None, None)
    assert [row[name] for name in names] == [pytest.approx(0.6), low, high, 5]
    assert (rows(voted)["full"]["preference_win_rate"], rows(voted)["full"]["preference_win_rate_low"]) == (0.5, None)
    for method in ("base", "qlora-r8"):
        assert {rows(voted)[method][name] for name in (*names, "preference_note")} == {None}


def test_ten_votes_on_the_same_two_answers_are_one_comparison(voted: Lake) -> None:
    for number in range(8):
        cast(voted, "a", "base", "lora-r8", chosen=0 if number < 2 else 1)
    cast(voted, "b", "base", "lora-r8", chosen=0)
    row = duels(voted)["lora-r8", "base"]
    assert (row["votes"], row["comparisons"], row["wins"], row["losses"]) == (9, 2, 0.75, 1.25)
    assert row["win_rate"] == pytest.approx(0.375)
    assert (row["win_rate_low"], row["win_rate_high"]) == win_rate_interval(0.75, 1.25, 0, correction=1)
    assert row["win_rate_low"] < 0.1 and row["win_rate_high"] > 0.9, "two comparisons say next to nothing"


def test_votes_on_runs_that_are_no_longer_the_cells_own_are_left_out_and_counted(voted: Lake) -> None:
    cast(voted, "a", "base", "lora-r8", chosen=1)
    # Trained again from the same inputs: the vote still counts for the cell.
    voted.cell("lora-r8")
    assert rows(voted)["lora-r8"]["preference_votes"] == 1
    for run_id in ("gone", "..", ".", "a/b", "", "\x00"):
        append(voted.data, Preference("b", (shown(voted, "base"), shown(voted, "lora-r8", run_id=run_id or " ")), 0))
    append(voted.data, Preference("b", (shown(voted, "base"), Shown("no-such", "model", 1, "x", "y")), 0))
    killed = voted.killed_at_start("lora-r8").name
    append(voted.data, Preference("b", (shown(voted, "base"), shown(voted, "lora-r8", run_id=killed)), 0))
    row = rows(voted)["lora-r8"]
    assert (row["preference_votes"], row["preference_win_rate"]) == (1, 1.0)
    assert "7 votes are on runs whose data or recipe is no longer the cell's" in row["preference_note"]
    changed = voted.configured(methods={"lora-r8": {"rank": 16}})
    assert rows(changed)["lora-r8"]["preference_votes"] is None
    assert "8 votes" in rows(changed)["lora-r8"]["preference_note"]


def test_votes_are_published_as_they_were_cast_and_a_new_one_asks_for_a_publication(voted: Lake) -> None:
    before = lake_version(voted.data)
    cast(voted, "<script>alert(1)</script> 서울?", "lora-r8", "base", chosen=1, settings={"temperature": 0})
    assert lake_version(voted.data) != before
    compare(voted.project)
    with duckdb.connect(str(voted.data.warehouse), read_only=True) as db:
        rows = db.execute(
            "SELECT method, place, shown, ended, prompt, settings, is_current, voted_at <= now() FROM preferences ORDER BY place"
        ).fetchall()
        rates = db.execute("SELECT method, win_rate FROM preference_duels ORDER BY 1").fetchall()
        (votes,) = db.execute("SELECT preference_votes FROM comparison WHERE method = 'lora-r8'").fetchall()
    prompt = "<script>alert(1)</script> 서울?"
    assert rows == [
        ("lora-r8", 1, 2, "not chosen", prompt, '{"temperature": 0}', True, True),
        ("base", 2, 2, "chosen", prompt, '{"temperature": 0}', True, True),
    ]
    assert rates == [("base", 1.0), ("lora-r8", 0.0)] and votes == (1,)
