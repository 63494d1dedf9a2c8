"""Identifiers that cross a boundary: of tasks, agents, swarms, teams and message types.

They become parts of file names, environment variables and log lines, so they are checked
wherever they enter and trusted from there on.
"""

import re

from cfn.errors import IdError

MAX_ID_CHARS = 128

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")


def check_id(kind: str, value: str) -> str:
    """Return `value` if it is a valid identifier of `kind` ("task", "agent", ...).

    Raises IdError. Allowed: 1 to 128 characters, a letter or digit first, then letters, digits
    and `.` `_` `:` `-`; never `..`.
    """
    if len(value) > MAX_ID_CHARS:
        raise IdError(f"{kind} id of {len(value)} characters: at most {MAX_ID_CHARS} are allowed")
    if not _ID.fullmatch(value) or ".." in value:
        raise IdError(
            f"{kind} id {value!r} is refused: a letter or digit first, then letters, digits, "
            "'.', '_', ':' and '-' are allowed, without '..'"
        )
    return value


def agent_ids(count: int) -> list[str]:
    """The names of a swarm's agents: agent-1 to agent-`count`."""
    return [f"agent-{number}" for number in range(1, count + 1)]
