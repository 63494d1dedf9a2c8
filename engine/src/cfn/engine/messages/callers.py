"""What callers of the command line ask for: put a message, look at an inbox and empty it, anywhere."""

import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from cfn.engine.loop import Loop
from cfn.engine.messages import datagram, mesh
from cfn.engine.messages.journal import split
from cfn.engine.messages.lanes import NOT_NOW, Lanes
from cfn.engine.messages.state import State
from cfn.engine.messages.team import HUB_INCARNATION, sender_key
from cfn.errors import RefusedError, UsageError
from cfn.ids import check_id

TAKE_BYTES = 120_000  # of messages that are taken at once: they must fit one datagram of the mesh
TAKE_S = 5.0  # for another hub to answer

Decided = Callable[[int, int], None]
Taken = Callable[[int, Sequence[bytes], int], None]
Reading = Callable[[str, bytes], bool]


class _Put:
    """A message that a caller put, on its way."""

    def __init__(self, state: State, decided: Decided) -> None:
        self._state = state
        self._decided = decided

    def decided(self, number: int, reason: int, _skipped: int) -> None:
        if reason:
            self._state.refused[reason] += 1
        self._decided(number, reason)


class Callers:
    """The callers of one hub. `reading` says whether an agent itself is connected here."""

    def __init__(self, loop: Loop, state: State, lanes: Lanes, links: mesh.Mesh, reading: Reading) -> None:
        self._loop = loop
        self._state = state
        self._lanes = lanes
        self._links = links
        self._reading = reading
        self._incarnation = HUB_INCARNATION + links.number
        self._number = 0
        self._takes: dict[int, Taken] = {}

    def put(
        self, swarm_id: str, *, sender: str, receiver: str, kind: str, payload: bytes, decided: Decided
    ) -> None:
        """As Messages.put."""
        state = self._state
        bounds = state.bounds()
        self._home(swarm_id, sender)
        team, _ = self._home(swarm_id, receiver)
        if len(payload) > bounds.max_payload_bytes:
            state.refused[datagram.PAYLOAD] += 1
            raise RefusedError(
                f"payload of {len(payload)} bytes: at most {bounds.max_payload_bytes} are allowed "
                "(CFN_MAX_PAYLOAD)"
            )
        bucket = state.bucket(swarm_id, sender.encode())
        if bucket.spend(0, bounds.max_sender_rate_per_s, time.monotonic()) > 0:
            state.counters["rate_limited"] += 1
            raise RefusedError(f"{sender}: {datagram.REASONS[datagram.RATE]}")
        bucket.spend(1, bounds.max_sender_rate_per_s, time.monotonic())
        number = self._next_number()
        raw = datagram.pack(
            datagram.NOTE,
            number,
            incarnation=self._incarnation,
            sender=sender.encode(),
            receiver=receiver.encode(),
            type_=check_id("message type", kind).encode(),
            payload=payload,
        )
        key = sender_key(b"", self._incarnation)
        self._lanes.fly(_Put(state, decided), swarm_id, team, key, number, raw)

    def take(self, swarm_id: str, agent: str, taken: Taken) -> None:
        """As Messages.take."""
        _, hub = self._home(swarm_id, agent)
        if hub == self._links.number:
            taken(*self._look(swarm_id, agent))
            return
        token = self._next_number()
        self._takes[token] = taken
        if not self._links.send(hub, mesh.pack(mesh.TAKE, swarm_id=swarm_id, name=agent, token=token)):
            self._took(token, NOT_NOW, (), 0)
            return
        self._loop.at(time.monotonic() + TAKE_S, lambda: self._took(token, NOT_NOW, (), 0))

    def confirm(self, swarm_id: str, agent: str, number: int) -> None:
        """As Messages.confirm."""
        try:
            _, hub = self._home(swarm_id, agent)
        except UsageError:  # it left, or its swarm ended, while its caller was told
            return
        if hub == self._links.number:
            self._confirmed(swarm_id, agent, number)
        else:
            self._links.send(hub, mesh.pack(mesh.CONFIRM, swarm_id=swarm_id, name=agent, number=number))

    def from_mesh(self, hub: int, frame: mesh.Frame) -> None:
        """Another hub asks for, or answers for, its callers."""
        if frame.kind == mesh.TAKE:
            reason, found, first = self._look(frame.swarm_id, frame.name)
            body = b"".join(found)
            answer = mesh.pack(mesh.TAKEN, code=reason + 1, token=frame.token, number=first, body=body)
            self._links.send(hub, answer)
        elif frame.kind == mesh.TAKEN:
            with suppress(ValueError, struct.error):  # then the caller is told that nobody answered
                self._took(frame.token, frame.code - 1, split(frame.body), frame.number)
        elif frame.kind == mesh.CONFIRM:
            self._confirmed(frame.swarm_id, frame.name, frame.number)

    def _home(self, swarm_id: str, agent: str) -> tuple[str, int]:
        """An agent's team and its hub. Raises UsageError."""
        team = self._state.directory.team_of(swarm_id, check_id("agent", agent))
        hub = None if team is None else self._state.directory.hub_of(swarm_id, team)
        if team is None or hub is None:
            raise UsageError(f"swarm {swarm_id} has no agent {agent}")
        return team, hub

    def _next_number(self) -> int:
        """Above all numbers before, also those of this hub's earlier processes."""
        self._number = max(self._number + 1, time.monotonic_ns())
        return self._number

    def _look(self, swarm_id: str, agent: str) -> tuple[int, list[bytes], int]:
        team = self._state.team_of(swarm_id, agent)
        if team is None:
            return NOT_NOW, [], 0
        if self._reading(swarm_id, agent.encode()):
            return datagram.READ, [], 0
        inbox = team.inbox(agent.encode())
        found: list[bytes] = []
        size = 0
        for raw in inbox.waiting if inbox is not None else ():
            size += len(raw)
            if found and size > TAKE_BYTES:
                break
            found.append(raw)
        return 0, found, (0 if inbox is None else inbox.consumed) + 1

    def _confirmed(self, swarm_id: str, agent: str, number: int) -> None:
        team = self._state.team_of(swarm_id, agent)
        inbox = None if team is None else team.inboxes.get(agent.encode())
        if team is not None and inbox is not None:
            with suppress(ValueError):  # another caller was first, and the team was made anew since
                team.consume(inbox, number, sent_only=False)

    def _took(self, token: int, reason: int, messages: Sequence[bytes], first: int) -> None:
        taken = self._takes.pop(token, None)
        if taken is not None:
            taken(reason, messages, first)
