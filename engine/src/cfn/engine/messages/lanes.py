"""Messages on their way to a team that another hub holds, or that nobody holds at the moment.

A lane leads to one team. What is on it stays until that team has decided, whichever hub has it by
then: after a link broke, or when a hub answers "not now", it is sent again, to where the directory
says the team lives. Order is kept for each sender: a message names the one before it that was not
decided when it left, and a team does not look at a message before it has decided that one.
"""

import time
from collections.abc import Callable
from typing import Protocol

from cfn.engine.loop import Loop, Timer
from cfn.engine.messages import datagram, mesh

RETRY_S = 0.02
NOT_NOW = -1


class Directory(Protocol):
    """Where everybody is, as the conductor last said."""

    def team_of(self, swarm_id: str, agent: str) -> str | None:
        """An agent's team; None: the swarm has no such agent, or has ended."""

    def hub_of(self, swarm_id: str, team: str) -> int | None:
        """The hub that has, or last had, or will have a team; None: the swarm has ended."""

    def teams(self, swarm_id: str) -> list[str]:
        """All teams of a swarm; none when it has ended."""


class Origin(Protocol):
    """Who waits for a decision."""

    def decided(self, number: int, reason: int, skipped: int) -> None:
        """It is decided: stored for reason 0; of a broadcast some inboxes may have been skipped."""


class _Everybody:
    """A broadcast on its way to several teams: decided when all of them have."""

    def __init__(self, origin: Origin, teams: int) -> None:
        self._origin = origin
        self._teams = teams
        self._reason = 0
        self._skipped = 0

    def decided(self, number: int, reason: int, skipped: int) -> None:
        self._teams -= 1
        self._reason = reason or self._reason
        self._skipped += skipped
        if not self._teams:
            self._origin.decided(number, self._reason, self._skipped)


class Flight:
    """One message on a lane. `hub` has it; -1: it must be sent (again)."""

    __slots__ = ("hub", "key", "lane", "number", "origin", "previous", "raw", "token")

    def __init__(
        self, token: int, lane: "Lane", origin: Origin, key: bytes, number: int, previous: int, raw: bytes
    ) -> None:
        self.token = token
        self.lane = lane
        self.origin = origin
        self.key = key
        self.number = number
        self.previous = previous
        self.raw = raw
        self.hub = -1


class Lane:
    """The flights to one team, oldest first. `stalled` senders have some that must be sent again."""

    __slots__ = ("flights", "last", "retry", "stalled", "swarm_id", "team")

    def __init__(self, swarm_id: str, team: str) -> None:
        self.swarm_id = swarm_id
        self.team = team
        self.flights: dict[int, Flight] = {}
        self.last: dict[bytes, int] = {}  # of each sender: its newest number here
        self.stalled: set[bytes] = set()
        self.retry: Timer | None = None


class Lanes:
    """All lanes of a hub. `arrive` judges a message for a team that this hub holds itself."""

    def __init__(
        self,
        loop: Loop,
        links: mesh.Mesh,
        directory: Directory,
        arrive: Callable[[str, str, bytes, int], tuple[int, int]],
    ) -> None:
        self.sent = 0
        self.repeated = 0
        self.concluded = 0
        self._loop = loop
        self._links = links
        self._directory = directory
        self._arrive = arrive
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._flights: dict[int, Flight] = {}
        self._token = 0

    @property
    def waiting(self) -> int:
        """Messages without a decision."""
        return len(self._flights)

    def undecided(self, swarm_id: str, team: str, key: bytes) -> bool:
        """Whether a sender has messages on the way to a team."""
        lane = self._lanes.get((swarm_id, team))
        return lane is not None and key in lane.last

    def fly(self, origin: Origin, swarm_id: str, team: str, key: bytes, number: int, raw: bytes) -> None:
        """Send a message to a team; `origin` is told the decision, maybe before this returns."""
        lane = self._lanes.get((swarm_id, team))
        if lane is None:
            lane = self._lanes[swarm_id, team] = Lane(swarm_id, team)
        self._token += 1
        flight = Flight(self._token, lane, origin, key, number, lane.last.get(key, 0), raw)
        lane.last[key] = number
        lane.flights[flight.token] = self._flights[flight.token] = flight
        self.sent += 1
        if key not in lane.stalled:
            self._send(flight)

    def fly_to_all(self, origin: Origin, swarm_id: str, key: bytes, number: int, raw: bytes) -> None:
        """Send a message to every team of a swarm; `origin` is told once all have decided."""
        teams = self._directory.teams(swarm_id)
        if not teams:
            origin.decided(number, datagram.ENDED, 0)
            return
        everybody = _Everybody(origin, len(teams))
        for team in teams:
            self.fly(everybody, swarm_id, team, key, number, raw)

    def answered(self, token: int, reason: int, skipped: int) -> None:
        """A hub decided on a flight, or said "not now"."""
        flight = self._flights.get(token)
        if flight is None:
            return
        if reason == NOT_NOW:
            self._stall(flight)
        else:
            self._conclude(flight, reason, skipped)

    def lost(self, hub: int) -> None:
        """The link to a hub broke: nobody knows what it had read."""
        for flight in list(self._flights.values()):
            if flight.hub == hub:
                self._stall(flight)

    def again(self) -> None:
        """Teams moved, or a link came up: send what waits."""
        for lane in list(self._lanes.values()):
            if lane.stalled:
                self._retry(lane)

    def _send(self, flight: Flight) -> None:
        lane = flight.lane
        hub = self._directory.hub_of(lane.swarm_id, lane.team)
        if hub is None:
            self._conclude(flight, datagram.ENDED, 0)
        elif hub == self._links.number:
            reason, skipped = self._arrive(lane.swarm_id, lane.team, flight.raw, flight.previous)
            self.answered(flight.token, reason, skipped)
        else:
            raw = mesh.pack(
                mesh.MESSAGE,
                swarm_id=lane.swarm_id,
                name=lane.team,
                token=flight.token,
                number=flight.previous,
                body=flight.raw,
            )
            if self._links.send(hub, raw):
                flight.hub = hub
            else:
                self._stall(flight)

    def _stall(self, flight: Flight) -> None:
        lane = flight.lane
        flight.hub = -1
        lane.stalled.add(flight.key)
        if lane.retry is None:
            lane.retry = self._loop.at(time.monotonic() + RETRY_S, lambda: self._retry(lane))

    def _retry(self, lane: Lane) -> None:
        if lane.retry is not None:
            lane.retry.cancel()
            lane.retry = None
        lane.stalled.clear()
        for flight in list(lane.flights.values()):
            if flight.hub < 0 and flight.key not in lane.stalled:
                self.repeated += 1
                self._send(flight)

    def _conclude(self, flight: Flight, reason: int, skipped: int) -> None:
        lane = flight.lane
        del self._flights[flight.token]
        del lane.flights[flight.token]
        self.concluded += 1
        if lane.last.get(flight.key) == flight.number:
            del lane.last[flight.key]
        if not lane.flights:
            if lane.retry is not None:
                lane.retry.cancel()
            self._lanes.pop((lane.swarm_id, lane.team), None)
        flight.origin.decided(flight.number, reason, skipped)
