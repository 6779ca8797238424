"""The errors that end a command, each with its exit code."""


class UsageError(Exception):
    """Wrong usage or configuration (exit code 2).

    The message has the value, what was expected, and how to fix it.
    """

    exit_code = 2


class WorkError(Exception):
    """The work itself failed (exit code 1), for a reason outside the configuration."""

    exit_code = 1


class InUseError(WorkError):
    """Another process uses it, and waiting was not allowed. The message names the process."""


class UnavailableError(Exception):
    """This machine lacks something, such as weights or a GPU.

    The message says what to do; the cell becomes `unavailable`.
    """

    exit_code = 3
