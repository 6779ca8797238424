"""The complexity gate finds every excess, and `make lint` applies it to the code."""

from textwrap import indent

import pytest

from pipelines.lake.paths import PROJECT
from tests.complexity import FOLDERS, LIMIT, problems

BRANCHES = {
    "ternary": "value = 1 if a else 2",
    "boolean operator": "value = a or b",
    "comprehension": "value = [one for one in a]",
    "loop": "for value in a: pass",
}


def _function(line: str, times: int, above: str = "") -> str:
    return f"{above}def busy(a, b):\n" + indent(f"{line}\n" * times, "    ")


def test_every_folder_with_code_is_looked_at() -> None:
    folders = (folder for folder in PROJECT.iterdir() if not folder.name.startswith("."))
    assert {folder.name for folder in folders if any(folder.glob("*.py"))} == set(FOLDERS)


@pytest.mark.parametrize("line", BRANCHES.values(), ids=BRANCHES)
def test_each_kind_of_branch_counts(line: str) -> None:
    assert list(problems(_function(line, LIMIT - 1), "one.py")) == []
    (problem,) = problems(_function(line, LIMIT), "one.py")
    assert problem.startswith(f"one.py:1: busy has complexity {LIMIT + 1}, expected at most {LIMIT}: split it")


def test_asserts_do_not_count() -> None:
    assert list(problems(_function("assert a", 2 * LIMIT), "one.py")) == []


@pytest.mark.parametrize("above", ["# complexity: a table\n", "# complexity: a table\n@cached\n@bound(\n    1\n)\n"])
def test_a_reason_above_the_function_lets_it_pass(above: str) -> None:
    assert list(problems(_function("value = a or b", LIMIT, above), "one.py")) == []


def test_a_reason_without_words_lets_nothing_pass() -> None:
    (problem,) = problems(_function("value = a or b", LIMIT, "# complexity:\n"), "one.py")
    assert "write why not" in problem


@pytest.mark.parametrize("times", [LIMIT - 1, LIMIT])
def test_a_reason_where_none_is_needed_is_a_problem(times: int) -> None:
    """The reason stands above a function that has become simple, or not directly above one that has
    not."""
    gap = "" if times < LIMIT else "\n"
    *_, problem = problems(_function("value = a or b", times, f"# complexity: a table\n{gap}"), "one.py")
    assert problem.startswith("one.py:1: `# complexity:` stands above no function")


def test_methods_and_nested_functions_are_found() -> None:
    nested = indent(_function("value = a or b", LIMIT), "        ")
    source = f"class Outer:\n    def method(self):\n{nested}"
    (problem,) = problems(source, "one.py")
    assert problem.startswith("one.py:3: busy has complexity")
