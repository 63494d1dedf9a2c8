"""The conductor's journal: torn at any byte, full at any byte, swept at any time, nothing is lost."""

import errno
import os
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cfn.engine.request_log import Request, RequestLog, TeamPlan
from cfn.errors import DamagedError


def request(task_id: str, at_s: float = 1.0, payload: bytes = b"p") -> Request:
    return Request(
        task_id=task_id,
        key=7,
        teams=(
            TeamPlan(team="team-1", shard=1, base=4, first=3, count=2),
            TeamPlan(team="guests", shard=0, base=0, named=("a", "b")),
        ),
        hybrid=True,
        payload=payload,
        command=("/bin/true", "-x"),
        deadline_ms=1500,
        swarm_id="s",
        accepted_at_s=at_s,
    )


def test_a_request_is_read_as_it_was_written(tmp_path: Path) -> None:
    log = RequestLog(tmp_path)
    log.accept(request("b", 2.0))
    log.accept(request("a", 1.0, payload=bytes(range(256))))
    log.accept(request("c", 3.0))
    log.complete("c", b"{}")
    log.close()
    again = RequestLog(tmp_path)
    assert again.open_requests == [request("a", 1.0, payload=bytes(range(256))), request("b", 2.0)]
    assert (again.outcome("c"), again.outcome("a"), again.outcome("z")) == (b"{}", None, None)
    first = again.open_requests[0]
    assert (first.agents, first.deadline_at_s) == (6, 2.5)
    assert [team.agents for team in first.teams] == [("agent-3", "agent-4"), ("a", "b")]


@pytest.mark.parametrize("size", [0, 10, 2_047, 2_048, 500_000])
def test_an_outcome_of_any_size(tmp_path: Path, size: int) -> None:
    log = RequestLog(tmp_path)
    log.accept(request("a"))
    log.complete("a", b"x" * size)
    assert log.outcome("a") == RequestLog(tmp_path).outcome("a") == b"x" * size
    assert log.stored_bytes == sum(file.stat().st_size for file in tmp_path.iterdir()) < 10_000


@pytest.mark.parametrize("kind", ["accept", "complete"])
def test_torn_at_any_byte_it_is_cut_off_and_the_rest_stands(tmp_path: Path, kind: str) -> None:
    log = RequestLog(tmp_path)
    log.accept(request("a"))
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    if kind == "accept":
        log.accept(request("b", 2.0, b"payload"))
    else:
        log.complete("a", b"outcome")
    log.close()
    torn = file.read_bytes()
    for length in range(len(whole), len(torn)):
        file.write_bytes(torn[:length])
        log = RequestLog(tmp_path)
        assert log.open_requests == [request("a")]
        assert file.read_bytes() == whole
        log.accept(request("c", 3.0))  # and it goes on behind what was cut off
        log.close()
        assert [r.task_id for r in RequestLog(tmp_path).open_requests] == ["a", "c"]


@pytest.mark.parametrize("position", [0, 4, 9, 13, 17, 25, 60, -1])
def test_a_damaged_record_ends_the_journal_there(tmp_path: Path, position: int) -> None:
    log = RequestLog(tmp_path)
    log.accept(request("a"))
    (file,) = tmp_path.iterdir()
    first = file.stat().st_size
    log.accept(request("b", 2.0))
    log.close()
    raw = bytearray(file.read_bytes())
    at = first + position if position >= 0 else len(raw) - 1
    raw[at] ^= 0x55
    file.write_bytes(raw)
    assert [r.task_id for r in RequestLog(tmp_path).open_requests] in (
        [["a"], ["a", "b"]] if position == 4 else [["a"]]
    )


def test_what_a_later_release_accepted_is_left_alone(tmp_path: Path) -> None:
    log = RequestLog(tmp_path)
    with mock.patch("cfn.engine.request_log._accept_head", return_value=b'{"task_id": "new", "teams": 3}'):
        log.accept(request("new"))
    log.accept(request("a"))
    log.close()
    assert [r.task_id for r in RequestLog(tmp_path).open_requests] == ["a"]


def test_an_outcome_that_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    log = RequestLog(tmp_path)
    log.accept(request("a"))
    log.complete("a", b"x" * 5_000)
    (file,) = tmp_path.iterdir()
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(DamagedError, match="outcome of a"):
        log.outcome("a")


def test_old_segments_go_and_what_is_open_in_them_stays(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, segment_bytes=1_000)
    log.accept(request("open", 0.5))
    for number in range(20):
        log.accept(request(f"t{number}"))
        log.complete(f"t{number}", b"{}")
    segments = len(list(tmp_path.iterdir()))
    assert log.sweep(0.0) == 0
    assert log.sweep(2e10) == segments  # the newest too: age counts there as well
    assert log.outcome("t0") is log.outcome("t19") is None
    for again in (log, RequestLog(tmp_path)):
        assert [r.task_id for r in again.open_requests] == ["open"]


def test_more_that_is_open_than_the_bound_is_swept_once_and_kept(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, segment_bytes=1_000, max_bytes=2_000)
    for number in range(9):
        log.accept(request(f"t{number}", float(number), b"p" * 400))
    log.sweep(0.0)
    assert [r.task_id for r in RequestLog(tmp_path).open_requests] == [f"t{number}" for number in range(9)]


def test_a_sweep_that_finds_no_room_is_taken_up_later(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, segment_bytes=900)
    for name in ("a", "b"):
        log.accept(request(name, payload=b"p" * 200))
    log.accept(request("c", payload=b"p" * 300))  # in the next segment, for which there is room once
    room = Room()
    room.left = 800  # for one of the two
    full = pytest.raises(OSError, match=r"room|full")
    with mock.patch("cfn.engine.request_log.os.write", room.write), full:
        log.sweep(2e10)
    log.complete("a", b"{}")
    log.complete("b", b"{}")
    assert log.sweep(2e10) >= 1
    assert [r.task_id for r in RequestLog(tmp_path).open_requests] == ["c"]


def test_more_bytes_than_the_bound_go_oldest_first(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, segment_bytes=1_000, max_bytes=4_000)
    for number in range(30):
        log.accept(request(f"t{number}"))
        log.complete(f"t{number}", b"{}")
        log.sweep(0.0)
    assert log.stored_bytes <= 4_000 + 1_000
    assert log.outcome("t0") is None
    assert log.outcome("t29") == b"{}"


def test_a_new_segment_that_cannot_be_opened_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, segment_bytes=100)
    log.accept(request("a"))
    with (
        mock.patch("cfn.engine.request_log.os.open", side_effect=OSError(errno.EMFILE, "no")),
        pytest.raises(OSError, match="no"),
    ):
        log.accept(request("b"))
    log.accept(request("c", 2.0))
    log.complete("a", b"{}")
    again = RequestLog(tmp_path)
    assert [r.task_id for r in again.open_requests] == ["c"]
    assert again.outcome("a") == log.outcome("a") == b"{}"


class Room:
    """Stands in for `os.write`: tmpfs takes this many bytes more, then part of a write, then none."""

    def __init__(self) -> None:
        self.left = 1 << 30

    def write(self, descriptor: int, raw: bytes) -> int:
        taken = min(self.left, len(raw))
        self.left -= taken
        if not taken:
            raise OSError(errno.ENOSPC, "full")
        return real_write(descriptor, raw[:taken])


real_write = os.write


class Journal(RuleBasedStateMachine):
    """A model of what was promised: whatever was accepted and not completed is open, in every later life."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="cfn", dir="/dev/shm"))
        self.room = Room()
        self.patch = mock.patch("cfn.engine.request_log.os.write", self.room.write)
        self.patch.start()
        self.open: dict[str, Request] = {}
        self.complete: dict[str, bytes] = {}
        self.swept = False
        self.number = 0
        self.log = self.load()

    def load(self) -> RequestLog:
        return RequestLog(self.folder, segment_bytes=1_500)

    @rule(size=st.integers(0, 1_000), left=st.one_of(st.none(), st.integers(0, 1_200)))
    def accept(self, size: int, left: int | None) -> None:
        self.number += 1
        asked = request(f"t{self.number}", float(self.number), b"p" * size)
        with self.limited(left) as full:
            self.log.accept(asked)
        if not full:
            self.open[asked.task_id] = asked

    @rule(
        position=st.integers(0, 5), size=st.integers(0, 3_000), left=st.one_of(st.none(), st.integers(0, 300))
    )
    def end(self, position: int, size: int, left: int | None) -> None:
        if not self.open:
            return
        task_id = sorted(self.open)[position % len(self.open)]
        outcome = os.urandom(size)
        with self.limited(left) as full:
            self.log.complete(task_id, outcome)
        if not full:
            del self.open[task_id]
            self.complete[task_id] = outcome

    @rule(left=st.one_of(st.none(), st.integers(0, 900)))
    def sweep(self, left: int | None) -> None:
        with self.limited(left):
            self.log.sweep(2e10)
        self.swept = True

    @rule(torn=st.binary(max_size=60))
    def crash(self, torn: bytes) -> None:
        """The process is gone, perhaps in the middle of a write."""
        self.log.close()
        with max(self.folder.glob("*.log")).open("ab") as file:
            file.write(torn if not torn.startswith(b"CFNR") else b"")
        self.log = self.load()

    def limited(self, left: int | None) -> "_Full":
        return _Full(self.room, left)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert {r.task_id: r for r in self.log.open_requests} == self.open
        for task_id, outcome in self.complete.items():
            found = self.log.outcome(task_id)
            assert found == outcome or (found is None and self.swept)
        stored = sum(file.stat().st_size for file in self.folder.iterdir())
        assert self.log.stored_bytes == stored

    def teardown(self) -> None:
        self.patch.stop()
        self.log.close()
        shutil.rmtree(self.folder)


class _Full(list[OSError]):
    """Limits the room for a while; holds the error that came of it."""

    def __init__(self, room: Room, left: int | None) -> None:
        super().__init__()
        self._room = room
        if left is not None:
            room.left = left

    def __enter__(self) -> "_Full":
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        self._room.left = 1 << 30
        if isinstance(error, OSError):
            self.append(error)
        return isinstance(error, OSError)


TestJournal = Journal.TestCase
TestJournal.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
