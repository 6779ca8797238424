"""The registry of columns agrees with the measured, published and documented columns."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest

from pipelines.cli import main
from pipelines.compare.columns import page
from pipelines.compare.columns.comparison import COMPARISON, COMPARISON_SHORT, ORDER
from pipelines.compare.columns.evaluation import QUANTIZED_INFERENCE
from pipelines.compare.columns.registry import TABLES, VIEWS
from pipelines.compare.columns.training import TRAINING_CURVE, TRAINING_RUNS
from pipelines.compare.compare import compare
from pipelines.compare.show import wide
from pipelines.compare.table import FROM_EVALUATION, FROM_TRAINING
from pipelines.lake.paths import PROJECT
from pipelines.lake.schema import Source, Table
from pipelines.lake.warehouse import connect
from tests.fakes import planted

PIPELINES = PROJECT / "pipelines"
ROOMS: dict[str, Source] = {"train/trainer": "training", "evaluate": "evaluation", "extras/export": "export"}
TABLE_OF = {"training": TRAINING_RUNS, "evaluation": TRAINING_RUNS, "export": QUANTIZED_INFERENCE}
# Measured for readers of a run's result.json, or for another command; no table has these columns.
NO_COLUMN: dict[Source, set[str]] = {
    "training": {"training_data", "validation_examples"},
    "evaluation": {
        "answer_seconds", "benchmark_parts", "benchmark_seconds_now", "evaluation_load_seconds", "latency_answers", "loss_seconds",
        "serving_seconds",
    },
    "export": {
        "adapter_bits_per_byte", "merged_bits_per_byte", "merged_into_original_bits_per_byte", "largest_difference_nats",
        "merge_seconds", "merge_foretold_gb", "merge_peak_gb", "gguf_…_seconds", "template_arguments",
        # Published as the column `detail` where the status has no detail of its own.
        "note",
    },
}  # fmt: skip
# The other tables are made of rows in files.
RESULTS = ("comparison", "picks", "training_runs", "quantized_inference")
UNITS = {
    "_gb": "GB", "_mb": "MB", "_ms": "ms", "_usd": "USD", "_pct": "%", "_seconds": "s", "_share": "share, 0 to 1",
    "_bits_per_byte": "bits per byte", "tokens_per_second": "tokens/s",
}  # fmt: skip
each_table = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)


class Reports(ast.NodeVisitor):
    """The names that a room's modules pass to `worker.measure(…)`: keywords, and the keys of spread
    values.

    A spread call stands for the dictionaries in the functions of that name. A spread variable
    also stands for those of the function that spreads it.
    """

    def __init__(self, folder: Path) -> None:
        self.names: set[str] = set()
        # The keys of every dictionary.
        self.keys: set[str] = set()
        self._functions: dict[str, list[ast.AST]] = {}
        modules = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))]
        for module in modules:
            for node in ast.walk(module):
                if isinstance(node, ast.FunctionDef):
                    self._functions.setdefault(node.name, []).append(node)
                self.keys |= set(_keys(node))
        self._inside: list[ast.FunctionDef] = []
        for module in modules:
            self.visit(module)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._inside.append(node)
        self.generic_visit(node)
        self._inside.pop()

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Attribute) and ast.unparse(node.func).endswith("worker.measure"):
            for keyword in node.keywords:
                self.names |= {keyword.arg} if keyword.arg else self._spread(keyword.value)
        self.generic_visit(node)

    def _spread(self, value: ast.expr) -> set[str]:
        if isinstance(value, ast.Dict):
            return set(_keys(value))
        if isinstance(value, ast.Name):
            return self._returned(value.id) | self._in(self._inside[-1])
        assert isinstance(value, ast.Call), f"cannot tell what measure(**{ast.unparse(value)}) reports"
        return self._returned(ast.unparse(value.func).rpartition(".")[2])

    def _returned(self, name: str) -> set[str]:
        assert name in self._functions, f"cannot tell what {name} reports"
        return {key for function in self._functions[name] for key in self._in(function)}

    def _in(self, function: ast.AST) -> set[str]:
        names: set[str] = set()
        for node in ast.walk(function):
            names |= set(_keys(node))
            if isinstance(node, ast.Dict):
                spread = [value for key, value in zip(node.keys, node.values, strict=True) if key is None]
                names |= {name for value in spread for name in self._spread(value)}
        return names


def _keys(node: ast.AST) -> Iterator[str]:
    """The text keys of a dictionary; a key that is built at run time keeps its fixed ends around an
    ellipsis."""
    for key in node.keys if isinstance(node, ast.Dict) else ():
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield key.value
        elif isinstance(key, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in key.values)


REPORTS = {source: Reports(PIPELINES / room) for room, source in ROOMS.items()}


# measurements


@pytest.mark.parametrize("source", REPORTS)
def test_what_a_child_measures_is_a_column_or_known_to_be_none(source: Source) -> None:
    known = TABLE_OF[source].by_name.keys()
    assert REPORTS[source].names - known == NO_COLUMN[source], "name it in compare/columns, or here"


def test_only_these_rooms_measure() -> None:
    paths = {path for path in PIPELINES.rglob("*.py") if "worker.measure(" in path.read_text(encoding="utf-8")}
    assert {path.parent.relative_to(PIPELINES).as_posix() for path in paths} == set(ROOMS)


@each_table
@pytest.mark.parametrize("source", REPORTS)
def test_a_column_that_a_child_measures_is_measured(table: Table, source: Source) -> None:
    reports = REPORTS[source]
    assert set(table.measured_by(source)) <= (reports.names if table.name in RESULTS else reports.keys)


def test_a_mistyped_measurement_would_be_found(tmp_path: Path) -> None:
    code = """
def measured():
    return {"train_los": 1}
def work(worker, scheme):
    worker.measure(steps=1, **measured())
    worker.measure(**{f"gguf_{scheme}_seconds": 2})
"""
    (tmp_path / "child.py").write_text(code, encoding="utf-8")
    assert Reports(tmp_path).names == {"train_los", "steps", "gguf_…_seconds"}


def test_a_new_column_of_training_is_one_entry() -> None:
    assert set(FROM_TRAINING) | {"best_step", "last_step", "learning_rate_at_edge"} == set(
        COMPARISON.measured_by("training")
    )
    assert COMPARISON.measured_by("evaluation") == FROM_EVALUATION
    assert {*FROM_TRAINING, *FROM_EVALUATION} <= set(TRAINING_RUNS.by_name)


# descriptions of columns


@each_table
def test_every_column_says_in_one_sentence_what_it_is(table: Table) -> None:
    for meaning in (table.meaning, *(column.meaning for column in table.columns)):
        assert meaning.endswith(".") and ". " not in meaning and "  " not in meaning and len(meaning) > 10, meaning
    for column in table.columns:
        assert len(column.meaning) <= 140 and len(column.heading) <= 32, column
        assert column.group and column.source, column
    assert len({column.meaning for column in table.columns}) == len(table.columns), "no two mean the same"


@each_table
def test_names_units_and_digits_agree(table: Table) -> None:
    for column in table.columns:
        if column.type in ("VARCHAR", "BOOLEAN", "TIMESTAMPTZ"):
            assert column.unit is column.better is column.digits is None, column
        elif column.type == "DOUBLE":
            units = {unit for end, unit in UNITS.items() if column.name.endswith(end)}
            assert units <= {column.unit}, column
            assert column.digits is not None or column.name == "learning_rate", (
                "no number of digits suits a learning rate"
            )


def test_names_are_unique_and_a_name_means_one_type_everywhere() -> None:
    assert [table.name for table in TABLES] == list(dict.fromkeys(table.name for table in TABLES))
    for table in TABLES:
        assert [name for name, times in Counter(column.name for column in table.columns).items() if times > 1] == []
    assert set(ORDER.split()) <= set(COMPARISON.by_name)
    assert set(page.SOURCES) == set(get_args(Source))


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(KeyError, match="no column 'peak_memory'; the nearest is 'peak_memory_gb'"):
        COMPARISON.pick("model", "peak_memory")


def test_the_short_view_is_of_a_size_to_be_read() -> None:
    names = [column.name for column in COMPARISON_SHORT.columns]
    assert 15 <= len(names) <= 25
    assert names[:3] == ["model", "method", "status"] and names[-1] == "advice"


# places that show it


def test_the_page_says_what_the_registry_says() -> None:
    assert page.PATH.read_text(encoding="utf-8") == page.page(), f"run `{page.COMMAND}`"


def test_the_registry_loads_no_heavy_library() -> None:
    code = "import sys, pipelines.compare.show; print([n for n in ('duckdb', 'pyarrow', 'numpy', 'pydantic') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert done.stdout == "[]\n"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> planted.Lake:
    """A lake with answers, losses and a curve, published by the real code."""
    lake = planted.lake(tmp_path_factory.mktemp("published"))
    losses = {"train_loss": 1.0, "eval_loss": 1.0}
    curve = [{"step": n, "steps": 2, "examples": n, "elapsed_seconds": n, **losses, "newer": 1} for n in (1, 2)]
    for method, bits in (("base", 1.0), ("full", 0.8)):
        attempt = lake.trained(method, curve=curve, newer_number=3.0)
        lake.evaluated(
            attempt,
            answers=[planted.answer(newer="x")],
            eval_bits_per_byte=bits,
            eval_records=12,
            losses=planted.losses(bits),
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.compare.compare.keep_predictions", lambda _resolved: None)
        compare(lake.project)
    return lake


def test_the_published_file_holds_every_table_with_its_columns_and_comments(published: planted.Lake) -> None:
    with connect(published.data) as db:
        tables = dict(db.execute("SELECT table_name, comment FROM duckdb_tables()").fetchall())
        views = dict(db.execute("SELECT view_name, comment FROM duckdb_views() WHERE NOT internal").fetchall())
        rows = db.execute(
            "SELECT table_name, column_name, data_type, comment FROM duckdb_columns() WHERE NOT internal ORDER BY column_index"
        ).fetchall()
    made_from = tables["comparison"].removeprefix(COMPARISON.meaning)
    assert re.match(r" published: \d{4}-\d\d-\d\d \d\d:\d\d UTC.*; profile: local; ", made_from), made_from
    assert {**tables, "comparison": COMPARISON.meaning} == {table.name: table.meaning for table in TABLES}
    assert views == {view.name: view.meaning for view in VIEWS}
    spelled = {"TIMESTAMPTZ": "TIMESTAMP WITH TIME ZONE"}
    for one in (*TABLES, *VIEWS):
        expected = [(one.name, c.name, spelled.get(c.type, c.type), c.description) for c in one.columns]
        assert [row for row in rows if row[0] == one.name] == expected


def test_rows_of_newer_code_are_published_without_what_we_do_not_know(published: planted.Lake) -> None:
    with connect(published.data) as db:
        assert db.execute("SELECT method, eval_bits_per_byte FROM comparison_short WHERE status = 'ok'").fetchall() == [
            ("base", 1.0),
            ("full", 0.8),
        ]
        assert db.execute("SELECT count(*), max(step) FROM training_curve").fetchone() == (4, 2)
        assert db.execute("SELECT count(*) FROM evaluation_answers").fetchone() == (2,)


def test_a_heading_of_the_report_says_what_it_means(published: planted.Lake) -> None:
    html = published.data.report.read_text(encoding="utf-8")
    for name in ("eval_bits_per_byte", "peak_memory_gb", "is_pareto"):
        column = COMPARISON[name]
        escaped = column.description.replace("'", "&#39;")
        assert f'title="{escaped}">{column.heading}</th>' in html
    assert f">{TRAINING_CURVE['examples'].heading}</th>" in html


@pytest.mark.parametrize("form", ["text", "markdown"])
def test_the_wide_table_shows_every_column_of_every_cell(
    form: str, published: planted.Lake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEATHERWEIGHT_DATA", str(published.data.root))
    assert main(["table", "--wide", "--format", form]) == 0
    words = Counter(capsys.readouterr().out.replace("\\", "").split())
    assert {name: words[name] for name in COMPARISON.by_name if words[name] < 4} == {}, "four cells are configured"


def test_the_wide_table_leaves_out_what_an_older_publication_lacks() -> None:
    row = planted.row(eval_bits_per_byte=0.8123, advice="x" * 200)
    del row["stopped_seconds"]
    shown = wide([row], "text")
    assert "eval_bits_per_byte" in shown and "0.8123" in shown and "bits per byte" in shown and "x" * 200 in shown
    assert "stopped_seconds" not in shown


def test_groups_are_shown_together() -> None:
    groups = COMPARISON.groups()
    assert sum(map(len, groups.values())) == len(COMPARISON.columns)
    shown = [line.split("  ")[0] for line in wide([planted.row()], "text").splitlines()[4:]]
    assert [name for name in shown if name] == list(groups)
    places: Mapping[str, int] = {name: place for place, name in enumerate(ORDER.split())}
    for columns in groups.values():
        assert all(places[one.name] < places[other.name] for one, other in pairwise(columns) if other.name in places)
