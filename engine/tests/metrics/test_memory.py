"""Pieces that are remembered, and reduced on several cores: the same evidence in every way."""

import hashlib
import json
import os
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfn.metrics import event_line, files, tallier
from cfn.metrics.evidence import Evidence
from cfn.metrics.files import pieces
from cfn.metrics.memory import Memory
from cfn.metrics.records import Coordinated, DamagedLineError, read_event
from cfn.metrics.reduce import reduce_events
from cfn.metrics.tally import Hasher
from cfn.metrics.times import format_ms
from cfn.router.split import bucket, ordered_version

KEY = "a-key-of-the-tests"
T0 = 1_700_000_000_000


def event(number: int, **changes: Any) -> bytes:
    task = f"task-{number}"
    task_bucket = bucket(KEY, changes.get("sticky_key", task))
    ordered = ordered_version("v2", Decimal(50), task_bucket)
    value = {
        "v": 1, "type": "coordination", "time": format_ms(T0 + number * 10), "host": "h", "release": "r",
        "task_id": task, "agents": 2, "bucket": task_bucket, "generation": 4, "version": "v2",
        "traffic_pct": 50, "ordered": ordered, "served": ordered, "reason": "split", "fallback": None,
        "outcome": "done", "states": {"done": 2}, "coordination_time_ms": 100.5 + number % 50,
        "delivery_rate_pct": 100.0, "completion_rate_pct": 100.0, "error_rate_pct": 0.0,
    } | changes  # fmt: skip
    return json.dumps(value).encode() + b"\n"


def reduced(path: Path, folder: Path | None) -> dict[str, Any]:
    evidence = Evidence(host="h", since_ms=T0, until_ms=T0 + 60_000, bucket_ms=2_000)
    memory = Memory(folder, split_key=KEY, bucket_ms=2_000)
    with ExitStack() as stack:
        reduce_events(pieces(path, stack), evidence, split_key=KEY, now_ms=T0 + 100_000_000, memory=memory)
    return evidence.as_json()


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Events of some fifty pieces."""
    monkeypatch.setattr(files, "PIECE_BYTES", 20_000)
    path = tmp_path / "log"
    path.write_bytes(b"".join(map(event, range(2_000))))
    return path


def test_what_is_remembered_is_what_is_reduced(log: Path, tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    fresh = reduced(log, None)
    assert fresh["events"]["records"] == 2_000
    assert reduced(log, folder) == fresh
    assert len(list(folder.iterdir())) > 20
    assert reduced(log, folder) == fresh
    log.rename(log.with_name("log.1"))
    log.write_bytes(event(2_000))
    rotated = reduced(log, folder)
    assert rotated == reduced(log, None)
    assert rotated["events"]["records"] == 2_001


def test_one_changed_byte_is_seen_although_all_else_is_remembered(log: Path, tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    reduced(log, folder)
    content = log.read_bytes()
    place = content.index(b'"ordered": "v2"', len(content) // 2)
    log.write_bytes(content[: place + 13] + b"1" + content[place + 14 :])
    found = reduced(log, folder)
    assert found["arms"]["mismatches"] == 1
    assert found == reduced(log, None)


def test_a_damaged_entry_is_as_good_as_none_and_another_key_has_its_own(log: Path, tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    fresh = reduced(log, folder)
    for entry in folder.iterdir():
        entry.write_bytes(entry.read_bytes()[:40])
    assert reduced(log, folder) == fresh
    names = {
        Memory(folder, split_key=key, bucket_ms=size).name(b"x")
        for key in ("a" * 8, "b" * 8)
        for size in (1, 2)
    }
    assert len(names) == 4


@pytest.mark.parametrize("how", ["open", "link", "file"])
def test_a_folder_that_others_could_write_in_is_not_used(log: Path, tmp_path: Path, how: str) -> None:
    folder, other = tmp_path / "memory", tmp_path / "other"
    other.mkdir(mode=0o700)
    if how == "open":
        folder.mkdir()
        folder.chmod(0o777)
    elif how == "link":
        folder.symlink_to(other)
    else:
        folder.write_text("")
    assert reduced(log, folder) == reduced(log, None)
    assert not list(other.iterdir())
    assert how == "file" or not list(folder.iterdir())


def test_an_old_entry_is_forgotten(log: Path, tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    reduced(log, folder)
    old = folder / ("0" * 64)
    old.write_bytes(b"")
    os.utime(old, (0, 0))
    reduced(log, folder)
    assert not old.exists()


def test_several_cores_give_the_same_as_one(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several = reduced(log, None)
    monkeypatch.setattr(tallier, "MAX_PROCESSES", 1)
    assert reduced(log, None) == several


def test_a_duplicate_is_found_across_pieces_and_parts(log: Path, tmp_path: Path) -> None:
    once = reduced(log, None)
    content = log.read_bytes()
    log.with_name("log.1").write_bytes(content)
    twice = reduced(log, tmp_path / "memory")
    assert twice["events"]["damaged"]["duplicate"] == 2_000
    assert twice["request_cells"] == once["request_cells"]


# One event, read in two ways


def test_the_hash_is_that_of_the_split() -> None:
    for key in ("short-key", "k" * 64, "k" * 128):
        hasher = Hasher(key)
        assert all(hasher.number(f"t{n}") % 10_000 == bucket(key, f"t{n}") for n in range(50))
    digest = hashlib.sha256(b"").hexdigest()
    assert len(digest) == 64


def test_a_sticky_key_is_what_its_bucket_is_of(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(event(number, sticky_key="customer-7") for number in range(5)))
    found = reduced(path, None)
    assert (found["events"]["records"], found["arms"]["mismatches"]) == (5, 0)


_ODD: st.SearchStrategy[object] = st.sampled_from(
    [None, True, -1, 0, 1, 0.5, 101, 1e12, "v2", "", "2026-01-01T00:00:00Z", "10", [], {}, {"done": 2},
     {"done": 1, "odd": 1}, {"done": 2, "failed": 0, "undelivered": 0, "unknown": 0}]
)  # fmt: skip


@settings(max_examples=300)
@given(st.sampled_from(sorted(json.loads(event(1)))), _ODD)
def test_the_fast_decoder_takes_nothing_that_the_careful_one_refuses(field: str, value: object) -> None:
    line = event(1, **({} if field == "sticky_key" else {field: value}))
    try:
        fast = event_line.decode(line)
        moment_ms = event_line.time_ms(fast.time)
        states = fast.states
        total = states.done + states.failed + states.undelivered + states.unknown
        taken = total == fast.agents
    except (msgspec.DecodeError, ValueError):
        return
    try:
        slow = read_event(line)
    except DamagedLineError:
        assert not taken
        return
    assert isinstance(slow, Coordinated)
    assert (slow.time_ms, slow.agents, slow.bucket, slow.outcome) == (
        moment_ms, fast.agents, fast.bucket, fast.outcome,
    )  # fmt: skip
    assert float(slow.config.traffic_pct) == fast.traffic_pct
