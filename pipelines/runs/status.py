"""The statuses of a run, and the files and exit codes through which its processes communicate."""

from typing import Literal

Status = Literal[
    "ok",
    "out_of_memory",
    "killed",
    "timed_out",
    "diverged",
    "failed",
    "unavailable",
    "queued",
    "running",
    "lost",
    "missing",
]
# The worst comes first: with several seeds a row shows the worst seed's status.
SEVERITY: tuple[Status, ...] = (
    "failed", "diverged", "out_of_memory", "killed", "timed_out", "lost", "unavailable", "missing", "queued", "running", "ok",
)  # fmt: skip
# The rank whose end ended the other processes of a cell, and its exit code.
RANKS = "ranks.json"
# FIT is the file with the `micro_batch_tokens` that an earlier process of the attempt leaves for
# the next one. SMALLER is the measurement with the size to try if the trial steps do not fit,
# reported before them; None: there is no smaller one.
FIT, SMALLER = "fit.json", "smaller_micro_batch_tokens"
# Exit code of a process that lost another one.
EXIT_LOST = 5
# Where the ranks meet: an init_method of torch.distributed.
RENDEZVOUS = "FEATHERWEIGHT_RENDEZVOUS"
