"""The mesh: one SEQPACKET connection between each two hubs, and what is said on it.

The hub with the higher number dials the one with the lower, again and again until it is there. Both
say HELLO first: number and generation. A datagram:

offset  size  field
     0     1  kind
     1     1  bytes of the swarm's id
     2     2  bytes of the team's or agent's name
     4     4  code
     8     8  token
    16     8  number
    24        swarm's id, name, body

A link that is up loses nothing; what a broken one may have lost is repeated by lanes.py. Only
processes of the same user are hubs.
"""

import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from cfn.engine.log import log
from cfn.engine.loop import Loop
from cfn.engine.messages import credentials
from cfn.engine.messages.flow import Flow
from cfn.engine.messages.listener import Listener

HELLO = 1  # token: the hub's number; number: its generation
MESSAGE = 2  # token: the sender's own; number: the one that must be decided before; name: the team
DECISIONS = 3  # body: DECISION records
TAKE = 4  # token: of the request; name: the agent
TAKEN = 5  # token: as asked; code: a reason + 1; number: the first message's; body: messages
CONFIRM = 6  # name: the agent; number: everything up to it was handed over

DECISION = struct.Struct("<QiI")  # token, reason (0 stored, -1 not now), inboxes skipped

MAX_FRAME_BYTES = 190_000  # below a default send buffer (212,992)
REDIAL_S = 0.05
HELLO_S = 2.0

_HEADER = struct.Struct("<BBHIQQ")


class Frame:
    """One datagram between hubs, taken apart."""

    __slots__ = ("body", "code", "kind", "name", "number", "swarm_id", "token")

    def __init__(self, raw: bytes) -> None:
        """Raises ValueError for anything that is none."""
        if len(raw) < _HEADER.size:
            raise ValueError("shorter than a header")
        self.kind, swarm, name, self.code, self.token, self.number = _HEADER.unpack_from(raw)
        start = _HEADER.size
        if start + swarm + name > len(raw):
            raise ValueError("shorter than its header says")
        self.swarm_id = raw[start : start + swarm].decode("ascii")
        start += swarm
        self.name = raw[start : start + name].decode("ascii")
        self.body = raw[start + name :]


def pack(
    kind: int,
    *,
    swarm_id: str = "",
    name: str = "",
    code: int = 0,
    token: int = 0,
    number: int = 0,
    body: bytes = b"",
) -> bytes:
    """A datagram between hubs."""
    swarm, label = swarm_id.encode(), name.encode()
    return _HEADER.pack(kind, len(swarm), len(label), code, token, number) + swarm + label + body


class Link(Flow):
    """One connection to another hub, from the moment it is made."""

    def __init__(self, mesh: "Mesh", loop: Loop, connection: socket.socket, dialled: int) -> None:
        super().__init__(loop, connection, MAX_FRAME_BYTES + 1)
        self.hub = -1  # unknown before its hello
        self.dialled = dialled  # the hub that should be there, -1 for one that dialled us
        self._mesh = mesh
        self._greeting = loop.at(time.monotonic() + HELLO_S, self._silent)
        self.say(pack(HELLO, token=mesh.number, number=mesh.generation))

    def handle(self, came: deque[bytes] | list[bytes]) -> None:
        """Hand whole frames to the mesh; anything else ends the link."""
        frames = []
        try:
            for raw in came:
                frames.append(Frame(raw))
        except ValueError as error:
            log("mesh link dropped", hub=self.hub, reason=str(error))
            self.close()
            return
        if self.hub < 0:
            hello = frames.pop(0)
            if hello.kind != HELLO or not self._mesh.introduced(self, hello.token, hello.number):
                self.close()
                return
            self._greeting.cancel()
        if frames:
            self._mesh.received(self.hub, frames)

    def flushed(self) -> None:
        """Nothing else waits for the other hub."""

    def hung_up(self) -> None:
        """A link is never paused, so its end is read at once."""

    def ended(self) -> None:
        """Tell the mesh."""
        self._greeting.cancel()
        self._mesh.ended(self)

    def _silent(self) -> None:
        if self.hub < 0:
            self.close()


class Mesh:
    """This hub's links to all others. `others` names them as of now, without this one."""

    def __init__(
        self,
        loop: Loop,
        number: int,
        generation: int,
        socket_of: Callable[[int], Path],
        others: Callable[[], Iterable[int]],
    ) -> None:
        self.number = number
        self.generation = generation
        self.received: Callable[[int, list[Frame]], None] = lambda _hub, _frames: None
        self.came: Callable[[int], None] = lambda _hub: None
        self.went: Callable[[int], None] = lambda _hub: None
        self._loop = loop
        self._socket_of = socket_of
        self._others = others
        self._links: dict[int, Link] = {}
        self._generations: dict[int, int] = {}
        self._strangers: set[Link] = set()
        self._closed = False
        self._listener = Listener(loop, socket_of(number), self._admit)
        self._dial()

    @property
    def links(self) -> list[int]:
        """The hubs that are connected now."""
        return sorted(self._links)

    def send(self, hub: int, raw: bytes) -> bool:
        """Send to a hub; False when it is not connected or does not read."""
        link = self._links.get(hub)
        return link is not None and link.say(raw)

    def insist(self, hub: int, raw: bytes) -> None:
        """Send to a hub what it waits for. One that does not read is cut off: it repeats what it sent."""
        link = self._links.get(hub)
        if link is not None and not link.say(raw):
            link.close()

    def close(self) -> None:
        """End all links and the listening socket."""
        self._closed = True
        self._listener.close()
        for link in [*self._links.values(), *self._strangers]:
            link.close()

    def introduced(self, link: Link, hub: int, generation: int) -> bool:
        """A link said who it is: it takes the place of an older one. False: it is itself the older."""
        self._strangers.discard(link)
        if (
            link.dialled not in (-1, hub)
            or hub not in self._others()
            or generation < self._generations.get(hub, 0)
        ):
            return False
        old = self._links.get(hub)
        if old is not None:
            old.close()
        link.hub = hub
        self._links[hub] = link
        self._generations[hub] = generation
        self.came(hub)
        return True

    def ended(self, link: Link) -> None:
        """A link is closed."""
        self._strangers.discard(link)
        if self._links.get(link.hub) is link:
            del self._links[link.hub]
            self.went(link.hub)

    def _dial(self) -> None:
        if self._closed:
            return
        dialled = {link.dialled for link in self._strangers}
        for hub in self._others():
            if hub < self.number and hub not in self._links and hub not in dialled:
                self._connect(hub)
        self._loop.at(time.monotonic() + REDIAL_S, self._dial)

    def _connect(self, hub: int) -> None:
        try:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:  # no descriptor is left: again soon
            return
        try:
            connection.setblocking(False)
            connection.connect(str(self._socket_of(hub)))
        except OSError:  # not there yet, or its queue is full: again soon
            connection.close()
            return
        self._admit(connection, hub)

    def _admit(self, connection: socket.socket, dialled: int = -1) -> None:
        if not credentials.same_user(connection):
            log("mesh link refused", reason="another user")
            connection.close()
            return
        self._strangers.add(Link(self, self._loop, connection, dialled))
