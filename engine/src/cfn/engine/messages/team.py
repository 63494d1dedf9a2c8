"""The inboxes of one team, and what is known of everybody who ever wrote to it.

The state is memory; every change is in the team's journal before anybody hears of it, so that any
hub can open the team after this one died. Nothing here knows sockets or clocks.

Why a message is stored once: a sender numbers its messages upwards and repeats those that it has
no decision for, in order. A team keeps, for each sender, the last number that it decided on. What
is not above it was decided before, and gets the same answer again. A refusal need not be stored by
itself: it is written with the next message that is, and until then a repetition is simply judged
anew.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Protocol

from cfn.engine.messages import datagram

HUB_INCARNATION = 1 << 63  # from here on: a hub that puts messages for callers, by its number
REMEMBERED_REFUSALS = 1_024  # of each sender; more than it may have undecided at once
_COMPACT_BYTES = 1 << 20  # a journal is not rewritten below this, and then below 4 x what is live
_COMPACT_RATIO = 4


class Storage(Protocol):
    """Where a team's records go; journal.Journal is one."""

    size: int

    def loaded(self) -> list[bytes]:
        """What was stored before, oldest first."""

    def append(self, records: Sequence[bytes]) -> None:
        """Store all or none. Raises OSError."""

    def rewrite(self, records: Iterable[bytes]) -> None:
        """Put these in place of all that is stored, at once. Raises OSError."""

    def close(self, *, remove: bool) -> None:
        """Let go."""


class Totals:
    """What waits in all inboxes of a hub."""

    __slots__ = ("bytes", "messages")

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0


class Sender:
    """What a team decided on one sender's messages: all up to `last`; `refused` holds the reasons."""

    __slots__ = ("incarnation", "last", "refused", "unwritten")

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.last = 0
        self.refused: dict[int, int] = {}
        self.unwritten: list[int] = []  # refusals that the journal does not have yet


class Inbox:
    """Messages for one agent. The first of `sent` (then of `waiting`) has the number `consumed` + 1.

    `count` includes those that are being stored right now. `send` hands a datagram to the agent's
    connection; `blocked` is called when it does not take one.
    """

    __slots__ = ("blocked", "consumed", "count", "full_since_s", "held", "name", "send", "sent", "waiting")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.consumed = 0
        self.count = 0
        self.sent: deque[bytes] = deque()
        self.waiting: deque[bytes] = deque()
        self.full_since_s = 0.0  # since when it refuses or holds back, 0: it does not
        self.send: Callable[[bytes], int] | None = None
        self.blocked: Callable[[], None] | None = None
        self.held: list[Callable[[], None]] = []  # senders that wait for room, called when there is

    def deliver(self) -> None:
        """Hand out what waits, as far as the agent's connection takes it."""
        waiting, sent, send = self.waiting, self.sent, self.send
        while waiting and send is not None:
            try:
                send(waiting[0])
            except OSError:
                if self.blocked is not None:
                    self.blocked()
                return
            sent.append(waiting.popleft())

    def hand_over(self, messages: Sequence[bytes]) -> None:
        """Hand out stored messages in one datagram."""
        if self.send is not None and not self.waiting:
            try:
                self.send(datagram.pack(datagram.BATCH, payload=b"".join(messages)))
            except OSError:
                if self.blocked is not None:
                    self.blocked()
            else:
                self.sent.extend(messages)
                return
        self.waiting.extend(messages)

    def release(self) -> None:
        """There is room, or the inbox has left this hub: those who wait may try again."""
        held, self.held = self.held, []
        for resume in held:
            resume()

    def detach(self) -> None:
        """The agent's connection is gone: what it did not consume will be sent again."""
        self.send = self.blocked = None
        self.waiting.extendleft(reversed(self.sent))
        self.sent.clear()


def sender_key(name: bytes, incarnation: int) -> bytes:
    """Under what a team knows a sender: its name; for a hub, which puts messages under many names, its
    incarnation."""
    return name if incarnation < HUB_INCARNATION else b"\0" + incarnation.to_bytes(8, "little")


class Team:
    """One team's inboxes. `agents` may be sent to; other inboxes exist only if the journal has them."""

    def __init__(
        self, swarm_id: str, name: str, agents: Iterable[bytes], storage: Storage, totals: Totals
    ) -> None:
        """Loads what is stored, and counts it in `totals`."""
        self.swarm_id = swarm_id
        self.name = name
        self.agents = set(agents)
        self.inboxes: dict[bytes, Inbox] = {}
        self.senders: dict[bytes, Sender] = {}
        self.queued_bytes = 0
        self._storage = storage
        self._unwritten_refusals: dict[bytes, Sender] = {}
        self._unwritten_consumed: dict[bytes, Inbox] = {}
        self._rewrite_above_bytes = _COMPACT_BYTES
        self._totals = totals
        for record in storage.loaded():
            self._replay(record)
        totals.messages += self.queued
        totals.bytes += self.queued_bytes

    @property
    def queued(self) -> int:
        """Messages in all inboxes."""
        return sum(inbox.count for inbox in self.inboxes.values())

    def inbox(self, agent: bytes) -> Inbox | None:
        """The inbox of one of its agents."""
        found = self.inboxes.get(agent)
        if found is None and agent in self.agents:
            found = self.inboxes[agent] = Inbox(agent)
        return found

    def sender(self, key: bytes, incarnation: int) -> Sender | None:
        """What is known of a sender; None: a later process of the same agent has written since."""
        found = self.senders.get(key)
        if found is None:
            found = self.senders[key] = Sender(incarnation)
        elif incarnation > found.incarnation:
            found.incarnation = incarnation
            found.refused.clear()
            found.unwritten.clear()
        return found if found.incarnation == incarnation else None

    def store(self, messages: Sequence[bytes], inboxes: Sequence[Inbox], *, together: bool = False) -> None:
        """Store messages, then hand each to its inbox, whose `count` has it already. `together`: those
        for one agent may go to it in one datagram.

        Raises OSError: nothing is stored, and every `count` is as it was before these came.
        """
        records: Sequence[bytes] = messages
        if self._unwritten_refusals or self._unwritten_consumed:
            records = [*self._unwritten(), *messages]
        try:
            self._storage.append(records)
        except OSError:
            for inbox in inboxes:
                inbox.count -= 1
            raise
        if records is not messages:
            self._written()
        size = sum(map(len, messages))
        self.queued_bytes += size
        self._totals.bytes += size
        self._totals.messages += len(messages)
        if together and len(messages) > 1 and all(inbox is inboxes[0] for inbox in inboxes):
            inboxes[0].hand_over(messages)
            messages = ()
        for message, inbox in zip(messages, inboxes, strict=False):
            if inbox.send is None or inbox.waiting:
                inbox.waiting.append(message)
                continue
            try:
                inbox.send(message)
            except OSError:
                inbox.waiting.append(message)
                if inbox.blocked is not None:
                    inbox.blocked()
            else:
                inbox.sent.append(message)
        if self._storage.size > self._rewrite_above_bytes:
            self._compact()

    def refuse(self, key: bytes, sender: Sender, number: int, reason: int) -> None:
        """Decide against a message."""
        sender.last = max(sender.last, number)
        sender.refused[number] = reason
        sender.unwritten.append(number)
        self._unwritten_refusals[key] = sender
        while len(sender.refused) > REMEMBERED_REFUSALS:
            del sender.refused[next(iter(sender.refused))]
        del sender.unwritten[:-REMEMBERED_REFUSALS]

    def consume(self, inbox: Inbox, number: int, *, sent_only: bool = True) -> None:
        """Everything up to a number is done with: take it out.

        `sent_only`: the agent itself says so, and can only know what it was sent. Raises ValueError
        for a number that was never given out.
        """
        wanted = number - inbox.consumed
        if wanted <= 0:
            return
        if wanted > len(inbox.sent) + (0 if sent_only else len(inbox.waiting)):
            raise ValueError(f"{inbox.name.decode()} has no message {number} yet")
        freed = 0
        for _ in range(wanted):
            freed += len((inbox.sent or inbox.waiting).popleft())
        inbox.consumed = number
        inbox.count -= wanted
        inbox.full_since_s = 0.0
        self.queued_bytes -= freed
        self._totals.bytes -= freed
        self._totals.messages -= wanted
        self._unwritten_consumed[inbox.name] = inbox
        self._write_rest()
        if self._storage.size > self._rewrite_above_bytes:
            self._compact()
        inbox.release()

    def close(self, *, remove: bool) -> None:
        """Let go of the journal, or remove it with all that is in it."""
        if not remove:
            self._write_rest()
        self._storage.close(remove=remove)
        self._totals.messages -= self.queued
        self._totals.bytes -= self.queued_bytes

    def _write_rest(self) -> None:
        """Write what was not worth a write by itself. Without room it stays for the next one: a crash
        before that repeats consumed messages, and judges refused ones anew."""
        if self._unwritten_refusals or self._unwritten_consumed:
            with suppress(OSError):
                self._storage.append(list(self._unwritten()))
                self._written()

    def _unwritten(self) -> Iterator[bytes]:
        for key, sender in self._unwritten_refusals.items():
            for number in sender.unwritten:
                yield _refusal(key, sender, number)
        for inbox in self._unwritten_consumed.values():
            yield datagram.pack(datagram.CONSUMED, inbox.consumed, sender=inbox.name)

    def _written(self) -> None:
        for sender in self._unwritten_refusals.values():
            sender.unwritten.clear()
        self._unwritten_refusals.clear()
        self._unwritten_consumed.clear()

    def _compact(self) -> None:
        size = self._storage.size
        if size <= _COMPACT_RATIO * self.queued_bytes:
            return
        try:
            self._storage.rewrite(self._state())
        except OSError:  # no room for a second copy now: the journal stays valid as it is
            self._rewrite_above_bytes = size + _COMPACT_BYTES
            return
        self._written()
        self._rewrite_above_bytes = _COMPACT_BYTES

    def _state(self) -> Iterator[bytes]:
        """The records that say all that is known now."""
        for key, sender in self.senders.items():
            yield datagram.pack(datagram.SENDER, sender.last, incarnation=sender.incarnation, sender=key)
            for number in sender.refused:
                yield _refusal(key, sender, number)
        for inbox in self.inboxes.values():
            yield datagram.pack(datagram.INBOX, inbox.consumed, sender=inbox.name)
            yield from inbox.sent
            yield from inbox.waiting

    def _replay(self, record: bytes) -> None:
        header = datagram.Header(record)
        if header.kind in datagram.MESSAGES:
            key = sender_key(header.sender, header.incarnation)
            sender = self.sender(key, header.incarnation)
            if sender is not None:
                sender.last = max(sender.last, header.number)
            inbox = self._known(header.receiver)
            inbox.waiting.append(record)
            inbox.count += 1
            self.queued_bytes += len(record)
        elif header.kind == datagram.INBOX:
            self._known(header.sender).consumed = header.number
        elif header.kind == datagram.CONSUMED:
            inbox = self._known(header.sender)
            while inbox.waiting and inbox.consumed < header.number:
                self.queued_bytes -= len(inbox.waiting.popleft())
                inbox.consumed += 1
                inbox.count -= 1
        elif header.kind in (datagram.SENDER, datagram.REFUSED):
            sender = self.sender(header.sender, header.incarnation)
            if sender is not None:
                sender.last = max(sender.last, header.number)
                if header.kind == datagram.REFUSED:
                    sender.refused[header.number] = header.answers

    def _known(self, name: bytes) -> Inbox:
        found = self.inboxes.get(name)
        if found is None:
            found = self.inboxes[name] = Inbox(name)
        return found


def _refusal(key: bytes, sender: Sender, number: int) -> bytes:
    reason = sender.refused[number]
    return datagram.pack(datagram.REFUSED, number, reason, incarnation=sender.incarnation, sender=key)
