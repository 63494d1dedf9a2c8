"""Where the agents of each swarm are, as the conductor last said: every hub has the same.

Messages find their way by it (messages/lanes.py). A swarm whose agents cannot send any has no entry.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

_NUMBER = re.compile("[1-9][0-9]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamPlace:
    """A team and the hub that has it; its agents are numbered ones, `count` from `first`, and those
    `named`."""

    team: str
    hub: int
    first: int = 1
    count: int = 0
    named: tuple[str, ...] = ()

    def has(self, agent: str, number: int) -> bool:
        """Whether an agent is in it; `number` is that of a numbered agent, else 0."""
        return self.first <= number < self.first + self.count or agent in self.named

    def as_json(self) -> dict[str, Any]:
        """For the socket to a coordinator."""
        return asdict(self)


class SwarmDirectory:
    """All swarms' teams (messages.lanes.Directory)."""

    def __init__(self) -> None:
        self._swarms: dict[str, tuple[TeamPlace, ...]] = {}

    def set(self, swarm_id: str, places: Sequence[TeamPlace]) -> None:
        """A swarm is there, or its teams have moved; without places it is over."""
        if places:
            self._swarms[swarm_id] = tuple(places)
        else:
            self._swarms.pop(swarm_id, None)

    def set_json(self, swarm_id: str, places: Sequence[dict[str, Any]]) -> None:
        """As `set`, from the socket. Raises KeyError or TypeError."""
        self.set(swarm_id, [TeamPlace(**{**place, "named": tuple(place["named"])}) for place in places])

    @property
    def swarms(self) -> list[str]:
        """The swarms that have an entry."""
        return list(self._swarms)

    def places(self, swarm_id: str) -> tuple[TeamPlace, ...]:
        """A swarm's teams."""
        return self._swarms.get(swarm_id, ())

    def team_of(self, swarm_id: str, agent: str) -> str | None:
        """An agent's team; None: the swarm has no such agent, or has ended."""
        prefix, _, digits = agent.partition("-")
        number = int(digits) if prefix == "agent" and _NUMBER.fullmatch(digits) else 0
        for place in self.places(swarm_id):
            if place.has(agent, number):
                return place.team
        return None

    def hub_of(self, swarm_id: str, team: str) -> int | None:
        """The hub that has a team; None: the swarm has ended."""
        for place in self.places(swarm_id):
            if place.team == team:
                return place.hub
        return None

    def teams(self, swarm_id: str) -> list[str]:
        """All teams of a swarm; none when it has ended."""
        return [place.team for place in self.places(swarm_id)]
