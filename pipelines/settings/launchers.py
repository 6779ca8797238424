"""Launchers: their names, and the settings of the clusters that start cells."""

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
    """A Ray cluster, and what one cell asks of it. The cluster decides which of the cells under way run."""

    address: Annotated[str, AfterValidator(_is_job_server)] = "http://127.0.0.1:8265"
    """Address of the cluster's job server."""
    storage: Annotated[str, Field(pattern=r"^[a-z0-9]+://[^@]+$")] | None = None
    """fsspec URL that all nodes reach, for examples, weights and results. Unset: the data root is a shared folder."""
    gpus: Annotated[float, Field(ge=0)] | None = None
    """GPUs that one cell asks for. Unset: one for each device, where the cluster has any."""
    cpus: PositiveFloat = 1
    """CPUs that one cell asks for, which are its threads without a GPU."""
    memory_gb: Annotated[float, Field(ge=0)] | None = None
    """Memory that one cell asks for. Unset: what is predicted, without a GPU."""
    python: str = "python"
    """The nodes' interpreter, which has the project's packages."""
    at_once: PositiveInt = 4
    """Cells that are kept under way from here."""


# options of sbatch that the launcher sets itself, or that would make something else than one job of the command
LAUNCHERS_OWN = (
    "--array", "--chdir", "--cpus-per-task", "--error", "--export", "--export-file", "--gres", "--job-name", "--mem", "--nodes",
    "--ntasks", "--open-mode", "--output", "--parsable", "--requeue", "--test-only", "--wait", "--wrap",
)  # fmt: skip
SETTINGS_OWN = {"--account": "account", "--partition": "partition", "--qos": "qos"}


def _is_sbatch_option(option: str) -> str:
    # sbatch takes any beginning of an option's name for the option, --exp=ALL for --export=ALL
    name = option.partition("=")[0]
    if not re.fullmatch(r"--[a-z][a-z0-9-]+", name):
        raise ValueError(f"got {option!r}; expected a long option of sbatch, such as --constraint=a100")
    if any(own.startswith(name) for own in LAUNCHERS_OWN):
        raise ValueError(f"got {option!r}; the launcher sets that itself (slurm.cpus, slurm.gpus, slurm.memory_gb)")
    for own, setting in SETTINGS_OWN.items():
        if own.startswith(name):
            raise ValueError(f"got {option!r}; set slurm.{setting} instead")
    return option


class Slurm(Strict):
    """A Slurm cluster that this machine may submit to, and what one cell asks of it. The data root is a folder that every node sees
    under the same path."""

    partition: Annotated[str, Field(min_length=1)] | None = None
    """Partition that jobs go to. Unset: Slurm's default."""
    account: Annotated[str, Field(min_length=1)] | None = None
    """Account that jobs are billed to. Unset: Slurm's default."""
    qos: Annotated[str, Field(min_length=1)] | None = None
    """Quality of service of the jobs. Unset: Slurm's default."""
    cpus: PositiveInt = 1
    """CPUs that one cell asks for, which are its threads without a GPU."""
    gpus: Count | None = None
    """GPUs that one cell asks for. Unset: one for each device, where the partition has any."""
    memory_gb: PositiveFloat | None = None
    """Memory that one cell asks for. Unset: what is predicted, without a GPU; else the partition's default."""
    options: list[Annotated[str, AfterValidator(_is_sbatch_option)]] = []
    """Further long options of sbatch, such as --constraint=a100."""
    python: Annotated[str, Field(min_length=1)] | None = None
    """The nodes' interpreter, which has the project's packages. Unset: the one that runs here."""
    at_once: PositiveInt = 4
    """Cells that are kept in the queue or running."""
