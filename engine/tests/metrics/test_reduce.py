"""The reduction: what counts, what is damaged, and that damage is never a value."""

import hashlib
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfn.commands.metrics import collect, main
from cfn.errors import ConfigError, DamagedError, UsageError
from cfn.metrics.arm import Arm
from cfn.metrics.evidence import LOST_KINDS, Evidence, Gauge
from cfn.metrics.files import Piece, pieces
from cfn.metrics.memory import Memory
from cfn.metrics.records import DamagedLineError, read_event, read_sample
from cfn.metrics.reduce import reduce_events, reduce_samples, restarts_since
from cfn.metrics.times import format_ms
from cfn.paths import Paths
from cfn.router.split import bucket, ordered_version

KEY = "a-key-of-the-tests"
T0 = 1_700_000_000_000
NOW = T0 + 60_000


def event(number: int = 1, at_ms: int = 1_000, **changes: Any) -> dict[str, Any]:
    task = f"task-{number}"
    task_bucket = bucket(KEY, task)
    ordered = ordered_version("v2", Decimal(50), task_bucket)
    return {
        "v": 1,
        "type": "coordination",
        "time": format_ms(T0 + at_ms),
        "host": "h",
        "release": "r1",
        "task_id": task,
        "agents": 10,
        "bucket": task_bucket,
        "generation": 4,
        "version": "v2",
        "traffic_pct": 50,
        "ordered": ordered,
        "served": ordered,
        "reason": "split",
        "fallback": None,
        "outcome": "done",
        "states": {"done": 10, "failed": 0, "undelivered": 0, "unknown": 0},
        "coordination_time_ms": 100.0,
        "delivery_rate_pct": 100.0,
        "completion_rate_pct": 100.0,
        "error_rate_pct": 0.0,
        "total_time_ms": 120.0,
    } | changes


def generation(**changes: Any) -> dict[str, Any]:
    return {
        "v": 1,
        "type": "generation",
        "time": format_ms(T0 - 5_000),
        "host": "h",
        "release": "r1",
        "generation": 4,
        "version": "v2",
        "traffic_pct": 50,
        "epoch": 1,
        "split_key_sha256": hashlib.sha256(KEY.encode()).hexdigest()[:16],
        "max_agents": 100,
    } | changes


def sample(at_s: float = 1.0, **changes: Any) -> dict[str, Any]:
    return {
        "v": 1,
        "host": "h",
        "release": "r1",
        "timestamp": T0 / 1000 + at_s,
        "memory_kb": 1000,
        "fd_count": 10,
        "starts": {"conductor": 1, "spawner": 1, "router": 1},
    } | changes


@contextmanager
def as_pieces(records: Sequence[Any], rest: bytes = b"") -> Iterator[Iterator[Piece]]:
    """The records as the pieces of a file that ends in `rest`."""
    lines = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in records]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        file = Path(folder) / "lines"
        file.write_bytes(b"".join(line + b"\n" for line in lines) + rest)
        yield pieces(file, stack)


def events(*records: Any, rest: bytes = b"", memory: Memory | None = None) -> Evidence:
    evidence = Evidence(host="h", since_ms=T0, until_ms=T0 + 20_000, bucket_ms=2_000)
    memory = memory or Memory(None, split_key=KEY, bucket_ms=2_000)
    with as_pieces(records, rest) as found:
        reduce_events(found, evidence, split_key=KEY, now_ms=NOW, memory=memory)
    return evidence


def samples(*records: Any) -> Evidence:
    evidence = Evidence(host="h", since_ms=T0, until_ms=T0 + 20_000, bucket_ms=2_000)
    with as_pieces(records) as found:
        reduce_samples(found, evidence, now_ms=NOW)
    return evidence


def requests(evidence: Evidence) -> int:
    return sum(cell.v1.requests + cell.v2.requests for cell in evidence.requests.values())


# What counts


def test_events_fall_into_buckets_by_ordered_version() -> None:
    found = events(generation(), *(event(number, number * 100) for number in range(1, 101)))
    v2 = sum(cell.v2.requests for cell in found.requests.values())
    assert (requests(found), found.events.lost, found.arms.mismatches, found.arms.checked) == (100, 0, 0, 100)
    assert 30 < v2 < 70
    assert {start for start, _ in found.requests} == {T0 + 2_000 * step for step in range(6)}
    assert found.generations[4].traffic_pct == 50


def test_the_window_holds_its_begin_and_not_its_end() -> None:
    assert requests(events(event(1, -1), event(2, 0), event(3, 19_999), event(4, 20_000))) == 2


def test_requests_outside_the_split_are_counted_apart() -> None:
    found = events(generation(max_agents=5), event(1, ordered="v1", reason="over_capacity"))
    assert (requests(found), [cell.over_capacity for cell in found.requests.values()]) == (0, [1])
    assert found.arms.mismatches == 0


def test_evidence_survives_its_json() -> None:
    found = events(generation(), *(event(number, number * 100, fallback="time") for number in range(30)))
    sampled = samples(sample(1), sample(3))
    found.sampled, found.samples = sampled.sampled, sampled.samples
    text = json.dumps(found.as_json())
    assert Evidence.from_json(json.loads(text)).as_json() == json.loads(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("requests", 2),
        ("outcomes", {"done": 0}),
        ("requests", -1),
        ("rates", {}),
        ("rates", {"error_rate_pct": [1, 5_000_000, 0]}),
        ("rates", {"error_rate_pct": [1, 200_000_000, 1]}),
        ("rates", {"error_rate_pct": [1, 5]}),
        ("coordination_time_large_ms", {"zeros": 0, "counts": {"9": 1}}),
        ("agents", 1.5),
        ("coordination_time_ms", {"zeros": 2, "counts": {}}),
    ],
)
def test_evidence_that_contradicts_itself_is_refused(field: str, value: object) -> None:
    (cell,) = events(event()).requests.values()
    arm = cell.v1 if cell.v1.requests else cell.v2
    with pytest.raises(ValueError, match=r"add up|not a whole|allowed|lacks|contradicts|is not|more large"):
        Arm.from_json(arm.as_json() | {field: value})


@settings(max_examples=30)
@given(st.randoms(use_true_random=False))
def test_the_order_of_events_changes_no_count(order: random.Random) -> None:
    records = [event(number, number * 150, coordination_time_ms=number / 7) for number in range(60)]
    straight = events(generation(), *records).as_json()
    order.shuffle(records)
    shuffled = events(generation(), *records).as_json()
    assert shuffled["request_cells"] == straight["request_cells"]


# The arms


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bucket": 1}, "recomputed"),
        ({"ordered": "v1"}, "ordered v1, recomputed v2"),
        ({"traffic_pct": 60}, "another configuration"),
        ({"reason": "over_capacity"}, "over capacity"),
        ({"reason": "over_capacity", "ordered": "v1"}, "over capacity"),
    ],
)
def test_an_event_that_is_not_as_ordered_is_a_mismatch(changes: dict[str, Any], said: str) -> None:
    number = next(n for n in range(100) if event(n)["ordered"] == "v2" and event(n)["bucket"] != 1)
    found = events(generation(), event(number), event(number, 1_500, **changes))
    assert found.arms.mismatches == 1
    assert said in found.arms.examples[0]


def test_another_key_is_a_mismatch() -> None:
    assert events(generation(split_key_sha256="0" * 16), event()).arms.mismatches == 1


def test_without_a_generation_record_the_event_is_held_to_what_it_carries() -> None:
    found = events(event(1))
    assert (found.arms.checked, found.arms.unrecorded, found.arms.mismatches) == (1, 1, 0)


# Samples


def test_gauges_keep_their_range_and_their_last() -> None:
    found = samples(*(sample(2 + n / 2, memory_kb=value) for n, value in enumerate([5, 9, 1, 3])))
    gauge = found.sampled[T0 + 2_000].gauges["memory_kb"]
    assert (gauge.samples, gauge.low, gauge.high, gauge.mean, gauge.last) == (4, 1, 9, 4.5, 3)
    assert "tmpfs_pct" not in found.sampled[T0 + 2_000].gauges


@pytest.mark.parametrize(
    ("before", "now", "restarts"), [(1, 1, 0), (1, 3, 2), (3, 1, 0), (3, 2, 1), (0, 0, 0)]
)
def test_a_rise_is_a_restart_and_a_deliberate_one_is_none(before: int, now: int, restarts: int) -> None:
    assert restarts_since(before, now) == restarts


def test_a_restart_hidden_in_a_gap_is_counted_with_the_next_sample() -> None:
    up = {"conductor": 1, "spawner": 1, "router": 1}
    found = samples(sample(1, starts=up), sample(15, starts=up | {"spawner": 3}), sample(3, starts=up))
    assert sum(sum(cell.restarts.values()) for cell in found.sampled.values()) == 2


@pytest.mark.parametrize(("booted", "restarts"), [(5_000.0, 0), (5_030.0, 0), (9_000.0, 1), (None, 0)])
def test_a_host_that_booted_in_the_window_is_a_restart(booted: float | None, restarts: int) -> None:
    """The clock may be set by some seconds meanwhile; a gap of any length hides nothing."""
    found = samples(sample(1, boot_time_s=5_000.0), sample(17, boot_time_s=booted))
    assert sum(cell.restarts.get("host", 0) for cell in found.sampled.values()) == restarts


def test_a_boot_is_one_restart_though_its_first_samples_lack_something() -> None:
    up = {"router": 1}
    before = sample(1, boot_time_s=5_000.0, starts=up)
    booted = [sample(at_s, boot_time_s=9_000.0, starts={}) for at_s in (17, 18)]
    last = sample(19, boot_time_s=9_000.0, starts={"router": 3})
    found = samples(before, *booted, sample(18.5, starts={}), last)
    restarts = [cell.restarts for cell in found.sampled.values()]
    assert sum(each.get("host", 0) for each in restarts) == 1
    assert sum(each.get("router", 0) for each in restarts) == 2


@pytest.mark.parametrize(("source", "cells"), [("events", "request_cells"), ("samples", "sample_cells")])
def test_cells_must_hold_what_was_read(source: str, cells: str) -> None:
    found = events(generation(), event(1), event(2, 5_000)).as_json()
    found |= {name: samples(sample(1), sample(5)).as_json()[name] for name in ("samples", "sample_cells")}
    assert Evidence.from_json(found).as_json() == found
    with pytest.raises(ValueError, match=f"its cells hold 1 {source}, and 2 were read"):
        Evidence.from_json(found | {cells: found[cells][1:]})


@pytest.mark.parametrize(
    "changes", [{"min": -1}, {"max": 101}, {"mean": 13.5}, {"last": 11}, {"samples": 0}, {"max": None}]
)
def test_a_gauge_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    good = {"samples": 2, "min": 12, "max": 13, "mean": 12.5, "last": 13}
    assert Gauge.from_json(good, "tmpfs_pct").mean == 12.5
    with pytest.raises(ValueError, match=r"allowed|is not"):
        Gauge.from_json(good | changes, "tmpfs_pct")


def test_without_starts_there_is_no_count_of_restarts() -> None:
    record = sample(1)
    del record["starts"]
    assert samples(record).sampled[T0].starts_samples == 0


def test_what_the_collector_saw_counts_from_the_second_sample_on() -> None:
    """What the first one saw may have ended before the window."""
    seen = {"v1_requests": 5, "v2_requests": 2}
    found = samples(sample(-1, **seen), sample(1, **seen), sample(1.5, **seen), sample(3, **seen), sample(4))
    assert [cell.requests_seen for cell in found.sampled.values()] == [7, 7, 0]


# Damage

DAMAGED = [
    (b"\xff\xfe\x00", "garbage"),
    (b"null", "garbage"),
    (b"[" * 100_000, "garbage"),
    (b"9" * 5_000, "garbage"),
    (json.dumps(event(coordination_time_ms=float("nan"))).encode(), "not_finite"),
    (json.dumps(event(delivery_rate_pct=float("inf"))).encode(), "not_finite"),
    (json.dumps(event()).replace("100.0", "1e999").encode(), "not_finite"),
    (json.dumps(event(v=2)).encode(), "unknown_version"),
    (json.dumps(event(v=True)).encode(), "unknown_version"),
    (json.dumps(event(type="other")).encode(), "invalid"),
    (json.dumps(event(error_rate_pct=True)).encode(), "invalid"),
    (json.dumps(event(error_rate_pct="0")).encode(), "invalid"),
    (json.dumps(event(delivery_rate_pct=101)).encode(), "invalid"),
    (json.dumps(event(coordination_time_ms=-1)).encode(), "invalid"),
    (json.dumps(event(agents=11)).encode(), "invalid"),
    (json.dumps(event(time="2026-13-01T00:00:00.000Z")).encode(), "invalid"),
    (json.dumps(event(time=5)).encode(), "invalid"),
    (json.dumps(event(ordered="v3")).encode(), "invalid"),
    (json.dumps(event(outcome=[])).encode(), "invalid"),
    (json.dumps(event(at_ms=60_000 + 2_001)).encode(), "future"),
]


@pytest.mark.parametrize(("line", "kind"), DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_is_counted_by_kind_and_never_a_value(line: bytes, kind: str) -> None:
    found = events(event(1), line, event(2))
    assert (requests(found), found.events.damaged[kind], found.events.lost) == (2, 1, 1)


def test_what_is_told_but_lost_nothing() -> None:
    found = events(event(1, 9_000), event(1, 9_000), event(2, 1_000), rest=b'{"v": 1, "type": "coordi')
    assert (requests(found), found.events.lost) == (2, 0)
    assert [found.events.damaged[kind] for kind in ("duplicate", "out_of_order", "cut")] == [1, 1, 1]


def test_damage_before_the_window_is_not_the_windows() -> None:
    assert events(b"junk", event(1, -5_000), event(2, 1_000)).events.lost == 0
    assert events(event(1, -5_000), b"junk", event(2, 1_000)).events.lost == 1
    late_old_record = events(event(2, 1_000), b"junk", event(1, -5_000))
    assert late_old_record.events.lost == 1


@pytest.mark.parametrize(
    "changes",
    [{"memory_kb": float("nan")}, {"tmpfs_pct": 101}, {"fd_count": "7"}, {"starts": {"router": -1}},
     {"starts": []}, {"timestamp": None}, {"timestamp": True}, {"v1_requests": 1.5}, {"memory_kb": None}],
)  # fmt: skip
def test_a_damaged_sample_is_no_sample(changes: dict[str, Any]) -> None:
    with pytest.raises(DamagedLineError):
        read_sample(json.dumps(sample(**changes)).encode())
    assert samples(sample(1), sample(1.5, **changes)).samples.records == 1


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_record_or_damage(content: bytes) -> None:
    for read in (read_event, read_sample):
        with pytest.raises(DamagedLineError):
            read(content)


@settings(max_examples=200)
@given(st.data())
def test_a_changed_event_is_never_a_wild_value(data: st.DataObject) -> None:
    line = bytearray(json.dumps(event(3)).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        line[data.draw(st.integers(0, len(line) - 1))] = data.draw(st.integers(0, 255))
    found = events(generation(), bytes(line))
    for cell in found.requests.values():
        for arm in (cell.v1, cell.v2):
            assert Arm.from_json(arm.as_json()).requests <= 1
            assert all(0 <= rate.sum_micropct <= 100_000_000 for rate in arm.rates.values())


# The command


@pytest.fixture
def tree(tmp_path: Path) -> Paths:
    tree = Paths(tmp_path)
    tree.log.mkdir(parents=True)
    tree.config.parent.mkdir(parents=True)
    tree.config.write_text(f'CFN_SPLIT_KEY="{KEY}"\n')
    return tree


def test_missing_and_empty_files_are_told_apart_from_no_requests(tree: Paths) -> None:
    missing = collect(tree, T0, T0 + 20_000, 2_000, now_ms=NOW)
    assert (missing.events.present, missing.latest_generation) == (False, None)
    tree.events.write_bytes(json.dumps(generation()).encode() + b"\n")
    idle = collect(tree, T0, T0 + 20_000, 2_000, now_ms=NOW)
    assert (idle.events.present, idle.latest_generation, requests(idle)) == (True, 4, 0)


def test_a_file_that_cannot_be_read_is_an_error_and_not_empty(tree: Paths) -> None:
    tree.events.mkdir()
    with pytest.raises(DamagedError):
        collect(tree, T0, T0 + 20_000, 2_000, now_ms=NOW)


def test_without_a_usable_configuration_no_arm_can_be_checked(tree: Paths) -> None:
    tree.config.write_text("CFN_SPLIT_KEY=$(x)\n")
    with pytest.raises(ConfigError):
        collect(tree, T0, T0 + 20_000, 2_000, now_ms=NOW)


def test_the_command(
    tree: Paths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CFN_ROOT", str(tree.root))
    tree.events.write_bytes(b"".join(json.dumps(each).encode() + b"\n" for each in (generation(), event())))
    tree.samples.write_bytes(json.dumps(sample()).encode() + b"\n")
    window = ["--since", format_ms(T0), "--until", str((T0 + 20_000) // 1000), "--bucket-s", "2"]
    assert main([*window, "--json"]) == 0
    found = Evidence.from_json(json.loads(capsys.readouterr().out))
    assert (found.events.records, found.samples.records) == (1, 1)
    assert main(window) == 0
    assert "1 in 1 of 10 buckets" in capsys.readouterr().out


@pytest.mark.parametrize(
    "window",
    [("10", "5", "1"), ("0", "10", "0"), ("0", "10", "nan"), ("0", "10", "inf"), ("0", "10", "-1"),
     ("0", "40000", "1"), ("1", "10", "2"), ("x", "10", "2")],
)  # fmt: skip
def test_a_window_that_cannot_be_is_refused(window: tuple[str, str, str]) -> None:
    with pytest.raises(UsageError):
        main(["--since", window[0], "--until", window[1], "--bucket-s", window[2]])


def test_the_kinds_of_damage_have_counters() -> None:
    found = events()
    assert set(LOST_KINDS) <= set(found.events.damaged)
