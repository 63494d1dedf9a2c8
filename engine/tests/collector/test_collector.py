"""The collector: what answers is sampled, what does not is absent, and no event is lost or doubled."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest

from cfn.collector import output, probes
from cfn.collector.daemon import Collector
from cfn.collector.processes import Daemons, Host, Processes
from cfn.collector.sample import Readings, nearest_rank, sample
from cfn.collector.tail import Ended, EventTail
from cfn.metrics.records import Coordinated, read_event, read_sample
from cfn.metrics.times import format_ms
from cfn.paths import Paths
from cfn.router.split import bucket, ordered_version


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


def coordinated(number: int, **changes: Any) -> Ended:
    record = read_event(event(number, **changes))
    assert isinstance(record, Coordinated)
    return Ended(record)


def readings(**changes: Any) -> Readings:
    return Readings(time_s=1_800_000_000.1234, host_name="h", release="r", **changes)


def test_what_cannot_be_read_is_absent() -> None:
    assert sample(readings()) == {"v": 1, "host": "h", "release": "r", "timestamp": 1_800_000_000.123}


def test_no_request_is_zero_requests_and_no_time() -> None:
    found = sample(readings(ended=[], active_agents=0))
    assert (found["v1_requests"], found["v2_requests"], found["active_agents"]) == (0, 0, 0)
    assert not {"coordination_time", "delivery_rate"} & set(found)


def test_the_figures_are_those_of_v2_within_the_split() -> None:
    events = [coordinated(number) for number in range(1, 21)]
    events += [coordinated(9000, ordered="v1"), coordinated(8000, ordered="v1", reason="over_capacity")]
    found = sample(readings(ended=events))
    assert (found["v1_requests"], found["v2_requests"]) == (1, 20)
    assert (found["coordination_time"], found["coordination_time_p95"]) == (10.0, 19.0)
    assert found["delivery_rate"] == 100.0


def test_a_sample_is_a_record_that_the_reduction_reads() -> None:
    found = sample(
        readings(processes={"memory_kb": 1}, tmpfs=(3.0, 8.0), starts={"router": 2}, ended=[coordinated(5)])
    )
    record = read_sample(json.dumps(found).encode())
    assert record.starts == {"router": 2}
    assert record.gauges["coordination_time"] == 5.0


@pytest.mark.parametrize(("share", "value"), [(0.5, 2), (0.51, 3), (0.95, 4), (0.01, 1)])
def test_nearest_rank(share: float, value: int) -> None:
    assert nearest_rank([1, 2, 3, 4], share) == value


# The tail


def ids(events: list[Ended] | None) -> list[str] | None:
    return None if events is None else [each.event.task_id for each in events]


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


def test_teams_that_are_none_cost_the_event_nothing_else(log: Path) -> None:
    follower = tail(log)
    follower.read()
    add(log, event(1, teams=[1, {"coordination_time_ms": 7.0}, None]), event(2, teams="x"))
    found = follower.read() or []
    assert [each.event.task_id for each in found] == ["t-1", "t-2"]
    assert [each.team_coordination_time_ms for each in found] == [7.0, None]


def test_text_that_is_none_is_a_damaged_line(log: Path) -> None:
    follower = tail(log)
    follower.read()
    add(log, event(1).replace(b'"t-1"', b'"t-\\udc00"'), event(2))
    assert ids(follower.read()) == ["t-2"]


def test_a_rotated_file_is_read_to_its_end_in_as_many_turns_as_it_takes(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(log, event(1))
    follower = tail(log)
    follower.read()
    monkeypatch.setattr("cfn.collector.tail.MAX_BYTES_A_TURN", 3 * len(event(10)))
    add(log, *(event(number) for number in range(10, 20)))
    log.rename(log.with_name("events.jsonl.1"))
    add(log, event(20))
    found = [name for _ in range(6) for name in ids(follower.read()) or []]
    assert found == [f"t-{number}" for number in range(10, 21)]


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
    file = output.SamplesFile(path, max_bytes=30)
    for number in range(5):
        file.append({"timestamp": number})
    assert path.read_text() == '{"timestamp":4}\n'
    assert path.with_name("samples.jsonl.1").read_text() == '{"timestamp":2}\n{"timestamp":3}\n'
    assert path.stat().st_mode & 0o777 == 0o640


def test_the_samples_file_is_rotated_by_the_age_of_its_first_sample(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    for time_s in (0, 60, 99, 100, 130):
        output.SamplesFile(path, max_age_s=100).append({"timestamp": time_s})  # each after a restart
    assert path.read_text() == '{"timestamp":100}\n{"timestamp":130}\n'


def test_a_damaged_first_sample_is_as_old_as_its_file(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b"\x00garbage\n")
    os.utime(path, (1_000, 1_000))
    output.SamplesFile(path, max_age_s=100).append({"timestamp": 1_099})
    assert not path.with_name("samples.jsonl.1").exists()
    os.utime(path, (1_000, 1_000))
    output.SamplesFile(path, max_age_s=100).append({"timestamp": 1_100})
    assert path.with_name("samples.jsonl.1").exists()


def test_nan_never_reaches_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        output.SamplesFile(tmp_path / "s").append({"timestamp": float("nan")})


def test_half_a_write_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "samples.jsonl"
    file = output.SamplesFile(path)
    file.append({"timestamp": 1})
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    with pytest.raises(OSError, match="No space"):
        file.append({"timestamp": 2})
    assert path.read_text() == '{"timestamp":1}\n'


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

Id=cfn-coordinator@3.service
NRestarts=1
ActiveEnterTimestampMonotonic=7
"""


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        (SHOWN, {"conductor": 3, "spawner": 1, "coordinator-3": 2}),
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


def started(tree: Paths, spawner_pid: int, since: str = "") -> list[socket.socket]:
    health = {
        "pid": os.getpid(),
        "spawner_pid": spawner_pid,
        "agents_active": 42,
        "queue_depths": {"coordinations": 3, "inboxes": 9},
        "coordinators": [
            {"id": "1", "state": "up", "agents": 40, "queue_depth": 2, "response_time_ms": 1.5},
            {"id": "2", "state": "up", "agents": 44, "response_time_ms": 2.5},
            {"id": "3", "state": "hung", "agents": 0},
        ],
    }
    status = json.dumps(
        {"pid": os.getpid(), "generation": 7, "version": "v2", "traffic_pct": 10, "since": since}
    ).encode()
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
    tree.config.write_text('CFN_METRICS_INTERVAL="0.1"\nCFN_METRICS_PORT="0"\n')
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


def test_a_full_tmpfs_is_in_the_sample_that_it_has_no_room_for(
    tree: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output, "replace_latest", full)
    with pytest.raises(OSError, match="No space left"):
        Collector(tree).turn()
    assert "tmpfs_pct" in json.loads(tree.samples.read_text())


def test_a_clock_that_is_set_is_no_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "boot.json"
    monkeypatch.setattr(psutil, "boot_time", lambda: 1_000.0)
    first = Host(kept)
    assert first.read()["boot_time_s"] == 1_000.0
    monkeypatch.setattr(psutil, "boot_time", lambda: 1_090.0)
    assert first.read()["boot_time_s"] == Host(kept).read()["boot_time_s"] == 1_000.0
    kept.write_text(kept.read_text().replace('"boot": "', '"boot": "another'))
    assert Host(kept).read()["boot_time_s"] == 1_090.0


def test_the_mesh_is_sampled(tree: Paths, workers: subprocess.Popen[bytes]) -> None:
    servers = started(tree, workers.pid)
    tree.events.write_bytes(b"")
    collector = Collector(tree)
    assert collector.turn()["coordinator_health"] == 2
    teams = [{"team": "a", "coordination_time_ms": 5.0}, {"team": "b", "coordination_time_ms": 7.0}]
    add(
        tree.events,
        event(1, mesh_delivery_rate_pct=100.0, worker_delivery_rate_pct=90.0, teams=teams),
        event(2, mesh_delivery_rate_pct=50.0, worker_delivery_rate_pct=None),
        event(3, ordered="v1", version="v1"),
    )
    found = collector.turn()
    assert (found["queue_depth"], found["inbox_messages"]) == (5, 9)
    assert (found["coordinator_response_time_ms"], found["worker_imbalance_pct"]) == (2.5, 4.762)
    assert (found["mesh_delivery_rate"], found["worker_delivery_rate"]) == (75.0, 90.0)
    assert found["team_coordination_time_ms"] == 7.0
    assert (found["v2_share_pct"], found["v1_share_pct"], found["fallbacks"]) == (66.667, 33.333, 0)
    assert (found["completion_rate"], found["error_rate"]) == (100.0, 0.0)
    for server in servers:
        server.close()


@pytest.mark.parametrize(("age_s", "detail_s", "on"), [(10, 60, True), (70, 60, False), (10, 0, False)])
def test_details_are_logged_while_a_flip_is_fresh(
    tree: Paths, workers: subprocess.Popen[bytes], age_s: int, detail_s: int, on: bool
) -> None:
    tree.config.write_text(f'CFN_DETAIL_TIME="{detail_s}"\nCFN_METRICS_INTERVAL="60"\n')
    servers = started(tree, workers.pid, format_ms(round((time.time() - age_s) * 1_000)))
    tree.events.write_bytes(b"")
    collector = Collector(tree)
    collector.turn()
    add(tree.events, event(1), event(900))
    found = collector.turn()
    assert ("detail" in found) is on
    assert collector._interval_s() == (10 if on else 60)
    if on:
        assert found["detail"]["slowest"][0]["task_id"] == "t-900"
        assert [each["state"] for each in found["detail"]["coordinators"]] == ["up", "up", "hung"]
    for server in servers:
        server.close()


def test_how_long_nobody_heard_of_the_watch(tree: Paths) -> None:
    assert "watch_age_s" not in Collector(tree).turn()
    heard = tree.state / "watch/heard.json"
    heard.parent.mkdir()
    heard.write_text(json.dumps({"time": format_ms(round((time.time() - 90) * 1_000))}))
    assert 90 <= Collector(tree).turn()["watch_age_s"] < 100
    heard.write_text("garbage")
    assert "watch_age_s" not in Collector(tree).turn()


def test_without_daemons_their_fields_are_absent(tree: Paths) -> None:
    found = Collector(tree).turn()
    absent = {"memory_kb", "fd_count", "active_agents", "generation", "v1_requests", "v2_requests"}
    assert not absent & set(found)
    assert "tmpfs_pct" in found


def test_a_sum_without_one_of_the_daemons_is_absent(workers: subprocess.Popen[bytes]) -> None:
    processes = Processes()
    family = [psutil.Process(workers.pid), *psutil.Process(workers.pid).children()]
    assert len(family) == 3
    found = processes.read(Daemons(conductor=os.getpid(), spawner=workers.pid, router=os.getpid()))
    assert found["fd_count"] == 2 * psutil.Process().num_fds() + sum(each.num_fds() for each in family)
    for router in (None, 2**22 - 1):
        found = processes.read(Daemons(conductor=os.getpid(), spawner=workers.pid, router=router))
        assert not {"memory_kb", "fd_count", "engine_cpu_pct"} & set(found)
        assert found["memory_worker_kb"] > 100


def test_the_largest_coordinator_and_the_cpu_since_the_last_sample(workers: subprocess.Popen[bytes]) -> None:
    processes = Processes()
    one = psutil.Process(workers.pid).children()[0].pid
    daemons = Daemons(conductor=os.getpid(), spawner=workers.pid, router=os.getpid(), coordinators={"1": one})
    first = processes.read(daemons)
    assert "engine_cpu_pct" not in first
    ends_s = time.process_time() + 0.05
    while time.process_time() < ends_s:
        pass
    second = processes.read(daemons)
    assert second["engine_cpu_pct"] > 0
    assert second["memory_coordinator_kb"] == psutil.Process(one).memory_info().rss // 1_024
    assert {"engine_read_bytes_s", "engine_write_bytes_s"} <= set(second)


@pytest.mark.parametrize(("sticky", "mismatches"), [("customer-7", 0), ("t-1", 1)])
def test_the_split_is_checked_by_what_it_was_made_by(tree: Paths, sticky: str, mismatches: int) -> None:
    """The bucket is that of the sticky key where a request has one, not of its task id."""
    tree.config.write_text('CFN_SPLIT_KEY="split-key"\n')
    collector = Collector(tree)
    collector.turn()
    found = bucket("split-key", "customer-7")
    ordered = ordered_version("v2", Decimal(10), found)
    with tree.events.open("ab") as log:
        log.write(event(1, sticky_key=sticky, bucket=found, ordered=ordered, served=ordered))
    collector.turn()
    exposed = collector.exposition.registry.get_sample_value("cfn_split_mismatches_total")
    assert exposed == mismatches


@pytest.mark.parametrize("answer", [b"", b"not json\n", b"[1]\n", b'{"pid": "x", "agents_active": true}\n'])
def test_a_daemon_that_answers_nonsense_gives_nothing(tree: Paths, answer: bytes) -> None:
    server = serve(tree.conductor_socket, answer)
    found = Collector(tree).turn()
    assert "active_agents" not in found
    server.close()


@pytest.mark.processes
def test_it_runs_follows_its_configuration_and_ends_on_a_signal(tree: Paths, unused_tcp_port: int) -> None:
    environment = {**os.environ, "CFN_ROOT": str(tree.root)}
    process = subprocess.Popen([sys.executable, "-m", "cfn", "collector"], env=environment)
    try:
        deadline = time.monotonic() + 10
        while not (tree.samples.exists() and len(tree.samples.read_text().splitlines()) >= 3):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        port = unused_tcp_port
        tree.config.write_text(f'CFN_METRICS_INTERVAL="600"\nCFN_METRICS_PORT="{port}"\n')
        time.sleep(1.5)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            assert b"cfn_sample" in answer.read()
        before = tree.samples.read_text()
        time.sleep(0.5)
        assert tree.samples.read_text() == before
        process.terminate()
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.wait()
