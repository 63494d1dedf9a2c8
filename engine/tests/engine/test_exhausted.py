"""Bounds that are reached and resources that run out: a clear answer, the rest goes on, it recovers."""

import base64
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cfn.client import Client
from cfn.engine.clients import MAX_CLIENTS, MAX_LINE_BYTES
from cfn.engine.coordinations import MAX_NAMES_BYTES, MAX_QUEUED, MAX_RUNNING, RETRY_AFTER_S
from cfn.engine.swarms import MAX_SWARMS

from .conftest import Engine
from .harness import SOURCE, send_signal

pytestmark = pytest.mark.processes

USER = 64_999  # nobody's


# Bounds


def test_the_queue_is_bounded_and_says_when_to_come_again(engine: Engine) -> None:
    gate = engine.paths.root / "gate"
    engine.configure(CFN_AGENT_COMMAND=engine.agent(f"until [[ -e {gate} ]]; do sleep 0.1; done"))
    engine.start()
    asked = [
        {"verb": "coordinate", "task_id": f"t{number}", "agents": 1}
        for number in range(MAX_RUNNING + MAX_QUEUED + 1)
    ]
    with pipelined(engine, asked) as answers:
        states = [next(answers) for _ in asked]
        refused = [answer for answer in states if "error" in answer]
        assert [answer["state"] for answer in states if "error" not in answer] == ["accepted"] * (
            len(asked) - 1
        )
        assert [(answer["exit_code"], answer["retry_after_s"]) for answer in refused] == [(5, RETRY_AFTER_S)]
        assert f"{MAX_QUEUED} coordinations wait already" in refused[0]["error"]
        health = engine.ask(verb="health")
        assert health["queue_depths"]["coordinations"] == health["bounds"]["queued"] == MAX_QUEUED
        assert (health["counters"]["refused"], health["open_requests"]) == (1, len(asked) - 1)
        assert engine.ask(verb="result", task_id=asked[-1]["task_id"])["absent"]
        gate.touch()
        assert all(next(answers)["states"]["done"] == 1 for _ in range(len(asked) - 1))
    assert engine.ask(**asked[-1])["states"]["done"] == 1


@contextmanager
def pipelined(engine: Engine, requests: list[dict[str, Any]]) -> Iterator[Iterator[dict[str, Any]]]:
    """Send requests over one connection; their answers as they come."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(engine.paths.conductor_socket))
        connection.sendall("".join(json.dumps(value) + "\n" for value in requests).encode())
        yield map(json.loads, connection.makefile("rb"))


def test_the_spawn_rate_is_kept(engine: Engine) -> None:
    engine.configure(CFN_MAX_SPAWN_RATE=50)
    engine.start()
    answer = engine.ask(verb="coordinate", task_id="t", agents=100)
    assert answer["states"]["done"] == 100
    assert answer["coordination_time_ms"] > 1_000  # 100 at 50 a second, but for a first burst
    for rate in (0, 20_000):
        engine.configure(CFN_MAX_SPAWN_RATE=rate)
        time.sleep(1.1)  # the conductor looks at its configuration once a second
        engine.kill("spawner")  # the rate is told at a connection's start
        engine.start("spawner")
        engine.up()
        assert engine.ask(verb="coordinate", task_id=f"t{rate}", agents=100)["coordination_time_ms"] < 1_000


def test_swarms_are_bounded(running: Engine) -> None:
    for _ in range(MAX_SWARMS):
        assert running.ask(verb="init", agents=1)["live"] == 1
    refused = running.ask(verb="init", agents=1)
    assert (refused["exit_code"], f"{MAX_SWARMS} swarms exist" in refused["error"]) == (5, True)
    running.ask(verb="shutdown")
    assert running.ask(verb="init", agents=1)["live"] == 1


def test_names_are_bounded(running: Engine) -> None:
    fits = [f"{number:0125d}xxx" for number in range(MAX_NAMES_BYTES // 128)]
    running.configure(CFN_MAX_AGENTS=2_000)
    running.until(lambda: running.ask(verb="health")["max_agents"] == 2_000, 15)
    assert running.ask(verb="coordinate", task_id="t", agent_ids=fits)["states"]["done"] == len(fits)
    refused = running.ask(verb="coordinate", task_id="u", agent_ids=[*fits, "one-more"])
    assert (refused["exit_code"], "longer than 48000 bytes" in refused["error"]) == (5, True)


@pytest.mark.parametrize(("size", "code"), [(0, None), (131_072, None), (131_073, 5)])
def test_the_largest_payload_reaches_agents_whole(engine: Engine, size: int, code: int | None) -> None:
    engine.configure(CFN_MAX_PAYLOAD=131_072, CFN_AGENT_COMMAND=engine.agent("wc -c"))
    engine.start()
    payload = base64.b64encode(os.urandom(size)).decode()
    answer = engine.ask(verb="coordinate", task_id="t", agents=3, payload_b64=payload)
    if code:
        assert (answer["exit_code"], "CFN_MAX_PAYLOAD" in answer["error"]) == (code, True)
    else:
        assert {result["output"].strip() for result in answer["results"]} == {str(size)}


def test_connections_are_bounded_and_the_next_is_told(running: Engine) -> None:
    resource.prlimit(running.processes["conductor"].pid, resource.RLIMIT_NOFILE, (4_096, 4_096))
    with ExitStack() as stack:
        for _ in range(MAX_CLIENTS):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(running.paths.conductor_socket))
            client.sendall(b'{"verb":"health"}\n')
            client.recv(10)  # it is in
        with socket.socket(socket.AF_UNIX) as more:
            more.connect(str(running.paths.conductor_socket))
            assert json.loads(more.makefile("rb").readline()) == {
                "error": "too many connections",
                "exit_code": 5,
            }
    # It closes those of before as it comes to them.
    running.until(lambda: "error" not in running.ask(verb="health"), 15)
    assert running.ask(verb="coordinate", task_id="t", agents=3)["states"]["done"] == 3


def test_a_caller_that_never_reads_is_dropped_and_nobody_else(engine: Engine) -> None:
    engine.configure(CFN_AGENT_COMMAND=engine.agent("head -c 60000 /dev/zero | tr '\\0' x"))
    engine.start()
    engine.ask(verb="coordinate", task_id="t", agents=20)
    asked = json.dumps({"verb": "result", "task_id": "t"}).encode() + b"\n"
    with socket.socket(socket.AF_UNIX) as greedy:
        greedy.settimeout(20)
        greedy.connect(str(engine.paths.conductor_socket))
        with suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(100):  # of 1.2 MB each
                greedy.sendall(asked)
        engine.until(lambda: "it does not read its answers" in engine.logged("conductor").read_text(), 20)
    assert engine.ask(verb="coordinate", task_id="u", agents=3)["states"]["done"] == 3
    assert MAX_LINE_BYTES < 1_200_000


# Descriptors


@pytest.mark.parametrize("name", ["conductor", "spawner", "coordinator-1"])
def test_a_listener_without_descriptors_neither_spins_nor_floods_its_log(engine: Engine, name: str) -> None:
    engine.configure(CFN_TOPOLOGY="hybrid", CFN_COORDINATORS=2)
    engine.start_hybrid(2)
    process = engine.processes[name].pid
    paths = {
        "conductor": (engine.paths.conductor_socket, socket.SOCK_STREAM),
        "spawner": (engine.paths.spawner_socket, socket.SOCK_SEQPACKET),
        "coordinator-1": (engine.paths.mesh_socket(1), socket.SOCK_SEQPACKET),
    }
    path, kind = paths[name]
    taken = len(os.listdir(f"/proc/{process}/fd"))  # noqa: PTH208 - a count
    resource.prlimit(process, resource.RLIMIT_NOFILE, (taken + 2, 4_096))
    with ExitStack() as stack:
        for _ in range(20):
            connection = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            connection.connect(str(path))
        before_s, lines = cpu_s(process), engine.logged(name).read_text().count("\n")
        time.sleep(1.5)
        assert cpu_s(process) - before_s < 0.5
        assert engine.logged(name).read_text().count("\n") - lines < 100
    resource.prlimit(process, resource.RLIMIT_NOFILE, (1_024, 4_096))
    assert engine.ask(verb="coordinate", task_id="t", agents=20)["states"]["done"] == 20
    assert all(process.poll() is None for process in engine.processes.values())


def cpu_s(pid: int) -> float:
    """What a process has used of a processor."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_coordinator_without_descriptors_ends_its_part_with_a_reason(engine: Engine) -> None:
    engine.configure(CFN_TOPOLOGY="hybrid", CFN_COORDINATORS=2)
    engine.start_hybrid(2)
    process = engine.processes["coordinator-1"].pid
    taken = len(os.listdir(f"/proc/{process}/fd"))  # noqa: PTH208 - a count
    resource.prlimit(process, resource.RLIMIT_NOFILE, (taken + 5, 4_096))
    answer = engine.ask(verb="coordinate", task_id="t", agents=40, deadline_ms=1_000)
    assert answer["states"]["done"] + answer["states"]["undelivered"] == 40
    assert all(result["reason"] for result in answer["results"] if result["state"] == "undelivered")
    resource.prlimit(process, resource.RLIMIT_NOFILE, (1_024, 4_096))
    assert engine.ask(verb="coordinate", task_id="u", agents=40)["states"]["done"] == 40


# Processes


def all_may_run(path: str) -> bool:
    """Whether other users may run an interpreter and read this engine's source."""
    command = [path, "-S", "-c", f"import sys; sys.path.insert(0, {str(SOURCE)!r}); import cfn.cli"]
    try:
        done = subprocess.run(command, user=USER, group=USER, extra_groups=[], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


@pytest.fixture
def others() -> Iterator[Engine]:
    """An engine of another user, to whom the kernel's bound on processes applies; root is above it."""
    if os.geteuid() != 0:
        pytest.skip("running daemons as another user needs root")
    root = Path(tempfile.mkdtemp(prefix="cfn", dir="/dev/shm"))
    engine = Engine(root)
    engine.user = USER
    engine.python = next((path for path in (sys.executable, "/usr/bin/python3.11") if all_may_run(path)), "")
    if not engine.python:
        pytest.skip("no interpreter that another user may run")
    os.chown(root, USER, USER)
    engine.configure(CFN_MAX_AGENTS=100)
    try:
        yield engine
    finally:
        engine.stop()
        shutil.rmtree(root)


def limit_processes(pid: int, number: int) -> None:
    """Bound how many processes its user may have for a fork of this one to succeed."""
    command = ["prlimit", f"--pid={pid}", f"--nproc={number}:4096"]
    subprocess.run(command, user=USER, group=USER, extra_groups=[], check=True)


def test_no_process_is_undelivered_with_a_reason_and_the_next_request_is_served(others: Engine) -> None:
    others.start()
    others.up()
    spawner = others.processes["spawner"].pid
    limit_processes(spawner, 12)  # conductor, spawner and ten workers
    answer = others.ask(verb="coordinate", task_id="t", agents=40, deadline_ms=10_000)
    assert answer["states"]["undelivered"] + answer["states"]["done"] == 40
    assert answer["states"]["undelivered"] >= 20
    reasons = {result["reason"] for result in answer["results"] if result["state"] == "undelivered"}
    assert reasons == {"no process could be started: Resource temporarily unavailable"}
    assert answer["coordination_time_ms"] < 9_000  # said at once, not at the deadline
    limit_processes(spawner, 4_096)
    assert others.ask(verb="coordinate", task_id="u", agents=40)["states"]["done"] == 40


def test_a_kept_swarm_is_whole_again_when_processes_can_be_made(others: Engine) -> None:
    others.start()
    others.ask(verb="init", agents=10, swarm_id="s")
    spawner = others.processes["spawner"].pid
    limit_processes(spawner, 1)
    for pid in list(others.pids("s").values())[:3]:
        send_signal(pid, signal.SIGKILL)
    others.until(lambda: "fork failed" in others.logged("spawner").read_text(), 15)
    assert others.ask(verb="coordinate", task_id="t", agents=10, swarm_id="s", deadline_ms=500)["states"] == {
        "done": 7,
        "failed": 0,
        "undelivered": 3,
        "unknown": 0,
    }
    limit_processes(spawner, 4_096)
    others.until(lambda: len(others.pids("s")) == 10, 15)
    assert others.ask(verb="coordinate", task_id="u", agents=10, swarm_id="s")["states"]["done"] == 10


def test_a_command_that_cannot_be_forked_is_failed_with_its_reason(others: Engine) -> None:
    others.configure(CFN_AGENT_COMMAND=others.agent("true"))
    others.start()
    others.ask(verb="init", agents=4, swarm_id="s")
    for pid in others.pids("s").values():
        limit_processes(pid, 1)
    answer = others.ask(verb="coordinate", task_id="t", agents=4, swarm_id="s")
    assert {(r["state"], r["reason"]) for r in answer["results"]} == {
        ("failed", "the agent command could not be started")
    }


# tmpfs


@pytest.fixture
def small(engine: Engine) -> Iterator[Engine]:
    """An engine whose tmpfs is of 4 MB."""
    shm = engine.paths.shm
    shm.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0750", "tmpfs", shm], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"mounting a tmpfs needs root with CAP_SYS_ADMIN: {mounted.stderr.strip()}")
    try:
        yield engine
    finally:
        engine.stop()
        subprocess.run(["umount", "--lazy", shm], check=True)


def fill(engine: Engine) -> Path:
    """Take all that is left, byte by byte."""
    path = engine.paths.shm / "filler"
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4_096))
    return path


def test_a_full_tmpfs_refuses_and_recovers_by_itself(small: Engine) -> None:
    small.configure(CFN_TOPOLOGY="hybrid", CFN_COORDINATORS=2)
    small.start_hybrid(2)
    assert small.ask(verb="coordinate", task_id="before", agents=20)["states"]["done"] == 20
    filler = fill(small)
    accepted = []
    for number in range(40):  # what has room left in a page is used up, and its outcome waits for more
        with Client(small.paths.conductor_socket, timeout_s=15) as client:
            answer = next(client.request({"verb": "coordinate", "task_id": f"full-{number}", "agents": 100}))
        if "error" in answer:
            break
        accepted.append(f"full-{number}")
    assert answer["exit_code"] == 1
    assert "cannot serve this request now" in answer["error"]
    assert "init" not in small.ask(verb="init", agents=20).get("swarm_id", "")
    assert small.ask(verb="result", task_id="before")["states"]["done"] == 20
    assert small.ask(verb="health")["spawner"] == "up"
    filler.unlink()
    for task in (*accepted, f"full-{number}"):
        assert small.ask(verb="coordinate", task_id=task, agents=100)["states"]["done"] == 100
    assert all(process.poll() is None for process in small.processes.values()), small.log()


def test_an_outcome_that_finds_no_room_is_told_when_there_is_some(small: Engine) -> None:
    small.configure(CFN_AGENT_COMMAND=small.agent("sleep 0.3; head -c 20000 /dev/urandom | base64"))
    small.start()
    with small.begin(task_id="t", agents=8):
        small.until(lambda: len(small.runs()) == 8, 15)
        filler = fill(small)
        small.until(lambda: "outcome cannot be stored yet" in small.logged("conductor").read_text(), 10)
        assert small.ask(verb="result", task_id="t")["state"] == "complete"
        small.kill("conductor")  # it is in no journal
        filler.unlink()
        small.start("conductor")
        answer = small.ask(verb="coordinate", task_id="t", agents=8)
    assert answer["states"]["done"] == 8
    # An output without room of its own has its beginning in its claim.
    assert min(len(result["output"]) for result in answer["results"]) == 24
    assert len(small.runs()) == 8
