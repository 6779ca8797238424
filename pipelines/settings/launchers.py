"""Launchers: their names, and the settings of the clusters that run cells."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from pipelines.settings.mistakes import without_password
from pipelines.settings.strict import Count, Strict

LauncherName = Literal["local", "torchrun", "ray", "slurm"]
JOB_SERVER = r"^https?://(\[[0-9a-fA-F:]+\]|[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)(:[0-9]{1,5})?(/[^@\s]*)?$"


def _is_job_server(address: str) -> str:
    if not re.match(JOB_SERVER, address):
        raise ValueError(f"got {without_password(address)!r}; expected http://HOST:PORT, without a key in it")
    return address


class Ray(Strict):
    """A Ray cluster, and the resources that one cell requests.

    The cluster schedules the cells under way.
    """

    address: Annotated[str, AfterValidator(_is_job_server)] = "http://127.0.0.1:8265"
    """Address of the cluster's job server."""
    storage: Annotated[str, Field(pattern=r"^[a-z0-9]+://[^@]+$")] | None = None
    """fsspec URL for examples, weights and results that all nodes reach. Unset: the data root is a
    shared folder."""
    gpus: Annotated[float, Field(ge=0)] | None = None
    """GPUs that one cell requests. Unset: one for each device, where the cluster has any."""
    cpus: PositiveFloat = 1
    """CPUs that one cell requests; without a GPU, also its number of threads."""
    memory_gb: Annotated[float, Field(ge=0)] | None = None
    """Memory that one cell requests. Unset: the predicted memory, without a GPU."""
    python: str = "python"
    """The nodes' interpreter, which has the project's packages."""
    at_once: PositiveInt = 4
    """Cells that this machine keeps under way at once."""


# Options of sbatch that the launcher sets itself, and those that would not make one job of the
# command.
LAUNCHER_OPTIONS = (
    "--array", "--chdir", "--cpus-per-task", "--error", "--export", "--export-file", "--gres", "--job-name", "--mem", "--nodes",
    "--ntasks", "--open-mode", "--output", "--parsable", "--requeue", "--test-only", "--wait", "--wrap",
)  # fmt: skip
# The setting to use instead of an option.
SETTING_OF_OPTION = {"--account": "account", "--partition": "partition", "--qos": "qos"}


def _is_sbatch_option(option: str) -> str:
    # sbatch accepts any prefix of an option's name, such as --exp=ALL for --export=ALL.
    name = option.partition("=")[0]
    if not re.fullmatch(r"--[a-z][a-z0-9-]+", name):
        raise ValueError(f"got {option!r}; expected a long option of sbatch, such as --constraint=a100")
    if any(reserved.startswith(name) for reserved in LAUNCHER_OPTIONS):
        raise ValueError(f"got {option!r}; the launcher sets that itself (slurm.cpus, slurm.gpus, slurm.memory_gb)")
    for reserved, setting in SETTING_OF_OPTION.items():
        if reserved.startswith(name):
            raise ValueError(f"got {option!r}; set slurm.{setting} instead")
    return option


class Slurm(Strict):
    """A Slurm cluster that this machine may submit to, and the resources that one cell requests.

    The data root is a folder that every node sees under the same path.
    """

    partition: Annotated[str, Field(min_length=1)] | None = None
    """Partition that jobs go to. Unset: Slurm's default."""
    account: Annotated[str, Field(min_length=1)] | None = None
    """Account that jobs are billed to. Unset: Slurm's default."""
    qos: Annotated[str, Field(min_length=1)] | None = None
    """Quality of service of the jobs. Unset: Slurm's default."""
    cpus: PositiveInt = 1
    """CPUs that one cell requests; without a GPU, also its number of threads."""
    gpus: Count | None = None
    """GPUs that one cell requests. Unset: one for each device, where the partition has any."""
    memory_gb: PositiveFloat | None = None
    """Memory that one cell requests. Unset: the predicted memory, without a GPU; else the
    partition's default."""
    options: list[Annotated[str, AfterValidator(_is_sbatch_option)]] = []
    """Further long options of sbatch, such as --constraint=a100."""
    python: Annotated[str, Field(min_length=1)] | None = None
    """The nodes' interpreter, which has the project's packages. Unset: the one that runs here."""
    at_once: PositiveInt = 4
    """Cells that are queued or running at once."""
