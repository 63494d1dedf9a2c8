"""The connection of one agent to its hub's bus.

A connection is read in turns of at most TURN datagrams: what they hold for one team is stored with
one write, then handed to the inboxes, then decided with one datagram to the sender. Whoever sends
garbage is disconnected; whoever reads nothing is bounded by its socket and its inbox; whoever sends
too much is not read for a while.
"""

import socket
import time
from collections import deque
from typing import TYPE_CHECKING

from cfn.engine.log import log
from cfn.engine.loop import Loop
from cfn.engine.messages import datagram
from cfn.engine.messages.flow import Flow
from cfn.engine.messages.lanes import Lanes
from cfn.engine.messages.rates import TokenBucket
from cfn.engine.messages.state import State
from cfn.engine.messages.team import Inbox, Sender, Team

if TYPE_CHECKING:
    from cfn.engine.messages.office import Messages

MAX_UNDECIDED = 256  # messages of one sender on their way to other hubs
MAX_UNDECIDED_BYTES = 1 << 20
MAX_ROUTES = 1_024  # pairs of receiver and type remembered for a connection
HELLO_S = 2.0  # to say who it is


class Route:
    """Where the messages of a stream go, and what the receiving team knows of the sender."""

    __slots__ = ("inbox", "sender", "team")

    def __init__(self, team: Team, inbox: Inbox, sender: Sender) -> None:
        self.team = team
        self.inbox = inbox
        self.sender = sender


class Connection(Flow):
    """One agent's connection."""

    def __init__(
        self, office: "Messages", state: State, lanes: Lanes, loop: Loop, connection: socket.socket
    ) -> None:
        super().__init__(loop, connection, datagram.MAX_DATAGRAM_BYTES + 1)
        self.swarm_id = ""
        self.agent = b""
        self.incarnation = 0
        self.team: Team | None = None  # its own; None: it did not say hello yet
        self._office = office
        self._state = state
        self._lanes = lanes
        self._inbox: Inbox | None = None
        self._routes: dict[bytes, Route] = {}
        self._bucket: TokenBucket | None = None
        self._expected = 0  # no lower number may come
        self._decided = 0  # what the agent was told
        self._flying: dict[int, int] = {}  # undecided at other hubs: number to bytes
        self._flying_bytes = 0
        self._greeting = loop.at(time.monotonic() + HELLO_S, self._silent)

    # What the office asks for

    def dismiss(self, reason: int) -> None:
        """End the connection with a word of why: it must not be made again."""
        self.close(datagram.pack(datagram.GOODBYE, answers=reason))

    def send_away(self, hub: int) -> None:
        """End the connection: the agent's team is, or will be, at another hub."""
        self.close(datagram.pack(datagram.MOVED, hub))

    def forget_routes(self) -> None:
        """Teams or agents have come or gone."""
        self._routes.clear()

    def decided(self, number: int, reason: int, skipped: int) -> None:
        """A message that went by way of the mesh has its decision."""
        self._flying_bytes -= self._flying.pop(number, 0)
        if self.closed:
            return
        if reason:
            self._refuse(number, reason, skipped)
        self._acknowledge()
        if self.paused and not self.timed and not self._crowded(2):
            self.resume()

    # What the flow says

    def handle(self, came: deque[bytes] | list[bytes]) -> None:
        """Handle datagrams and tell the agent how far its messages are decided."""
        self._handle(came)
        self._acknowledge()

    def flushed(self) -> None:
        """Go on with decisions and messages."""
        self._acknowledge()
        if self._inbox is not None and not self.blocked:
            self._inbox.deliver()

    def hung_up(self) -> None:
        """Nothing more can be delivered."""
        if self._inbox is not None and self._inbox.send == self.socket.send:
            self._inbox.detach()

    def ended(self) -> None:
        """Give the inbox back."""
        self._greeting.cancel()
        self.hung_up()
        self._office.left(self)

    def _silent(self) -> None:
        if self.team is None:
            self._malformed("no hello")

    def _receiver_took(self) -> None:
        """The inbox that was full has room."""
        if self.held:
            self.resume()

    # Datagrams

    def _handle(self, came: deque[bytes] | list[bytes], *, together: bool = False) -> None:
        """Handle datagrams in order: those that only need storing with one write, others one by one.
        `together`: they came in one datagram, and may go on in one."""
        state = self._state
        bounds = state.bounds()
        unpack = datagram.HEADER.unpack_from
        routes = self._routes
        expected = self._expected
        most, payload_limit = bounds.max_inbox_messages, bounds.max_payload_bytes
        room = bounds.max_queued_messages - state.totals.messages
        room_bytes = bounds.max_queued_bytes - state.totals.bytes
        team: Team | None = None
        messages: list[bytes] = []
        inboxes: list[Inbox] = []
        counted = 0
        source = iter(came)
        for raw in source:
            counted += 1
            if len(raw) >= 32:
                number, _, payload_bytes, _, sender, receiver, type_, _ = unpack(raw)
                end = 32 + sender + receiver + type_
                route = routes.get(raw[20:end])
                if (
                    route is not None
                    and number >= expected
                    and number > route.sender.last
                    and end + payload_bytes == len(raw)
                    and payload_bytes <= payload_limit
                    and (inbox := route.inbox).count < most
                    and room > 0
                    and room_bytes >= len(raw)
                ):
                    if route.team is not team:
                        if team is not None and messages:
                            self._store(team, messages, inboxes, together)
                            messages, inboxes = [], []
                        team = route.team
                    expected = number + 1
                    route.sender.last = number
                    room -= 1
                    room_bytes -= len(raw)
                    inbox.count += 1
                    messages.append(raw)
                    inboxes.append(inbox)
                    continue
            if team is not None and messages:
                self._store(team, messages, inboxes, together)
                messages, inboxes = [], []
            self._expected = expected
            handled = self._one(raw)
            if self.closed:
                return
            if not handled:
                self.held.append(raw)
                self.held.extend(source)
                counted -= 1
                break
            expected = self._expected
            if self.paused:
                self.held.extend(source)
                break
            room = bounds.max_queued_messages - state.totals.messages
            room_bytes = bounds.max_queued_bytes - state.totals.bytes
        self._expected = expected
        if team is not None and messages:
            self._store(team, messages, inboxes, together)
        if self.closed:
            return
        self._spend(counted, bounds.max_sender_rate_per_s)

    def _spend(self, messages: int, rate_per_s: int) -> None:
        """Count messages against the sender's rate, and do not read it while it is ahead."""
        if self._bucket is None:
            return
        wait_s = self._bucket.spend(messages, rate_per_s, time.monotonic())
        if wait_s and not self.paused:
            self._state.counters["rate_limited"] += 1
            self.pause(wait_s)

    def _store(self, team: Team, messages: list[bytes], inboxes: list[Inbox], together: bool = False) -> None:
        try:
            team.store(messages, inboxes, together=together)
        except OSError as error:
            self._state.no_room(team, error)
            for raw in messages:
                header = datagram.Header(raw)
                self._decide_against(team, header.number, datagram.NO_ROOM)
            return
        self._state.counters["accepted"] += len(messages)

    def _one(self, raw: bytes) -> bool:
        """Handle one datagram with every check. False: not now, it must be held."""
        try:
            header = datagram.Header(raw)
        except ValueError as error:
            return self._malformed(str(error))
        if header.size != len(raw) or len(raw) > datagram.MAX_DATAGRAM_BYTES:
            return self._malformed("longer than its header says, or than any may be")
        if self.team is None or self._inbox is None:
            return self._hello(header) if header.kind == datagram.HELLO else self._malformed("no hello")
        if header.kind == datagram.CONSUMED:
            return self._consumed(self.team, self._inbox, header.number)
        if header.kind == datagram.BATCH:
            return self._batch(raw, header.end)
        if header.kind not in datagram.MESSAGES:
            return self._malformed(f"kind {header.kind}")
        if header.number < self._expected:
            return self._malformed("a number that goes back")
        if header.sender != self.agent or header.incarnation != self.incarnation:
            return self._malformed("another agent's name")
        if (header.kind == datagram.BROADCAST) != (not header.receiver):
            return self._malformed("a receiver too many or too few")
        return self._message(raw, header)

    def _batch(self, raw: bytes, start: int) -> bool:
        """Messages that came in one datagram: as if each had come by itself."""
        inside = []
        while start < len(raw):
            try:
                header = datagram.Header(raw, start)
            except ValueError as error:
                return self._malformed(str(error))
            if header.kind not in datagram.MESSAGES:
                return self._malformed("a batch of something else than messages")
            inside.append(raw[start : start + header.size])
            start += header.size
        self._handle(inside, together=True)
        return True

    def _message(self, raw: bytes, header: datagram.Header) -> bool:
        state = self._state
        number = header.number
        if len(raw) - header.end > state.bounds().max_payload_bytes:
            self._passed(number, datagram.PAYLOAD)
        elif not (state.is_name(header.type) and (not header.receiver or state.is_name(header.receiver))):
            self._passed(number, datagram.NAME)
        elif not header.receiver:
            self._off(number, len(raw))
            self._lanes.fly_to_all(self, self.swarm_id, self.agent, number, raw)
            self._slow_down()
        else:
            return self._to_agent(raw, header)
        return True

    def _to_agent(self, raw: bytes, header: datagram.Header) -> bool:
        state = self._state
        number = header.number
        team_name = state.directory.team_of(self.swarm_id, header.receiver.decode())
        if team_name is None:
            self._passed(number, datagram.NO_AGENT)
            return True
        team = state.teams.get((self.swarm_id, team_name))
        if team is None or self._lanes.undecided(self.swarm_id, team_name, self.agent):
            self._off(number, len(raw))
            self._lanes.fly(self, self.swarm_id, team_name, self.agent, number, raw)
            self._slow_down()
            return True
        inbox = team.inbox(header.receiver)
        sender = team.sender(self.agent, self.incarnation)
        if inbox is None or sender is None:
            self._passed(number, datagram.NO_AGENT if inbox is None else datagram.EARLIER)
            return True
        if number <= sender.last:
            self._passed(number, sender.refused.get(number, 0))
            return True
        now_s = time.monotonic()
        reason = state.bound_reached(inbox, len(raw))
        if reason == datagram.FULL and (wait_s := state.hold_s(inbox, now_s)) > 0:
            state.counters["held_back"] += 1
            inbox.held.append(self._receiver_took)
            self.pause(wait_s)
            return False
        self._expected = number + 1
        if reason:
            self._decide_against(team, number, reason)
            return True
        if len(self._routes) >= MAX_ROUTES:
            self._routes.clear()
        self._routes[raw[datagram.CONSTANT_OFFSET : header.end]] = Route(team, inbox, sender)
        sender.last = number
        inbox.count += 1
        self._store(team, [raw], [inbox])
        return True

    def _off(self, number: int, size: int) -> None:
        """A message leaves for other hubs; its decision comes to `decided`."""
        self._expected = number + 1
        self._flying[number] = size
        self._flying_bytes += size

    def _slow_down(self) -> None:
        if self._crowded(1) and not self.paused:
            self.pause(None)

    def _crowded(self, part: int) -> bool:
        return len(self._flying) * part >= MAX_UNDECIDED or self._flying_bytes * part >= MAX_UNDECIDED_BYTES

    def _hello(self, header: datagram.Header) -> bool:
        found = self._office.welcome(self, header)
        if found is None:
            return True
        self.team, self._inbox = found
        self._greeting.cancel()
        self._bucket = self._state.bucket(self.swarm_id, self.agent)
        self._expected = header.number
        self._decided = header.number - 1
        try:
            self.team.consume(self._inbox, header.answers, sent_only=False)
        except ValueError as error:
            return self._malformed(str(error))
        self._say(datagram.pack(datagram.WELCOME, self._inbox.consumed + 1))
        self._inbox.send = self.socket.send
        self._inbox.blocked = self.stuck
        self._inbox.deliver()
        return True

    def _consumed(self, team: Team, inbox: Inbox, number: int) -> bool:
        try:
            team.consume(inbox, number)
        except ValueError as error:
            return self._malformed(str(error))
        return True

    # Decisions

    def _passed(self, number: int, reason: int) -> None:
        """A message was decided without being stored now."""
        self._expected = number + 1
        if reason:
            self._refuse(number, reason, 0)

    def _decide_against(self, team: Team, number: int, reason: int) -> None:
        sender = team.sender(self.agent, self.incarnation)
        if sender is not None:
            team.refuse(self.agent, sender, number, reason)
        self._refuse(number, reason, 0)

    def _refuse(self, number: int, reason: int, skipped: int) -> None:
        self._state.refused[reason] += 1
        payload = str(skipped).encode() if skipped else b""
        self._say(datagram.pack(datagram.REFUSED, number, reason, payload=payload))

    def _acknowledge(self) -> None:
        """Tell how far the messages are decided, unless it was told or refusals must be read first."""
        decided = (next(iter(self._flying)) if self._flying else self._expected) - 1
        if decided <= self._decided or self.blocked or self.closed or self.team is None:
            return
        try:
            self.socket.send(datagram.pack(datagram.DECIDED, decided))
        except BlockingIOError:
            self.stuck()
        except OSError:
            return  # the end is read soon
        else:
            self._decided = decided

    def _say(self, raw: bytes) -> None:
        if not self.say(raw):
            self._malformed("it reads no decisions")

    def _malformed(self, reason: str) -> bool:
        self._state.counters["malformed"] += 1
        log("agent disconnected", swarm_id=self.swarm_id, agent=self.agent.decode(), reason=reason)
        self.dismiss(datagram.MALFORMED)
        return True
