"""The complexity gate, a step of `make lint`: `python -m tests.complexity`.

No function has a cyclomatic complexity above LIMIT, or a comment on the line above it says why. The
number is radon's: 1, and 1 more for each if, ternary, loop, `else` of a loop or try, `except`,
`case`, comprehension, `if` in one, and operand of `and`/`or` after the first. ruff's C901 counts
neither comprehensions nor ternaries nor boolean operators. Asserts are not counted, so that tests
can be held to it, too. A nested function counts by itself.
"""

import ast
import io
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

from radon.complexity import cc_visit_ast

from pipelines.lake.paths import PROJECT

FOLDERS = ("pipelines", "assets", "benchmarks", "notebooks", "tests")
LIMIT = 15
MARK = "# complexity:"

Function = ast.FunctionDef | ast.AsyncFunctionDef


def problems(source: str, file: str) -> Iterator[str]:
    """One line for each function of `source` above LIMIT without a reason, and each reason without
    such a function. `file` is the name shown."""
    reasons = _reasons(source)
    for function in _functions(source):
        number = cc_visit_ast(function, no_assert=True)[0].complexity
        if number <= LIMIT:
            continue
        if not reasons.pop(_first_line(function) - 1, ""):
            yield (
                f"{file}:{function.lineno}: {function.name} has complexity {number}, expected at most {LIMIT}: "
                f"split it into functions that name its parts, or write why not above it: `{MARK} REASON`"
            )
    for line in reasons:
        yield f"{file}:{line}: `{MARK}` stands above no function whose complexity is above {LIMIT}: remove the comment"


def files() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from sorted((PROJECT / folder).rglob("*.py"))


def of_files(paths: Iterable[Path]) -> list[str]:
    return [
        problem
        for path in paths
        for problem in problems(path.read_text(encoding="utf-8"), str(path.relative_to(PROJECT)))
    ]


def _functions(source: str) -> list[Function]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, Function)]


def _first_line(function: Function) -> int:
    return min(node.lineno for node in (function, *function.decorator_list))


def _reasons(source: str) -> dict[int, str]:
    """The reasons by the lines of their comments."""
    # Reading tokens takes longer than everything else here.
    if MARK not in source:
        return {}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    return {line: text.removeprefix(MARK).strip() for line, text in comments.items() if text.startswith(MARK)}


if __name__ == "__main__":
    lines = of_files(files())
    print(*lines, sep="\n", end="\n" if lines else "", file=sys.stderr)
    sys.exit(bool(lines))
