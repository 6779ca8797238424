"""Live progress of a running cell, read from its curve: a bar on a terminal, an occasional line
elsewhere.

During a search for a learning rate each trial gets a line.
"""

import sys
from typing import Any

from tqdm import tqdm

from pipelines.runs.cells import Attempt
from pipelines.runs.exits import child_report


class CellProgress:
    """Shows the progress of an attempt.

    Call `show` as often as you like, and `close` at the end.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._size = -1
        self._doing = ""

    def show(self, attempt: Attempt) -> None:
        curve = attempt.folder / "curve.jsonl"
        if not curve.exists():
            self._show_search(attempt)
            return
        if (size := curve.stat().st_size) == self._size:
            return
        self._size = size
        points = attempt.curve()
        # The first point is still being written.
        if not points:
            return
        point = points[-1]
        if self._bar is None:
            name = f"{attempt.key.model} × {attempt.key.method}"
            # On a terminal the bar redraws itself; in a log one line every ten seconds is enough.
            calm = 0.2 if sys.stderr.isatty() else 10
            self._bar = tqdm(
                total=point["steps"], desc=name, unit="step", mininterval=calm, file=sys.stderr, leave=True
            )
        loss = f"{point['train_loss']:.3f}" if point["train_loss"] is not None else "–"
        self._bar.set_postfix_str(f"loss {loss}, {point['process_memory_mb'] / 1000:.2f} GB", refresh=False)
        self._bar.update(point["step"] - self._bar.n)
        if point["step"] == point["steps"]:
            self.close()

    def _show_search(self, attempt: Attempt) -> None:
        """Print a line for each learning rate that the search tries."""
        doing = str(child_report(attempt.folder).get("doing") or "")
        if doing and doing != self._doing:
            print(f"{attempt.key.model} × {attempt.key.method}: {doing}", file=sys.stderr, flush=True)
        self._doing = doing

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
