"""People's votes on answers side by side: every vote as rows, and win rates between cells and
against the untouched model.

A vote names the best of the shown answers. So it compares that answer with each of the others, but
not the others with one another. A tie is half a win for each side; so is a vote that no answer is
any good. Repeated votes on the same prompt and the same two answers are one comparison, scored by
their mean. A vote counts while the data and the recipe of its runs are still those of their cells.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from pipelines.compare.table import Row
from pipelines.compare.votes import NEITHER, TIE, Preference, Shown, read
from pipelines.evaluate.cell import base_method
from pipelines.evaluate.pairs import CORRECTION, HARMLESS
from pipelines.evaluate.statistics import win_rate_interval
from pipelines.project import Project, Resolved
from pipelines.runs.cells import Attempt, CellKey

# Model and method.
Cell = tuple[str, str]
WIN, HALF, LOSS = 1.0, 0.5, 0.0


@dataclass
class Tally:
    """Scores of one cell against another, by prompt and the two answers."""

    scores: dict[tuple[str, str, str], list[float]] = field(default_factory=dict)

    def add(self, prompt: str, mine: Shown, theirs: Shown, score: float) -> None:
        self.scores.setdefault((prompt, mine.answer, theirs.answer), []).append(score)

    @property
    def votes(self) -> int:
        return sum(map(len, self.scores.values()))

    def count_of(self, score: float) -> float:
        """The number of comparisons with this score. A comparison with several votes counts in
        parts."""
        return sum(scores.count(score) / len(scores) for scores in self.scores.values())

    def columns(self) -> Row:
        wins, ties, losses = (self.count_of(score) for score in (WIN, HALF, LOSS))
        low, high = win_rate_interval(wins, losses, ties, correction=CORRECTION) or (None, None)
        rate = (wins + ties / 2) / len(self.scores)
        return {"votes": self.votes, "comparisons": len(self.scores), "wins": wins, "ties": ties, "losses": losses,
                "win_rate": rate, "win_rate_low": low, "win_rate_high": high}  # fmt: skip


class Ballot:
    """All votes of a lake, and which of the runs behind them still represent their cells."""

    def __init__(self, resolved: Resolved) -> None:
        self._resolved = resolved
        self.votes: Sequence[Preference] = read(resolved.data).votes
        self._current: dict[str, bool] = {}

    @property
    def project(self) -> Project:
        return self._resolved.project

    def is_current(self, one: Shown) -> bool:
        """Whether the run exists, belongs to this cell, and differs from it in code and machine
        at most."""
        if one.run_id not in self._current:
            self._current[one.run_id] = self._is_current(one)
        return self._current[one.run_id]

    def _is_current(self, one: Shown) -> bool:
        experiments = self._resolved.experiments
        if one.model not in experiments.models or one.method not in experiments.methods or "/" in one.run_id:
            return False
        key = CellKey(one.model, one.method, one.seed)
        attempt = Attempt(key, key.folder(self._resolved.data) / one.run_id)
        if not one.run_id.strip(".") or not attempt.folder.is_dir():
            return False
        return set(self._resolved.changed(attempt)) <= HARMLESS

    def tallies(self) -> dict[tuple[Cell, Cell], Tally]:
        """The current votes by pair of cells, in both directions: scores of the first cell
        against the second."""
        tallies: dict[tuple[Cell, Cell], Tally] = {}
        for vote in self.votes:
            for one, other in combinations(vote.shown, 2):
                score = score_of(vote, one, other)
                if (
                    score is None
                    or not (self.is_current(one) and self.is_current(other))
                    or cell_of(one) == cell_of(other)
                ):
                    continue
                for mine, theirs, won in ((one, other, score), (other, one, 1 - score)):
                    tallies.setdefault((cell_of(mine), cell_of(theirs)), Tally()).add(vote.prompt, mine, theirs, won)
        return tallies

    def left_out(self, cell: Cell, base: Cell) -> int:
        """The number of votes on the cell against the untouched model whose runs no longer
        represent them."""
        return sum(
            not (self.is_current(one) and self.is_current(other))
            for vote in self.votes
            for one in vote.shown
            for other in vote.shown
            if (cell_of(one), cell_of(other)) == (cell, base) and score_of(vote, one, other) is not None
        )


def cell_of(one: Shown) -> Cell:
    return one.model, one.method


def score_of(vote: Preference, one: Shown, other: Shown) -> float | None:
    """1 if `one` was chosen, 0 if `other` was, ½ for a tie. None if a third answer was chosen:
    that does not compare these two."""
    if vote.chosen in (TIE, NEITHER):
        return HALF
    chosen = vote.shown[int(vote.chosen)]
    return WIN if chosen is one else LOSS if chosen is other else None


def with_votes(ballot: Ballot, rows: Sequence[Row]) -> list[Row]:
    """The comparison's rows with the results of people's votes on each cell against the
    untouched model."""
    tallies, base = ballot.tallies(), base_method(ballot.project)
    return [row | _columns(ballot, tallies, (row["model"], row["method"]), (row["model"], base or "")) for row in rows]


def _columns(ballot: Ballot, tallies: Mapping[tuple[Cell, Cell], Tally], cell: Cell, base: Cell) -> Row:
    columns: Row = {}
    if tally := tallies.get((cell, base)):
        values = tally.columns()
        columns = {
            f"preference_{name}": values[name] for name in ("win_rate", "win_rate_low", "win_rate_high", "votes")
        }
    if earlier := ballot.left_out(cell, base):
        note = f"{earlier} votes are on runs whose data or recipe is no longer the cell's, and are left out"
        columns["preference_note"] = note
    return columns


def vote_rows(ballot: Ballot) -> Iterator[Row]:
    """Rows of the table preferences: one for each shown answer of each vote."""
    for vote in ballot.votes:
        for place, one in enumerate(vote.shown):
            outcome = (
                vote.chosen if isinstance(vote.chosen, str) else "chosen" if vote.chosen == place else "not chosen"
            )
            yield {
                "vote_id": vote.id,
                "voted_at": vote.at,
                "model": one.model,
                "method": one.method,
                "seed": one.seed,
                "run_id": one.run_id,
                "place": place + 1,
                "shown": len(vote.shown),
                "ended": outcome,
                "prompt": vote.prompt,
                "answer": one.answer,
                "settings": json.dumps(dict(vote.settings), ensure_ascii=False, sort_keys=True),
                "is_current": ballot.is_current(one),
            }


def duel_rows(ballot: Ballot) -> Iterator[Row]:
    """Rows of the table preference_duels: one for each pair of cells with votes, in both
    directions."""
    for ((model, method), (other, against)), tally in sorted(ballot.tallies().items()):
        cells = {"model": model, "method": method, "against_model": other, "against_method": against}
        yield {**cells, **tally.columns()}
