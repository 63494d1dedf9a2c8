"""The pure part: inboxes over a journal, under every order of events that Hypothesis thinks of."""

import fcntl
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
        self.thresholds = mock.patch.multiple(
            team, _COMPACT_BYTES=300, _COMPACT_RATIO=1, REMEMBERED_REFUSALS=3
        )
        self.thresholds.start()  # so that compaction happens all the time
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
            assert self.journal.size <= max(300, self.team.queued_bytes) + 3_000

    @contextmanager
    def without_room(self) -> Iterator[None]:
        """Every write of the journal fails."""
        with mock.patch.multiple(self.journal, append=_fail, rewrite=_fail):
            yield

    def teardown(self) -> None:
        self.thresholds.stop()
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
    with pytest.raises(BlockingIOError, match="another hub still holds"):
        Journal(tmp_path / "s" / "t")
    first.rewrite([message(b"a", b"b", 1, 1)])
    with pytest.raises(BlockingIOError, match="another hub still holds"):
        Journal(tmp_path / "s" / "t")
    first.close(remove=False)
    assert len(Journal(tmp_path / "s" / "t").loaded()) == 1


def test_a_journal_that_is_replaced_while_it_is_opened_is_opened_again(tmp_path: Path) -> None:
    """Its old holder wrote it anew and died, between the opening and the locking by this one."""
    path = tmp_path / "s" / "t"
    held = Journal(path)
    held.append([message(b"a", b"b", 1, 1)])
    lock = fcntl.flock
    newer = [message(b"a", b"b", 2, 1)]

    def late(descriptor: int, operation: int) -> None:
        if held.size:
            held.size = 0
            held.rewrite(newer)
            held.close(remove=False)
        lock(descriptor, operation)

    with mock.patch("fcntl.flock", side_effect=late):
        assert Journal(path).loaded() == newer


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


def kept(tmp_path: Path) -> tuple[Team, Inbox]:
    opened = Team("s", "t", AGENTS, Journal(tmp_path / "s" / "t"), Totals())
    inbox = opened.inbox(b"b")
    assert inbox is not None
    return opened, inbox


def put(opened: Team, inbox: Inbox, *numbers: int, together: bool = False) -> list[bytes]:
    raws = [message(b"a", b"b", number, 1) for number in numbers]
    inbox.count += len(raws)
    opened.store(raws, [inbox] * len(raws), together=together)
    return raws


@pytest.mark.parametrize("together", [False, True])
def test_a_reader_is_handed_what_is_stored_until_it_takes_no_more(tmp_path: Path, together: bool) -> None:
    opened, inbox = kept(tmp_path)
    taken: list[bytes] = []
    full: list[bool] = []
    inbox.send = lambda raw: taken.append(raw) or len(raw)  # type: ignore[func-returns-value]
    inbox.blocked = lambda: full.append(True)
    first = put(opened, inbox, 1, 2, together=together)
    assert taken == ([datagram.pack(datagram.BATCH, payload=b"".join(first))] if together else first)
    inbox.send = _full
    second = put(opened, inbox, 3, 4, together=together)
    assert full == [True]
    assert (list(inbox.sent), list(inbox.waiting)) == (first, second)
    inbox.deliver()
    assert full == [True, True]
    with pytest.raises(ValueError, match="has no message 3 yet"):
        opened.consume(inbox, 3)  # it was not sent, so its agent cannot know it
    released: list[bool] = []
    inbox.held.append(lambda: released.append(True))
    opened.consume(inbox, 2)
    assert released == [True]
    inbox.send = None
    third = put(opened, inbox, 5, 6, together=together)
    assert list(inbox.waiting) == second + third


def test_a_journal_that_cannot_be_rewritten_goes_on_as_it_is(tmp_path: Path) -> None:
    opened, inbox = kept(tmp_path)
    with mock.patch.multiple(team, _COMPACT_BYTES=100), mock.patch.object(Journal, "rewrite", _fail):
        opened._rewrite_above_bytes = 100
        for number in range(1, 20):
            put(opened, inbox, number)
            opened.consume(inbox, number, sent_only=False)
    opened.close(remove=False)
    again, inbox = kept(tmp_path)
    assert (again.queued, inbox.consumed) == (0, 19)


def test_a_rewrite_without_room_leaves_the_journal(tmp_path: Path) -> None:
    held = Journal(tmp_path / "s" / "t")
    held.append([message(b"a", b"b", 1, 1)])
    before = (tmp_path / "s" / "t").read_bytes()
    with mock.patch("os.write", return_value=3), pytest.raises(OSError, match="No space"):
        held.rewrite([message(b"a", b"b", 2, 1)])
    assert (tmp_path / "s" / "t").read_bytes() == before
    assert not (tmp_path / "s" / "t.new").exists()
    with (
        mock.patch("os.write", side_effect=OSError(28, "No space")),
        pytest.raises(OSError, match="No space"),
    ):
        held.append([message(b"a", b"b", 2, 1)])
    assert (tmp_path / "s" / "t").read_bytes() == before


def test_a_large_journal_is_rewritten_in_groups(tmp_path: Path) -> None:
    held = Journal(tmp_path / "s" / "t")
    records = [message(b"a", b"b", number, 1, 100_000) for number in range(15)]
    held.append(records[:1])
    held.rewrite(records)
    held.close(remove=False)
    assert Journal(tmp_path / "s" / "t").loaded() == records


def _full(_raw: bytes) -> int:
    raise BlockingIOError


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
