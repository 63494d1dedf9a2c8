"""The collector: what answers is sampled, what does not is absent, and no event is lost or doubled."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cfn.collector import output, probes
from cfn.collector.daemon import Collector
from cfn.collector.sample import Readings, nearest_rank, sample
from cfn.collector.tail import EventTail
from cfn.metrics.records import Coordinated, read_event, read_sample
from cfn.paths import Paths


def event(number: int = 1, **changes: Any) -> bytes:
    value = {
        "v": 1,
        "type": "coordination",
        "time": "2026-01-31T12:00:00.000Z",
        "host": "h",
        "release": "r",
        "task_id": f"t-{number}",
        "agents": 10,
        "bucket": 5,
        "generation": 1,
        "version": "v2",
        "traffic_pct": 10,
        "ordered": "v2",
        "served": "v2",
        "reason": "split",
        "fallback": None,
        "outcome": "done",
        "states": {"done": 10, "failed": 0, "undelivered": 0, "unknown": 0},
        "coordination_time_ms": float(number),
        "delivery_rate_pct": 100.0,
        "completion_rate_pct": 100.0,
        "error_rate_pct": 0.0,
        "total_time_ms": 1.0,
    } | changes
    return json.dumps(value).encode() + b"\n"


def coordinated(number: int, **changes: Any) -> Coordinated:
    record = read_event(event(number, **changes))
    assert isinstance(record, Coordinated)
    return record


def readings(**changes: Any) -> Readings:
    return Readings(time_s=1_800_000_000.1234, host="h", release="r", **changes)


def test_what_cannot_be_read_is_absent() -> None:
    assert sample(readings()) == {"v": 1, "host": "h", "release": "r", "timestamp": 1_800_000_000.123}


def test_no_request_is_zero_requests_and_no_time() -> None:
    found = sample(readings(coordinations=[], active_agents=0))
    assert (found["v1_requests"], found["v2_requests"], found["active_agents"]) == (0, 0, 0)
    assert not {"coordination_time", "delivery_rate"} & set(found)


def test_the_figures_are_those_of_v2_within_the_split() -> None:
    events = [coordinated(number) for number in range(1, 21)]
    events += [coordinated(9000, ordered="v1"), coordinated(8000, ordered="v1", reason="over_capacity")]
    found = sample(readings(coordinations=events))
    assert (found["v1_requests"], found["v2_requests"]) == (1, 20)
    assert (found["coordination_time"], found["coordination_time_p95"]) == (10.0, 19.0)
    assert found["delivery_rate"] == 100.0


def test_a_sample_is_a_record_that_the_reduction_reads() -> None:
    found = sample(readings(memory_kb=1, tmpfs_pct=3.0, starts={"router": 2}, coordinations=[coordinated(5)]))
    record = read_sample(json.dumps(found).encode())
    assert record.starts == {"router": 2}
    assert record.gauges["coordination_time"] == 5.0


@pytest.mark.parametrize(("share", "value"), [(0.5, 2), (0.51, 3), (0.95, 4), (0.01, 1)])
def test_nearest_rank(share: float, value: int) -> None:
    assert nearest_rank([1, 2, 3, 4], share) == value


# The tail


def ids(events: list[Coordinated] | None) -> list[str] | None:
    return None if events is None else [each.task_id for each in events]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def tail(log: Path) -> EventTail:
    return EventTail(log, log.parent / "state/tail.json")


def add(log: Path, *lines: bytes) -> None:
    with log.open("ab") as file:
        file.writelines(lines)


def test_the_first_start_begins_at_the_end_and_a_restart_where_it_stood(log: Path) -> None:
    add(log, event(1))
    first = tail(log)
    assert ids(first.read()) == []
    add(log, event(2))
    assert ids(first.read()) == ["t-2"]
    add(log, event(3))
    assert ids(tail(log).read()) == ["t-3"]


def test_no_file_is_no_figure_and_one_that_appears_is_read_whole(log: Path) -> None:
    follower = tail(log)
    assert follower.read() is None
    add(log, event(1))
    assert ids(follower.read()) == ["t-1"]


def test_a_rotation_loses_and_doubles_nothing(log: Path) -> None:
    add(log, event(1))
    follower = tail(log)
    follower.read()
    add(log, event(2))
    log.rename(log.with_name("events.jsonl.1"))
    add(log, event(3))
    assert ids(follower.read()) == ["t-2", "t-3"]
    assert ids(follower.read()) == []


def test_half_a_line_waits_and_a_damaged_one_is_passed(log: Path) -> None:
    follower = tail(log)
    follower.read()
    add(log, b"\x00garbage\n", event(1), event(2)[:40])
    assert ids(follower.read()) == ["t-1"]
    add(log, event(2)[40:])
    assert ids(follower.read()) == ["t-2"]


def test_a_file_truncated_in_place_is_read_from_its_begin(log: Path) -> None:
    add(log, event(1), event(2))
    follower = tail(log)
    follower.read()
    log.write_bytes(event(3))
    assert ids(follower.read()) == ["t-3"]


# The files


def test_the_samples_file_is_rotated_by_size(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    for number in range(5):
        output.append(path, {"n": number}, max_bytes=15)
    assert path.read_text() == '{"n":4}\n'
    assert path.with_name("samples.jsonl.1").read_text() == '{"n":2}\n{"n":3}\n'
    assert path.stat().st_mode & 0o777 == 0o640


def test_nan_never_reaches_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        output.append(tmp_path / "s", {"n": float("nan")})


def test_half_a_write_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "samples.jsonl"
    output.append(path, {"n": 1})
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    with pytest.raises(OSError, match="No space"):
        output.append(path, {"n": 2})
    assert path.read_text() == '{"n":1}\n'


# systemd

SHOWN = """Id=cfn-coordination.service
NRestarts=2
ActiveEnterTimestampMonotonic=123

NRestarts=0
Id=cfn-workers.service
ActiveEnterTimestampMonotonic=99

Id=cfn-router.service
NRestarts=0
ActiveEnterTimestampMonotonic=0
"""


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        (SHOWN, {"conductor": 3, "spawner": 1}),
        ("", None),
        ("Failed to connect to bus", None),
        ("Id=cfn-router.service\nNRestarts=x\nActiveEnterTimestampMonotonic=1", None),
    ],
)
def test_starts_are_the_first_and_every_automatic_restart(text: str, starts: dict[str, int] | None) -> None:
    assert probes.parse_starts(text) == starts


# Against daemons that answer, and that do not


def serve(path: Path, answer: bytes) -> socket.socket:
    """A daemon that gives every connection the same answer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    server.listen()

    def work() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

    threading.Thread(target=work, daemon=True).start()
    return server


@pytest.fixture
def workers() -> Iterator[subprocess.Popen[bytes]]:
    """A process with two children, in place of the spawner."""
    code = (
        "import subprocess, sys, time; "
        "[subprocess.Popen(['sleep', '60']) for _ in range(2)]; print(flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    for child in psutil.Process(process.pid).children():
        child.kill()
    process.kill()
    process.wait()
    process.stdout.close()


def started(tree: Paths, spawner_pid: int) -> list[socket.socket]:
    health = {"pid": os.getpid(), "spawner_pid": spawner_pid, "agents_active": 42}
    status = json.dumps({"pid": os.getpid(), "generation": 7}).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(status)
    return [
        serve(tree.conductor_socket, json.dumps(health).encode() + b"\n"),
        serve(tree.router_socket, head + status),
    ]


@pytest.fixture
def tree(tmp_path: Path) -> Paths:
    tree = Paths(tmp_path)
    for folder in (tree.config.parent, tree.log, tree.shm, tree.state):
        folder.mkdir(parents=True)
    tree.config.write_text('CFN_METRICS_INTERVAL="0.1"\n')
    return tree


def test_a_turn_samples_what_runs(tree: Paths, workers: subprocess.Popen[bytes]) -> None:
    servers = started(tree, workers.pid)
    tree.events.write_bytes(b"")
    collector = Collector(tree)
    collector.turn()
    add(tree.events, event(250))
    found = collector.turn()
    assert (found["active_agents"], found["generation"]) == (42, 7)
    assert (found["v2_requests"], found["coordination_time"]) == (1, 250.0)
    # Twice this process (it stands for two daemons), the spawner and its two children.
    assert found["fd_count"] >= 2 * 3 + 3 * 3
    assert found["memory_kb"] > 10_000
    assert json.loads(tree.latest_metrics.read_text()) == found
    assert json.loads(tree.samples.read_text().splitlines()[-1]) == found
    for server in servers:
        server.close()


def test_without_daemons_their_fields_are_absent(tree: Paths) -> None:
    found = Collector(tree).turn()
    absent = {"memory_kb", "fd_count", "active_agents", "generation", "v1_requests", "v2_requests"}
    assert not absent & set(found)
    assert "tmpfs_pct" in found


def test_a_sum_without_one_of_the_daemons_is_none(workers: subprocess.Popen[bytes]) -> None:
    processes = probes.Processes()
    family = [psutil.Process(workers.pid), *psutil.Process(workers.pid).children()]
    assert len(family) == 3
    found = processes.read(os.getpid(), workers.pid, os.getpid())
    assert found is not None
    assert found[1] == 2 * psutil.Process().num_fds() + sum(each.num_fds() for each in family)
    assert processes.read(os.getpid(), workers.pid, None) is None
    assert processes.read(os.getpid(), workers.pid, 2**22 - 1) is None


@pytest.mark.parametrize("answer", [b"", b"not json\n", b"[1]\n", b'{"pid": "x", "agents_active": true}\n'])
def test_a_daemon_that_answers_nonsense_gives_nothing(tree: Paths, answer: bytes) -> None:
    server = serve(tree.conductor_socket, answer)
    found = Collector(tree).turn()
    assert "active_agents" not in found
    server.close()


def test_it_runs_follows_the_interval_and_ends_on_a_signal(tree: Paths) -> None:
    environment = {**os.environ, "CFN_ROOT": str(tree.root)}
    process = subprocess.Popen([sys.executable, "-m", "cfn", "collector"], env=environment)
    try:
        deadline = time.monotonic() + 10
        while not (tree.samples.exists() and len(tree.samples.read_text().splitlines()) >= 3):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        tree.config.write_text('CFN_METRICS_INTERVAL="600"\n')
        time.sleep(1.5)
        before = tree.samples.read_text()
        time.sleep(0.5)
        assert tree.samples.read_text() == before
        process.terminate()
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.wait()
