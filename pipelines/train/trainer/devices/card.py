"""The CUDA card of a child process: whether torch can use it, which kernels it avoids, and how much
memory it may take.

A child settles this before it uses the card. Without a card nothing here has an effect. We have not
run it on a card.
"""
# ruff: noqa: TID253

import re
from importlib.util import find_spec

import torch

from pipelines.errors import UnavailableError
from pipelines.hardware import cuda_devices, machine
from pipelines.hardware.cuda_devices import AMPERE
from pipelines.runs.worker import Worker

# The oldest driver for each major version of CUDA (NVIDIA's table of minor version compatibility).
DRIVERS = {11: 450, 12: 525, 13: 580}
# PyTorch's build for drivers and cards that the one on PyPI does not support: its name, its CUDA
# version, and the newest capability that it has kernels for.
OLDER_BUILD, OLDER_CUDA, OLDER_NEWEST = "cu126", 12, (9, 0)
# The major CUDA version of the build on PyPI.
PYPI_CUDA = 13
INDEX = "https://download.pytorch.org/whl/"


def take(worker: Worker) -> None:
    """Set up the card. Every child that computes with torch calls this before its first allocation.

    It reports the card's name, turns off kernels that are slow for our shapes, and limits the
    process to its budget.

    Raises:
        UnavailableError: torch and the driver disagree about the card.
        MemoryError: CUDA itself takes more than the budget.
    """
    require_usable()
    if not torch.cuda.is_available():
        return
    worker.runs_on(torch.cuda.get_device_name())
    # cuDNN's attention makes a plan for every new shape, and here nearly every micro-batch has a
    # new shape.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if torch.cuda.get_device_capability() < AMPERE:
        repeat_grouped_heads()
    if budget := worker.spec.get("memory_budget_gb"):
        limit_memory(budget)


def require_usable() -> None:
    """Raises UnavailableError if torch and nvidia-smi disagree about the card.

    If torch cannot use a listed card, results of the CPU would appear under the card's name. If
    nvidia-smi does not list torch's card, the card's results would appear under the CPU's name.
    """
    if problem := trouble():
        raise UnavailableError(problem)


def trouble() -> str | None:
    """Why torch and the driver disagree about the card, with the remedy; None where they agree."""
    name = machine.cuda_name()
    if not torch.cuda.is_available():
        return f"{_cannot_use(name)}; or hide it (CUDA_VISIBLE_DEVICES=) and use the processor" if name else None
    if name is None:
        # None if nvidia-smi is not installed.
        message = cuda_devices.trouble()
        why = (
            f"nvidia-smi fails ({message}): mend that"
            if message
            else "nvidia-smi lists no card: put nvidia-smi on the PATH"
        )
        return f"torch finds {torch.cuda.get_device_name()}, {why}, or hide the card (CUDA_VISIBLE_DEVICES=)"
    return lacks_kernels()


def lacks_kernels(place: int | None = None) -> str | None:
    """A message with a remedy if torch's build has no kernels for the card; None if it has.

    `place` is the card's number; None means the current one.
    """
    capability, built_for = torch.cuda.get_device_capability(place), torch.cuda.get_arch_list()
    if not built_for or any(_runs(kernels, capability) for kernels in built_for):
        return None
    version = torch.__version__.split("+")[0]
    oldest = min(_capability(kernels) for kernels in built_for)
    newer = f"{_pypi_build(version)}, or a newer torch"
    remedy = _older_build(version) if capability < oldest else newer
    name = f"{torch.cuda.get_device_name(place)} (capability {capability[0]}.{capability[1]})"
    return f"torch {torch.__version__} has no kernels for {name}, only for {', '.join(built_for)}: {remedy}"


def limit_memory(budget_gb: float) -> None:
    """Limit this process to `budget_gb` (10⁹ bytes) of the card, like a smaller card.

    torch's allocator gets the budget minus the CUDA context. Memory of other programs at this
    moment counts as part of the context. Memory that is not allocated by torch (paged optimizer
    states, NCCL's buffers) has no limit.

    Raises:
        MemoryError: the context takes all of the budget.
    """
    # This call creates the context; nothing is allocated yet.
    free, total = torch.cuda.mem_get_info()
    context, budget = total - free, budget_gb * 1e9
    if context >= budget:
        raise MemoryError(
            f"memory_budget_gb is {budget_gb:g}, and CUDA itself, with other programs, occupies {context / 1e9:.2f} GB "
            f"of {torch.cuda.get_device_name()} before anything is loaded"
        )
    torch.cuda.set_per_process_memory_fraction(min(1.0, (budget - context) / total))


def has_flash_attention() -> bool:
    """Whether the package flash-attn is installed and the current card can run it."""
    return (
        torch.cuda.is_available()
        and torch.cuda.get_device_capability() >= AMPERE
        and find_spec("flash_attn") is not None
    )


def repeat_grouped_heads() -> None:
    """Make transformers repeat the key and value heads that several query heads share.

    With shared heads (`enable_gqa`) PyTorch computes attention on older cards by plain products,
    which keep every score in memory.
    """
    from transformers.integrations import sdpa_attention

    sdpa_attention.use_gqa_in_sdpa = lambda *_args, **_kwargs: False


def _cannot_use(name: str) -> str:
    """A message with reason and remedy: torch finds no card, although the driver lists `name`."""
    version, cuda = torch.__version__.split("+")[0], torch.version.cuda
    driver = next(iter(machine.cuda_query("driver_version")), "unknown")
    has = f"{name}, driver {driver}: torch {torch.__version__}"
    built, major = int(cuda.split(".")[0]) if cuda else PYPI_CUDA, _number(driver)
    needed = DRIVERS.get(built)
    new_enough = needed is None or major is None or major >= needed
    if cuda and new_enough:
        return f"{has} (CUDA {cuda}) finds no usable device: {_own_words()}"
    remedies = [f"install driver {needed} or newer"] if not new_enough else []
    if not cuda:
        remedies = [", then ".join([*remedies, _pypi_build(version)])]
    if not new_enough and _older_build_runs(built, major):
        remedies.append(f"{_older_build(version)} (for older drivers)")
    lack = f"is built for CUDA {cuda}, which needs driver {needed} or newer" if cuda else "is a build without CUDA"
    return f"{has} {lack}: {', or '.join(remedies)}"


def _older_build_runs(built: int, driver: int | None) -> bool:
    """Whether the build for older drivers is older than the one for CUDA `built` and runs with that
    driver and card."""
    enough = driver is not None and driver >= DRIVERS[OLDER_CUDA]
    return built > OLDER_CUDA and enough and (machine.cuda_capability() or OLDER_NEWEST) <= OLDER_NEWEST


def _runs(kernels: str, capability: tuple[int, int]) -> bool:
    """Whether a card of that capability runs the kernels.

    `sm_86` runs on cards of the same major version from 8.6 on, `compute_90` on all cards from 9.0
    on.
    """
    built = _capability(kernels)
    if kernels.startswith("compute_"):
        return built <= capability
    return built[0] == capability[0] and built <= capability


def _capability(kernels: str) -> tuple[int, int]:
    """The capability that a name such as `sm_86` or `sm_100a` stands for."""
    number = re.sub(r"\D", "", kernels)
    return int(number[:-1]), int(number[-1])


def _pypi_build(version: str) -> str:
    return f"pip install --force-reinstall torch=={version}"


def _older_build(version: str) -> str:
    return f"pip install torch=={version}+{OLDER_BUILD} --index-url {INDEX}{OLDER_BUILD}"


def _own_words() -> str:
    """torch's own error message when it has to use a card."""
    try:
        torch.cuda.init()
    except Exception as error:
        return next(iter(str(error).splitlines()), type(error).__name__)
    return "it does not say why"


def _number(version: str) -> int | None:
    match = re.match(r"\d+", version)
    return int(match.group()) if match else None
