"""CUDA devices: which ones a process sees, their names, and the locks on them."""

from pathlib import Path

import pytest

from pipelines.errors import InUseError
from pipelines.estimate.estimate import machine_gb
from pipelines.hardware import cuda_devices, machine
from pipelines.lake.files import locked
from pipelines.lake.paths import PROJECT, device_locks
from pipelines.runs.cells import CellKey, latest
from pipelines.runs.command import CellCommand, RunningCommand
from pipelines.runs.run import RunHooks
from pipelines.settings import experiments
from pipelines.train.cell import train
from tests.fakes import driver as fake_driver
from tests.fakes import planted
from tests.fakes.driver import FakeCard

T4 = FakeCard("Tesla T4", "GPU-aaaa1111")
A100 = FakeCard("NVIDIA A100-SXM4-40GB", "GPU-aabb2222", "40960")
L4 = FakeCard("NVIDIA L4", "GPU-cccc3333", "23034")
DIVIDED = FakeCard(
    "NVIDIA A100-SXM4-40GB",
    "GPU-dddd4444",
    "40960",
    capability="8.0",
    slices=(("1g.5gb", "MIG-5555aaaa"), ("3g.20gb", "MIG-5555bbbb")),
)


@pytest.fixture
def three_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_driver.install(tmp_path, monkeypatch, T4, A100, L4)


@pytest.mark.parametrize(
    ("visible", "names", "slugs"),
    [
        (None, [T4.name, A100.name, L4.name], ["cuda-0", "cuda-1", "cuda-2"]),
        ("", [], ["cpu"]),
        ("-1", [], ["cpu"]),
        ("NoDevFiles", [], ["cpu"]),
        ("1", [A100.name], ["cuda-1"]),
        ("0,1", [T4.name, A100.name], ["cuda-0", "cuda-1"]),
        ("2, 0", [L4.name, T4.name], ["cuda-0", "cuda-2"]),
        ("0,-1,1", [T4.name], ["cuda-0"]),
        ("0,7,1", [T4.name], ["cuda-0"]),
        ("7", [], ["cpu"]),
        ("1,1", [], ["cpu"]),
        ("GPU-aabb2222", [A100.name], ["cuda-1"]),
        ("GPU-c,GPU-aaaa", [L4.name, T4.name], ["cuda-0", "cuda-2"]),
        # An ambiguous prefix: two cards have it.
        ("GPU-aa", [], ["cpu"]),
        ("GPU-eeee", [], ["cpu"]),
    ],
)
def test_what_cuda_visible_devices_leaves(
    three_cards: None, monkeypatch: pytest.MonkeyPatch, visible: str | None, names: list[str], slugs: list[str]
) -> None:
    if visible is not None:
        monkeypatch.setenv(cuda_devices.VISIBLE, visible)
    assert [device.name for device in cuda_devices.visible()] == names
    assert (machine.cuda_name(), machine.cuda_count()) == (names[0] if names else None, len(names))
    assert machine.device_slugs(3) == slugs
    assert machine.machine_class() == (names[0] if names else machine.processor())
    memory = {T4.name: 15360, A100.name: 40960, L4.name: 23034}
    if names:
        assert machine_gb() == memory[names[0]] * 2**20 / 1e9


def test_one_device_takes_the_lock_of_the_first_visible_card(
    three_cards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine.device_slug() == "cuda-0"
    monkeypatch.setenv(cuda_devices.VISIBLE, "2,0")
    assert machine.device_slug() == "cuda-2"
    assert machine.cuda_query("driver_version") == ["535.129.03"] * 2


@pytest.mark.parametrize(
    ("visible", "names", "slug"),
    [
        # CUDA shows one slice, and no card beside it.
        (None, ["NVIDIA A100-SXM4-40GB MIG 1g.5gb"], "cuda-1"),
        ("1", ["NVIDIA A100-SXM4-40GB MIG 1g.5gb"], "cuda-1"),
        ("MIG-5555bbbb", ["NVIDIA A100-SXM4-40GB MIG 3g.20gb"], "cuda-1"),
        ("MIG-5555b,MIG-5555a", ["NVIDIA A100-SXM4-40GB MIG 3g.20gb"], "cuda-1"),
        ("MIG-5555", [], "cpu"),
        ("0", ["Tesla T4"], "cuda-0"),
    ],
)
def test_a_slice_of_a_card_is_a_device_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, names: list[str], slug: str
) -> None:
    fake_driver.install(tmp_path, monkeypatch, T4, DIVIDED)
    if visible is not None:
        monkeypatch.setenv(cuda_devices.VISIBLE, visible)
    assert [device.name for device in cuda_devices.visible()] == names
    assert machine.device_slug() == slug
    if names and "1g.5gb" in names[0]:
        assert machine.cuda_memory_bytes() == 5_000_000_000


def test_a_card_that_is_divided_and_has_no_slice_is_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_driver.install(tmp_path, monkeypatch, FakeCard(slices=()))
    assert cuda_devices.listed() and not cuda_devices.visible()


def test_a_card_that_shares_the_machines_memory_has_no_size_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_driver.install(tmp_path, monkeypatch, FakeCard("NVIDIA GB10", memory="[N/A]"))
    assert machine.cuda_name() == "NVIDIA GB10" and machine.cuda_memory_bytes() is None
    assert machine_gb() > 0


def test_a_driver_that_fails_leaves_no_card_and_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "Failed to initialize NVML: Driver/library version mismatch"
    fake_driver.install(tmp_path, monkeypatch, T4, failure=words)
    assert machine.cuda_name() is None and machine.device_slug() == "cpu"
    assert cuda_devices.trouble() == words


def test_a_sentence_instead_of_cards_is_no_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_driver.install(tmp_path, monkeypatch, failure="No devices were found", code=0)
    assert machine.machine_class() == machine.processor() and cuda_devices.trouble() is None


def test_auto_is_local_where_every_card_is_hidden(three_cards: None, monkeypatch: pytest.MonkeyPatch) -> None:
    configured = experiments.load(PROJECT / "experiments.yaml")
    assert experiments.profile_name(configured, "auto") == "gpu"
    monkeypatch.setenv(cuda_devices.VISIBLE, "")
    assert experiments.profile_name(configured, "auto") == "local"


class Watched(RunningCommand):
    """A command that ends at once; at its start it records which cards others could not take."""

    def __init__(self) -> None:
        self.held: list[str] = []

    def start(self, command: CellCommand) -> "Watched":
        for slug in ("cuda-0", "cuda-1", "cuda-2"):
            try:
                with locked(device_locks() / f"{slug}.lock", "another", wait=False):
                    pass
            except InUseError:
                self.held.append(slug)
        (command.folder / "log.txt").touch()
        return self

    def poll(self) -> int:
        return 0

    def stop(self, *, grace_seconds: float = 0) -> None:
        pass


@pytest.mark.parametrize(("devices", "held"), [(1, ["cuda-2"]), (2, ["cuda-0", "cuda-2"])])
def test_a_cell_holds_the_cards_that_it_uses_and_no_others(
    three_cards: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: int, held: list[str]
) -> None:
    monkeypatch.setenv("FEATHERWEIGHT_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setenv(cuda_devices.VISIBLE, "2,0,1")
    several = {"launcher": "torchrun", "devices": devices, "sharding": "ddp"} if devices > 1 else {}
    lake = planted.lake(tmp_path, profiles={"local": several})
    (lake.data.models / "tiny").mkdir(parents=True)
    monkeypatch.setattr("pipelines.weights.store.fetch", lambda data, experiments, name, say=None: data.models / name)
    command = Watched()
    train(lake.resolved(), CellKey("tiny", "full", 1), hooks=RunHooks(say=lambda _: None, launcher=command))
    assert command.held == held
    made = latest(lake.data, CellKey("tiny", "full", 1))
    name = "NVIDIA L4" if devices == 1 else "NVIDIA L4 × 2, ddp"
    assert made is not None and made.result.device == name
