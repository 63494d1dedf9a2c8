"""Messages to every agent of a team, and who acknowledged them."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cfn.engine.lean import wire
from cfn.engine.loop import Loop, Timer
from cfn.engine.members import Member, Team


@dataclass(slots=True, kw_only=True)
class Broadcast:
    """A message on its way: who has not acknowledged it yet."""

    number: int
    swarm_id: str
    kind: str
    sent: int
    done: Callable[["Broadcast"], None]
    missing: set[str]
    gone: set[str] = field(default_factory=set)
    timer: Timer | None = None

    @property
    def delivered(self) -> int:
        """Agents that acknowledged."""
        return self.sent - len(self.missing)


class Broadcasts:
    """The messages on their way. Each ends when all have acknowledged, or its time is up, or those
    that have not are gone."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._open: dict[int, Broadcast] = {}
        self._number = 0

    def send(self, team: Team, kind: str, *, limit_s: float, done: Callable[[Broadcast], None]) -> None:
        """Send to every agent that can be reached; `done` is called once."""
        self._number += 1
        broadcast = Broadcast(
            number=self._number,
            swarm_id=team.swarm_id,
            kind=kind,
            sent=len(team.members),
            missing=set(team.members),
            done=done,
        )
        self._open[broadcast.number] = broadcast
        datagram = wire.message(broadcast.number)
        for member in list(team.members.values()):
            if member.endpoint is not None:
                member.endpoint.send(datagram)
        broadcast.timer = self._loop.at(time.monotonic() + limit_s, lambda: self._finish(broadcast))
        if not broadcast.missing:
            self._finish(broadcast)

    def acknowledged(self, member: Member, swarm_id: str, number: int) -> None:
        """An agent has the message of this number."""
        broadcast = self._open.get(number)
        if broadcast is None or broadcast.swarm_id != swarm_id or member.agent not in broadcast.missing:
            return
        if broadcast.kind not in member.acknowledged:
            member.acknowledged.append(broadcast.kind)
        broadcast.missing.discard(member.agent)
        if broadcast.missing <= broadcast.gone:
            self._finish(broadcast)

    def lost(self, swarm_id: str, agent: str) -> None:
        """An agent is gone: it will acknowledge nothing, so nobody need wait for it."""
        for broadcast in list(self._open.values()):
            if broadcast.swarm_id == swarm_id and agent in broadcast.missing:
                broadcast.gone.add(agent)
                if broadcast.missing <= broadcast.gone:
                    self._finish(broadcast)

    def _finish(self, broadcast: Broadcast) -> None:
        if self._open.pop(broadcast.number, None) is not None:
            if broadcast.timer is not None:
                broadcast.timer.cancel()
            broadcast.done(broadcast)
