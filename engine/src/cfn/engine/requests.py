"""Read and check what clients ask: every field, before anything is done."""

import base64
import binascii
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cfn.config import Config
from cfn.errors import RefusedError, UsageError
from cfn.ids import check_id

MAX_BODY_BYTES = 131_072

MAX_NAMES_BYTES = 150_000  # what a hub is ordered in one datagram; 708 names of the longest kind fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinate:
    """A request to coordinate. `named` are the agents, if they are named; `swarm_id` is empty for a
    swarm of its own; `arrived_s` is of the monotonic clock."""

    task_id: str
    number: int
    named: tuple[str, ...]
    payload: bytes
    command: tuple[str, ...]
    deadline_ms: int
    swarm_id: str
    arrived_s: float


def text_id(value: Mapping[str, Any], field: str, kind: str, default: str | None = None) -> str:
    """An identifier. Raises IdError or UsageError."""
    found = value.get(field, default)
    if found is None or not isinstance(found, str):
        raise UsageError(f"{field}: a {kind} id is needed")
    return found if found == default else check_id(kind, found)


def count(value: Mapping[str, Any], field: str = "agents") -> int:
    """A number of agents, from 1. Raises UsageError."""
    found = value.get(field)
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise UsageError(f"{field}: {found!r} is refused; a whole number from 1 is needed")
    return found


def within_stage(agents: int, config: Config) -> None:
    """Raises RefusedError for more agents than the stage allows."""
    if agents > config.max_agents:
        raise RefusedError(f"{agents} agents: this stage allows at most {config.max_agents} (CFN_MAX_AGENTS)")


def body(value: Mapping[str, Any], field: str, limit: int) -> bytes:
    """Bytes sent as base64; empty when absent. Raises UsageError, or RefusedError over `limit`."""
    found = value.get(field, "")
    try:
        raw = base64.b64decode(found, validate=True) if isinstance(found, str) else None
    except (binascii.Error, ValueError):
        raw = None
    if raw is None:
        raise UsageError(f"{field}: base64 is needed")
    if len(raw) > limit:
        raise RefusedError(f"payload of {len(raw)} bytes: at most {limit} are allowed (CFN_MAX_PAYLOAD)")
    return raw


def coordinate(value: Mapping[str, Any], config: Config, arrived_s: float) -> Coordinate:
    """Read a `coordinate` request, except for the stage's bound (a known id is answered anyway).

    Raises UsageError, IdError, RefusedError.
    """
    listed = value.get("agent_ids")
    named: tuple[str, ...] = ()
    if listed is None:
        number = count(value)
    elif isinstance(listed, list) and listed and all(isinstance(agent, str) for agent in listed):
        named = tuple(check_id("agent", agent) for agent in listed)
        number = len(named)
        if len(set(named)) != number:
            raise UsageError("agent_ids: an agent is named twice")
        if sum(map(len, named)) > MAX_NAMES_BYTES:
            raise UsageError(f"agent_ids: {MAX_NAMES_BYTES} bytes of names are allowed in one request")
    else:
        raise UsageError("agent_ids: a list of at least one agent id is needed")
    deadline = value.get("deadline_ms", config.coordination_deadline_ms)
    if isinstance(deadline, bool) or not isinstance(deadline, int) or not 1 <= deadline <= 3_600_000:
        raise UsageError(f"deadline_ms: {deadline!r} is refused; 1 to 3600000 are allowed")
    return Coordinate(
        task_id=text_id(value, "task_id", "task"),
        number=number,
        named=named,
        payload=body(value, "payload_b64", config.max_payload_bytes),
        command=_command(value, config),
        deadline_ms=deadline,
        swarm_id=text_id(value, "swarm_id", "swarm", ""),
        arrived_s=arrived_s,
    )


def _command(value: Mapping[str, Any], config: Config) -> tuple[str, ...]:
    """What agents run: the deployment's command, or one that the configuration allows by name."""
    name = value.get("command", "")
    if name == "":
        return tuple(shlex.split(config.agent_command))
    allowed = config.allowed_commands
    if not isinstance(name, str) or name not in allowed:
        names = ", ".join(sorted(allowed)) or "none"
        raise RefusedError(f"command {name!r} is not allowed; allowed: {names} (CFN_AGENT_COMMANDS)")
    return tuple(shlex.split(allowed[name]))
