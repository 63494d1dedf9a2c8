"""What an agent's author imports: messages to and from the other agents of the swarm.

    from cfn.agent import Bus

    with Bus() as bus:
        bus.send("agent-2", "greeting", b"hello")
        for message in bus:
            bus.answer(message, b"thanks")

Everything blocks. The hub that holds this agent's inbox may die meanwhile: its successor is found,
what had no decision is sent again and stored once, what was not done with comes again and is handed
out once. Docs: docs/agents.md. Agents start often, so this module imports little.
"""

import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress

from cfn.engine.messages import datagram
from cfn.errors import CfnError, NotRunningError, RefusedError, UsageError

MAX_UNDECIDED = 256  # messages sent ahead of their decisions
MAX_UNDECIDED_BYTES = 1 << 20
_TELL_EVERY = 64  # messages done with before the hub is told, unless we wait for something
_BATCH_BYTES = 120_000
_PAUSE_S = 0.01  # before a hub is tried again
_WELCOME_S = 2.0  # for a hub to answer a hello
_TURN = 64
_MAX_LABELS = 1_024  # pairs of receiver and type that are kept encoded
_PLAIN = frozenset((datagram.NOTE, datagram.QUESTION, datagram.BROADCAST))

_pack = datagram.HEADER.pack
_LIMIT_BYTES = datagram.MAX_DATAGRAM_BYTES + 1


class Message:
    """A message in this agent's inbox; `number` is its place there, from 1 for the first one ever."""

    __slots__ = ("_raw", "number")

    def __init__(self, number: int, raw: bytes) -> None:
        self.number = number
        self._raw = raw

    @property
    def sender(self) -> str:
        """The agent that sent it."""
        return datagram.Header(self._raw).sender.decode()

    @property
    def type(self) -> str:
        """The word that its sender chose."""
        return datagram.Header(self._raw).type.decode()

    @property
    def payload(self) -> bytes:
        """Its content."""
        return self._raw[datagram.Header(self._raw).end :]

    @property
    def is_question(self) -> bool:
        """Whether its sender waits for `Bus.answer`."""
        return self._raw[datagram.CONSTANT_OFFSET] == datagram.QUESTION

    @property
    def is_broadcast(self) -> bool:
        """Whether all agents of the swarm were sent it."""
        return self._raw[datagram.CONSTANT_OFFSET] == datagram.BROADCAST

    def __repr__(self) -> str:
        return f"Message({self.number}, {self.type!r} from {self.sender!r}, {len(self.payload)} bytes)"


class Bus:
    """This agent's connection to the others. One at a time: a later one takes the place of this.

    Raises, from every method: RefusedError with the reason when the swarm, the agent or a message is
    refused; NotRunningError when no hub answers for `connect_s` seconds.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ, *, connect_s: float = 30.0) -> None:
        """Reads CFN_BUS, CFN_SWARM_ID, CFN_TEAM and CFN_AGENT_ID, and connects. Raises UsageError when
        they are not set: then this process is not an agent of the engine."""
        try:
            self._path = environment["CFN_BUS"]
            swarm, team, agent = (environment[f"CFN_{name}"] for name in ("SWARM_ID", "TEAM", "AGENT_ID"))
        except KeyError as error:
            raise UsageError(f"{error.args[0]} is not set: the engine sets it for its agents") from None
        self.agent = agent
        self._names = (agent.encode(), team.encode(), swarm.encode())
        self._home = self._path
        self._connect_s = connect_s
        self._incarnation = time.monotonic_ns()
        self._number = self._incarnation  # of the last message sent
        self._labels: dict[tuple[str, str], tuple[bytes, int, int]] = {}
        self._undecided: deque[tuple[int, bytes]] = deque()
        self._undecided_bytes = 0
        self._refusals: dict[int, tuple[int, str]] = {}
        self._incoming: deque[Message] = deque()
        self._arrived = 0  # number of the last message that came
        self._current: Message | None = None  # handed out, and not done with
        self._consumed = 0  # everything up to here is done with
        self._told = 0  # and the hub knows so, up to here
        self._done: set[int] = set()  # beyond that, answers that were taken out of turn
        self._repeated_to = 0  # what comes up to here may have been handed out before
        self._asked: set[int] = set()
        self._answers: dict[int, Message] = {}
        self._socket = self._connected()

    def __enter__(self) -> "Bus":
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        if kind is None:
            self.close()
            return
        with suppress(CfnError):  # the message in hand was not done with: it comes again
            self._tell()
        self._socket.close()

    def close(self) -> None:
        """Wait until everything sent is decided, then disconnect. Raises as `flush`."""
        try:
            self._finish()
            self._tell()
            self.flush()
        finally:
            self._socket.close()

    # Sending

    def send(self, receiver: str, type_: str, payload: bytes = b"") -> int:
        """Send a message; when this returns its number, it is stored. Raises RefusedError."""
        number = self.post(receiver, type_, payload)
        self._until(lambda: not self._undecided or self._undecided[0][0] > number, None)
        self._raise_refusals([number])
        return number

    def post(self, receiver: str, type_: str, payload: bytes = b"") -> int:
        """Send a message without waiting for its decision; its number. Blocks when MAX_UNDECIDED are on
        their way. Whether it was refused, a later `post`, `flush` or `close` says, with RefusedError."""
        return self._post(datagram.NOTE, receiver, type_, payload)

    def post_all(self, receiver: str, type_: str, payloads: Iterable[bytes]) -> None:
        """As `post` for each, many in one datagram: less work for everybody, a little later."""
        batch: list[tuple[int, bytes]] = []
        size = 0
        for payload in payloads:
            raw = self._message(datagram.NOTE, receiver, type_, payload)
            number = self._number
            if batch and (size + len(raw) > _BATCH_BYTES or len(batch) >= MAX_UNDECIDED // 4):
                self._post_batch(batch)
                batch, size = [], 0
            batch.append((number, raw))
            size += len(raw)
        if batch:
            self._post_batch(batch)

    def broadcast(self, type_: str, payload: bytes = b"") -> int:
        """Send to every other agent of the swarm; stored in all their inboxes when this returns.

        Raises RefusedError when some inboxes did not take it, saying how many; the others have it.
        """
        number = self._post(datagram.BROADCAST, "", type_, payload)
        self._until(lambda: not self._undecided or self._undecided[0][0] > number, None)
        self._raise_refusals([number])
        return number

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything sent is decided. Raises RefusedError that names what was refused since
        the last time, TimeoutError."""
        if not self._until(lambda: not self._undecided, timeout_s):
            raise TimeoutError(f"{len(self._undecided)} messages have no decision yet")
        self._raise_refusals(list(self._refusals))

    def ask(self, receiver: str, type_: str, payload: bytes = b"", *, timeout_s: float) -> Message:
        """Send a question and wait for its answer. What else comes meanwhile is received later.

        Raises RefusedError, TimeoutError (an answer that is late is dropped).
        """
        number = self._post(datagram.QUESTION, receiver, type_, payload)
        self._asked.add(number)
        try:
            self._until(lambda: number in self._answers or number in self._refusals, timeout_s)
            self._raise_refusals([number])
            if number not in self._answers:
                raise TimeoutError(f"{receiver} did not answer within {timeout_s} s")
            return self._answers.pop(number)
        finally:
            self._asked.discard(number)

    def answer(self, question: Message, payload: bytes = b"", type_: str = "answer") -> int:
        """Answer a question; as `send`."""
        header = datagram.Header(question._raw)
        number = self._post(datagram.ANSWER, header.sender.decode(), type_, payload, header.number)
        self._until(lambda: not self._undecided or self._undecided[0][0] > number, None)
        self._raise_refusals([number])
        return number

    # Receiving

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """The next message; None when none comes in time.

        To ask for the next one, or to close, is to be done with this one. The hub hears of that every
        64 messages and whenever none is at hand: if this process is killed, those that it does not
        know to be done with come again to the agent's next process, under the same numbers.
        """
        if self._current is not None:
            self._finish()
        if not self._incoming:
            self._tell()
            self._until(lambda: bool(self._incoming), timeout_s)
            if not self._incoming:
                return None
        self._current = message = self._incoming.popleft()
        return message

    def __iter__(self) -> Iterator[Message]:
        """Messages as they come, without end."""
        while True:
            message = self.receive()
            if message is not None:
                yield message

    # The inside

    def _message(self, kind: int, receiver: str, type_: str, payload: bytes, answers: int = 0) -> bytes:
        size = len(payload)
        if size > datagram.MAX_PAYLOAD_BYTES:
            raise RefusedError(f"payload of {size} bytes: at most {datagram.MAX_PAYLOAD_BYTES} can be sent")
        names, to, label = self._labels.get((receiver, type_)) or self._label(receiver, type_)
        self._number = number = self._number + 1
        sender = len(self._names[0])
        head = _pack(number, answers, size, kind, sender, to, label, self._incarnation)
        return head + names + payload

    def _label(self, receiver: str, type_: str) -> tuple[bytes, int, int]:
        """The names of a message as it carries them, and the bytes of the receiver's and the type."""
        to, label = receiver.encode(), type_.encode()
        if max(len(to), len(label)) > datagram.MAX_NAME_BYTES:
            raise UsageError(f"names have at most {datagram.MAX_NAME_BYTES} bytes")
        if len(self._labels) >= _MAX_LABELS:
            self._labels.clear()
        found = self._labels[receiver, type_] = (self._names[0] + to + label, len(to), len(label))
        return found

    def _post(self, kind: int, receiver: str, type_: str, payload: bytes, answers: int = 0) -> int:
        raw = self._message(kind, receiver, type_, payload, answers)
        number = self._number
        self._undecided.append((number, raw))
        self._undecided_bytes += len(raw)
        try:
            self._socket.send(raw)
        except OSError:
            self._transmit(raw)
        if len(self._undecided) >= MAX_UNDECIDED or self._undecided_bytes >= MAX_UNDECIDED_BYTES:
            self._make_room()
        return number

    def _post_batch(self, batch: list[tuple[int, bytes]]) -> None:
        content = b"".join(raw for _, raw in batch)
        self._undecided.extend(batch)
        self._undecided_bytes += len(content)
        self._transmit(datagram.pack(datagram.BATCH, payload=content))
        if len(self._undecided) >= MAX_UNDECIDED or self._undecided_bytes >= MAX_UNDECIDED_BYTES:
            self._make_room()

    def _make_room(self) -> None:
        self._until(self._has_room, None)
        self._raise_refusals(list(self._refusals))

    def _has_room(self) -> bool:
        return len(self._undecided) * 2 <= MAX_UNDECIDED and self._undecided_bytes * 2 <= MAX_UNDECIDED_BYTES

    def _transmit(self, raw: bytes) -> None:
        """Send one datagram, reading meanwhile so that nobody waits for us."""
        while True:
            try:
                self._socket.send(raw)
            except BlockingIOError:
                self._wait(select.POLLIN | select.POLLOUT, None)
                used = self._socket
                self._pump()
                if self._socket is not used:
                    return  # connected anew, and everything undecided was sent again
            except OSError:
                self._reconnect()
                return
            else:
                return

    def _until(self, satisfied: Callable[[], bool], timeout_s: float | None) -> bool:
        """Read until something is so; whether it is."""
        ends_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not satisfied():
            if self._pump():
                continue
            self._tell()
            left_s = None if ends_s is None else ends_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                return False
            self._wait(select.POLLIN, left_s)
        return True

    def _wait(self, events: int, timeout_s: float | None) -> None:
        poller = select.poll()
        poller.register(self._socket, events)
        poller.poll(None if timeout_s is None else timeout_s * 1000 + 1)

    def _pump(self) -> bool:
        """Handle what has come, without waiting; whether anything had."""
        receive = self._socket.recv
        append = self._incoming.append
        came = False
        for _ in range(_TURN):
            try:
                raw = receive(_LIMIT_BYTES)
            except BlockingIOError:
                break
            except ConnectionResetError:
                continue  # what was sent before the reset is still to be read
            if not raw:
                self._reconnect()
                return True
            came = True
            kind = raw[datagram.CONSTANT_OFFSET]
            if kind in _PLAIN and self._arrived >= self._repeated_to:  # nearly all
                self._arrived += 1
                append(Message(self._arrived, raw))
            elif kind in datagram.MESSAGES:
                self._arrive(raw)
            else:
                self._control(raw)
        return came

    def _arrive(self, raw: bytes) -> None:
        self._arrived = number = self._arrived + 1
        if number <= self._repeated_to and (
            number <= self._consumed
            or number in self._done
            or (self._current is not None and self._current.number == number)
        ):
            return
        if raw[datagram.CONSTANT_OFFSET] == datagram.ANSWER:
            question = datagram.Header(raw).answers
            if question in self._asked:
                self._answers[question] = Message(number, raw)
            self._mark_done(number)
        else:
            self._incoming.append(Message(number, raw))

    def _control(self, raw: bytes) -> None:
        header = datagram.Header(raw)
        if header.kind == datagram.DECIDED:
            while self._undecided and self._undecided[0][0] <= header.number:
                self._undecided_bytes -= len(self._undecided.popleft()[1])
        elif header.kind == datagram.REFUSED:
            self._refusals[header.number] = (header.answers, raw[header.end :].decode())
            self._undecided = deque(one for one in self._undecided if one[0] != header.number)
            self._undecided_bytes = sum(len(one[1]) for one in self._undecided)
        elif header.kind == datagram.BATCH:
            start = header.end
            while start < len(raw):
                end = start + datagram.size(raw, start)
                self._arrive(raw[start:end])
                start = end
        elif header.kind == datagram.GOODBYE:
            raise RefusedError(f"{self.agent}: {datagram.REASONS[header.answers]}")

    def _finish(self) -> None:
        if self._current is not None:
            number, self._current = self._current.number, None
            if number == self._consumed + 1 and not self._done:
                self._consumed = number
            else:
                self._mark_done(number)
            if self._consumed - self._told >= _TELL_EVERY:
                self._tell()

    def _mark_done(self, number: int) -> None:
        self._done.add(number)
        while self._consumed + 1 in self._done:
            self._consumed += 1
            self._done.discard(self._consumed)

    def _tell(self) -> None:
        if self._consumed > self._told:
            self._told = self._consumed
            self._transmit(datagram.pack(datagram.CONSUMED, self._consumed))

    def _raise_refusals(self, numbers: list[int]) -> None:
        found = [(number, *self._refusals.pop(number)) for number in numbers if number in self._refusals]
        if not found:
            return
        number, reason, skipped = found[0]
        where = f"{skipped} inboxes" if skipped else f"message {number}"
        rest = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise RefusedError(f"{where}{rest} refused: {datagram.REASONS[reason]}")

    # The connection

    def _reconnect(self) -> None:
        self._socket.close()
        self._incoming.clear()  # not done with, so they come again
        self._repeated_to = max(self._arrived, self._repeated_to)
        self._socket = used = self._connected()
        for _, raw in list(self._undecided):
            self._transmit(raw)
            if self._socket is not used:
                return  # that connection broke too, and the next one has seen to all of it

    def _connected(self) -> socket.socket:
        """Find the hub that holds this agent's inbox and say hello."""
        ends_s = time.monotonic() + self._connect_s
        path = self._path
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                path = self._hello(connection, path)
            except BlockingIOError:
                pass  # many connect to it right now
            except OSError:
                path = self._bus_of(0) if path != self._bus_of(0) else self._home
            except CfnError:
                connection.close()
                raise
            if not path:
                connection.setblocking(False)
                return connection
            connection.close()
            if time.monotonic() > ends_s:
                raise NotRunningError(f"no hub answers {self.agent} (last asked: {path})")
            time.sleep(_PAUSE_S)

    def _hello(self, connection: socket.socket, path: str) -> str:
        """Ask one hub; where to ask next, nothing if it is the one. Raises OSError."""
        connection.settimeout(_WELCOME_S)
        connection.connect(path)
        agent, team, swarm = self._names
        hello = datagram.pack(
            datagram.HELLO,
            self._undecided[0][0] if self._undecided else self._number + 1,
            self._consumed,
            incarnation=self._incarnation,
            sender=agent,
            receiver=team,
            type_=swarm,
        )
        connection.send(hello)
        raw = connection.recv(_LIMIT_BYTES)
        if not raw:
            raise ConnectionResetError
        header = datagram.Header(raw)
        if header.kind == datagram.GOODBYE:
            raise RefusedError(f"{self.agent}: {datagram.REASONS[header.answers]}")
        if header.kind == datagram.MOVED:
            return self._bus_of(header.number)
        self._path = path
        self._arrived = header.number - 1
        self._consumed = max(self._consumed, self._arrived)
        self._told = self._consumed
        self._done = {number for number in self._done if number > self._consumed}
        return ""

    def _bus_of(self, hub: int) -> str:
        return f"{self._home.rpartition('/')[0]}/bus-{hub}.sock"
