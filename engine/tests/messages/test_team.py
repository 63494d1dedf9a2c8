"""The pure part: inboxes over a journal, under every order of events that Hypothesis thinks of."""

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cfn.engine.messages import datagram, journal, team
from cfn.engine.messages.journal import Journal
from cfn.engine.messages.rates import BURST_S, TokenBucket
from cfn.engine.messages.team import Inbox, Team, Totals, sender_key
from cfn.errors import RefusedError

AGENTS = (b"a", b"b", b"c")
REASON = datagram.FULL


def message(sender: bytes, receiver: bytes, number: int, incarnation: int, size: int = 0) -> bytes:
    return datagram.pack(
        datagram.NOTE,
        number,
        incarnation=incarnation,
        sender=sender,
        receiver=receiver,
        type_=b"n",
        payload=b"x" * size,
    )


class Teams(RuleBasedStateMachine):
    """One team through crashes, full disks, compactions and handovers, against a plain model.

    The model is what the outside was told: each sender's decisions, and each inbox's messages.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory(prefix="cfn", dir="/dev/shm")
        self.path = Path(self.folder.name, "s", "t")
        self.threshold = team._COMPACT_BYTES
        team._COMPACT_BYTES = 2_000  # so that compaction happens all the time
        self.accepted: dict[bytes, list[bytes]] = defaultdict(list)  # of each inbox, all it ever took
        self.decisions: dict[tuple[bytes, int], int] = {}
        self.number = dict.fromkeys(AGENTS, 100)
        self.incarnation = dict.fromkeys(AGENTS, 1)
        self.consumed = dict.fromkeys(AGENTS, 0)
        self.totals = Totals()

    @initialize()
    def open(self) -> None:
        self.journal = Journal(self.path)
        self.team = Team("s", "t", AGENTS, self.journal, self.totals)

    def judge(self, raw: bytes, *, refuse: bool) -> int:
        """What a hub does with a message."""
        header = datagram.Header(raw)
        key = sender_key(header.sender, header.incarnation)
        sender = self.team.sender(key, header.incarnation)
        if sender is None:
            return datagram.EARLIER
        if header.number <= sender.last:
            return sender.refused.get(header.number, 0)
        if refuse:
            self.team.refuse(key, sender, header.number, REASON)
            return REASON
        inbox = self.team.inbox(header.receiver)
        assert inbox is not None
        inbox.count += 1
        try:
            self.team.store([raw], [inbox])
        except OSError:
            self.team.refuse(key, sender, header.number, datagram.NO_ROOM)
            return datagram.NO_ROOM
        sender.last = header.number
        self.accepted[header.receiver].append(raw)
        return 0

    @rule(
        sender=st.sampled_from(AGENTS),
        receiver=st.sampled_from(AGENTS),
        refuse=st.booleans(),
        size=st.integers(0, 300),
        full=st.booleans(),
        gap=st.integers(1, 3),
    )
    def send(self, sender: bytes, receiver: bytes, refuse: bool, size: int, full: bool, gap: int) -> None:
        self.number[sender] += gap
        raw = message(sender, receiver, self.number[sender], self.incarnation[sender], size)
        with self.without_room() if full else _nothing():
            decision = self.judge(raw, refuse=refuse)
        assert decision == (REASON if refuse else datagram.NO_ROOM if full else 0)
        self.decisions[sender, self.number[sender]] = decision
        self.last = (raw, decision)

    @precondition(lambda self: hasattr(self, "last"))
    @rule()
    def repeat(self) -> None:
        """What has a decision gets it again; only a refusal that a crash made forgotten is judged anew,
        and its sender was told of it, so it does not repeat it."""
        raw, decision = self.last
        if decision == 0:
            assert self.judge(raw, refuse=False) == 0

    @rule(sender=st.sampled_from(AGENTS))
    def restart_sender(self, sender: bytes) -> None:
        """An agent's next process: its numbers begin above everything before."""
        self.number[sender] += 1_000
        self.incarnation[sender] = self.number[sender]

    @rule(sender=st.sampled_from(AGENTS), receiver=st.sampled_from(AGENTS))
    def late(self, sender: bytes, receiver: bytes) -> None:
        """A message of an earlier process, after one of the present process was decided."""
        if self.decisions.get((sender, self.number[sender])) == 0 and self.incarnation[sender] > 1:
            raw = message(sender, receiver, 50, 1)
            assert self.judge(raw, refuse=False) == datagram.EARLIER

    @rule(agent=st.sampled_from(AGENTS), share=st.floats(0, 1), full=st.booleans())
    def consume(self, agent: bytes, share: float, full: bool) -> None:
        inbox = self.team.inbox(agent)
        assert inbox is not None
        wanted = int(share * inbox.count)
        with self.without_room() if full else _nothing():
            self.team.consume(inbox, inbox.consumed + wanted, sent_only=False)
        self.consumed[agent] += wanted
        if full and wanted:
            self.unsure = True  # a crash right now would repeat these

    @rule(agent=st.sampled_from(AGENTS), beyond=st.integers(1, 5))
    def consume_what_is_not_there(self, agent: bytes, beyond: int) -> None:
        inbox = self.team.inbox(agent)
        assert inbox is not None
        with pytest.raises(ValueError, match="has no message"):
            self.team.consume(inbox, inbox.consumed + inbox.count + beyond, sent_only=False)

    @rule(torn=st.binary(max_size=40))
    def crash(self, torn: bytes) -> None:
        """The hub dies, maybe in the middle of a write; another one opens the team."""
        os.close(self.journal._descriptor) if self.journal._descriptor >= 0 else None
        if self.path.exists():
            with self.path.open("ab") as file:
                file.write(torn)
        self.totals = Totals()
        self.open()
        if getattr(self, "unsure", False):
            self.unsure = False
            for agent in AGENTS:
                inbox = self.team.inbox(agent)
                assert inbox is not None
                assert inbox.consumed <= self.consumed[agent]
                self.consumed[agent] = inbox.consumed

    @rule()
    def hand_over(self) -> None:
        self.team.close(remove=False)
        assert (self.totals.messages, self.totals.bytes) == (0, 0)
        self.unsure = False
        self.open()

    @invariant()
    def every_inbox_holds_what_it_was_given(self) -> None:
        """Once, in order, under the same numbers, across everything above."""
        if not hasattr(self, "team"):
            return
        for agent in AGENTS:
            inbox = self.team.inbox(agent)
            assert inbox is not None
            assert inbox.consumed == self.consumed[agent]
            assert [*inbox.sent, *inbox.waiting] == self.accepted[agent][inbox.consumed :]
            assert inbox.count == len(inbox.sent) + len(inbox.waiting)
        waiting = [raw for inbox in self.team.inboxes.values() for raw in inbox.waiting]
        assert self.totals.messages == self.team.queued == len(waiting)
        assert self.totals.bytes == self.team.queued_bytes == sum(map(len, waiting))

    @invariant()
    def the_journal_is_bounded(self) -> None:
        if hasattr(self, "team"):
            assert self.journal.size <= max(2_000, 4 * self.team.queued_bytes) + team._COMPACT_BYTES + 2_000

    @contextmanager
    def without_room(self) -> Iterator[None]:
        """Every write of the journal fails."""
        with mock.patch.multiple(self.journal, append=_fail, rewrite=_fail):
            yield

    def teardown(self) -> None:
        team._COMPACT_BYTES = self.threshold
        if hasattr(self, "team"):
            self.team.close(remove=True)
            assert not self.path.parent.exists()
        self.folder.cleanup()


def _fail(*_: object) -> None:
    raise OSError("no room")


@contextmanager
def _nothing() -> Iterator[None]:
    yield


TestTeams = Teams.TestCase
TestTeams.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_journal_or_are_cut(raw: bytes) -> None:
    records, whole = journal.decode(raw)
    assert whole <= len(raw)
    again, size = journal.decode(raw[:whole])
    assert (again, size) == (records, whole)


@given(st.lists(st.lists(st.binary(max_size=30), min_size=1, max_size=4), max_size=6), st.data())
def test_a_journal_that_was_torn_or_spoiled_keeps_its_whole_beginning(
    groups: list[list[bytes]], data: st.DataObject
) -> None:
    records = [[datagram.pack(datagram.NOTE, payload=one) for one in group] for group in groups]
    encoded = [journal.encode(group) for group in records]
    raw = b"".join(encoded)
    assert journal.decode(raw) == ([one for group in records for one in group], len(raw))
    if raw:
        place = data.draw(st.integers(0, len(raw) - 1))
        before = 0
        kept: list[bytes] = []
        for group, one in zip(records, encoded, strict=True):
            if before + len(one) > place:
                break
            before += len(one)
            kept += group
        assert journal.decode(raw[:place]) == (kept, before)
        spoiled = bytearray(raw)
        spoiled[place] ^= 0x40
        assert journal.decode(bytes(spoiled)) == (kept, before)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_datagram_or_refused(raw: bytes) -> None:
    try:
        header = datagram.Header(raw)
    except ValueError:
        return
    assert header.size <= len(raw)
    assert datagram.size(raw) == header.size


def test_a_journal_has_one_holder(tmp_path: Path) -> None:
    first = Journal(tmp_path / "s" / "t")
    first.append([message(b"a", b"b", 1, 1)])
    with pytest.raises(RefusedError, match="another hub still holds"):
        Journal(tmp_path / "s" / "t")
    first.rewrite([message(b"a", b"b", 1, 1)])
    with pytest.raises(RefusedError, match="another hub still holds"):
        Journal(tmp_path / "s" / "t")
    first.close(remove=False)
    assert len(Journal(tmp_path / "s" / "t").loaded()) == 1


def test_a_link_in_place_of_a_journal_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "victim").write_bytes(b"")
    (tmp_path / "s" / "t").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        Journal(tmp_path / "s" / "t")


def test_what_a_reader_was_sent_comes_first_after_it_left() -> None:
    inbox = Inbox(b"b")
    taken: list[bytes] = []

    def send(raw: bytes) -> int:
        if len(taken) == 2:
            raise BlockingIOError
        taken.append(raw)
        return len(raw)

    blocked: list[bool] = []
    inbox.send = send
    inbox.blocked = lambda: blocked.append(True)
    inbox.waiting.extend([b"1", b"2", b"3"])
    inbox.deliver()
    assert (taken, blocked) == ([b"1", b"2"], [True])
    inbox.detach()
    assert list(inbox.waiting) == [b"1", b"2", b"3"]


@given(
    rate=st.integers(1, 1_000_000),
    steps=st.lists(st.tuples(st.floats(0, 10), st.integers(0, 64)), max_size=50),
)
def test_over_any_time_a_sender_gets_its_rate_and_one_burst(
    rate: int, steps: list[tuple[float, int]]
) -> None:
    bucket = TokenBucket(0.0)
    now_s, sent, wait_s, turn = 0.0, 0, 0.0, 0
    for pause_s, messages in steps:
        now_s += max(pause_s, wait_s)  # it is not read before
        wait_s = bucket.spend(messages, rate, now_s)
        sent += messages
        turn = messages
        assert sent - turn <= max(1.0, rate * BURST_S) + now_s * rate + 1e-6 * sent
        assert wait_s >= 0


def test_a_clock_that_goes_back_grants_nothing() -> None:
    bucket = TokenBucket(100.0)
    assert bucket.spend(25, 100, 100.0) == pytest.approx(0.01)
    assert bucket.spend(0, 100, 50.0) == pytest.approx(0.01)
    assert bucket.spend(0, 100, 50.02) == 0
