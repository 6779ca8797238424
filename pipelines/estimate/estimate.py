"""The estimator's interface: predictions of many cells, made in one separate process and stored in
the lake.

A prediction is repeated if the code of the estimator or the trainer has changed. Otherwise it is
read from its file.
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
# A margin below this share of the prediction is within the error of past predictions.
TIGHT_MARGIN = 0.10
NO_CONFIG = "neither weights nor a configuration of {0} are here: run `featherweight fetch {0}`"


@dataclass(frozen=True)
class Estimate:
    """The estimate of one cell.

    `answer` holds a prediction for `cpu` and one for each card format (`cards.Format`), or
    `because` if there is none.
    """

    model: str
    method: str
    answer: Json
    budget_gb: float | None = None

    @property
    def because(self) -> str | None:
        return self.answer.get("because")

    def gb(self, card: Card | None = None, part: str = "peak") -> float | None:
        """The predicted GB of the cell on `card`, or on this machine."""
        device = key_of(self.answer, card)
        return self.answer[device][part] / 1e9 if device in self.answer else None

    def otherwise_gb(self, card: Card) -> float | None:
        """Peak memory on `card` with the other choice of gradient checkpointing than the cell's."""
        device, other = key_of(self.answer, card), self.answer.get("otherwise", {})
        return other[device]["peak"] / 1e9 if device in other else None

    @property
    def capacity_gb(self) -> float:
        """The memory that a cell may use here: its budget, else all of the card or the machine."""
        return self.budget_gb or machine_gb()

    def margin_gb(self, card: Card | None = None) -> float | None:
        """The GB that remain free on `card`, or here; negative if memory is missing. None
        without a prediction."""
        peak = self.gb(card)
        return None if peak is None else self._room_gb(card) - peak

    def fits(self, card: Card | None = None) -> Verdict | None:
        """Whether the cell fits `card`, or this machine."""
        peak = self.gb(card)
        return None if peak is None else verdict(peak, self._room_gb(card))

    def _room_gb(self, card: Card | None) -> float:
        return card.usable / 1e9 if card else self.capacity_gb


def verdict(peak: float, room: float) -> Verdict:
    """`yes`, `tight` (the margin is within the prediction's error) or `no`."""
    return "no" if peak > room else "tight" if room - peak < TIGHT_MARGIN * peak else "yes"


def key_of(answer: Json, card: Card | None = None) -> str:
    """The key in `answer` of the prediction for `card`, or for this machine's device."""
    card = card or cards.here()
    if card is None:
        return "cpu"
    # Older answers did not distinguish card formats.
    return card.format(answer["recipe"]) if "recipe" in answer else "cuda"


def machine_gb() -> float:
    """The memory of this machine's card in GB, or that of the machine without one."""
    return (machine.cuda_memory_bytes() or psutil.virtual_memory().total) / 1e9


def training_gb(answer: Json) -> float | None:
    """The predicted peak of training on this machine's device, which corresponds to the measured
    `peak_memory_gb`."""
    device = key_of(answer)
    return answer[device]["train"] / 1e9 if device in answer and answer.get("trainable") else None


def estimates(
    project: Project, cells: Sequence[tuple[str, str]], *, on_cards: bool = False, say: Any = announce
) -> list[Estimate]:
    """Predict `cells` (model, method) with the profile's settings and the first seed's batches.

    With `on_cards` the predictions also cover `CARDS`, and the other choice of gradient
    checkpointing if that may matter.

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
    """Make the missing predictions that the profile's comparison shows. A failure costs only
    these numbers."""
    project = resolved.project
    training_cells = [cell for cell in project.grid if project.experiments.method(cell[1]).traits.trains]
    cell_questions = questions(project, training_cells, project.settings.seeds, resolved)
    for question in cell_questions:
        # The advice in the comparison uses it.
        question.request["halved"] = True
    try:
        answers(cell_questions, say=lambda _: None)
    except WorkError as error:
        announce(f"no prediction of memory: {error}")


def ensure_predictions(project: Project, resolved: Resolved | None = None) -> None:
    """Make the predictions of all cells, if the profile's launcher requests memory for each cell.

    A cell without a prediction requests no memory.
    """
    if not project.launcher().asks_for_memory:
        return
    with locked(project.data.locks / "estimates.lock", "predict"):
        try:
            answers(questions(project, project.grid, project.settings.seeds, resolved), say=announce)
        except WorkError as error:
            announce(f"no prediction of memory: {error}")


def answers(questions: Sequence[Question], *, say: Any) -> dict[Path, Json]:
    """The answers from the questions' files. Missing and outdated ones are made first."""
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
            # disable=None shows the bar only on a terminal, not in a log.
            for question, answer in tqdm(
                pairs, total=len(answerable), desc="predicting memory", unit="cell", disable=None
            ):
                identity = {"code": code, "model": question.model, "method": question.method}
                stored[question.file] = {**_of_code(stored[question.file], code), **answer, **identity}
                write_json(question.file, stored[question.file])
    return {file: answer for file, answer in stored.items() if answer is not None}


def _of_code(earlier: Json | None, code: str) -> Json:
    """The earlier answer, if the same code made it; it may hold answers to other requests."""
    return earlier if earlier and earlier.get("code") == code else {}


def _is_complete(answer: Json | None, question: Question, code: str) -> bool:
    """Whether `answer` holds everything that the question requests."""
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
    """A fingerprint of the estimator's code and of the trainer's code that it rehearses."""
    return code_fingerprint(CHILD)


def answers_to(requests: list[Json]) -> Generator[Json, None, None]:
    """Yield the answers of one estimating process in order, each as soon as it is made.

    Raises:
        WorkError: the process ended before the last answer.
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
                    # The process was killed in the middle of a line.
                    if not line.endswith("\n"):
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
    """One row for JSON and CSV. Sizes are in GB; None without a prediction."""
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
    """Whether the cell uses gradient checkpointing: it recomputes its layers and does not keep
    their activations."""
    return answer.get("recipe", {}).get("gradient_checkpointing", False)


def _by_format(answer: Json) -> Json:
    """Peak GB on cards of each format, with and without gradient checkpointing."""
    order = ("with", "without") if is_checkpointed(answer) else ("without", "with")
    row: Json = {}
    for format in FORMATS:
        predictions = dict(zip(order, (answer.get(format), answer.get("otherwise", {}).get(format)), strict=True))
        for name in ("with", "without"):
            prediction = predictions[name]
            row[f"{format}_{name}_checkpointing_gb"] = prediction["peak"] / 1e9 if prediction else None
    return row
