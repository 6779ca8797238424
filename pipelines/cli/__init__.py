"""The console script `featherweight`: every stage without Dagster, one module per stage.

Exit codes: 0 done, 1 the work failed, 2 bad usage or configuration,
3 finished and recorded, but the outcome is not ok.
Heavy imports wait until a command runs, so that help and completion appear at once.
"""

from pipelines.cli.command import NOT_OK, OK
from pipelines.cli.console import main
from pipelines.cli.stages import parser
from pipelines.cli.working import project_now

__all__ = ["NOT_OK", "OK", "main", "parser", "project_now"]
