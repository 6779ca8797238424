"""The topic grid: a seeded sample that covers every axis evenly, and errors that name the fault in
topics.yaml."""

from collections import Counter
from math import prod
from pathlib import Path

import pytest

from pipelines.errors import UsageError
from pipelines.generate.topics import Cell, TopicGrid, load_topics
from pipelines.lake.paths import PROJECT

SMALL = """\
axes:
  mood: [tired, glad, bored, curious, Angry Or Not]
  job: [nurse, cook, teacher, farmer]
  language: [English, Korean, German]
languages: {English: en, Korean: ko}
topic: [mood, job]
prompt: "  A book for a {mood} {job}, in {language}.  "
schema: {type: object}
"""


@pytest.fixture(scope="module")
def shipped() -> TopicGrid:
    return load_topics(PROJECT / "data" / "topics.yaml")


@pytest.fixture
def small(tmp_path: Path) -> TopicGrid:
    return load_topics(written(tmp_path, SMALL))


def written(folder: Path, text: str) -> Path:
    path = folder / "topics.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    """The message of the error.

    pytest.raises would not do: pydantic keeps the contents alive until the process ends.
    """
    try:
        load_topics(path)
    except UsageError as error:
        return str(error)
    pytest.fail(f"{path} was accepted")


def distinct(cells: list[Cell]) -> int:
    return len({tuple(sorted(cell.items())) for cell in cells})


@pytest.mark.parametrize("count", [0, 1, 24, 500, 9599, 9601])
def test_a_sample_holds_as_many_distinct_cells_as_asked_for(shipped: TopicGrid, count: int) -> None:
    cells = shipped.sample(count, seed=1)
    assert len(cells) == distinct(cells) == count


def test_a_whole_grid_can_be_asked_for(small: TopicGrid) -> None:
    cells = small.sample(60, seed=3)
    assert len(cells) == distinct(cells) == 60


def test_the_seed_decides_the_sample(shipped: TopicGrid) -> None:
    assert shipped.sample(50, seed=7) == shipped.sample(50, seed=7)
    assert shipped.sample(50, seed=7) != shipped.sample(50, seed=8)


@pytest.mark.parametrize("count", [24, 240, 2400])
@pytest.mark.parametrize("seed", [1, 2])
def test_every_value_of_every_axis_comes_about_equally_often(shipped: TopicGrid, count: int, seed: int) -> None:
    cells = shipped.sample(count, seed=seed)
    for axis, values in shipped.axes.items():
        seen = Counter(cell[axis] for cell in cells)
        expected = count / len(values)
        assert set(seen) == set(values), f"{axis}: {set(values) - set(seen)} never comes"
        assert max(abs(n - expected) for n in seen.values()) <= 1 + 0.1 * expected, f"{axis}: {seen}"


def test_axes_are_drawn_independently_of_each_other(shipped: TopicGrid) -> None:
    cells = shipped.sample(1000, seed=1)
    pairs = {(cell["mood"], cell["job"]) for cell in cells}
    assert len(pairs) == len(shipped.axes["mood"]) * len(shipped.axes["job"])


def test_a_longer_sample_starts_like_a_shorter_one_up_to_the_whole_grid(small: TopicGrid) -> None:
    whole = small.sample(60, seed=5)
    for count in range(60):
        assert small.sample(count, seed=5) == whole[:count]


def test_only_the_languages_asked_for_are_drawn(shipped: TopicGrid) -> None:
    assert {cell["language"] for cell in shipped.sample(40, seed=1, languages=["ko"])} == {"Korean"}
    assert {cell["language"] for cell in shipped.sample(40, seed=1, languages=["ko", "en"])} == {"Korean", "English"}


def test_more_topics_than_the_grid_has_are_refused_with_both_numbers(small: TopicGrid) -> None:
    with pytest.raises(UsageError, match="61 topics wanted, the grid has 60"):
        small.sample(61, seed=1)
    with pytest.raises(UsageError, match="21 topics wanted, the grid has 20"):
        small.sample(21, seed=1, languages=["ko"])
    with pytest.raises(UsageError, match="1 topics wanted, the grid has 0"):
        small.sample(1, seed=1, languages=["fr"])


def test_the_shipped_grid_is_large_and_has_both_languages(shipped: TopicGrid) -> None:
    assert prod(len(values) for values in shipped.axes.values()) > 10_000
    assert set(shipped.languages.values()) == {"en", "ko"}


def test_a_cell_becomes_a_prompt_a_topic_and_a_language(small: TopicGrid) -> None:
    cell = {"mood": "Angry Or Not", "job": "cook", "language": "Korean"}
    assert small.render(cell) == "A book for a Angry Or Not cook, in Korean."
    assert small.topic_of(cell) == "angry-or-not/cook"
    assert small.language_of(cell) == "ko"
    assert small.language_of({**cell, "language": "German"}) is None


@pytest.mark.parametrize(
    ("old", "new", "fragments"),
    [
        ("axes:", "axess:", ["unknown key 'axess'", "did you mean 'axes'?"]),
        ("topic: [mood, job]", "topic: [moood, job]", ["topic names 'moood'", "mood, job, language"]),
        ("{mood}", "{feeling}", ["prompt: 'feeling' is not an axis", "mood, job, language"]),
        ("{mood}", "{mood.x}", ["prompt:", "is not an axis"]),
        ("{mood}", "{mood[x]}", ["prompt:", "is not an axis"]),
        ("{mood}", "{", ["prompt:"]),
        ("[nurse, cook, teacher, farmer]", "[]", ["axis 'job' has no values"]),
        ("[nurse, cook,", "[nurse, nurse,", ["axis 'job' has the value 'nurse' twice"]),
        ("[nurse, cook,", "[yes, cook,", ["axes.job.0", "got True"]),
        ("schema: {type: object}", "", ["schema: is missing"]),
        ("{type: object}", "{type: objekt}", ["schema: not a JSON schema: 'objekt'"]),
        ("{type: object}", "{properties: {instruction: {pattern: '['}}}", ["schema: not a JSON schema: '['"]),
        ("{type: object}", "{$ref: '#/$defs/book'}", ["schema: '#/$defs/book' stands nowhere in it"]),
        ("{type: object}", "{items: [{$ref: 'https://example.org/s'}]}", ["schema: "]),
        (
            "{type: object}",
            "{properties: {items: {$ref: 'https://example.org/s'}}}",
            ["'https://example.org/s' stands nowhere"],
        ),
        ("{type: object}", "{properties: {title: {}, text: {}}}", ["schema: its fields are title, text", "`record`"]),
        ("{type: object}", "{required: [instruction]}", ["schema: its fields are instruction;"]),
        ("{type: object}", "{type: object}\nrecord: {output: a}", ["record: has no template for instruction"]),
        (
            "{type: object}",
            "{type: object}\nrecord: {instruction: a, output: '{b}'}",
            ["record.output: 'b' is not a field"],
        ),
        ("{type: object}", "{type: object}\nrecord: {instruction: '{', output: b}", ["record.instruction: "]),
        ("topic: [mood, job]", "topic: []", ["topic", "expected 1 of them or more"]),
        ("{mood}", "{mood:>2999999999}", [":7: prompt: {mood:>2999999999} has a format", "below 1000"]),
        ("{mood}", "{mood!r:>2999999999}", ["has a format"]),
        ("{mood}", "{mood:.2999999999}", ["has a format"]),
        ("{mood}", "{mood:{job}}", ["has a format"]),
        ("{mood}", "{mood.__class__}", ["'mood.__class__' is not an axis"]),
        (
            "{type: object}",
            "{properties: {a: {}}}\nrecord: {instruction: '{a:>2999999999}', output: '{a}'}",
            [":9: record.instruction: {a:>2999999999} has a format"],
        ),
        ("{type: object}", "{$ref: '#'}", [":8: schema: a $ref leads back to itself"]),
        ("{type: object}", "{properties: {1: {}}}", [":8: schema.properties", "expected a text"]),
        ("{type: object}", "{enum: [2020-01-01]}", [":8: schema.enum", "not a valid JSON value"]),
        ("[nurse, cook,", "[nurse,\n  yes, cook,", [":4: axes.job.1", "got True"]),
        ("topic: [mood, job]", "topic: [mood, job]\ntopic: [job]", [":7: 'topic' is given twice (first in line 6)"]),
        ("axes:", "axes: [", ["not YAML"]),
        (SMALL, "", ["got None"]),
    ],
)
def test_a_mistake_in_topics_yaml_is_named(tmp_path: Path, old: str, new: str, fragments: list[str]) -> None:
    assert old in SMALL
    path = written(tmp_path, SMALL.replace(old, new, 1))
    message = refusal(path)
    for words in [str(path), *fragments]:
        assert words in message


def test_a_file_that_is_missing_a_folder_or_not_utf8_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_topics(tmp_path / "topics.yaml")
    with pytest.raises(UsageError, match="cannot be read"):
        load_topics(tmp_path)
    (tmp_path / "topics.yaml").write_bytes(SMALL.encode("utf-16"))
    with pytest.raises(UsageError, match=r"topics\.yaml: cannot be read as UTF-8"):
        load_topics(tmp_path / "topics.yaml")


@pytest.mark.parametrize(
    "schema",
    [
        "{type: object}",
        "{properties: {instruction: {}, output: {}}}",
        "{properties: {prompt: {}, completion: {}}}",
        "{properties: {question: {}, answer: {}, tone: {}}}",
        "{properties: {messages: {type: array}}}",
        "{$ref: '#/$defs/r', $defs: {r: {properties: {instruction: {$ref: '#/$defs/s'}, output: {}}}, s: {pattern: '^a'}}}",
    ],
)
def test_every_schema_whose_answers_can_be_records_is_taken(tmp_path: Path, schema: str) -> None:
    assert load_topics(written(tmp_path, SMALL.replace("{type: object}", schema))).record_schema


def test_the_first_cells_of_a_huge_grid_come_at_once() -> None:
    axes = {f"axis{n}": [str(value) for value in range(40)] for n in range(8)}
    grid = TopicGrid.model_validate(
        {"axes": axes, "topic": ["axis0"], "prompt": " ".join(f"{{{axis}}}" for axis in axes), "schema": {}}
    )
    assert grid.size() == 40**8
    assert distinct(grid.sample(2000, seed=1)) == 2000
