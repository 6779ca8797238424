"""The ways a command ends other than well, each with its exit code."""


class UsageError(Exception):
    """Bad usage or bad configuration (exit code 2). The message says the value, what was expected and how to fix it."""

    exit_code = 2


class WorkError(Exception):
    """The work itself failed (exit code 1), for a reason that is nobody's configuration."""

    exit_code = 1


class InUseError(WorkError):
    """Somebody else is at work on it, and we were not to wait. The message names who."""


class UnavailableError(Exception):
    """This machine cannot do it: no weights, no GPU. The message says what to do; the cell's status is `unavailable`."""

    exit_code = 3
