"""A hub's side of the claims: what a slot says in each state, with other processes that hold or died."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cfn.engine.claims import Arena, Arenas, Ended, Slots, Standing, Verdict, ended
from cfn.engine.lean import claim, records

from .harness import SOURCE

KEY = 9
DONE = Ended(reason=records.NONE, exit_code=0, output=b"x" * 100)

# Another process: takes a slot (or only its lock), says so, and waits to be told to end or to be killed.
_HOLDER = """
import fcntl, os, sys
from cfn.engine.lean import claim, records
arena, slot, key, outputs, how = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
f = os.open(arena, os.O_RDWR)
if how == "lock":
    fcntl.lockf(f, fcntl.LOCK_EX, 1, slot * 64)
else:
    assert claim.take(f, slot, key, records.ticket(key)) == claim.TAKEN
print(os.getpid(), flush=True)
if sys.stdin.readline():
    claim.end(f, slot, key, outputs, slot, reason=0, exit_code=0, output=b"x" * 100)
    print("ended", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def arena(tmp_path: Path) -> Arena:
    made = Arena(tmp_path, tmp_path, 0)
    made.open_slots(0, 4, KEY)
    return made


@contextmanager
def holder(folder: Path, slot: int, how: str = "claim") -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", _HOLDER, folder / "0", str(slot), str(KEY), folder, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    with process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        yield process
        process.kill()


def test_an_open_slot_can_be_fenced_once_and_for_all(arena: Arena) -> None:
    assert arena.judge(1, KEY, 0).standing is Standing.UNCLAIMED
    assert arena.fence(1, KEY, 0).standing is Standing.FENCED
    assert arena.fence(1, KEY, 0).standing is arena.judge(1, KEY, 0).standing is Standing.FENCED
    assert not arena.claim(1, KEY)
    assert arena.judge(0, KEY, 0).standing is Standing.UNCLAIMED  # the one beside it


def test_a_claimed_slot_cannot_be_fenced_while_its_process_lives_or_after(
    arena: Arena, tmp_path: Path
) -> None:
    before_s = time.monotonic()
    with holder(tmp_path, 2) as process:
        verdict = arena.judge(2, KEY, 2)
        assert (verdict.standing, verdict.pid) == (Standing.RUNNING, process.pid)
        assert before_s <= verdict.since_s <= time.monotonic()
        assert arena.fence(2, KEY, 2) == verdict
    assert arena.judge(2, KEY, 2) == arena.fence(2, KEY, 2) == Verdict(standing=Standing.ORPHANED)


def test_a_process_between_lock_and_claim_shows(arena: Arena, tmp_path: Path) -> None:
    with holder(tmp_path, 2, "lock") as process:
        locked = Verdict(standing=Standing.LOCKED, pid=process.pid)
        assert arena.judge(2, KEY, 2) == arena.fence(2, KEY, 2) == locked
        assert not arena.claim(2, KEY)
    assert arena.fence(2, KEY, 2).standing is Standing.FENCED


def test_an_end_is_found_while_its_process_lives_and_after(arena: Arena, tmp_path: Path) -> None:
    with holder(tmp_path, 2) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        print("end", file=process.stdin, flush=True)
        assert process.stdout.readline() == "ended\n"
        assert arena.judge(2, KEY, 2) == Verdict(standing=Standing.ENDED, ended=DONE)
    assert arena.fence(2, KEY, 2) == Verdict(standing=Standing.ENDED, ended=DONE)


def test_on_behalf_of_an_agent_that_cannot_lock(arena: Arena) -> None:
    assert arena.claim(3, KEY)
    assert not arena.claim(3, KEY)
    assert arena.judge(3, KEY, 3).standing is Standing.ORPHANED  # nobody holds it
    arena.end(3, KEY, 3, Ended(reason=records.NOT_STARTED, exit_code=None))
    assert arena.judge(3, KEY, 3).ended == Ended(reason=records.NOT_STARTED, exit_code=None)


@pytest.mark.parametrize("raw", [bytes(64), records.ticket(KEY + 1), b"garbage" * 9 + b"x"])
def test_what_is_not_this_requests_counts_as_claimed(arena: Arena, tmp_path: Path, raw: bytes) -> None:
    with (tmp_path / "0").open("r+b") as file:
        file.write(raw)
    assert arena.judge(0, KEY, 0).standing is arena.fence(0, KEY, 0).standing is Standing.ORPHANED


def test_a_new_request_takes_the_slots_over(arena: Arena) -> None:
    arena.fence(0, KEY, 0)
    arena.open_slots(0, 4, KEY + 1)
    assert arena.judge(0, KEY + 1, 0).standing is Standing.UNCLAIMED
    assert arena.judge(0, KEY, 0).standing is Standing.ORPHANED


def test_without_room_a_request_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(tmp_path, tmp_path, 0)
    monkeypatch.setattr("cfn.engine.claims.os.pwrite", lambda _descriptor, raw, _at: len(raw) - 1)
    with pytest.raises(OSError, match="no room in tmpfs"):
        arena.open_slots(0, 4, KEY)


def test_an_error_of_the_kernel_is_no_verdict(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(37, "no locks available")

    monkeypatch.setattr("cfn.engine.claims.fcntl.lockf", fail)
    with pytest.raises(OSError, match="no locks"):
        arena.fence(0, KEY, 0)


def test_a_shard_is_opened_once_and_no_link_is_followed(tmp_path: Path) -> None:
    arenas = Arenas(tmp_path, tmp_path)
    assert arenas.shard(3) is arenas.shard(3)
    (tmp_path / "5").symlink_to(tmp_path / "3")
    with pytest.raises(OSError, match="Too many levels"):
        arenas.shard(5)


@pytest.mark.parametrize(
    ("end", "state", "text"),
    [
        (ended(records.NONE, 0, b""), "done", ""),
        (ended(records.EXIT, 3, b""), "failed", "ended with exit code 3"),
        (ended(records.SIGNAL, -9, b""), "failed", "ended by signal 9"),
        (ended(records.TIMED_OUT, 0, b""), "failed", "timed out"),
        (ended(records.NOT_STARTED, 0, b""), "failed", "the agent command could not be started"),
    ],
)
def test_ends_in_words(end: Ended, state: str, text: str) -> None:
    assert (end.state, end.text) == (state, text)
    assert (end.exit_code is None) == (end.reason == records.NOT_STARTED)


def test_a_holder_is_refused_by_a_fence(arena: Arena, tmp_path: Path) -> None:
    arena.fence(1, KEY, 1)
    descriptor = os.open(tmp_path / "0", os.O_RDWR)
    assert claim.take(descriptor, 1, KEY, records.ticket(KEY)) == claim.FENCED


class SlotsOfShards(RuleBasedStateMachine):
    """First fit against a set of numbers: what is taken never overlaps, and is as low as can be."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots()
        self.taken: dict[tuple[int, int], int] = {}

    def used(self, shard: int) -> set[int]:
        return {
            number
            for (of, base), size in self.taken.items()
            if of == shard
            for number in range(base, base + size)
        }

    @rule(shard=st.integers(0, 2), size=st.integers(1, 6))
    def take(self, shard: int, size: int) -> None:
        used = self.used(shard)
        base = self.slots.take(shard, size)
        wanted = set(range(base, base + size))
        assert not used & wanted
        assert not any(not used & set(range(low, low + size)) for low in range(base))
        self.taken[shard, base] = size

    @rule(position=st.integers(0, 30))
    def release(self, position: int) -> None:
        if self.taken:
            key = sorted(self.taken)[position % len(self.taken)]
            del self.taken[key]
            self.slots.release(*key)

    @rule()
    def restart(self) -> None:
        self.slots = Slots()
        for (shard, base), size in self.taken.items():
            self.slots.note(shard, base, size)

    @rule(shard=st.integers(0, 2))
    def nothing_takes_nothing(self, shard: int) -> None:
        self.slots.note(shard, 3, 0)
        self.slots.release(7, 3)

    @invariant()
    def it_is_bounded(self) -> None:
        for shard in range(3):
            assert len(self.used(shard)) == sum(s for (of, _), s in self.taken.items() if of == shard)


TestSlots = SlotsOfShards.TestCase
TestSlots.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
