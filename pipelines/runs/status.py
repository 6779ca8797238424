"""The words for how a run stands, and what the processes of one run say to one another by file and exit code."""

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
# the worst first: with several seeds a row shows the worst seed's status
SEVERITY: tuple[Status, ...] = (
    "failed", "diverged", "out_of_memory", "killed", "timed_out", "lost", "unavailable", "missing", "queued", "running", "ok",
)  # fmt: skip
RANKS = "ranks.json"  # of several processes that trained a cell: which one's end ended the others, and its exit code
# What an earlier process of the attempt found that the next one is to do otherwise: `micro_batch_tokens`. And what a process says,
# before its trial steps, that might be tried if they do not fit; None: nothing smaller is to be had
FIT, SMALLER = "fit.json", "smaller_micro_batch_tokens"
EXIT_LOST = 5  # of a process that lost another one
RENDEZVOUS = "FEATHERWEIGHT_RENDEZVOUS"  # where the ranks find one another: an init_method of torch.distributed
