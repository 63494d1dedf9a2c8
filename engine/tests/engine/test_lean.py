"""What crosses sockets and tmpfs between hubs, spawner and workers: tables, and any bytes at all."""

import _socket
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfn.engine.lean import agent_process, claim, control, records, sessions, wire
from cfn.errors import DamagedError

KEY = 3 << 32 | 5
TICKET = records.ticket(KEY)
TASK = wire.Task("t", "s", "team-1", "/out", "/bus", 10, 20, 30, ("/bin/true", "-x"))


def fields(thing: object) -> dict[str, object]:
    return {name: getattr(thing, name) for name in type(thing).__slots__}  # type: ignore[attr-defined]


# Records


@pytest.mark.parametrize("kind", [records.OPEN, records.CLAIMED, records.FENCED, records.ENDED])
@pytest.mark.parametrize("output", [b"", b"x", b"x" * 24, b"x" * 25, b"x" * 131_072])
@pytest.mark.parametrize("exit_code", [0, 255, -9])
def test_a_record_is_read_as_it_was_written(kind: int, output: bytes, exit_code: int) -> None:
    raw = records.encode(kind, KEY, pid=77, at_ns=9, reason=records.EXIT, exit_code=exit_code, output=output)
    assert len(raw) == records.RECORD_BYTES
    read = records.decode(raw)
    assert read is not None
    assert fields(read) == {
        "kind": kind,
        "reason": records.EXIT,
        "pid": 77,
        "key": KEY,
        "exit_code": exit_code,
        "output_bytes": len(output),
        "at_ns": 9,
        "inline": output[:24],
    }


@pytest.mark.parametrize("position", range(64))
def test_a_record_with_any_bit_wrong_is_none(position: int) -> None:
    raw = bytearray(records.encode(records.ENDED, KEY, pid=11, at_ns=12, output=b"abc"))
    for bit in range(8):
        raw[position] ^= 1 << bit
        assert records.decode(bytes(raw)) is None
        raw[position] ^= 1 << bit


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        bytes(64),
        TICKET[:63],
        TICKET + b"x",
        records.encode(0, KEY),
        records.encode(5, KEY),
        records.encode(records.ENDED, KEY, reason=7),
    ],
)
def test_what_is_no_record_is_none(raw: bytes) -> None:
    assert records.decode(raw) is None


@given(st.binary(min_size=64, max_size=64))
def test_any_64_bytes_are_decoded_or_none(raw: bytes) -> None:
    record = records.decode(raw)
    assert record is None or record.kind in range(1, 5)


@pytest.mark.parametrize(
    ("reason", "code", "text"),
    [
        (records.NONE, 0, ""),
        (records.EXIT, 3, "ended with exit code 3"),
        (records.SIGNAL, -9, "ended by signal 9"),
        (records.TIMED_OUT, -15, "timed out"),
        (records.NO_COMMAND, 127, "the agent command does not exist or cannot be executed"),
        (records.STOPPED, -15, "stopped with its swarm"),
        (records.NOT_STARTED, None, "the agent command could not be started"),
    ],
)
def test_reasons_in_words(reason: int, code: int | None, text: str) -> None:
    assert records.reason_text(reason, code) == text


# Assignments and answers


@pytest.mark.parametrize("payload", [b"", b"p\0q", b"x" * 131_072])
@pytest.mark.parametrize("task", [TASK, wire.Task("t", "s", "m", "/o")])
def test_an_assignment_is_read_as_it_was_written(payload: bytes, task: wire.Task) -> None:
    raw = wire.head(4, 9) + wire.common(8, KEY, TICKET, task, payload)
    assert raw[0] == wire.ASSIGN
    read = wire.read_assignment(raw)
    assert (read.index, read.slot, read.epoch, read.key, read.ticket) == (4, 9, 8, KEY, TICKET)
    assert read.payload == payload
    assert fields(read.task) == fields(task)


def test_an_assignment_cut_anywhere_is_refused_or_short_of_payload() -> None:
    raw = wire.head(4, 9) + wire.common(8, KEY, TICKET, TASK, b"payload")
    for length in range(len(raw)):
        try:
            read = wire.read_assignment(raw[:length])
        except DamagedError:
            continue
        assert b"payload".startswith(read.payload)
        assert fields(read.task) == fields(TASK)


@given(st.binary(max_size=300))
def test_no_bytes_break_a_reader(raw: bytes) -> None:
    for read in (wire.read_assignment, wire.read_answer, wire.read_common):
        try:
            read(raw)
        except DamagedError:
            continue
    assert wire.message_number(raw) >= -1


@pytest.mark.parametrize("kind", [wire.CLAIMED, wire.RESULT, wire.REFUSED, wire.RECEIVED])
def test_an_answer_is_read_as_it_was_written(kind: int) -> None:
    raw = wire.answer(kind, 7, KEY, reason=records.SIGNAL, exit_code=-9, output=b"out")
    assert wire.read_answer(raw) == (kind, records.SIGNAL, 7, KEY, -9, b"out")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        wire.answer(wire.RESULT, 0, 0, output=b"abc")[:-1],
        wire.answer(wire.RESULT, 0, 0, output=b"abc") + b"x",
        wire.answer(wire.ASSIGN, 0, 0),
        wire.answer(wire.STOP, 0, 0),
        wire.answer(8, 0, 0),
        wire.answer(wire.RESULT, 0, 0, reason=7),
    ],
)
def test_what_is_no_answer_is_refused(raw: bytes) -> None:
    with pytest.raises(DamagedError):
        wire.read_answer(raw)


def test_messages_and_stop() -> None:
    assert wire.message_number(wire.message(2**63)) == 2**63
    assert wire.message_number(wire.stop()) == -1
    assert (wire.message(1)[0], wire.stop()[0]) == (wire.MESSAGE, wire.STOP)


# Control messages


def test_control_messages_are_read_as_they_were_written() -> None:
    listed = control.rows([("a", 1), ("b", 2)])
    raw = control.message("word", "swarm", 4, listed)
    assert control.fields_of(raw, 4) == ["word", "swarm", "4", "a 1\nb 2"]
    assert control.items_of(listed, 2) == [["a", "1"], ["b", "2"]]
    assert control.items_of("", 2) == []
    assert control.message("w", "x", tail=b"\0raw").partition(b"\0\0")[2] == b"\0raw"


@pytest.mark.parametrize(
    "read",
    [
        lambda: control.fields_of(b"\xff\xfe", 1),
        lambda: control.fields_of(b"a\0b", 3),
        lambda: control.fields_of(b"", 2),
        lambda: control.items_of("a b\nc", 2),
        lambda: control.number("x"),
        lambda: control.number(""),
    ],
)
def test_malformed_control_messages_are_refused(read: Callable[[], object]) -> None:
    with pytest.raises(DamagedError):
        read()


@pytest.fixture
def pair() -> Iterator[tuple[control.Channel, control.Channel]]:
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    channels = control.Channel(ours), control.Channel(theirs)
    yield channels
    for channel in channels:
        channel.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count


def test_descriptors_cross_a_channel_and_none_leaks(pair: tuple[control.Channel, control.Channel]) -> None:
    left, right = pair
    before = open_descriptors()
    descriptor = os.open("/dev/null", os.O_RDONLY)
    left.send(b"x", [descriptor] * control.MAX_DESCRIPTORS)
    os.close(descriptor)
    received = right.receive()
    assert received is not None
    assert (received[0], len(received[1])) == (b"x", control.MAX_DESCRIPTORS)
    assert not any(os.get_inheritable(number) for number in received[1])
    for number in received[1]:
        os.close(number)
    assert right.receive() is None
    assert open_descriptors() == before


def test_a_channel_queues_what_is_not_read_up_to_its_bound(
    pair: tuple[control.Channel, control.Channel],
) -> None:
    left, right = pair
    before = open_descriptors()
    sent = 0
    while True:
        try:
            left.send(str(sent).encode(), [0] if sent % 100 == 0 else [])
        except BlockingIOError:
            break
        sent += 1
    assert left.pending
    got = 0
    while got < sent:
        left.flush()
        while (received := right.receive()) is not None:
            assert received[0] == str(got).encode()  # in order
            for number in received[1]:
                os.close(number)
            got += 1
    assert not left.pending
    assert open_descriptors() == before


def test_a_channel_that_is_closed_closes_what_waited(pair: tuple[control.Channel, control.Channel]) -> None:
    left, _ = pair
    before = open_descriptors()
    while not left.pending:
        left.send(b"x" * 1000, [0])
    left.close()
    assert open_descriptors() < before


def test_the_end_of_the_other_side_shows_after_what_it_sent(
    pair: tuple[control.Channel, control.Channel],
) -> None:
    left, right = pair
    left.send(b"last")
    right.send(b"unread")
    left.close()
    assert right.receive() == (b"last", [])
    with pytest.raises(EOFError):
        right.receive()
    with pytest.raises(OSError, match="pipe"):
        right.send(b"x")


def test_an_own_peer_is_told_by_its_process(pair: tuple[control.Channel, control.Channel]) -> None:
    assert control.own_peer(pair[0].socket) == os.getpid()


def test_another_users_peer_is_refused() -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        os.seteuid(65_534)
        try:
            control.own_peer(ours)
        except DamagedError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    ours.close()
    theirs.close()


# Claims, a worker's side


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "0", os.O_RDWR | os.O_CREAT, 0o600)
    os.pwrite(descriptor, TICKET * 3, 0)
    yield descriptor
    os.close(descriptor)


def test_a_slot_is_taken_once(arena: int) -> None:
    assert claim.take(arena, 1, KEY, TICKET) == claim.TAKEN
    assert claim.take(arena, 1, KEY, TICKET) == claim.EARLIER
    assert claim.take_and_end(arena, 1, KEY, TICKET, b"x") == claim.EARLIER
    assert claim.take_and_end(arena, 2, KEY, TICKET, b"x") == claim.TAKEN
    assert claim.take_and_end(arena, 2, KEY, TICKET, b"y") == claim.EARLIER
    assert claim.stored_end(arena, 2, KEY, "", 0) == (records.NONE, 0, b"x")
    assert claim.stored_end(arena, 1, KEY, "", 0) is None
    assert claim.stored_end(arena, 2, KEY + 1, "", 0) is None


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (records.encode(records.FENCED, KEY), claim.FENCED),
        (records.ticket(KEY + 1), claim.FENCED),  # another request has the slot
        (records.encode(records.ENDED, KEY + 1), claim.FENCED),
        (records.encode(records.CLAIMED, KEY), claim.EARLIER),
        (records.encode(records.ENDED, KEY), claim.EARLIER),
        (bytes(64), claim.EARLIER),  # damaged counts as claimed
        (TICKET[:-1] + b"x", claim.EARLIER),
        (b"", claim.EARLIER),
    ],
)
def test_what_cannot_be_taken(arena: int, found: bytes, verdict: int) -> None:
    os.ftruncate(arena, 0)
    os.pwrite(arena, found, 0)
    assert claim.take(arena, 0, KEY, TICKET) == verdict
    assert claim.take_and_end(arena, 0, KEY, TICKET, b"x") == verdict
    assert os.pread(arena, 64, 0) == found


@pytest.mark.parametrize("size", [0, 24, 25, 300_000])
def test_an_end_keeps_its_output(arena: int, tmp_path: Path, size: int) -> None:
    outputs = str(tmp_path / "outputs")
    os.mkdir(outputs)  # noqa: PTH102
    assert claim.take(arena, 0, KEY, TICKET) == claim.TAKEN
    for _ in range(2):  # a second one replaces the first
        claim.end(arena, 0, KEY, outputs, 4, reason=records.EXIT, exit_code=3, output=b"o" * size)
    assert claim.stored_end(arena, 0, KEY, outputs, 4) == (records.EXIT, 3, b"o" * size)
    assert os.path.exists(claim.output_path(outputs, KEY, 4)) == (size > 24)  # noqa: PTH110


def test_a_long_output_without_room_keeps_its_beginning(arena: int, tmp_path: Path) -> None:
    claim.take(arena, 0, KEY, TICKET)
    claim.end(arena, 0, KEY, str(tmp_path / "none"), 4, reason=0, exit_code=0, output=b"abc" * 100)
    assert claim.stored_end(arena, 0, KEY, str(tmp_path / "none"), 4) == (0, 0, (b"abc" * 100)[:24])


def test_a_long_output_that_is_gone_keeps_its_beginning(arena: int, tmp_path: Path) -> None:
    claim.take(arena, 0, KEY, TICKET)
    claim.end(arena, 0, KEY, str(tmp_path), 4, reason=0, exit_code=0, output=b"abc" * 100)
    os.unlink(claim.output_path(str(tmp_path), KEY, 4))  # noqa: PTH108
    assert claim.stored_end(arena, 0, KEY, str(tmp_path), 4) == (0, 0, (b"abc" * 100)[:24])


def test_a_planted_link_is_not_followed(arena: int, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    os.mkdir(claim.output_folder(str(tmp_path), KEY))  # noqa: PTH102
    os.symlink(target, claim.output_path(str(tmp_path), KEY, 4))  # noqa: PTH211
    claim.take(arena, 0, KEY, TICKET)
    claim.end(arena, 0, KEY, str(tmp_path), 4, reason=0, exit_code=0, output=b"abc" * 100)
    assert target.read_text() == "mine"


# Agent processes and sessions


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(), (records.NO_COMMAND, 127)),
        (PermissionError(), (records.NO_COMMAND, 127)),
        (NotADirectoryError(), (records.NO_COMMAND, 127)),
        (OSError(11, "again"), (records.NOT_STARTED, 0)),
    ],
)
def test_what_a_command_that_cannot_be_started_says(error: OSError, said: tuple[int, int]) -> None:
    assert agent_process.failure(error) == said


def test_a_process_name_may_hold_anything() -> None:
    assert sessions.parse("1 (a) S (x)) R 2 3 4 5 6") == ("R", 4)
    assert sessions.parse("1 (a b\n) Z 2 3 44 5") == ("Z", 44)


def test_sessions_of_this_process(tmp_path: Path) -> None:
    own = os.getsid(0)
    assert os.getpid() in sessions.members({own}) or os.getpid() == own
    assert sessions.lives(os.getpid())
    assert not sessions.lives(2**22 + 1)
    (tmp_path / "5").mkdir()
    (tmp_path / "x").mkdir()
    (tmp_path / "5" / "stat").write_text("5 (z) Z 1 1 9 0 0")
    (tmp_path / "7").mkdir()  # it ended while it was looked at
    assert sessions.members({9}, str(tmp_path)) == []
    (tmp_path / "5" / "stat").write_text("5 (z) S 1 1 9 0 0")
    assert sessions.members({9}, str(tmp_path)) == [5]
    assert sessions.members({5, 9}, str(tmp_path)) == []


def test_layouts_are_what_the_documents_say() -> None:
    assert struct.unpack_from("<BBBB", TICKET) == (0xCF, records.OPEN, 0, 0)
    assert struct.unpack_from("<Q", TICKET, 8) == (KEY,)
    assert wire.MAX_DATAGRAM_BYTES < 212_992
    assert socket.SOCK_SEQPACKET == _socket.SOCK_SEQPACKET
