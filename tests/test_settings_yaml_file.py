"""One reader reads every YAML file, and refuses input that would fill the memory or hide a
mistake."""

from pathlib import Path

import pytest

from pipelines.errors import UsageError
from pipelines.generate.topics import load_topics
from pipelines.plan import fleet
from pipelines.settings import experiments
from pipelines.settings.yaml_file import MAX_BYTES, read
from tests.test_settings_experiments import SMALL


def bomb(levels: int, times: int = 9, *, merged: bool = False) -> str:
    """Each level repeats the previous one `times` times."""
    lines = ["a0: &a0 {k: v}"]
    for level in range(1, levels + 1):
        repeated = ", ".join([f"*a{level - 1}"] * times)
        lines.append(f"a{level}: &a{level} {{{'<<' if merged else 'x'}: [{repeated}]}}")
    return "\n".join(lines) + "\n"


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "some.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        read(path, "nothing to do")
    assert str(caught.value).startswith(str(path)) and len(str(caught.value)) < len(str(path)) + 600
    return str(caught.value).removeprefix(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(8), ":6: *a4: the aliases up to here repeat more than 100,000 characters"),
        (bomb(8, merged=True), ":6: *a4: the aliases up to here repeat"),
        (f"a: &a {'x' * 60_000}\nb: [*a]\nc: [*a]\n", ":3: *a: the aliases up to here repeat"),
        ("a: 1\nb: &b {c: *b}\n", ":2: not YAML that can be read: *b stands within what it names"),
        ("a: &a\n  <<: *a\n", ":2: not YAML that can be read: *a stands within"),
        ("a: " + "[" * 60, ":1: nested more than 50 deep"),
        ("a: &a " + "[" * 30 + "]" * 30 + "\nb: " + "[" * 30 + "*a" + "]" * 30, ":2: nested more than 50 deep"),
        ("a: " + "{a: " * 100_000, ":1: nested more than 50 deep"),
        ("a: " + "9" * 5000, ":1: a number of 5,000 characters"),
        ("a: 1" + ":59" * 2000, ":1: a number of 6,001 characters"),
        ("a:\n  - 0x10000000000000000", ":2: got 18446744073709551616; expected a number of at most 64 bits"),
        ("a: {b: 1, c: 2,\n  b: 3}", ":2: 'b' is given twice (first in line 1)"),
        ("a: {1: x, 0x1: y}", ":1: '0x1' is given twice"),
        ("a: &a {b: 1}\nc: {<<: *a, <<: *a}", ":2: '<<' is given twice"),
        ("a: {<<: 5}", ":1:9: not YAML: expected a mapping or list of mappings for merging"),
        ("a: !!int ''", ":1:4: not YAML: no int is written so"),
        ("a: !!bool x", ":1:4: not YAML: no bool is written so"),
        ("a: !!timestamp x", ":1:4: not YAML: no timestamp is written so"),
        ("a: !!python/object/apply:os.getcwd []", ":1:4: not YAML: could not determine a constructor"),
        ('a: "\\0"', ":1: holds the character U+0000"),
        ('a: "\\ud800"', ":1: holds half of a surrogate pair"),
        ("a: 1\n\tb: 2", "indent with spaces"),
        ("a: 1\n# \x1b[0m", ":2: not YAML: holds the control character U+001B"),
        ("a: 1\n\0", ":2: not YAML: holds the control character U+0000"),
        (b"a: \xe9", ": byte 3 is not UTF-8"),
        ("a: 1".encode("utf-16"), ": cannot be read as UTF-8 text: it is UTF-16"),
        (b"#" * (MAX_BYTES + 1), ": is larger than 1 MB"),
        ("*" + "n" * 5000, "more characters)"),
    ],
)
def test_what_would_fill_the_memory_or_hide_a_mistake_is_refused(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    assert message in refusal(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ufeffa: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
        ('a: "\\ud83d\\ude00"', {"a": "😀"}),
        ("a: &a [x, y]\nb: *a\nc: *a", {"a": ["x", "y"], "b": ["x", "y"], "c": ["x", "y"]}),
        ("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}),
        ("a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: [*a, *b]}", {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": {"x": 1, "y": 2}}),
        ("", None),
    ],
)  # fmt: skip
def test_aliases_merges_and_a_byte_order_mark_are_taken(tmp_path: Path, text: str, expected: object) -> None:
    assert read(written(tmp_path, text), "")[0] == expected


def test_a_merged_keys_line_is_where_it_stands(tmp_path: Path) -> None:
    _, lines = read(written(tmp_path, "a: &a\n  x: 1\n  y: 2\nb:\n  <<: *a\n  y: 3\n"), "")
    assert (lines["b", "x"], lines["b", "y"]) == (2, 6)


@pytest.mark.parametrize("load", [experiments.load, load_topics, fleet.load])
def test_every_file_is_read_so(tmp_path: Path, load: object) -> None:
    assert callable(load)
    with pytest.raises(UsageError, match="the aliases up to here repeat"):
        load(written(tmp_path, bomb(8)))
    with pytest.raises(UsageError, match="'a' is given twice"):
        load(written(tmp_path, "a: 1\na: 2\n"))


def test_long_and_many_wrong_values_are_cut_in_messages(tmp_path: Path) -> None:
    for more in (f"x{'y' * 900}: 1", f"? {'k' * 5_000}\n: 1", "\n".join(f"k{n}: {'z' * 500}" for n in range(50))):
        with pytest.raises(UsageError) as caught:
            experiments.load(written(tmp_path, f"{SMALL}\n{more}\n"))
        assert "unknown key" in str(caught.value) and len(str(caught.value)) < 2000
    with pytest.raises(UsageError) as caught:
        experiments.load(written(tmp_path, SMALL.replace("epochs: 1\n", f"epochs: [{'1, ' * 2000}]\n", 1)))
    assert "more characters)" in str(caught.value) and len(str(caught.value)) < 2000
    # Of many mistakes, only the first twenty are reported.
    methods = "".join(f"  m{n}: {{kind: poem}}\n" for n in range(60))
    with pytest.raises(UsageError) as caught:
        experiments.load(written(tmp_path, SMALL.replace("methods:\n", f"methods:\n{methods}", 1)))
    assert str(caught.value).splitlines()[-1] == "… and 40 mistakes more"
