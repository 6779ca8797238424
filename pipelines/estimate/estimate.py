"""The estimator as others use it: predictions of many cells in one process of its own, each kept in the lake.

A prediction is made again when the estimator or the trainer's code has changed; until then it costs a look into a file.
"""

import json
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

import psutil
from tqdm import tqdm

from pipelines.errors import WorkError
from pipelines.estimate import cards
from pipelines.estimate.cards import CARDS, FORMATS, Card, formats_of
from pipelines.estimate.question import Question, questions
from pipelines.hardware import machine
from pipelines.lake.files import announce, locked, read_json, write_json
from pipelines.project import Project, Resolved
from pipelines.runs.code import code_fingerprint
from pipelines.runs.process import child_environment, stop_group

CHILD = "pipelines.estimate.child"
Json = dict[str, Any]
Verdict = Literal["yes", "tight", "no"]
TIGHT_MARGIN = 0.10  # a margin below this share of the prediction is within what predictions have been off by
NO_CONFIG = "neither weights nor a configuration of {0} are here: run `featherweight fetch {0}`"


@dataclass(frozen=True)
class Estimate:
    """The answer on one cell. `found` holds a prediction for `cpu` and one for the cards of each format (`cards.Format`), or
    `because` where there is none."""

    model: str
    method: str
    answer: Json
    budget_gb: float | None = None

    @property
    def because(self) -> str | None:
        return self.answer.get("because")

    def gb(self, card: Card | None = None, part: str = "peak") -> float | None:
        """Of a cell on `card`, or here."""
        device = key_of(self.answer, card)
        return self.answer[device][part] / 1e9 if device in self.answer else None

    def otherwise_gb(self, card: Card) -> float | None:
        """Peak memory on `card` with gradient checkpointing where the cell has none, without it where it has."""
        device, other = key_of(self.answer, card), self.answer.get("otherwise", {})
        return other[device]["peak"] / 1e9 if device in other else None

    @property
    def capacity_gb(self) -> float:
        """What a cell may use here: its budget, else all of the card or of the machine's memory."""
        return self.budget_gb or machine_gb()

    def margin_gb(self, card: Card | None = None) -> float | None:
        """What remains free on `card`, or here; negative: so much is missing. None without a prediction."""
        peak = self.gb(card)
        return None if peak is None else self._room_gb(card) - peak

    def fits(self, card: Card | None = None) -> Verdict | None:
        """Whether it fits `card`, or this machine."""
        peak = self.gb(card)
        return None if peak is None else verdict(peak, self._room_gb(card))

    def _room_gb(self, card: Card | None) -> float:
        return card.usable / 1e9 if card else self.capacity_gb


def verdict(peak: float, room: float) -> Verdict:
    """`yes`, `tight` (the margin is within the prediction's error) or `no`."""
    return "no" if peak > room else "tight" if room - peak < TIGHT_MARGIN * peak else "yes"


def key_of(answer: Json, card: Card | None = None) -> str:
    """Under which name `found` holds the prediction for `card`, or for this machine's device."""
    card = card or cards.here()
    if card is None:
        return "cpu"
    return (
        card.format(answer["recipe"]) if "recipe" in answer else "cuda"
    )  # of an answer of before cards were told apart


def machine_gb() -> float:
    """The memory of this machine's card, or its own, in GB."""
    return (machine.cuda_memory_bytes() or psutil.virtual_memory().total) / 1e9


def training_gb(answer: Json) -> float | None:
    """The predicted peak of training on this machine's device, which `peak_memory_gb` measures."""
    device = key_of(answer)
    return answer[device]["train"] / 1e9 if device in answer and answer.get("trainable") else None


def estimates(
    project: Project, cells: Sequence[tuple[str, str]], *, on_cards: bool = False, say: Any = announce
) -> list[Estimate]:
    """Predictions for `cells` (model, method) on the profile's settings, the first seed's batches; here and, where `on_cards` is
    true, on `CARDS`, also with the other choice of gradient checkpointing where that may decide.

    Raises:
        WorkError: the estimating process ended without an answer.
    """
    cell_questions = questions(project, list(cells), project.settings.seeds[:1])
    for question in cell_questions if on_cards else ():
        question.request.update(cards=formats_of(question.request["recipe"]), otherwise=True)
    by_file = answers(cell_questions, say=say)
    results = []
    for question in cell_questions:
        settings = project.experiments.training_for(project.profile, question.model, question.method)
        results.append(Estimate(question.model, question.method, by_file[question.file], settings.memory_budget_gb))
    return results


def keep_predictions(resolved: Resolved) -> None:
    """Predict what the comparison of the profile shows and has no prediction for. A failure costs only these numbers."""
    project = resolved.project
    training_cells = [cell for cell in project.grid if project.experiments.method(cell[1]).traits.trains]
    cell_questions = questions(project, training_cells, project.settings.seeds, resolved)
    for question in cell_questions:
        question.request["halved"] = True  # for the advice
    try:
        answers(cell_questions, say=lambda _: None)
    except WorkError as error:
        announce(f"no prediction of memory: {error}")


def ensure_predictions(project: Project, resolved: Resolved | None = None) -> None:
    """Where the profile's launcher asks for each cell's memory, have predictions at hand of all of them. What cannot be predicted
    asks for none."""
    if not project.launcher().asks_for_memory:
        return
    with locked(project.data.locks / "estimates.lock", "predict"):
        try:
            answers(questions(project, project.grid, project.settings.seeds, resolved), say=announce)
        except WorkError as error:
            announce(f"no prediction of memory: {error}")


def answers(questions: Sequence[Question], *, say: Any) -> dict[Path, Json]:
    """The answer in each question's file, made first where there is none or where the code has changed since."""
    code = code_version()
    stored = {question.file: read_json(question.file) for question in questions}
    missing = [question for question in questions if not _is_complete(stored[question.file], question, code)]
    shapeless = [question for question in missing if question.request["config"] is None]
    answerable = [question for question in missing if question.request["config"] is not None]
    stored |= {question.file: {"because": NO_CONFIG.format(question.model)} for question in shapeless}
    if answerable:
        say(f"predicting the memory of {len(answerable)} cells (a second or two each; kept for the next time)")
        with closing(answers_to([question.request for question in answerable])) as results:
            pairs = zip(answerable, results, strict=True)
            # disable=None: a bar on a terminal, nothing in a log
            for question, answer in tqdm(
                pairs, total=len(answerable), desc="predicting memory", unit="cell", disable=None
            ):
                identity = {"code": code, "model": question.model, "method": question.method}
                stored[question.file] = {**_of_code(stored[question.file], code), **answer, **identity}
                write_json(question.file, stored[question.file])
    return {file: answer for file, answer in stored.items() if answer is not None}


def _of_code(earlier: Json | None, code: str) -> Json:
    """What the same code has answered to somebody's other questions."""
    return earlier if earlier and earlier.get("code") == code else {}


def _is_complete(answer: Json | None, question: Question, code: str) -> bool:
    """Whether all that is asked stands in `found`."""
    if answer is None or answer.get("code") != code:
        return False
    if "because" in answer:
        return True
    request, cards = question.request, set(question.request["cards"])
    if answer["trainable"] and request.get("halved") and "halved_gb" not in answer:
        return False
    if request.get("otherwise") and "otherwise" not in answer:
        return False
    return cards <= set(answer)


def code_version() -> str:
    """Changes with the estimator and with what it rehearses of the trainer."""
    return code_fingerprint(CHILD)


def answers_to(requests: list[Json]) -> Generator[Json, None, None]:
    """The answers of one estimating process, in order, each as it is made.

    Raises:
        WorkError: it ended before the last.
    """
    environment = child_environment({"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""})
    with TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints:
        process = subprocess.Popen(
            [sys.executable, "-m", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            encoding="utf-8",
            errors="replace",
            env=environment,
            start_new_session=True,
        )
        assert process.stdin and process.stdout
        count = 0
        try:
            with suppress(BrokenPipeError), process.stdin as questions_for_it:
                json.dump(requests, questions_for_it)
            with process.stdout as lines:
                for line in lines:
                    if not line.endswith("\n"):  # it was killed in the middle
                        break
                    if line.startswith("{"):
                        count += 1
                        yield json.loads(line)
        finally:
            stop_group(process)
        if count != len(requests):
            complaints.seek(0)
            last = " | ".join(complaints.read().strip().splitlines()[-2:])
            raise WorkError(f"the estimating process ended after {count} of {len(requests)} cells: {last}")


def columns(estimate: Estimate) -> Json:
    """One row for JSON and CSV: GB everywhere, None where there is no prediction."""
    here = estimate.answer.get(key_of(estimate.answer), {})
    parts = ("framework", "weights", "gradients", "optimizer", "activations", "slack", "pageable")
    row: Json = {
        "model": estimate.model,
        "method": estimate.method,
        "device": machine.machine_class(),
        "estimated_memory_gb": estimate.gb(),
        "training_gb": estimate.gb(part="train"),
        "loading_gb": estimate.gb(part="load"),
        "capacity_gb": estimate.capacity_gb,
        "fits": estimate.fits(),
        "margin_gb": estimate.margin_gb(),
        **{f"{part}_gb": here[part] / 1e9 if here else None for part in parts},
        "parameters": estimate.answer.get("parameters"),
        "trainable_params": estimate.answer.get("trainable"),
        "batch": estimate.answer.get("batch"),
        "batch_from": estimate.answer.get("batch_from"),
        "card_memory_gb": estimate.gb(CARDS[-1]),
        **_by_format(estimate.answer),
    }
    for card in CARDS:
        slug = card.name.lower().replace(" ", "_")
        row |= {f"{slug}_fits": estimate.fits(card), f"{slug}_margin_gb": estimate.margin_gb(card)}
    return {**row, "because": estimate.because}


def is_checkpointed(answer: Json) -> bool:
    """Whether the cell computes its layers again, rather than keep what they made."""
    return answer.get("recipe", {}).get("gradient_checkpointing", False)


def _by_format(answer: Json) -> Json:
    """Peak GB on cards of each format, with gradient checkpointing and without."""
    order = ("with", "without") if is_checkpointed(answer) else ("without", "with")
    row: Json = {}
    for format in FORMATS:
        predictions = dict(zip(order, (answer.get(format), answer.get("otherwise", {}).get(format)), strict=True))
        for name in ("with", "without"):
            prediction = predictions[name]
            row[f"{format}_{name}_checkpointing_gb"] = prediction["peak"] / 1e9 if prediction else None
    return row
