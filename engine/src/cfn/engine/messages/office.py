"""The post office of one hub: its teams' inboxes, its agents' connections, its side of the mesh.

What the hub's owner (conductor, coordinator) calls is here; the rest of the package is its inside.
"""

import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from cfn.engine.log import log
from cfn.engine.loop import Loop
from cfn.engine.messages import credentials, datagram, mesh
from cfn.engine.messages.arrivals import Arrivals
from cfn.engine.messages.bounds import MessageBounds
from cfn.engine.messages.callers import Callers, Decided, Taken
from cfn.engine.messages.connection import Connection
from cfn.engine.messages.journal import Journal
from cfn.engine.messages.lanes import Directory, Lanes
from cfn.engine.messages.listener import Listener
from cfn.engine.messages.state import State
from cfn.engine.messages.team import Inbox, Team
from cfn.ids import check_id


class Messages:
    """All messages of one hub. Single-threaded: everything happens in `loop`."""

    def __init__(
        self,
        loop: Loop,
        links: mesh.Mesh,
        *,
        bus: Path,
        folder: Path,
        bounds: Callable[[], MessageBounds],
        directory: Directory,
    ) -> None:
        """Listens at `bus`; keeps journals below `folder`. Raises OSError."""
        self._loop = loop
        self._links = links
        self._folder = folder
        self._state = State(bounds, directory)
        self._arrivals = Arrivals(self._state)
        self._lanes = Lanes(loop, links, directory, self._arrivals.arrive)
        self._connections: set[Connection] = set()
        self._readers: dict[tuple[str, bytes], Connection] = {}
        self._callers = Callers(
            loop, self._state, self._lanes, links, lambda swarm, agent: (swarm, agent) in self._readers
        )
        links.received = self._from_mesh
        links.went = self._lanes.lost
        links.came = lambda _hub: self._lanes.again()
        self._listener = Listener(loop, bus, self._accepted)

    def close(self) -> None:
        """End all connections and let go of all teams; what is stored stays."""
        self._listener.close()
        self._links.close()
        for connection in list(self._connections):
            connection.close()
        for swarm_id, team in self.teams:
            self.close_team(swarm_id, team, remove=False)

    # Teams

    @property
    def teams(self) -> list[tuple[str, str]]:
        """The teams that are open here, by swarm and name."""
        return list(self._state.teams)

    def open_team(self, swarm_id: str, team: str, agents: Iterable[str]) -> int:
        """Hold a team's inboxes from now on, with all that tmpfs has of them; the messages found.

        Raises OSError, BlockingIOError while another process holds them.
        """
        if (swarm_id, team) in self._state.teams:
            return self._state.teams[swarm_id, team].queued
        journal = Journal(self._folder / check_id("swarm", swarm_id) / check_id("team", team))
        opened = Team(swarm_id, team, map(str.encode, agents), journal, self._state.totals)
        if journal.cut_bytes:
            log("inboxes repaired", swarm_id=swarm_id, team=team, torn_bytes=journal.cut_bytes)
        self._state.teams[swarm_id, team] = opened
        self._state.ended.discard((swarm_id, team))
        self.moved()
        return opened.queued

    def close_team(self, swarm_id: str, team: str, *, remove: bool) -> int:
        """Let go of a team's inboxes, and with `remove` delete them; the messages nobody took.

        Its agents are disconnected; they look for the hub that has the team next.
        """
        closed = self._state.teams.pop((swarm_id, team), None)
        if closed is None:
            return 0
        for connection in list(self._connections):
            if connection.team is not closed:
                connection.forget_routes()
            elif remove:
                connection.dismiss(datagram.ENDED)
            else:
                connection.close()
        undrained = closed.queued
        closed.close(remove=remove)
        for inbox in closed.inboxes.values():
            inbox.release()
        self.moved()
        return undrained

    def team_ended(self, swarm_id: str, team: str) -> None:
        """A closed team's agents have ended before their swarm: who writes to them does not wait."""
        self._state.ended.add((swarm_id, team))
        self._lanes.again()

    def forget_ended(self, swarm_id: str | None = None) -> None:
        """A swarm is over; None: the conductor is gone, and the next one asks again what has ended."""
        self._state.ended = {key for key in self._state.ended if swarm_id not in (None, key[0])}

    def add_agent(self, swarm_id: str, team: str, agent: str) -> None:
        """An agent joined a team that is open here."""
        self._state.teams[swarm_id, team].agents.add(check_id("agent", agent).encode())
        self.moved()

    def remove_agent(self, swarm_id: str, team: str, agent: str) -> None:
        """An agent left: nothing is taken for it any more. What it did not read counts as undrained."""
        found = self._state.teams.get((swarm_id, team))
        if found is not None:
            found.agents.discard(agent.encode())
            self.moved()

    def moved(self) -> None:
        """The directory says something new: send what waited for it."""
        for connection in self._connections:
            connection.forget_routes()
        self._lanes.again()

    # What callers ask for

    def put(
        self, swarm_id: str, *, sender: str, receiver: str, kind: str, payload: bytes, decided: Decided
    ) -> None:
        """Send a message in an agent's name. `decided(number, reason)` is called once: reason 0 means
        stored, the others are in datagram.REASONS.

        Raises UsageError for a stranger, RefusedError for a bound that is reached at once.
        """
        self._callers.put(
            swarm_id, sender=sender, receiver=receiver, kind=kind, payload=payload, decided=decided
        )

    def take(self, swarm_id: str, agent: str, taken: Taken) -> None:
        """Look at the oldest messages of an inbox, wherever it is, up to some bytes (at least one).
        `taken(reason, messages, first)` is called once, `first` being the number of the first of them;
        `confirm` removes them. Reason -1: the hub does not answer.

        Raises UsageError for a stranger.
        """
        self._callers.take(swarm_id, agent, taken)

    def confirm(self, swarm_id: str, agent: str, number: int) -> None:
        """The messages up to this number in the inbox were handed over: remove them there.

        Raises UsageError for a stranger.
        """
        self._callers.confirm(swarm_id, agent, number)

    def queued(self, swarm_id: str, agent: str) -> int:
        """Messages in the inbox of an agent whose team is open here."""
        team = self._state.team_of(swarm_id, agent)
        inbox = None if team is None else team.inboxes.get(agent.encode())
        return 0 if inbox is None else inbox.count

    def report(self) -> dict[str, int]:
        """The figures of this hub's messages, for its health report."""
        state = self._state
        refused = {f"refused_{name}": state.refused[reason] for reason, name in datagram.BOUNDS.items()}
        return {
            "agents_connected": len(self._readers),
            "queued_messages": state.totals.messages,
            "queued_bytes": state.totals.bytes,
            "undecided": self._lanes.waiting,
            "mesh_links": len(self._links.links),
            "mesh_sent": self._lanes.sent,
            "mesh_repeated": self._lanes.repeated,
            "mesh_decided": self._lanes.concluded,
            **state.counters,
            **refused,
            "refused_other": sum(n for reason, n in state.refused.items() if reason not in datagram.BOUNDS),
        }

    # Connections

    def welcome(self, connection: Connection, header: datagram.Header) -> tuple[Team, Inbox] | None:
        """Somebody says which agent it is. None: not here, and it was told what to do."""
        if not all(map(self._state.is_name, (header.sender, header.receiver, header.type))):
            connection.dismiss(datagram.NAME)
            return None
        swarm_id, agent = header.type.decode(), header.sender.decode()
        directory = self._state.directory
        name = directory.team_of(swarm_id, agent)
        team = None if name is None else self._state.teams.get((swarm_id, name))
        inbox = None if team is None else team.inbox(header.sender)
        if team is None or inbox is None:
            hub = 0 if name is None else directory.hub_of(swarm_id, name)
            if hub is None or (name is None and self._links.number == 0):
                connection.dismiss(datagram.NO_AGENT)
            else:
                connection.send_away(max(hub, 0))  # the conductor hears first of a team that is on its way
            return None
        earlier = self._readers.get((swarm_id, header.sender))
        if earlier is not None:
            if earlier.incarnation > header.incarnation:
                connection.dismiss(datagram.EARLIER)
                return None
            if earlier.incarnation < header.incarnation:
                earlier.dismiss(datagram.REPLACED)
            else:
                earlier.close()
        connection.swarm_id, connection.agent = swarm_id, header.sender
        connection.incarnation = header.incarnation
        self._readers[swarm_id, header.sender] = connection
        return team, inbox

    def left(self, connection: Connection) -> None:
        """A connection is closed."""
        self._connections.discard(connection)
        key = (connection.swarm_id, connection.agent)
        if self._readers.get(key) is connection:
            del self._readers[key]

    def _accepted(self, connection: socket.socket) -> None:
        if credentials.same_group(connection):
            self._connections.add(Connection(self, self._state, self._lanes, self._loop, connection))
            return
        with suppress(OSError):
            connection.setblocking(False)
            connection.send(datagram.pack(datagram.GOODBYE, answers=datagram.STRANGER))
        connection.close()

    # The mesh

    def _from_mesh(self, hub: int, frames: list[mesh.Frame]) -> None:
        decisions = []
        for frame in frames:
            if frame.kind == mesh.MESSAGE:
                try:
                    decided = self._arrivals.arrive(frame.swarm_id, frame.name, frame.body, frame.number)
                except ValueError as error:
                    log("message of a hub refused", hub=hub, reason=str(error))
                    decided = (datagram.MALFORMED, 0)
                decisions.append(mesh.DECISION.pack(frame.token, *decided))
            elif frame.kind == mesh.DECISIONS:
                whole = len(frame.body) - len(frame.body) % mesh.DECISION.size
                for token, reason, skipped in mesh.DECISION.iter_unpack(frame.body[:whole]):
                    self._lanes.answered(token, reason, skipped)
            else:
                self._callers.from_mesh(hub, frame)
        if decisions:
            self._links.insist(hub, mesh.pack(mesh.DECISIONS, body=b"".join(decisions)))
