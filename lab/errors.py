"""What the lab raises.

::

    LabError            something failed                    exit code 1
    +-- UsageError      what was asked for cannot be done   exit code 2
        +-- SpecError   the spec file is wrong              exit code 2

Every message names the thing, the value found, what is allowed, and what to do next.
"""


class LabError(Exception):
    """Something failed while working; the message is for a person."""

    exit_code = 1


class UsageError(LabError):
    """The command line asks for something that is not possible; nothing was touched."""

    exit_code = 2


class SpecError(UsageError):
    """The spec file is wrong; nothing was touched."""
