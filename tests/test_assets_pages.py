"""The content of Dagster's pages: descriptions, owners, tags, columns, the grid, plotted numbers;
and the `dg` commands."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets import described as descriptions
from assets import reloading
from assets.comparing import _best, _by_subject
from assets.definitions import defs
from assets.described import ASSETS, described
from assets.grid import MAX_MODELS, grid_of
from assets.metadata import numbers
from assets.reloading import Reloading
from assets.serving import SOCKET_CHARS, Workspace, _short_folder
from assets.shown import experiments_now
from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.columns.registry import TABLES
from pipelines.compare.show import SHOWN
from pipelines.errors import UsageError
from pipelines.lake.paths import PROJECT
from pipelines.settings.dagster_pages import Pages
from pipelines.settings.experiments import load
from tests.project import MODEL, TinyProject

DG = str(Path(sys.executable).parent / "dg")


def test_every_asset_says_what_one_row_is_and_where_to_read_on() -> None:
    specs = {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}
    assert set(specs) == set(ASSETS)
    published = {f"warehouse.main.{table.name}": table for table in TABLES}
    for name, spec in specs.items():
        first = (spec.description or "").split("\n")[0]
        assert first.startswith(("One row is one ", "One partition is one cell", "One version is ")), name
        assert spec.tags["stage"] == spec.group_name and spec.tags["cost"] in (
            "seconds",
            "device-minutes",
            "api-dollars",
        )
        assert Path(spec.metadata["docs"].value).is_file(), name
        columns = spec.metadata["dagster/column_schema"].columns
        assert columns and all(column.description for column in columns), name
        if table := spec.metadata.get("dagster/table_name"):
            assert [column.name for column in columns] == list(published[table].by_name), name


def test_owners_and_links_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = Pages(owners=["team:research"], docs="https://example.org/docs/")
    settings = load().model_copy(update={"dagster": pages})
    monkeypatch.setattr(descriptions, "grid", lambda: settings)
    spec = described(dg.AssetSpec("comparison", group_name="compare", tags={"mine": "stays"}))
    assert spec.owners == ["team:research"] and spec.tags["mine"] == "stays"
    assert spec.metadata["docs"].value == "https://example.org/docs/comparing.md"


def test_schedule_and_sensors_say_what_they_do_and_what_they_need() -> None:
    repository = defs.get_repository_def()
    for definition in [*repository.schedule_defs, *repository.sensor_defs]:
        assert definition.description and len(definition.description) > 40, definition.name
        assert "DAGSTER_HOME" in definition.description or definition.name == "failure_alert"


def row(model: str, method: str, **more: Any) -> dict[str, Any]:
    return COMPARISON.empty() | {"model": model, "method": method, "status": "ok"} | more


def test_the_grid_links_each_cell_and_holds_what_is_known_of_it() -> None:
    rows = [
        row("m", "full", eval_bits_per_byte=1.23456, peak_memory_gb=2.0),
        row("m", "lora-r8", status="out_of_memory", is_stale=True),
        row("n", "full", status="missing"),
    ]
    (shown,) = grid_of(rows).values()
    lines = str(shown.value).split("\n")
    assert lines[0] == "| method | m | n |"
    address = "/assets/trained_model?view=partitions&partition=full%7Cm"
    assert lines[2].startswith(f"| full | [ok]({address}) · 1.235 bits/byte · 2.00 GB | [missing](")
    assert "out\\_of\\_memory" in lines[3] and "stale" in lines[3] and lines[3].endswith("| – |")
    (taught,) = grid_of([row("gpt", "teacher"), row("gpt", "teacher+retrieval")]).values()
    assert "| teacher | ok |" in str(taught.value) and "](" not in str(taught.value), "a provider has no page"


def test_more_models_than_a_page_has_room_for_are_in_several_grids_and_none_is_lost() -> None:
    models = [f"m{number}" for number in range(MAX_MODELS * 2 + 1)]
    grids = grid_of([row(model, "full") for model in models])
    assert list(grids) == [
        "grid, models 1 to 4 of 9",
        "grid, models 5 to 8 of 9",
        "grid, models 9 to 9 of 9",
    ]
    text = "".join(str(one.value) for one in grids.values())
    assert all(f"%7C{model})" in text for model in models)
    assert grid_of([]) == {}


def test_a_grid_is_shown_in_place_in_parts_that_lose_no_cell() -> None:
    rows = [row("smollm2-135m", f"lora-r{rank}-searched", eval_bits_per_byte=0.9) for rank in range(1, 18)]
    parts = grid_of(rows)
    assert list(parts) == ["grid (1)", "grid (2)", "grid (3)"]
    assert all(len(str(part.value)) < 1000 for part in parts.values())
    shown = "".join(str(part.value) for part in parts.values())
    assert [shown.count(f"| lora-r{rank}-searched |") for rank in range(1, 18)] == [1] * 17
    many = grid_of([row(f"model-{one}", f"method-{other}") for one in range(4) for other in range(30)])
    assert list(many) == ["grid"], "shown behind a click, in one piece"


def test_a_name_in_the_grid_is_text() -> None:
    (shown,) = grid_of([row("<img src=x>", "[a](b)|c")]).values()
    text = str(shown.value)
    assert text.count("<") == text.count("\\<") == 1 and "\\[a\\](b)\\|c |" in text


def test_what_changes_is_plotted_and_nothing_else_is_lost() -> None:
    metadata = numbers(
        {"train_loss": 1.5, "layers": 30, "flag": True, "none": None, "text": "a|b"}, ["train_loss", "chrf"]
    )
    assert [name for name, value in metadata.items() if isinstance(value.value, float | int)] == ["train_loss"]
    rest = str(metadata["also measured"].value)
    assert all(name in rest for name in ("layers", "flag", "text")) and "none" not in rest


def test_a_publications_plots_are_of_good_cells_alone() -> None:
    rows = [
        row("m", "a", eval_bits_per_byte=1.5, peak_memory_gb=3.0),
        row("m", "b", eval_bits_per_byte=1.7, peak_memory_gb=2.0),
        row("m", "c", status="diverged", eval_bits_per_byte=0.1, peak_memory_gb=0.1),
    ]
    assert _best(rows) == {"cells ok": 2, "best bits per byte": 1.5, "least peak memory, GB": 2.0}
    assert _best([row("m", "a", status="missing")]) == {"cells ok": 0}, "a number that was not measured is left out"


def test_every_column_that_a_terminal_shows_is_on_the_page_in_tables_that_fit() -> None:
    headers = [
        str(one.value).split("\n")[0].strip("| ").split(" | ") for one in _by_subject([row("m", "full")]).values()
    ]
    assert all(len(columns) <= 8 for columns in headers)
    assert {name for columns in headers for name in columns} == {column.heading for column in SHOWN}


def test_the_configuration_is_read_anew_where_the_file_has_changed(project: TinyProject) -> None:
    first = experiments_now()
    assert experiments_now() is first
    project.change(methods={"lora-r8": {"weight_decay": 0.5}})
    assert experiments_now() is not first and experiments_now().methods["lora-r8"].weight_decay == 0.5
    project.experiments.write_text("models: {", encoding="utf-8")
    with pytest.raises(UsageError):
        experiments_now()
    project.experiments.unlink()
    with pytest.raises(UsageError, match="experiments"):
        experiments_now()


def test_the_location_is_loaded_anew_after_a_change_once_and_not_while_a_device_is_used(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reloads: list[str] = []
    monkeypatch.setattr(reloading, "SECONDS", 0.0)
    monkeypatch.setattr(reloading, "grid", experiments_now)
    following = Reloading("http://127.0.0.1:9", "featherweight")
    monkeypatch.setattr(
        following, "_reload", lambda state: (reloads.append(state), setattr(following, "loaded", state))
    )
    following.look()
    assert reloads == []
    project.change(dagster={"models": ["gpt2-xl"]})
    monkeypatch.setattr(reloading, "_device_is_used", lambda _experiments: True)
    following.look()
    assert reloads == [], "loading would be felt by what is being measured"
    monkeypatch.setattr(reloading, "_device_is_used", lambda _experiments: False)
    following.look()
    following.look()
    assert len(reloads) == 1
    (project.data.cells / MODEL / "dora-r8").mkdir(parents=True)
    following.look()
    assert len(reloads) == 2, "a method that was run for the first time"
    project.experiments.write_text("models: {", encoding="utf-8")
    following.look()
    following.look()
    assert len(reloads) == 2 and capsys.readouterr().err.count("keeps its loaded configuration") == 1


def test_where_nobody_answers_the_location_is_asked_for_again(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reloading, "SECONDS", 0.0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        following = Reloading(f"http://127.0.0.1:{probe.getsockname()[1]}", "featherweight")
    loaded = following.loaded = "before"
    following.look()
    assert following.loaded == loaded


def test_the_code_servers_socket_has_a_path_that_the_kernel_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace.in_folder(tmp_path)
    assert str(workspace.socket) in workspace.file.read_text(encoding="utf-8")
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/long" * 20)
    assert _short_folder() == "/tmp"
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/tmp")
    assert _short_folder() is None and SOCKET_CHARS < 108


def test_the_process_that_follows_the_servers_loads_no_dagster_nor_other_heavy_library() -> None:
    heavy = ("dagster", "duckdb", "pyarrow", "numpy", "torch")
    code = f"import sys, assets.serving; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert done.stdout == "[]\n"


def dg_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([DG, *arguments], capture_output=True, text=True, cwd=PROJECT, check=False)


def test_dg_takes_the_definitions(project: TinyProject) -> None:
    done = dg_cli("check", "defs")
    assert done.returncode == 0 and "All definitions loaded successfully" in done.stdout + done.stderr, done.stderr[
        -2000:
    ]
    assert "virtual environment" not in done.stdout + done.stderr


@pytest.mark.slow
def test_dg_lists_and_launches(project: TinyProject) -> None:
    listed = dg_cli("list", "defs", "--json")
    listing = json.loads(listed.stdout)
    assert {one["asset_key"] for one in listing["assets"]} == set(ASSETS), listed.stderr[-2000:]
    for arguments in (
        ["--assets", "corpus_records,generated_records,local_records,sft_examples"],
        ["--assets", "cell_inputs", "--partition", f"lora-r8|{MODEL}"],
    ):
        done = dg_cli("launch", *arguments)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    with dg.DagsterInstance.from_config(str(project.data.root / "dagster")) as instance:
        assert instance.get_latest_materialization_event(dg.AssetKey("cell_inputs"))


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_dg_dev_serves_the_location_and_without_a_home_publishes_nothing(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DAGSTER_HOME")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path / "log").open("w", encoding="utf-8")
    command = [DG, "dev", "--port", str(port), "--host", "127.0.0.1"]
    server = subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 600
        while not ("export DAGSTER_HOME=" in (tmp_path / "log").read_text(encoding="utf-8") and listens(port)):
            assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text(encoding="utf-8")
            time.sleep(0.5)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/server_info", timeout=600) as response:
            assert response.status == 200
    finally:
        os.killpg(server.pid, signal.SIGINT)
        server.wait(timeout=600)
    assert not project.data.warehouse.exists()
