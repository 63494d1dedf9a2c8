"""The post office of one hub: its teams' inboxes, its agents' connections, its side of the mesh.

What the hub's owner (conductor, coordinator) calls is here; the rest of the package is its inside.
"""

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from cfn.engine.log import log
from cfn.engine.loop import Loop
from cfn.engine.messages import credentials, datagram, mesh
from cfn.engine.messages.bounds import MessageBounds
from cfn.engine.messages.connection import Connection
from cfn.engine.messages.journal import Journal, split
from cfn.engine.messages.lanes import NOT_NOW, Directory, Lanes, Origin
from cfn.engine.messages.listener import Listener
from cfn.engine.messages.rates import TokenBucket
from cfn.engine.messages.team import HUB_INCARNATION, Inbox, Sender, Team, Totals, sender_key
from cfn.errors import IdError, RefusedError, UsageError
from cfn.ids import check_id

TAKE_BYTES = 120_000  # of messages that are taken at once: they must fit one datagram of the mesh
TAKE_S = 5.0  # for another hub to answer
MAX_NAMES = 4_096  # checked names that are remembered
MAX_BUCKETS = 4_096  # senders whose puts are counted

Decided = Callable[[int, int], None]
Taken = Callable[[int, Sequence[bytes], int], None]


class _Put:
    """A message that a caller put, on its way."""

    def __init__(self, decided: Decided) -> None:
        self._decided = decided

    def decided(self, number: int, reason: int, _skipped: int) -> None:
        self._decided(number, reason)


class _Broadcast:
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
        self.directory = directory
        self.teams: dict[tuple[str, str], Team] = {}
        self.totals = Totals()
        self.counters = Counter({"accepted": 0, "malformed": 0, "rate_limited": 0, "held_back": 0})
        self.refused: Counter[int] = Counter()
        self.lanes = Lanes(loop, links, directory, self._arrive)
        self._loop = loop
        self._links = links
        self._folder = folder
        self._bounds = bounds
        self._connections: set[Connection] = set()
        self._readers: dict[tuple[str, bytes], Connection] = {}
        self._names: set[bytes] = set()
        self._buckets: dict[tuple[str, str], TokenBucket] = {}
        self._incarnation = HUB_INCARNATION + links.number
        self._number = 0
        self._takes: dict[int, Taken] = {}
        links.received = self._from_mesh
        links.went = self._link_lost
        links.came = lambda _hub: self.lanes.again()
        self._listener = Listener(loop, bus, self._accepted)

    def close(self) -> None:
        """End all connections and let go of all teams; what is stored stays."""
        self._listener.close()
        self._links.close()
        for connection in list(self._connections):
            connection.close()
        for swarm_id, team in list(self.teams):
            self.close_team(swarm_id, team, remove=False)

    # Teams

    def open_team(self, swarm_id: str, team: str, agents: Iterable[str]) -> int:
        """Hold a team's inboxes from now on, with all that tmpfs has of them; the messages found.

        Raises RefusedError while another process holds them, OSError.
        """
        if (swarm_id, team) in self.teams:
            return self.teams[swarm_id, team].queued
        journal = Journal(self._folder / check_id("swarm", swarm_id) / check_id("team", team))
        opened = Team(swarm_id, team, map(str.encode, agents), journal, self.totals)
        if journal.cut_bytes:
            log("inboxes repaired", swarm_id=swarm_id, team=team, torn_bytes=journal.cut_bytes)
        self.teams[swarm_id, team] = opened
        self.moved()
        return opened.queued

    def close_team(self, swarm_id: str, team: str, *, remove: bool) -> int:
        """Let go of a team's inboxes, and with `remove` delete them; the messages nobody took.

        Its agents are disconnected; they look for the hub that has the team next.
        """
        closed = self.teams.pop((swarm_id, team), None)
        if closed is None:
            return 0
        for connection in list(self._connections):
            if connection.team is closed:
                connection.close(datagram.ENDED if remove else 0)
        undrained = closed.queued
        for inbox in closed.inboxes.values():
            held, inbox.held = inbox.held, []
            for resume in held:
                resume()
        closed.close(remove=remove)
        self.moved()
        return undrained

    def add_agent(self, swarm_id: str, team: str, agent: str) -> None:
        """An agent joined a team that is open here."""
        self.teams[swarm_id, team].agents.add(check_id("agent", agent).encode())
        self.moved()

    def remove_agent(self, swarm_id: str, team: str, agent: str) -> None:
        """An agent left: nothing is taken for it any more. What it did not read counts as undrained."""
        found = self.teams.get((swarm_id, team))
        if found is not None:
            found.agents.discard(agent.encode())
            self.moved()

    def moved(self) -> None:
        """The directory says something new: send what waited for it."""
        for connection in self._connections:
            connection.forget_routes()
        self.lanes.again()

    # What callers ask for

    def put(
        self, swarm_id: str, *, sender: str, receiver: str, kind: str, payload: bytes, decided: Decided
    ) -> None:
        """Send a message in an agent's name. `decided(number, reason)` is called once: reason 0 means
        stored, the others are in datagram.REASONS.

        Raises UsageError for a stranger, RefusedError for a bound that is reached at once.
        """
        bounds = self.bounds
        for agent in (sender, receiver):
            if self.directory.team_of(swarm_id, check_id("agent", agent)) is None:
                raise UsageError(f"swarm {swarm_id} has no agent {agent}")
        if len(payload) > bounds.max_payload_bytes:
            raise RefusedError(
                f"payload of {len(payload)} bytes: at most {bounds.max_payload_bytes} are allowed "
                "(CFN_MAX_PAYLOAD)"
            )
        now_s = time.monotonic()
        if len(self._buckets) >= MAX_BUCKETS:
            self._buckets.clear()
        bucket = self._buckets.setdefault((swarm_id, sender), TokenBucket(now_s))
        rate = bounds.max_sender_rate_per_s
        if bucket.spend(0, rate, now_s) > 0:
            self.counters["rate_limited"] += 1
            raise RefusedError(f"{sender}: {datagram.REASONS[datagram.RATE]}")
        bucket.spend(1, rate, now_s)
        self._number = max(self._number + 1, time.monotonic_ns())
        raw = datagram.pack(
            datagram.NOTE,
            self._number,
            incarnation=self._incarnation,
            sender=sender.encode(),
            receiver=receiver.encode(),
            type_=check_id("message type", kind).encode(),
            payload=payload,
        )
        team = self.directory.team_of(swarm_id, receiver) or ""
        key = sender_key(b"", self._incarnation)
        self.lanes.fly(_Put(self._counted(decided)), swarm_id, team, key, self._number, raw)

    def take(self, swarm_id: str, agent: str, taken: Taken) -> None:
        """Look at the oldest messages of an inbox, wherever it is, up to some bytes (at least one).
        `taken(reason, messages, first)` is called once, `first` being the number of the first of them;
        `confirm` removes them. Reason -1: the hub does not answer.

        Raises UsageError for a stranger.
        """
        team = self.directory.team_of(swarm_id, check_id("agent", agent))
        hub = None if team is None else self.directory.hub_of(swarm_id, team)
        if team is None or hub is None:
            raise UsageError(f"swarm {swarm_id} has no agent {agent}")
        if hub == self._links.number:
            taken(*self._look(swarm_id, agent))
            return
        self._number = token = max(self._number + 1, time.monotonic_ns())
        self._takes[token] = taken
        if not self._links.send(hub, mesh.pack(mesh.TAKE, swarm_id=swarm_id, name=agent, token=token)):
            self._took(token, NOT_NOW, (), 0)
            return
        self._loop.at(time.monotonic() + TAKE_S, lambda: self._took(token, NOT_NOW, (), 0))

    def confirm(self, swarm_id: str, agent: str, number: int) -> None:
        """The messages up to this number in the inbox were handed over: remove them there."""
        team = self.directory.team_of(swarm_id, agent)
        hub = None if team is None else self.directory.hub_of(swarm_id, team)
        if hub == self._links.number:
            self._confirmed(swarm_id, agent, number)
        elif hub is not None:
            self._links.send(hub, mesh.pack(mesh.CONFIRM, swarm_id=swarm_id, name=agent, number=number))

    def queued(self, swarm_id: str, agent: str) -> int:
        """Messages in the inbox of an agent whose team is open here."""
        team = self.teams.get((swarm_id, self.directory.team_of(swarm_id, agent) or ""))
        inbox = None if team is None else team.inboxes.get(agent.encode())
        return 0 if inbox is None else inbox.count

    def report(self) -> dict[str, int]:
        """The figures of this hub's messages, for its health report."""
        refused = {
            f"refused_{datagram.REASON_NAMES[reason]}": n for reason, n in sorted(self.refused.items())
        }
        return {
            "agents_connected": len(self._readers),
            "queued_messages": self.totals.messages,
            "queued_bytes": self.totals.bytes,
            "undecided": self.lanes.waiting,
            "mesh_links": len(self._links.links),
            "mesh_sent": self.lanes.sent,
            "mesh_repeated": self.lanes.repeated,
            "mesh_decided": self.lanes.concluded,
            **self.counters,
            **refused,
        }

    # What the inside asks for

    @property
    def bounds(self) -> MessageBounds:
        """As configured now."""
        return self._bounds()

    def is_name(self, raw: bytes) -> bool:
        """Whether these bytes are an identifier."""
        if raw in self._names:
            return True
        try:
            check_id("name", raw.decode("ascii"))
        except (IdError, UnicodeDecodeError):
            return False
        if len(self._names) >= MAX_NAMES:
            self._names.clear()
        self._names.add(raw)
        return True

    def bound_reached(self, inbox: Inbox, size: int) -> int:
        """Which bound keeps a message of so many bytes from an inbox; 0 for none."""
        bounds = self.bounds
        if inbox.count >= bounds.max_inbox_messages:
            return datagram.FULL
        if self.totals.messages >= bounds.max_queued_messages:
            return datagram.QUEUED_MESSAGES
        if self.totals.bytes + size > bounds.max_queued_bytes:
            return datagram.QUEUED_BYTES
        return 0

    def hold_s(self, inbox: Inbox, now_s: float) -> float:
        """How long a full inbox holds its senders back from now on; not above 0: it refuses."""
        inbox.full_since_s = inbox.full_since_s or now_s
        return inbox.full_since_s + self.bounds.inbox_wait_ms / 1000 - now_s

    def no_room(self, team: Team, error: OSError) -> None:
        """A team's journal could not take messages."""
        log("messages not stored", swarm_id=team.swarm_id, team=team.name, reason=str(error))

    def left(self, connection: Connection) -> None:
        """A connection is closed."""
        self._connections.discard(connection)
        key = (connection.swarm_id, connection.agent)
        if self._readers.get(key) is connection:
            del self._readers[key]

    def welcome(self, connection: Connection, header: datagram.Header) -> tuple[Team, Inbox] | None:
        """Somebody says which agent it is. None: not here, and it was told what to do."""
        if not all(map(self.is_name, (header.sender, header.receiver, header.type))):
            connection.close(datagram.NAME)
            return None
        swarm_id, agent = header.type.decode(), header.sender.decode()
        name = self.directory.team_of(swarm_id, agent)
        team = None if name is None else self.teams.get((swarm_id, name))
        inbox = None if team is None else team.inbox(header.sender)
        if team is None or inbox is None:
            hub = 0 if name is None else self.directory.hub_of(swarm_id, name)
            if hub is None or (name is None and self._links.number == 0):
                connection.close(datagram.NO_AGENT)
            else:
                connection.send_away(hub)
            return None
        earlier = self._readers.get((swarm_id, header.sender))
        if earlier is not None:
            if earlier.incarnation > header.incarnation:
                connection.close(datagram.EARLIER)
                return None
            earlier.close(datagram.REPLACED if earlier.incarnation < header.incarnation else 0)
        connection.swarm_id, connection.agent = swarm_id, header.sender
        connection.incarnation = header.incarnation
        self._readers[swarm_id, header.sender] = connection
        return team, inbox

    def broadcast(self, swarm_id: str, origin: Origin, raw: bytes, key: bytes, number: int) -> None:
        """Send a message to every team of a swarm; `origin` is told once all have decided."""
        teams = self.directory.teams(swarm_id)
        if not teams:
            origin.decided(number, datagram.ENDED, 0)
            return
        whole = _Broadcast(origin, len(teams))
        for team in teams:
            self.lanes.fly(whole, swarm_id, team, key, number, raw)

    def _accepted(self, connection: socket.socket) -> None:
        if not credentials.same_group(connection):
            with suppress(OSError):
                connection.send(datagram.pack(datagram.GOODBYE, answers=datagram.STRANGER))
            connection.close()
            return
        self._connections.add(Connection(self, self._loop, connection, time.monotonic()))

    def _counted(self, decided: Decided) -> Decided:
        def told(number: int, reason: int) -> None:
            if reason:
                self.refused[reason] += 1
            decided(number, reason)

        return told

    # What comes for teams that are open here

    def _arrive(self, swarm_id: str, team_name: str, raw: bytes, previous: int) -> tuple[int, int]:
        """Judge a message for a team: a reason (0 stored, -1 not now), and inboxes skipped."""
        team = self.teams.get((swarm_id, team_name))
        if team is None:
            return NOT_NOW, 0
        header = datagram.Header(raw)
        if header.size != len(raw):
            raise ValueError("longer than its header says")
        key = sender_key(header.sender, header.incarnation)
        sender = team.sender(key, header.incarnation)
        if sender is None:
            return datagram.EARLIER, 0
        if header.number <= sender.last:
            return sender.refused.get(header.number, 0), 0
        if previous > sender.last:
            return NOT_NOW, 0
        if not header.receiver:
            return self._to_all(team, key, sender, header, raw)
        inbox = team.inbox(header.receiver)
        reason = datagram.NO_AGENT if inbox is None else self.bound_reached(inbox, len(raw))
        held = reason == datagram.FULL and header.incarnation < HUB_INCARNATION  # callers do not wait
        if inbox is not None and held and self.hold_s(inbox, time.monotonic()) > 0:
            return NOT_NOW, 0
        if inbox is not None and not reason:
            inbox.count += 1
            try:
                team.store([raw], [inbox])
            except OSError as error:
                self.no_room(team, error)
                reason = datagram.NO_ROOM
        if reason:
            team.refuse(key, sender, header.number, reason)
        else:
            sender.last = header.number
            self.counters["accepted"] += 1
        return reason, 0

    def _to_all(
        self, team: Team, key: bytes, sender: Sender, header: datagram.Header, raw: bytes
    ) -> tuple[int, int]:
        messages: list[bytes] = []
        inboxes: list[Inbox] = []
        skipped, reason = 0, 0
        for agent in sorted(team.agents - {header.sender}):
            inbox = team.inbox(agent)
            if inbox is None:
                continue
            reached = self.bound_reached(inbox, len(raw) * (len(messages) + 1))
            if reached:
                skipped, reason = skipped + 1, reached
                continue
            inbox.count += 1
            messages.append(datagram.addressed(raw, agent))
            inboxes.append(inbox)
        if messages:
            try:
                team.store(messages, inboxes)
                self.counters["accepted"] += len(messages)
            except OSError as error:
                self.no_room(team, error)
                skipped, reason = skipped + len(messages), datagram.NO_ROOM
        if reason:
            team.refuse(key, sender, header.number, reason)
        sender.last = header.number
        return reason, skipped

    def _look(self, swarm_id: str, agent: str) -> tuple[int, list[bytes], int]:
        team = self.teams.get((swarm_id, self.directory.team_of(swarm_id, agent) or ""))
        if team is None:
            return NOT_NOW, [], 0
        if (swarm_id, agent.encode()) in self._readers:
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
        team = self.teams.get((swarm_id, self.directory.team_of(swarm_id, agent) or ""))
        inbox = None if team is None else team.inboxes.get(agent.encode())
        if team is not None and inbox is not None:
            with suppress(ValueError):
                team.consume(inbox, number, sent_only=False)

    def _took(self, token: int, reason: int, messages: Sequence[bytes], number: int) -> None:
        taken = self._takes.pop(token, None)
        if taken is not None:
            taken(reason, messages, number)

    def _link_lost(self, hub: int) -> None:
        self.lanes.lost(hub)

    def _from_mesh(self, hub: int, frames: list[mesh.Frame]) -> None:
        decisions = []
        for frame in frames:
            if frame.kind == mesh.MESSAGE:
                try:
                    reason, skipped = self._arrive(frame.swarm_id, frame.name, frame.body, frame.number)
                except ValueError as error:
                    log("message of a hub refused", hub=hub, reason=str(error))
                    reason, skipped = datagram.MALFORMED, 0
                decisions.append(mesh.DECISION.pack(frame.token, reason, skipped))
            elif frame.kind == mesh.DECISIONS:
                whole = len(frame.body) - len(frame.body) % mesh.DECISION.size
                for token, reason, skipped in mesh.DECISION.iter_unpack(frame.body[:whole]):
                    self.lanes.answered(token, reason, skipped)
            elif frame.kind == mesh.TAKE:
                reason, found, first = self._look(frame.swarm_id, frame.name)
                answer = mesh.pack(
                    mesh.TAKEN,
                    code=reason + 1,
                    token=frame.token,
                    number=first,
                    body=b"".join(found),
                )
                self._links.send(hub, answer)
            elif frame.kind == mesh.TAKEN:
                self._took(frame.token, frame.code - 1, split(frame.body), frame.number)
            elif frame.kind == mesh.CONFIRM:
                self._confirmed(frame.swarm_id, frame.name, frame.number)
        if decisions:
            self._links.insist(hub, mesh.pack(mesh.DECISIONS, body=b"".join(decisions)))
