"""The one layout of everything about messages: on the bus, in the journal, inside the mesh.

offset  size  field
     0     8  number: the sender's number of the message; for control datagrams see `Kind` below
     8     8  answers: the number of the question that an ANSWER answers, else 0
    16     4  bytes of the payload
    20     1  kind
    21     3  bytes of the sender's name, of the receiver's, of the type
    24     8  incarnation: which process of the sender, by its start on the monotonic clock (ns)
    32        sender, receiver, type, payload

What stays the same from one message of a stream to the next lies together (20 to the payload), so
that a hub checks all of it with one look into a dictionary. Numbers of a process begin above its
incarnation, so they rise over an agent's whole life and name a message in its swarm. Agents import
this module: it imports nothing but struct.
"""

import struct

HEADER = struct.Struct("<QQIBBBBQ")
HEADER_BYTES = HEADER.size
CONSTANT_OFFSET = 20

# Messages. A hub passes them on as they are.
NOTE = 1
QUESTION = 2
ANSWER = 3
BROADCAST = 4  # from its sender without a receiver: to every other agent of the swarm
# Agent to hub.
HELLO = 16  # sender, receiver = team, type = swarm; number: first undecided; answers: last consumed
CONSUMED = 17  # number: all messages up to this one of my inbox are done with
BATCH = 18  # the payload is whole messages, one after the other
# Hub to agent.
WELCOME = 32  # number: the first message that comes has this number in the inbox
DECIDED = 33  # number: up to here accepted (stored), but for those refused before
REFUSED = 34  # number, answers = one of REASONS; for a broadcast the payload counts the inboxes
MOVED = 35  # number: the hub to ask, maybe the same one again; a moment later
GOODBYE = 36  # answers = one of REASONS: the connection ends and must not be made again
# Journal only.
SENDER = 48  # number: the last one decided; sender
INBOX = 49  # number: the last one consumed; sender = whose inbox

MESSAGES = frozenset((NOTE, QUESTION, ANSWER, BROADCAST))

MAX_NAME_BYTES = 128
MAX_PAYLOAD_BYTES = 131_072
MAX_DATAGRAM_BYTES = HEADER_BYTES + 3 * MAX_NAME_BYTES + MAX_PAYLOAD_BYTES  # below a default send buffer

# Why a message was refused; the texts say which bound, and what to do.
FULL = 1
QUEUED_MESSAGES = 2
QUEUED_BYTES = 3
PAYLOAD = 4
NO_ROOM = 5
RATE = 6
NO_AGENT = 7
ENDED = 8
EARLIER = 9
REPLACED = 10
NAME = 11
MALFORMED = 12
STRANGER = 13
READ = 14

REASONS = {
    FULL: "the receiver's inbox is full and it takes nothing out (CFN_MAX_INBOX)",
    QUEUED_MESSAGES: "too many messages wait in all inboxes of this hub (CFN_MAX_QUEUED_MESSAGES)",
    QUEUED_BYTES: "too many bytes wait in all inboxes of this hub (CFN_MAX_QUEUED_SIZE)",
    PAYLOAD: "the payload is larger than CFN_MAX_PAYLOAD",
    NO_ROOM: "no room in tmpfs to store the message",
    RATE: "the sender has reached CFN_MAX_SENDER_RATE; try again in a second",
    NO_AGENT: "the swarm has no such agent",
    ENDED: "the swarm has ended",
    EARLIER: "a later process of this agent sends now",
    REPLACED: "another process of this agent connected",
    NAME: "an agent's name or the message type is not an identifier (docs/reference/messages.md)",
    MALFORMED: "a datagram made no sense",
    STRANGER: "this user may not be an agent here",
    READ: "the agent reads this inbox itself",
}

# Those that are bounds, as the counters name them.
BOUNDS = {
    FULL: "inbox_full",
    QUEUED_MESSAGES: "queued_messages",
    QUEUED_BYTES: "queued_bytes",
    PAYLOAD: "payload",
    NO_ROOM: "no_room",
}


class Header:
    """A datagram taken apart. `end` is where the payload begins, `size` how long all of it is."""

    __slots__ = ("answers", "end", "incarnation", "kind", "number", "receiver", "sender", "size", "type")

    def __init__(self, raw: bytes, offset: int = 0) -> None:
        """Raises ValueError for anything that is not the beginning of a whole datagram."""
        if len(raw) - offset < HEADER_BYTES:
            raise ValueError("shorter than a header")
        self.number, self.answers, payload_bytes, self.kind, sender, receiver, type_, self.incarnation = (
            HEADER.unpack_from(raw, offset)
        )
        start = offset + HEADER_BYTES
        self.sender = raw[start : start + sender]
        start += sender
        self.receiver = raw[start : start + receiver]
        start += receiver
        self.type = raw[start : start + type_]
        self.end = start + type_
        self.size = self.end - offset + payload_bytes
        if offset + self.size > len(raw):
            raise ValueError("shorter than its header says")


def pack(
    kind: int,
    number: int = 0,
    answers: int = 0,
    *,
    incarnation: int = 0,
    sender: bytes = b"",
    receiver: bytes = b"",
    type_: bytes = b"",
    payload: bytes = b"",
) -> bytes:
    """A datagram. Raises struct.error for a name of more than 255 bytes."""
    head = HEADER.pack(
        number, answers, len(payload), kind, len(sender), len(receiver), len(type_), incarnation
    )
    return head + sender + receiver + type_ + payload


def size(raw: bytes, offset: int = 0) -> int:
    """The bytes of the datagram that begins at `offset`. Raises struct.error when there is no header."""
    _, _, payload, _, sender, receiver, type_, _ = HEADER.unpack_from(raw, offset)
    return int(HEADER_BYTES + sender + receiver + type_ + payload)


def addressed(raw: bytes, receiver: bytes) -> bytes:
    """A broadcast's copy for one receiver."""
    number, answers, payload, kind, sender, old, type_, incarnation = HEADER.unpack_from(raw)
    start = HEADER_BYTES + sender
    head = HEADER.pack(number, answers, payload, kind, sender, len(receiver), type_, incarnation)
    return head + raw[HEADER_BYTES:start] + receiver + raw[start + old :]
