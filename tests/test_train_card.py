"""A CUDA card as a child sees it, by a fake driver and a torch with fixed answers; no card is
needed."""

import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.card import ours
from pipelines.errors import UnavailableError
from pipelines.evaluate.child import evaluate_cell
from pipelines.extras.export import measure, native
from pipelines.extras.export.child import export_cell
from pipelines.extras.tune.child import try_rate
from pipelines.hardware import cuda_devices, machine
from pipelines.lake.files import read_json, write_json
from pipelines.runs.process import ALLOCATOR, OLDER_ALLOCATOR, child_environment
from pipelines.runs.worker import Worker
from pipelines.train.trainer import loading
from pipelines.train.trainer.child import train_cell
from pipelines.train.trainer.cpu import four_bits
from pipelines.train.trainer.devices import card, card_report
from pipelines.train.trainer.devices.ranks import join
from pipelines.train.trainer.measure import memory
from tests.fakes import driver as fake_driver
from tests.fakes.driver import FakeCard
from tests.test_train_methods import RECIPE
from tests.tiny import tiny_model

GB = 10**9
CHILDREN: dict[str, Callable[[Worker], None]] = {
    "train": train_cell,
    "tune": try_rate,
    "evaluate": evaluate_cell,
    "export": export_cell,
    "bit width": measure.measure_format,
}


def a_worker(folder: Path, **spec: Any) -> Worker:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "questions.json", {"examples": [], "eval_set": "none", "prompts": []})
    defaults = {"root": str(folder), "questions": str(folder / "questions.json"), "gguf": None}
    write_json(folder / "spec.json", {**defaults, **spec})
    return Worker(folder)


class FakeCuda:
    """Torch's answers about a usable card; `fraction` is the memory share that was set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int], **known: Any) -> None:
        self.fraction: float | None = None
        answers = {
            "is_available": True, "device_count": 1, "get_device_name": name, "get_device_capability": capability,
            "get_arch_list": ["sm_75", "sm_80", "sm_90", "compute_90"], "mem_get_info": (15 * GB, 16 * GB), **known,
        }  # fmt: skip
        for function, answer in answers.items():
            monkeypatch.setattr(torch.cuda, function, lambda *_args, answer=answer: answer)
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", self._set)

    def _set(self, fraction: float) -> None:
        self.fraction = fraction


@pytest.fixture
def t4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """A usable card of capability 7.5 and 16 GB, of which CUDA's context takes one."""
    fake_driver.install(tmp_path, monkeypatch, FakeCard("Tesla T4"), version="580.82.07")
    from transformers.integrations import sdpa_attention

    # Registers the attribute, so that monkeypatch restores it.
    monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", sdpa_attention.use_gqa_in_sdpa)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    yield FakeCuda(monkeypatch, "Tesla T4", (7, 5))
    torch.backends.cuda.enable_cudnn_sdp(before)


# an unusable card


@pytest.mark.parametrize("kind", CHILDREN)
def test_a_card_that_torch_cannot_use_makes_every_child_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    fake_driver.install(tmp_path, monkeypatch, FakeCard("Tesla T4"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    worker = a_worker(tmp_path / "run")
    assert worker.run(CHILDREN[kind]) == 3
    report = read_json(tmp_path / "run" / "child.json") or {}
    assert report["status"] == "unavailable", report
    for part in ("Tesla T4", "driver 535.129.03", "CUDA 13.0", "580 or newer", "whl/cu126", "CUDA_VISIBLE_DEVICES="):
        assert part in report["detail"]


@pytest.mark.parametrize(
    ("build", "driver", "capability", "words"),
    [
        (None, "580.82.07", "7.5", "is a build without CUDA: pip install --force-reinstall torch=="),
        (None, "535.129", "7.5", "install driver 580 or newer, then pip install --force-reinstall torch=="),
        (None, "535.129", "7.5", "or pip install torch=={version}+cu126 --index-url https://"),
        ("13.0", "550.54", "7.5", "install driver 580 or newer, or pip install torch=={version}+cu126 --index-url h"),
        # The older build has no kernels for this capability.
        ("13.0", "570.86", "12.0", "install driver 580 or newer; or hide it"),
        # Too old for the older build, too.
        ("13.0", "470.82", "7.5", "install driver 580 or newer; or hide it"),
        ("12.6", "470.82", "7.5", "install driver 525 or newer; or hide it"),
        ("13.0", "580.82.07", "7.5", "finds no usable device: "),
    ],
)
def test_why_torch_cannot_use_a_card_and_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: str | None, driver: str, capability: str, words: str
) -> None:
    fake_driver.install(tmp_path, monkeypatch, FakeCard(capability=capability), version=driver)
    monkeypatch.setattr(torch.version, "cuda", build)
    assert words.format(version=torch.__version__.split("+")[0]) in (card.trouble() or "")
    monkeypatch.setenv(cuda_devices.VISIBLE, "")
    assert card.trouble() is None, "a hidden card is not to be used"


@pytest.mark.parametrize(
    ("capability", "words"),
    [((7, 5), None), ((8, 6), None), ((9, 0), None), ((12, 0), None), ((7, 0), "cu126"), ((6, 1), "cu126")],
)
def test_a_card_without_kernels_in_this_build_is_told(
    t4: FakeCuda, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], words: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    reason = card.trouble()
    assert reason is None if words is None else words in (reason or "")


def test_kernels_for_one_card_run_on_no_older_one(t4: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90a"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (12, 0))
    assert "or a newer torch" in (card.trouble() or "")


def test_a_card_that_the_drivers_tool_does_not_list_is_told(
    t4: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "put nvidia-smi on the PATH" in (card.trouble() or "")


def test_a_drivers_tool_that_is_there_and_fails_is_quoted(
    t4: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_driver.install(tmp_path, monkeypatch, failure="Failed to initialize NVML: Unknown Error")
    reason = card.trouble() or ""
    assert "(Failed to initialize NVML: Unknown Error)" in reason and "PATH" not in reason


def test_ranks_do_not_meet_on_a_card_that_torch_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_driver.install(tmp_path, monkeypatch, FakeCard())
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_a, **_k: pytest.fail("they met"))
    with pytest.raises(UnavailableError, match="hide it"):
        join("ddp")


def test_a_rank_without_a_visible_card_names_what_hides_it(t4: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", cuda_devices.VISIBLE: "0"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UnavailableError, match=r"1 GPUs \(those of CUDA_VISIBLE_DEVICES=0\)"):
        join("ddp")


# a usable card


def test_a_child_says_the_cards_name(t4: FakeCuda, tmp_path: Path) -> None:
    worker = a_worker(tmp_path / "run")
    card.take(worker)
    assert (read_json(tmp_path / "run" / "child.json") or {})["device"] == "Tesla T4"
    assert t4.fraction is None, "without a budget all of it may be used"


def test_the_card_programs_stand_in_for_a_worker_takes_the_card(t4: FakeCuda) -> None:
    """Its checks load models as a child does, but not in child processes; a dry run does not get
    this far."""
    quiet: Any = ours._Quiet({"memory_budget_gb": 5.0})
    card.take(quiet)
    assert t4.fraction == 0.25


def test_without_a_card_a_child_says_nothing_of_one(tmp_path: Path) -> None:
    worker = a_worker(tmp_path / "run", memory_budget_gb=1.0)
    card.take(worker)
    assert "device" not in worker.report


def test_attention_of_cudnn_is_off(t4: FakeCuda, tmp_path: Path) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    card.take(a_worker(tmp_path / "run"))
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize(("budget", "fraction"), [(5.0, 0.25), (17.5, 1.0)])
def test_a_budget_is_what_the_card_has_for_torch_and_the_context(
    t4: FakeCuda, tmp_path: Path, budget: float, fraction: float
) -> None:
    card.take(a_worker(tmp_path / "run", memory_budget_gb=budget))
    assert t4.fraction == fraction


def test_a_budget_less_than_the_context_is_out_of_memory_in_words(t4: FakeCuda, tmp_path: Path) -> None:
    worker = a_worker(tmp_path / "run", memory_budget_gb=0.5, recipe={})
    assert worker.run(train_cell) == 3
    report = read_json(tmp_path / "run" / "child.json") or {}
    assert report["status"] == "out_of_memory"
    assert "memory_budget_gb is 0.5" in report["detail"] and "1.00 GB of Tesla T4" in report["detail"]
    assert report["bytes_available"] is None, "the machine's free memory is not the card's"


@pytest.mark.parametrize(("capability", "asks"), [((7, 5), False), ((8, 0), True)])
def test_grouped_heads_are_repeated_on_cards_before_ampere(
    t4: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], asks: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    card.take(a_worker(tmp_path / "run"))
    plain, grouped = torch.nn.functional.scaled_dot_product_attention, set[bool]()

    def attention(*args: Any, **options: Any) -> Any:
        grouped.add(bool(options.get("enable_gqa")))
        return plain(*args, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    tiny_model("llama")(torch.tensor([[5, 6, 7]]))
    assert grouped == {asks}


@pytest.mark.parametrize(("capability", "has"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_flash_attention_is_for_ampere_and_later(
    t4: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], has: bool
) -> None:
    monkeypatch.setattr(card, "find_spec", lambda _name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    taken: list[str | None] = []
    monkeypatch.setattr(
        loading, "_load_complete", lambda _folder, **options: taken.append(options.get("attn_implementation"))
    )
    loading._with_attention(tmp_path, RECIPE, {})
    assert taken == ([loading.FLASH] if has else [None])
    if not has:
        with pytest.raises(UnavailableError, match=r"capability 8\.0"):
            loading._with_attention(tmp_path, {**RECIPE, "attention": loading.FLASH}, {})


def test_the_sampler_asks_for_the_card_of_the_thread_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    main = threading.current_thread()

    def current() -> int:
        return 1 if threading.current_thread() is main else 0

    uuids: list[str] = []
    cuda = SimpleNamespace(
        is_available=lambda: True, current_device=current, reset_peak_memory_stats=lambda: None,
        max_memory_allocated=lambda _card: 0, max_memory_reserved=lambda _card: 0, mem_get_info=lambda _card: (GB, GB),
        get_device_properties=lambda place: SimpleNamespace(uuid=f"uuid-of-{place}", total_memory=GB),
    )  # fmt: skip
    sampled = threading.Event()

    def access(uuid: str) -> Callable[[], float]:
        uuids.append(uuid)

        def ask() -> float:
            sampled.set()
            return 50.0

        return ask

    monkeypatch.setattr(memory, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(memory, "memory_access", access)
    meter = memory.MemoryMeter()
    meter.start()
    assert sampled.wait(60)
    meter.stop()
    assert uuids == ["uuid-of-1"]
    assert meter.summary()["gpu_memory_access_pct"] == 50.0


# the environment of the process


def test_no_cap_of_the_process_imitates_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.runs import worker

    capped: list[int | None] = []
    monkeypatch.setattr(worker, "limit_memory", capped.append)
    for quiet in ("die_with_parent", "offer_to_oom_killer", "print_anything"):
        monkeypatch.setattr(worker, quiet, lambda: None)
    folder = a_worker(tmp_path / "run", memory_budget_gb=3.0).folder
    monkeypatch.setattr("sys.argv", ["child", str(folder)])
    for cards in ([], [FakeCard()]):
        if cards:
            fake_driver.install(tmp_path, monkeypatch, *cards)
        with pytest.raises(SystemExit) as ended:
            worker.start(lambda _worker: None)
        assert ended.value.code == 0
    assert capped == [3 * GB, None]
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY


def test_a_gguf_file_is_measured_on_the_processor_beside_a_card(
    t4: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise UnavailableError("no llama.cpp")

    monkeypatch.setattr(native, "LlamaCpp", refuse)
    worker = a_worker(tmp_path / "run", gguf=str(tmp_path / "a.gguf"), settings={"max_new_tokens": 4})
    write_json(Path(worker.spec["questions"]), {"examples": [], "eval_set": "none", "prompts": [[1]]})
    worker.run(measure.measure_format)
    assert worker.report["device"] == machine.processor() != machine.machine_class()


@pytest.mark.parametrize(
    ("set_by_the_user", "name", "value"),
    [
        ({}, ALLOCATOR, "expandable_segments:True"),
        ({ALLOCATOR: "max_split_size_mb:128"}, ALLOCATOR, "max_split_size_mb:128"),
        ({OLDER_ALLOCATOR: "max_split_size_mb:128"}, ALLOCATOR, None),
        ({}, "CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
        ({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, "CUDA_DEVICE_ORDER", "FASTEST_FIRST"),
    ],
)
def test_the_allocator_and_the_cards_numbers_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, set_by_the_user: dict[str, str], name: str, value: str | None
) -> None:
    for variable in (ALLOCATOR, OLDER_ALLOCATOR, "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(variable, raising=False)
    for variable, given in set_by_the_user.items():
        monkeypatch.setenv(variable, given)
    environment = child_environment()
    assert environment.get(name) == value
    assert {**environment, **set_by_the_user} == environment


# doctor's lines


def lines() -> dict[str, str]:
    return dict(card_report.examine())


@pytest.fixture
def cextension() -> Any:
    """The module with bitsandbytes' library, imported while no card is reported."""
    four_bits.prepare()
    from bitsandbytes import cextension

    return cextension


@pytest.fixture
def computing(cextension: Any, t4: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """The card of `t4`, which also computes."""
    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.zeros(2))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="one"))
    monkeypatch.setattr(card_report, "memory_access", lambda _uuid: lambda: 3.0)
    return t4


def test_the_report_of_a_card_names_what_cells_will_meet(
    computing: FakeCuda, cextension: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = SimpleNamespace(_lib=SimpleNamespace(_name="/somewhere/libbitsandbytes_cuda130.so"))
    monkeypatch.setattr(cextension, "lib", loaded)
    report = lines()
    assert report["torch"] == f"{torch.__version__}, built for CUDA 13.0" and report["driver"] == "580.82.07"
    assert report["device 0"] == "Tesla T4, capability 7.5, bf16 no (fp16 with loss scaling), 15.0 of 16.0 GB free"
    assert report["bitsandbytes"].endswith(", libbitsandbytes_cuda130.so")
    assert report["flash-attn"].startswith("not installed")
    assert report["NVML"].startswith("nvidia-ml-py ") and report["NVML"].endswith(", answers")
    assert card_report.PROBLEM not in report


def test_a_library_of_bitsandbytes_that_is_for_no_card_is_a_problem(computing: FakeCuda, cextension: Any) -> None:
    """The library that bitsandbytes has really loaded on this machine."""
    report = lines()
    assert "libbitsandbytes_cpu.so" in report["bitsandbytes"] and "is not for a card" in report[card_report.PROBLEM]


def test_a_bitsandbytes_without_a_library_is_a_problem(
    computing: FakeCuda, cextension: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "libcublas.so.13: cannot open shared object file: No such file or directory"
    monkeypatch.setattr(cextension, "lib", cextension.ErrorHandlerMockBNBNativeLibrary(words))
    assert words in lines()[card_report.PROBLEM]


def test_a_card_that_nvml_does_not_answer_for_is_no_problem_and_said(
    computing: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card_report, "memory_access", lambda _uuid: lambda: None)
    assert "gpu_memory_access_pct stays empty" in lines()["NVML"]


def test_the_report_of_a_card_that_computes_nothing_says_so(
    computing: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nmore")

    monkeypatch.setattr(torch, "ones", refuse)
    problems = [how for what, how in card_report.examine() if what == card_report.PROBLEM]
    assert problems[0] == "devices: RuntimeError: CUDA error: all CUDA-capable devices are busy or unavailable"


def test_the_report_of_a_card_that_torch_cannot_use_is_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_driver.install(tmp_path, monkeypatch, FakeCard())
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    report = lines()
    assert list(report) == ["torch", "driver", "problem"] and "580 or newer" in report["problem"]
