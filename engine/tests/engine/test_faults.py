"""The promise under SIGKILL and SIGSTOP: every agent ends in one state, and nothing starts twice."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import pytest

from cfn.client import Client
from cfn.engine.assignment import OVERDUE_S
from cfn.engine.guard import one_at_a_time
from cfn.engine.lean import control
from cfn.engine.lean.agent_process import GRACE_S
from cfn.errors import RefusedError

from .conftest import Engine
from .harness import SOURCE, send_signal

pytestmark = pytest.mark.processes

FINAL = ("done", "failed", "undelivered", "unknown")


def accounted(engine: Engine, answer: dict[str, Any], agents: int) -> dict[str, int]:
    """Every agent is in exactly one state, none ran twice, and none that was undelivered ran."""
    assert answer["state"] == "complete"
    assert sum(answer["states"][state] for state in FINAL) == agents == len(answer["results"])
    runs = Counter(engine.runs())
    assert max(runs.values(), default=0) <= 1, runs
    for result in answer["results"]:
        assert result["state"] != "undelivered" or result["agent"] not in runs
        assert result["state"] != "done" or result["agent"] in runs
    states: dict[str, int] = answer["states"]
    return states


@pytest.mark.parametrize("after_s", [0.0, 0.005, 0.02, 0.05, 0.1, 0.3])
def test_a_conductor_that_is_killed_goes_on_where_it_was(engine: Engine, after_s: float) -> None:
    engine.configure(CFN_AGENT_COMMAND=engine.agent("sleep 0.2"))
    engine.start()
    with engine.begin(task_id="t", agents=30):
        time.sleep(after_s)
        engine.kill("conductor")
    engine.start("conductor")
    answer = engine.ask(verb="coordinate", task_id="t", agents=30)
    assert accounted(engine, answer, 30)["done"] == 30
    engine.until(lambda: not engine.workers(), 15)


def test_a_conductor_that_is_away_while_agents_end_finds_their_results(engine: Engine) -> None:
    command = engine.agent("sleep 0.3; head -c 9000 /dev/zero | tr '\\0' x")
    engine.configure(CFN_AGENT_COMMAND=command)
    engine.start()
    with engine.begin(task_id="t", agents=5):
        engine.until(lambda: len(engine.runs()) == 5, 15)
        engine.kill("conductor")
        engine.kill("spawner")  # now nobody holds the workers' sockets
    engine.until(lambda: not engine.workers(), 15)
    engine.start()
    answer = engine.ask(verb="coordinate", task_id="t", agents=5)
    assert accounted(engine, answer, 5)["done"] == 5
    assert {result["output"] for result in answer["results"]} == {"x" * 9000}


def test_agents_that_run_without_conductor_and_spawner_are_waited_for(engine: Engine) -> None:
    engine.configure(CFN_AGENT_COMMAND=engine.agent("sleep 1; echo late"))
    engine.start()
    with engine.begin(task_id="t", agents=5):
        engine.until(lambda: len(engine.runs()) == 5, 15)
        engine.kill("conductor")
        engine.kill("spawner")
    engine.start()
    answer = engine.ask(verb="coordinate", task_id="t", agents=5)
    assert accounted(engine, answer, 5)["done"] == 5
    assert answer["results"][0]["output"] == "late\n"


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.03, 0.1, 0.3])
def test_a_spawner_that_is_killed_takes_no_worker_along(engine: Engine, after_s: float) -> None:
    engine.configure(CFN_AGENT_COMMAND=engine.agent("sleep 0.2"))
    engine.start()
    engine.up()
    with engine.begin(task_id="t", agents=30):
        time.sleep(after_s)
        engine.kill("spawner")
        engine.start("spawner")
    answer = engine.ask(verb="coordinate", task_id="t", agents=30)
    assert accounted(engine, answer, 30)["done"] == 30
    engine.until(lambda: not engine.workers(), 15)


def test_without_a_spawner_all_is_undelivered_at_the_deadline(engine: Engine) -> None:
    engine.start("conductor")
    answer = engine.ask(verb="coordinate", task_id="t", agents=3, deadline_ms=200)
    assert accounted(engine, answer, 3)["undelivered"] == 3
    assert 200 <= answer["coordination_time_ms"] < 2000
    assert engine.ask(verb="health")["spawner"] == "down"


def test_a_worker_that_dies_while_it_runs_is_unknown_and_leaves_nothing(engine: Engine) -> None:
    engine.configure(CFN_AGENT_COMMAND=engine.agent("sleep 1000 & wait"))
    engine.start()
    with engine.begin(task_id="t", agents=4):
        engine.until(lambda: len(engine.runs()) == 4, 15)
        for pid in engine.leaders():
            os.kill(pid, signal.SIGKILL)
        answer = engine.ask(verb="coordinate", task_id="t", agents=4)
    assert accounted(engine, answer, 4)["unknown"] == 4
    assert answer["delivery_rate_pct"] == 100
    engine.until(lambda: not engine.workers(), 15)


def test_workers_killed_at_random_lose_and_repeat_nothing(engine: Engine) -> None:
    engine.configure(CFN_AGENT_COMMAND=engine.agent("sleep 0.1"))
    engine.start()
    with engine.begin(task_id="t", agents=40):
        limit = time.monotonic() + 0.4
        while time.monotonic() < limit:
            for pid in engine.leaders()[::4]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
    states = accounted(engine, engine.ask(verb="coordinate", task_id="t", agents=40), 40)
    assert states["failed"] == 0


def test_a_stopped_worker_is_undelivered_at_the_deadline_and_never_starts(engine: Engine) -> None:
    engine.configure(CFN_AGENT_COMMAND=engine.agent("true"))
    engine.start()
    swarm = engine.ask(verb="init", agents=3)["swarm_id"]
    stopped = next(a["pid"] for a in engine.ask(verb="status")["agents"] if a["agent"] == "agent-2")
    assert stopped > 1
    os.kill(stopped, signal.SIGSTOP)
    answer = engine.ask(verb="coordinate", task_id="t", agents=3, swarm_id=swarm, deadline_ms=300)
    assert accounted(engine, answer, 3) == {"done": 2, "failed": 0, "undelivered": 1, "unknown": 0}
    assert answer["results"][1]["reason"] == "no acknowledgement within 300 ms"
    # It was killed, and replaced.
    engine.until(lambda: all(a["pid"] not in (0, stopped) for a in engine.ask(verb="status")["agents"]), 15)
    assert engine.ask(verb="coordinate", task_id="t2", agents=3, swarm_id=swarm)["states"]["done"] == 3


def test_a_worker_that_is_stopped_for_a_while_and_goes_on_is_no_failure(engine: Engine) -> None:
    engine.configure(CFN_AGENT_COMMAND=engine.agent("sleep 0.3"))
    engine.start()
    with engine.begin(task_id="t", agents=2, deadline_ms=300):
        engine.until(lambda: len(engine.runs()) == 2, 15)
        stopped = engine.leaders()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(0.6)
        assert engine.ask(verb="result", task_id="t")["state"] == "running"
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        answer = engine.ask(verb="coordinate", task_id="t", agents=2)
    assert accounted(engine, answer, 2)["done"] == 2


def test_revoked_is_what_never_starts(engine: Engine) -> None:
    engine.configure(CFN_AGENT_COMMAND=engine.agent("sleep 0.5"))
    engine.start()
    swarm = engine.ask(verb="init", agents=3)["swarm_id"]
    stopped = engine.ask(verb="status")["agents"][0]["pid"]
    assert stopped > 1
    os.kill(stopped, signal.SIGSTOP)
    with engine.begin(task_id="t", agents=3, swarm_id=swarm):
        engine.until(lambda: len(engine.runs()) == 2, 15)
        answer = engine.ask(verb="revoke", task_id="t")
        assert [r["state"] for r in answer["results"]] == ["undelivered", "running", "running"]
        assert answer["results"][0]["reason"] == "revoked"
        os.kill(stopped, signal.SIGCONT)
        answer = engine.ask(verb="coordinate", task_id="t", agents=3)
    assert accounted(engine, answer, 3)["done"] == 2
    assert engine.ask(verb="revoke", task_id="t") == answer
    assert engine.ask(verb="revoke", task_id="nobody")["absent"]


def test_a_process_stopped_between_lock_and_claim_is_killed_first(engine: Engine) -> None:
    """Played by a process of this test, which holds the slot's lock and writes nothing."""
    engine.start("conductor")  # no spawner: nobody else claims
    with engine.begin(task_id="t", agents=1, deadline_ms=300):
        arena = engine.paths.claims / "0"
        holder = subprocess.Popen(
            ["python3", "-c", f"import fcntl,time; f=open('{arena}','r+b'); "
             "fcntl.lockf(f, fcntl.LOCK_EX, 1, 0); print(flush=True); time.sleep(60)"],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert holder.stdout is not None
        holder.stdout.readline()
        answer = engine.ask(verb="coordinate", task_id="t", agents=1)
    assert holder.wait(5) == -signal.SIGKILL
    assert answer["states"]["undelivered"] == 1


def test_a_clean_stop_reports_what_is_undelivered_and_leaves_no_process(engine: Engine) -> None:
    engine.configure(CFN_AGENT_COMMAND=engine.agent("sleep 1000"), CFN_MAX_AGENTS=10)
    engine.start()
    engine.ask(verb="init", agents=2)
    with engine.begin(task_id="t", agents=10), engine.begin(task_id="u", agents=10):
        engine.until(lambda: len(engine.runs()) == 20, 15)
        with engine.begin(task_id="v", agents=10), Client(engine.paths.conductor_socket) as waiting:
            answers = waiting.request({"verb": "coordinate", "task_id": "v", "agents": 10})
            next(answers)
            engine.kill("conductor", signal.SIGTERM)
            assert next(answers)["states"]["undelivered"] == 10
    engine.until(lambda: not engine.workers(), 15)
    engine.start("conductor")
    for task in ("t", "u"):
        states = engine.ask(verb="result", task_id=task)["states"]
        assert states["failed"] == 10, states
    health = engine.ask(verb="health")
    assert (health["swarms"], health["open_requests"], health["counters"]["replayed"]) == ([], 0, 0)


def test_a_second_conductor_and_a_planted_folder_are_refused(engine: Engine) -> None:
    engine.start("conductor")
    command = ["python3", "-m", "cfn", "conductor"]
    second = subprocess.run(command, env=engine.environment, capture_output=True, text=True)
    assert second.returncode == 5
    assert "another conductor is running" in second.stderr
    engine.kill("conductor")
    real = engine.paths.shm.with_name("elsewhere")
    engine.paths.shm.rename(real)
    engine.paths.shm.symlink_to(real)
    planted = subprocess.run(command, env=engine.environment, capture_output=True, text=True)
    assert planted.returncode == 1
    assert "is a symbolic link" in planted.stderr


def test_a_faulty_lab_release_is_slow_or_loses_what_it_says(engine: Engine) -> None:
    fault = engine.paths.root / "release"
    fault.mkdir()
    subprocess.run(["cp", "-r", engine.environment["PYTHONPATH"], fault / "lib"], check=True)
    (fault / "release.json").write_text('{"version": "0.1.0-bad"}')
    (fault / "lab-fault").write_text("lose:30")
    engine.environment["PYTHONPATH"] = str(fault / "lib")
    command = ["python3", "-m", "cfn", "conductor"]
    outside = subprocess.run(command, env=engine.environment, capture_output=True, text=True)
    assert outside.returncode == 2
    assert "starts on lab hosts only" in outside.stderr
    engine.paths.lab_marker.write_text("{}")
    engine.start()
    answer = engine.ask(verb="coordinate", task_id="t", agents=100, deadline_ms=1500)
    assert 15 <= answer["states"]["undelivered"] <= 45
    assert answer["states"]["done"] == 100 - answer["states"]["undelivered"]
    assert answer["coordination_time_ms"] == 1500


def test_a_new_spawner_keeps_the_workers_of_the_old_one(engine: Engine) -> None:
    engine.start()
    engine.ask(verb="init", agents=3)
    before = [agent["pid"] for agent in engine.ask(verb="status")["agents"]]
    engine.kill("spawner")
    engine.until(lambda: engine.ask(verb="health")["spawner"] == "down", 15)
    engine.start("spawner")
    engine.up()
    time.sleep(0.1)  # for what came with the hello
    engine.kill("conductor")
    engine.start("conductor")
    engine.until(lambda: all(a["state"] == "up" for a in engine.ask(verb="status")["agents"]), 15)
    assert [agent["pid"] for agent in engine.ask(verb="status")["agents"]] == before
    os.kill(before[0], signal.SIGKILL)  # no child of this spawner, and still noticed and replaced
    engine.until(lambda: engine.ask(verb="status")["agents"][0]["pid"] not in (0, before[0]), 15)


def hub(engine: Engine) -> control.Channel:
    """Another hub of the spawner."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(str(engine.paths.spawner_socket))
    channel = control.Channel(connection)
    epoch = engine.ask(verb="health")["epoch"] if "conductor" in engine.processes else 1
    channel.send(control.message("hello", epoch, 0))
    return channel


def order(channel: control.Channel, swarm_id: str, *agents: str) -> None:
    """Have it ask for workers."""
    channel.send(control.message("spawn", swarm_id, 0, control.rows([(agent, 0, 0, 0) for agent in agents])))


def test_an_agent_that_two_requests_order_at_once_has_one_worker(engine: Engine) -> None:
    engine.launch("spawner")
    engine.until(engine.paths.spawner_socket.exists, 15)
    channel = hub(engine)
    engine.processes["spawner"].send_signal(signal.SIGSTOP)
    order(channel, "kept", "agent-1", "agent-2")
    order(channel, "kept", "agent-2", "agent-3")
    engine.processes["spawner"].send_signal(signal.SIGCONT)
    engine.until(lambda: len(engine.leaders()) == 3, 15)
    channel.send(control.message("end", "kept", control.rows([(f"agent-{n}",) for n in (1, 2, 3)])))
    channel.close()
    engine.until(lambda: not engine.leaders(), 15)


def test_workers_of_a_swarm_that_is_over_are_found_by_the_sweep(engine: Engine) -> None:
    engine.start()
    channel = hub(engine)
    order(channel, "task:over", "agent-1")
    engine.until(lambda: len(engine.leaders()) == 1, 15)
    channel.close()
    engine.until(lambda: not engine.leaders(), 10)


def test_a_lock_goes_through_an_exec_and_no_child_keeps_it(engine: Engine) -> None:
    path = engine.paths.root / "lock"
    became = "print(flush=True); import sys; sys.stdin.read()"
    script = f"""
import os, subprocess, sys
from pathlib import Path
from cfn.engine.guard import one_at_a_time
lock = one_at_a_time(Path({str(path)!r}), "daemon")
os.set_inheritable(lock, True)
child = subprocess.Popen(["sleep", "60"], close_fds=False)
print(child.pid, flush=True)
os.execv(sys.executable, [sys.executable, "-c", {became!r}])
"""
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env={**engine.environment, "PYTHONPATH": str(SOURCE)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as daemon:
        assert daemon.stdout is not None
        child = int(daemon.stdout.readline())
        daemon.stdout.readline()
        with pytest.raises(RefusedError, match="another daemon is running"):
            one_at_a_time(path, "daemon")
        daemon.kill()
        daemon.wait()
        assert send_signal(child, 0)
        os.close(one_at_a_time(path, "daemon"))
        send_signal(child, signal.SIGKILL)


@pytest.mark.parametrize("short", ["spawner", "conductor"])
def test_without_descriptors_a_request_ends_with_a_reason_and_the_next_is_served(
    engine: Engine, short: str
) -> None:
    engine.start()
    engine.up()
    process = engine.processes[short].pid
    taken = len(os.listdir(f"/proc/{process}/fd")) + 8  # noqa: PTH208 - numbers only
    resource.prlimit(process, resource.RLIMIT_NOFILE, (taken, 4096))
    answer = engine.ask(verb="coordinate", task_id="t", agents=40, deadline_ms=700)
    if (
        short == "spawner"
    ):  # without the conductor's descriptors they run all the same, and their claims say so
        assert answer["states"]["undelivered"] > 20
    assert answer["states"]["undelivered"] + answer["states"]["done"] == 40
    assert all(result["reason"] for result in answer["results"] if result["state"] == "undelivered")
    resource.prlimit(process, resource.RLIMIT_NOFILE, (1024, 4096))
    assert engine.ask(verb="coordinate", task_id="t2", agents=40)["states"]["done"] == 40


@pytest.mark.full
def test_a_stopped_agent_is_ended_in_time_however_often_its_hub_is_restarted(engine: Engine) -> None:
    engine.configure(CFN_AGENT_COMMAND=engine.agent("sleep 1000"), CFN_AGENT_TIMEOUT_TIME=200)
    engine.start()
    with engine.begin(task_id="t", agents=2, deadline_ms=1_000):
        engine.until(lambda: len(engine.runs()) == 2, 15)
        for pid in engine.leaders():
            send_signal(pid, signal.SIGSTOP)
    limit = time.monotonic() + 0.2 + 2 * GRACE_S + OVERDUE_S + 8
    while engine.ask(verb="result", task_id="t")["state"] == "running":
        assert time.monotonic() < limit, engine.log()
        time.sleep(1)
        engine.kill("conductor")
        engine.start("conductor")
    assert accounted(engine, engine.ask(verb="result", task_id="t"), 2)["unknown"] == 2
