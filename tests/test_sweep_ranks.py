"""A sweep over ranks: ordinary cells, a table and a picture, and no cell's outcome hides
another's."""

import json
from dataclasses import replace
from typing import Any

import pytest

from pipelines import cli
from pipelines.compare.plots import swept_ranks
from pipelines.compare.table import Row
from pipelines.errors import UsageError
from pipelines.settings.method_settings import Method
from pipelines.sweep import ranks as sweeping
from tests.fakes.planted import Lake, lake


@pytest.fixture
def planted_lake(tmp_path: Any) -> Lake:
    """A lake with the shipped method of rank 8."""
    return _with(lake(tmp_path), {"lora-r8": {"kind": "lora", "rank": 8, "alpha": 32, "dropout": 0.1}})


def _sweep(planted_lake: Lake, ranks: list[int], **options: Any) -> tuple[dict[int, str], dict[str, Any]]:
    swept = sweeping.with_ranks(planted_lake.project, "tiny", ranks, **options)
    return swept.methods, swept.project.experiments.methods


def test_alpha_is_the_same_at_every_rank_unless_it_is_to_grow(planted_lake: Lake) -> None:
    names, methods = _sweep(planted_lake, [256, 8, 8])
    assert names == {8: "lora-r8", 256: "lora-r256-a32"} and methods["lora-r256-a32"].alpha == 32
    names, methods = _sweep(planted_lake, [8, 256], alpha="scaled")
    assert names == {8: "lora-r8", 256: "lora-r256"} and methods["lora-r256"].alpha == 1024
    names, methods = _sweep(planted_lake, [8, 256], alpha="rslora")
    assert names == {8: "lora-r8-a16-rs", 256: "lora-r256-a16-rs"}
    assert (methods["lora-r256-a16-rs"].traits.alpha, methods["lora-r256-a16-rs"].rslora) == (16, True)
    assert all(methods[name].dropout == 0.1 for name in names.values())


def test_a_method_of_the_file_is_taken_where_it_is_that_method(planted_lake: Lake) -> None:
    given = {"kind": "lora", "rank": 16, "dropout": 0.1}
    taken = lambda **other: _sweep(_with(planted_lake, {"mine": given | other}), [16])[0][16]  # noqa: E731
    # Without a setting, alpha is twice the rank.
    assert taken() == "mine"
    assert taken(alpha=32, learning_rate=5e-4, learning_rate_source="tune") == "mine"
    for other in ({"alpha": 64}, {"rslora": True}, {"dropout": 0.2}, {"quantization": "nf4"}, {"targets": "attention"}):
        assert taken(**other) == "lora-r16-a32", other


def test_no_two_sweeps_share_a_name_with_different_settings(planted_lake: Lake) -> None:
    seen: dict[str, Any] = {}
    for alpha in sweeping.ALPHA_RULES:
        for targets in (None, "all-linear", "attention"):
            names, methods = _sweep(planted_lake, [1, 2, 4, 8, 16, 128, 256], alpha=alpha, targets=targets)
            for name in names.values():
                assert seen.setdefault(name, methods[name]) == methods[name], (name, alpha, targets)
    assert len(seen) > 40


def test_a_name_that_is_taken_is_not_taken_over(planted_lake: Lake) -> None:
    other = {"kind": "lora", "rank": 16, "alpha": 64}
    assert _sweep(_with(planted_lake, {"lora-r16": other}), [16], alpha="scaled")[0] == {16: "lora-r16-a64"}
    with pytest.raises(UsageError, match=r"methods\.lora-r16-a64 .* rename it"):
        _sweep(_with(planted_lake, {"lora-r16": other, "lora-r16-a64": other}), [16], alpha="scaled")
    with pytest.raises(UsageError, match="unknown model"):
        sweeping.with_ranks(planted_lake.project, "huge", [8])


def test_the_profile_holds_the_ranks_and_the_untouched_model_alone(planted_lake: Lake) -> None:
    swept = sweeping.with_ranks(planted_lake.project, "tiny", [256, 8])
    assert swept.project.experiments.profile("local").methods == ["base", "lora-r8", "lora-r256-a32"]
    assert swept.added == ["lora-r256-a32"]


def test_ranks_are_read_with_commas_and_without() -> None:
    read = lambda *arguments: cli.parser().parse_args(["sweep", "tiny", "--ranks", *arguments]).ranks  # noqa: E731
    assert read("2,8", "32") == [[2, 8], [32]] and cli.parser().parse_args(["sweep"]).ranks == [[8, 128, 256]]
    for wrong in ("0", "8,", "8,-1", "x", "8;16", "1.5"):
        with pytest.raises(SystemExit):
            read(wrong)


def _row(method: str, rate: float, source: str, at_edge: bool | None) -> Row:
    chosen = {"learning_rate": rate, "learning_rate_source": source, "learning_rate_at_edge": at_edge}
    return {"method": method, "trainable_params": 10, **chosen}


def test_it_says_whether_rates_were_searched_for() -> None:
    tuned, edge = _row("r8", 1e-3, "search", False), _row("r128", 4e-3, "search", True)
    shared, other = _row("r8", 1e-3, "profile", None), _row("r256", 2e-3, "pair", None)
    verdict = lambda *rows: "; ".join(sweeping._of_rates(rows))  # noqa: E731
    assert verdict(tuned, tuned) == "each rank at the best of the learning rates tried for it"
    assert verdict(tuned, edge).startswith("r128: the best learning rate is the smallest or largest")
    assert verdict(shared, shared).startswith("at one shared learning rate, 0.001, not searched for;")
    assert "0.001, 0.002, not searched for;" in verdict(shared, other)
    assert "0.002, not searched for (r256);" in verdict(tuned, other)
    assert verdict({**shared, "trainable_params": 0}) == ""


def test_a_rank_that_is_out_of_memory_is_a_row_and_the_next_is_run(
    planted_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_lake.cell("base", bits=1.0)
    swept = sweeping.with_ranks(planted_lake.project, "tiny", [8, 128, 256], alpha="scaled")
    wide = Lake(swept.project)

    def train(_stage: Any, key: Any, **_: Any) -> tuple[Any, bool]:
        bad = key.method == "lora-r128"
        detail = "used 3.1 GB of a budget of 3 GB and was stopped"
        attempt = (
            wide.trained(key.method, "out_of_memory", phase="probe", detail=detail) if bad else wide.trained(key.method)
        )
        return attempt, False

    monkeypatch.setattr("pipelines.sweep.cells.train", train)
    monkeypatch.setattr("pipelines.sweep.cells.evaluate", lambda _stage, key, **_: wide.evaluated(_newest(wide, key)))
    lines: list[str] = []
    rows = sweeping.run_sweep(swept, on_tick=lambda _attempt: None, tell=lines.append)
    assert [(row["rank"], row["status"]) for row in rows] == [(8, "ok"), (128, "out_of_memory"), (256, "ok")]
    assert len(lines) == 3 and "out_of_memory" in lines[1]
    text = sweeping.table(rows, swept, "text")
    assert "lora-r128 is out_of_memory: used 3.1 GB" in text and "add to methods of profile local" in text
    assert 'lora-r128 {kind: "lora", rank: 128, alpha: 512.0, dropout: 0.1}' in text
    assert "alpha 4 × rank, dropout 0.1" in text and "at one shared learning rate, 0.0002, not searched for" in text
    assert json.loads(sweeping.table(rows, swept, "json"))[0]["minutes"] == pytest.approx(100 / 60)
    beside_others = sweeping.table([{**rows[0], "speed_disturbed": True}], swept, "markdown")
    assert "minutes and tokens/s are in doubt" in beside_others and "in doubt" not in text
    path = sweeping.write_picture(rows, swept)
    assert path.name == "rank-sweep-tiny-scaled.png" and path.read_bytes().startswith(b"\x89PNG")
    assert b"out of memory" in swept_ranks(rows) and swept_ranks([_nothing(rows[0])])


def _with(planted_lake: Lake, methods: dict[str, Any]) -> Lake:
    """The lake under a configuration with these additional methods."""
    project = planted_lake.project
    more = {name: Method(**method) for name, method in methods.items()}
    known = project.experiments.model_copy(update={"methods": {**project.experiments.methods, **more}})
    return Lake(replace(project, experiments=known))


def _newest(wide: Lake, key: Any) -> Any:
    from pipelines.runs import cells

    return cells.latest(wide.data, key)


def _nothing(row: Row) -> Row:
    return {**dict.fromkeys(row), "rank": 8, "status": "missing"}
