"""Swarms and their agents, how a hub reaches an agent, and who makes agents."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

_ACKNOWLEDGED = 4  # message types remembered for each agent, for `status`


class Endpoint(Protocol):
    """How a hub reaches one agent."""

    pid: int
    """The agent's process, 0 if it is not a worker of the spawner."""

    def send(self, parts: Sequence[bytes]) -> bool:
        """Send one datagram without blocking; False when it must be sent again later."""

    def close(self) -> None:
        """Forget the agent."""


class Provider(Protocol):
    """Who makes and ends workers."""

    def spawn(self, swarm_id: str, agents: Sequence[str], replaces: Sequence[int]) -> None:
        """Order processes; they come as `Hub.attach` or as `Hub.spawning_failed`."""

    def kill(self, swarm_id: str, agent: str, pid: int) -> None:
        """SIGKILL a worker."""

    def end(self, swarm_id: str) -> None:
        """Let go of a swarm."""


@dataclass(slots=True, kw_only=True)
class Member:
    """One agent of a swarm."""

    agent: str
    endpoint: Endpoint | None = None
    last_pid: int = 0
    external: bool = False
    losses: int = 0
    acknowledged: deque[str] = field(default_factory=lambda: deque(maxlen=_ACKNOWLEDGED))


@dataclass(slots=True, kw_only=True)
class Swarm:
    """Agents that belong together. A kept swarm replaces its dead; the other lives for one request."""

    swarm_id: str
    kept: bool
    members: dict[str, Member]
    ending: bool = False
