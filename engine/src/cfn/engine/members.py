"""Teams and their agents, how a hub reaches an agent, and who makes agents."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

_ACKNOWLEDGED = 4  # message types remembered for each agent, for `status`


class Endpoint(Protocol):
    """How a hub reaches one agent."""

    pid: int
    """The agent's process, 0 if it is not a worker of the spawner."""

    def send(self, datagram: bytes) -> bool:
        """Send one datagram without blocking; False when it must be sent again later."""

    def close(self) -> None:
        """Forget the agent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class First:
    """A task that workers are born with: what all of them share (wire.common), under which epoch, and
    for each agent its index and slot."""

    epoch: int
    common: bytes
    places: dict[str, tuple[int, int]]


class Provider(Protocol):
    """Who makes and ends workers."""

    def spawn(
        self, swarm_id: str, shard: int, agents: Sequence[str], replaces: Sequence[int], first: First | None
    ) -> None:
        """Order processes; they come as `Hub.attach` or as `Hub.spawning_failed`."""

    def fetch(self, swarm_id: str, agents: Sequence[str]) -> None:
        """Ask for those that live already; they come as `Hub.attach`, the others as `Hub.absent`."""

    def kill(self, swarm_id: str, agent: str, pid: int) -> None:
        """SIGKILL a worker."""

    def end(self, swarm_id: str, agents: Sequence[str]) -> None:
        """Let go of a swarm's agents."""


@dataclass(slots=True, kw_only=True)
class Member:
    """One agent of a team."""

    agent: str
    endpoint: Endpoint | None = None
    last_pid: int = 0
    external: bool = False
    losses: int = 0
    acknowledged: deque[str] = field(default_factory=lambda: deque(maxlen=_ACKNOWLEDGED))


@dataclass(slots=True, kw_only=True)
class Team:
    """Agents that live on one hub. A kept swarm's team replaces its dead; the other lives for one
    request. `shard` is where its workers claim."""

    swarm_id: str
    team: str
    shard: int
    kept: bool
    members: dict[str, Member]
    ending: bool = False
    respawning: bool = False  # all that are missing are ordered again in a moment

    @property
    def live(self) -> int:
        """Members that can be reached now."""
        return sum(member.endpoint is not None for member in self.members.values())
