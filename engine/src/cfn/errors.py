"""Every error of the package, and the exit code it becomes on the command line.

CfnError
├── UsageError          2  the request is malformed; nothing was done
│   ├── ConfigError     2  the configuration is refused
│   └── IdError         2  an identifier is refused
├── NotRunningError     3  a daemon does not answer
├── NotDeliveredError   4  not every agent acknowledged
├── RefusedError        5  a bound or a rule says no; trying again later may help
└── DamagedError        6  a stored record cannot be trusted
"""

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_RUNNING = 3
EXIT_NOT_DELIVERED = 4
EXIT_REFUSED = 5
EXIT_DAMAGED = 6


class CfnError(Exception):
    """Root of the tree; its text is for a person and says what was found and what is allowed."""

    exit_code = EXIT_FAILED


class UsageError(CfnError):
    """The request is malformed."""

    exit_code = EXIT_USAGE


class ConfigError(UsageError):
    """The configuration is refused."""


class IdError(UsageError):
    """An identifier is refused."""


class NotRunningError(CfnError):
    """A daemon does not answer."""

    exit_code = EXIT_NOT_RUNNING


class NotDeliveredError(CfnError):
    """Not every agent acknowledged its task."""

    exit_code = EXIT_NOT_DELIVERED


class RefusedError(CfnError):
    """A bound or a rule says no. `retry_after_s`: it is a bound, and may not be reached then."""

    exit_code = EXIT_REFUSED

    def __init__(self, text: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class DamagedError(CfnError):
    """A stored record cannot be trusted."""

    exit_code = EXIT_DAMAGED
