"""Test records for cleaning with known plants, half Korean and half English, 250 characters on
average.

Words are drawn from the corpus by their frequency, so scripts, shingles and function words are
those of real text. The field `plant` of each record is fresh, exact, near (at least the threshold's
Jaccard to record `of`), apart (a little below it), or the reason of its defect.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.clean.comparable import comparable
from pipelines.clean.stage import normalized
from pipelines.lake.paths import PROJECT
from pipelines.records.reading import read_corpus

THRESHOLD = 0.85
SHARES = {"near": 0.10, "exact": 0.03, "apart": 0.02}
DEFECT_SHARE = 0.05
FOREIGN = (
    "Das Buch erzählt von einer Familie, die nach dem Krieg in eine kleine Stadt zieht und dort neu anfängt.",
    "Ce roman raconte la vie d'une femme qui quitte la ville pour retrouver la maison de son enfance.",
    "Эта книга рассказывает о человеке, который возвращается домой после долгого путешествия.",
    "この本は、静かな町で暮らす老人と少女の友情を描いた物語です。夜にゆっくり読むのに向いています。",
)
DEFECTS = (
    "schema", "encoding", "empty", "too_long", "repetition", "placeholder", "refusal", "prompt_echo",
    "personal_data", "wrong_language",
)  # fmt: skip


@dataclass(frozen=True)
class Plant:
    kind: str
    of: int | None = None


def write_records(path: Path, count: int, *, seed: int = 7) -> dict[int, Plant]:
    """Write `count` records to a JSONL file; returns the plant of each number (the field `id`)."""
    plants: dict[int, Plant] = {}
    with path.open("w", encoding="utf-8") as handle:
        for number, (record, plant) in enumerate(_records(count, random.Random(seed))):
            plants[number] = plant
            handle.write(json.dumps({**record, "id": number, "plant": plant.kind}, ensure_ascii=False) + "\n")
    return plants


def write_one_word_apart(path: Path, count: int, *, seed: int = 7) -> None:
    """Records of 250 characters that differ from each other in one word only. The first 50 are
    different records, so that neither side of the split is empty."""
    rng = random.Random(seed)
    vocabulary = _vocabulary()
    words = vocabulary[0]
    question, answer = " ".join(rng.choices(words, k=8)), rng.choices(words, k=34)
    with path.open("w", encoding="utf-8") as handle:
        for number in range(50):
            handle.write(json.dumps(_fresh(vocabulary[number % 2], rng) | {"id": number}) + "\n")
        for number in range(50, count):
            answer[17] = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=7))
            handle.write(json.dumps({"instruction": question, "output": " ".join(answer), "id": number}) + "\n")


def compared(record: dict[str, Any]) -> str:
    """The text by which duplicates are judged."""
    return comparable(f"{normalized(record['instruction'])} {normalized(record['output'])}")


def jaccard(one: str, other: str) -> float:
    a, b = ({text[i : i + 3] for i in range(len(text) - 2)} for text in (one, other))
    return len(a & b) / len(a | b)


def _records(count: int, rng: random.Random) -> Iterator[tuple[dict[str, Any], Plant]]:
    vocabulary = _vocabulary()
    # Fresh records to copy
    originals: list[tuple[int, dict[str, Any]]] = []
    for number in range(count):
        kind = _kind(rng) if originals else "fresh"
        if kind in SHARES:
            of, original = originals[rng.randrange(len(originals))]
            yield _copy(kind, original, vocabulary, rng), Plant(kind, of)
            continue
        record = _fresh(vocabulary[number % 2], rng)
        if kind in DEFECTS:
            yield _broken(kind, record), Plant(kind)
            continue
        if len(originals) < 20_000:
            originals.append((number, record))
        else:
            originals[rng.randrange(len(originals))] = (number, record)
        yield record, Plant("fresh")


def _kind(rng: random.Random) -> str:
    position = rng.random()
    for kind, share in SHARES.items():
        if position < share:
            return kind
        position -= share
    return rng.choice(DEFECTS) if position < DEFECT_SHARE else "fresh"


def _vocabulary() -> tuple[list[str], list[str]]:
    corpus = read_corpus(PROJECT / "data" / "corpus.json")
    english, korean = (
        [word for record in corpus if record["language"] == language for word in record["output"].split()]
        for language in ("en", "ko")
    )
    return english, korean


def _fresh(words: list[str], rng: random.Random) -> dict[str, Any]:
    korean = ord(words[0][0]) > 0x1100
    question_words, answer_words = (
        ((10, 40) if korean else (8, 28)) if rng.random() < 0.5 else ((16, 60) if korean else (10, 42))
    )
    return {
        "instruction": " ".join(rng.choices(words, k=question_words)),
        "output": " ".join(rng.choices(words, k=answer_words)),
    }


def _copy(kind: str, original: dict[str, Any], vocabulary: tuple[list[str], ...], rng: random.Random) -> dict[str, Any]:
    if kind == "exact":
        return original | {"output": "  ".join(original["output"].upper().split(" ")) + "\n"}
    words = original["output"].split(" ")
    pool = vocabulary[1] if ord(words[0][0]) > 0x1100 else vocabulary[0]
    for tries in range(60):
        changed = words.copy()
        max_changes = max(1, len(words) // (10 if kind == "near" else 4) - tries // 4)
        for at in rng.sample(range(len(words)), rng.randint(1, max_changes)):
            changed[at] = rng.choice(pool)
        # A changed question puts half of the copies on a side of the split of their own
        question = original["instruction"] + rng.choice(("", " " + rng.choice(pool)))
        copy = {"instruction": question, "output": " ".join(changed)}
        similarity = jaccard(compared(original), compared(copy))
        if (THRESHOLD <= similarity < 1) if kind == "near" else (0.7 <= similarity < THRESHOLD):
            return copy
    # Still correct for `near`; `apart` accepts the error
    return original | {"output": original["output"] + "."}


def _broken(kind: str, record: dict[str, Any]) -> dict[str, Any]:
    output = record["output"]
    match kind:
        case "schema":
            return {"instruction": record["instruction"], "answer": [output]}
        case "encoding":
            return record | {"output": output + " donâ€™t"}
        case "empty":
            return record | {"output": " \n"}
        case "too_long":
            return record | {"output": " ".join(output.split() * 60)}
        case "repetition":
            return record | {"output": (output[:30] + " ") * 9}
        case "placeholder":
            return record | {"output": output + " [Your Name]"}
        case "refusal":
            return record | {"output": "I'm sorry, but I cannot help with that."}
        case "prompt_echo":
            return record | {"output": f"Question: {record['instruction']}"}
        case "personal_data":
            return record | {"output": output + " 010-2345-6789"}
        case _:
            return record | {"output": FOREIGN[len(output) % len(FOREIGN)]}
