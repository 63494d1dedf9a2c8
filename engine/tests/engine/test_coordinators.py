"""Coordinators that die, hang, drain and come back: teams move, workers stay, coordinations complete."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import pytest

from cfn.client import Client
from cfn.engine.fleet import HANG_S
from cfn.engine.hosts import STOP_S

from .conftest import Engine
from .harness import coordinator_names, send_signal

pytestmark = pytest.mark.processes

FINAL = ("done", "failed", "undelivered", "unknown")
AGENTS = 40


@pytest.fixture
def swarm(hybrid: Engine) -> Engine:
    """A hybrid engine with the kept swarm "s", whose agents note that they run and need a moment."""
    hybrid.configure(
        CFN_MAX_AGENTS=100,
        CFN_TOPOLOGY="hybrid",
        CFN_COORDINATORS=4,
        CFN_AGENT_COMMAND=hybrid.agent("sleep 0.4"),
    )
    time.sleep(1.1)  # the conductor looks at its configuration once a second
    assert hybrid.ask(verb="init", agents=AGENTS, swarm_id="s")["live"] == AGENTS
    return hybrid


def all_done(engine: Engine, answer: dict[str, Any], runs: int = 1) -> None:
    """Every agent is done, each worker ran as often as it should."""
    assert answer["states"] == {"done": AGENTS, "failed": 0, "undelivered": 0, "unknown": 0}, (
        answer,
        engine.log(),
    )
    counted = Counter(engine.runs())
    assert set(counted.values()) == {runs}
    assert len(counted) == AGENTS - 4


def home(engine: Engine) -> bool:
    """Every team is with its own coordinator."""
    return all(row.get("agents") == AGENTS / 4 for row in engine.ask(verb="health")["coordinators"])


def crowded(engine: Engine) -> list[int]:
    """The coordinators that have more than their own team."""
    rows = engine.ask(verb="health")["coordinators"]
    return [row["id"] for row in rows if row.get("agents", 0) > AGENTS / 4]


def running_then(engine: Engine, *signals: tuple[str, int]) -> dict[str, Any]:
    """A coordination on the swarm, and signals to daemons while its agents run; its outcome."""
    already = len(engine.runs())
    with engine.begin(task_id=f"t{already}", agents=AGENTS, swarm_id="s"):
        engine.until(lambda: len(engine.runs()) == already + AGENTS - 4, 10)
        for name, number in signals:
            send_signal(engine.processes[name].pid, number)
        for name, number in signals:
            if number == signal.SIGKILL:
                engine.processes[name].wait(5)
                engine.launch(name) if name in ("conductor", "spawner") else None
        return engine.ask(verb="coordinate", task_id=f"t{already}", agents=AGENTS, swarm_id="s")


def test_teams_are_spread_and_both_levels_are_reported(swarm: Engine) -> None:
    answer = swarm.ask(verb="coordinate", task_id="t", agents=AGENTS, swarm_id="s")
    all_done(swarm, answer)
    assert answer["mesh_delivery_rate_pct"] == answer["worker_delivery_rate_pct"] == 100
    assert [(team["coordinator"], team["agents"]) for team in answer["teams"]] == [
        (number, AGENTS // 4) for number in range(1, 5)
    ]


def test_a_killed_coordinators_workers_move_and_the_running_coordination_completes(swarm: Engine) -> None:
    before = swarm.pids("s")
    all_done(swarm, running_then(swarm, ("coordinator-2", signal.SIGKILL)))
    assert swarm.pids("s") == before
    assert swarm.coordinator(2)["state"] == "down"
    assert swarm.coordinator(2)["failovers"] == 1
    swarm.launch("coordinator-2")
    swarm.connected(2)
    swarm.until(lambda: home(swarm), 15)
    assert swarm.pids("s") == before
    all_done(swarm, running_then(swarm), runs=2)


def test_two_that_die_at_once_and_then_a_third_still_serve(swarm: Engine) -> None:
    before = swarm.pids("s")
    dead = [("coordinator-1", signal.SIGKILL), ("coordinator-2", signal.SIGKILL)]
    all_done(swarm, running_then(swarm, *dead))
    all_done(swarm, running_then(swarm, ("coordinator-3", signal.SIGKILL)), runs=2)
    assert swarm.pids("s") == before
    assert swarm.coordinator(4)["agents"] == AGENTS - 4 + 1


def test_without_any_coordinator_the_conductor_serves(swarm: Engine) -> None:
    before = swarm.pids("s")
    all_done(swarm, running_then(swarm, *((name, signal.SIGKILL) for name in coordinator_names(4))))
    assert swarm.pids("s") == before
    all_done(swarm, running_then(swarm), runs=2)
    for name in coordinator_names(4):
        swarm.launch(name)
    swarm.connected(1, 2, 3, 4)
    swarm.until(lambda: home(swarm), 15)
    all_done(swarm, running_then(swarm), runs=3)
    assert swarm.pids("s") == before


def test_one_that_hangs_is_killed_and_its_teams_move(swarm: Engine) -> None:
    before = swarm.pids("s")
    all_done(swarm, running_then(swarm, ("coordinator-3", signal.SIGSTOP)))
    assert swarm.pids("s") == before
    swarm.until(lambda: swarm.processes["coordinator-3"].poll() == -signal.SIGKILL, HANG_S + 2)
    assert swarm.ask(verb="health")["counters"]["hangs"] == 1


def test_one_that_hangs_shows_before_it_is_killed(swarm: Engine) -> None:
    send_signal(swarm.processes["coordinator-3"].pid, signal.SIGSTOP)
    swarm.until(lambda: swarm.coordinator(3)["state"] == "hung", HANG_S)
    assert swarm.processes["coordinator-3"].poll() is None
    send_signal(swarm.processes["coordinator-3"].pid, signal.SIGCONT)
    swarm.until(lambda: swarm.coordinator(3)["state"] == "up", 15)


def test_stopped_for_less_than_the_bound_is_no_death(swarm: Engine) -> None:
    """Each coordinator is stopped several times for two thirds of the bound, the conductor too."""
    daemons = {name: process.pid for name, process in swarm.processes.items()}
    stops = 0
    for names in (coordinator_names(4), ["conductor"], coordinator_names(4)):
        for name in names:
            send_signal(daemons[name], signal.SIGSTOP)
        time.sleep(HANG_S * 2 / 3)
        for name in names:
            send_signal(daemons[name], signal.SIGCONT)
        stops += len(names)
        time.sleep(0.6)
    health = swarm.ask(verb="health")
    assert health["counters"]["hangs"] == health["counters"]["failovers"] == 0, f"of {stops} stops"
    assert {
        name: process.pid for name, process in swarm.processes.items() if process.poll() is None
    } == daemons
    all_done(swarm, running_then(swarm))


def test_a_conductor_that_was_stopped_for_long_takes_no_coordinator_for_dead(swarm: Engine) -> None:
    send_signal(swarm.processes["conductor"].pid, signal.SIGSTOP)
    time.sleep(HANG_S + 1)
    send_signal(swarm.processes["conductor"].pid, signal.SIGCONT)
    time.sleep(1)
    counters = swarm.ask(verb="health")["counters"]
    assert (counters["hangs"], counters["failovers"]) == (0, 0)


def test_killing_the_conductor_restarts_nobody_and_loses_nothing(swarm: Engine) -> None:
    workers = swarm.pids("s")
    daemons = {name: swarm.processes[name].pid for name in (*coordinator_names(4), "spawner")}
    all_done(swarm, running_then(swarm, ("conductor", signal.SIGKILL)))
    swarm.until(lambda: home(swarm), 15)
    assert swarm.pids("s") == workers
    assert {name: swarm.processes[name].pid for name in daemons} == daemons
    assert all(swarm.processes[name].poll() is None for name in daemons)
    assert {row["id"]: row["pid"] for row in swarm.ask(verb="health")["coordinators"]} == {
        number: daemons[f"coordinator-{number}"] for number in range(1, 5)
    }


def test_a_team_that_is_abroad_stays_with_one_hub_when_the_conductor_restarts_without_it(
    swarm: Engine,
) -> None:
    """The coordinator that has another's team is stopped while the conductor restarts and gives that
    team to somebody else: when it goes on, it must let go of the team, or it takes its answers."""
    swarm.kill("coordinator-2")
    swarm.until(lambda: bool(crowded(swarm)), 15)
    (host,) = crowded(swarm)
    send_signal(swarm.processes[f"coordinator-{host}"].pid, signal.SIGSTOP)
    swarm.kill("conductor")
    swarm.start("conductor")
    swarm.until(lambda: len(swarm.pids("s")) == AGENTS - 4, 10)  # others have its teams now
    send_signal(swarm.processes[f"coordinator-{host}"].pid, signal.SIGCONT)
    swarm.connected(host)
    for round_ in range(5):
        answer = running_then(swarm)
        all_done(swarm, answer, runs=round_ + 1)
        assert answer["total_time_ms"] < 5_000, answer


@pytest.mark.parametrize("how", ["drain", "dead"])
def test_by_hand(swarm: Engine, how: str) -> None:
    before = swarm.pids("s")
    pid = swarm.processes["coordinator-1"].pid
    with swarm.begin(task_id="t", agents=AGENTS, swarm_id="s"):
        swarm.until(lambda: len(swarm.runs()) == AGENTS - 4, 10)
        answer = swarm.ask(verb="failover", coordinator=1, how=how)
        assert answer["state"] == {"drain": "draining", "dead": "down"}[how]
        all_done(swarm, swarm.ask(verb="coordinate", task_id="t", agents=AGENTS, swarm_id="s"))
    if how == "drain":
        assert swarm.processes["coordinator-1"].poll() is None
        assert swarm.coordinator(1)["agents"] == 1
        swarm.kill("coordinator-1", signal.SIGTERM)
        assert swarm.processes["coordinator-1"].returncode == 0
    else:
        assert swarm.processes["coordinator-1"].wait(5) == -signal.SIGKILL
    assert swarm.pids("s") == before
    swarm.launch("coordinator-1")
    swarm.until(lambda: swarm.coordinator(1).get("pid", pid) != pid, 15)
    assert swarm.ask(verb="failover", coordinator=1, how="resume")["state"] == "up"
    swarm.until(lambda: home(swarm), 15)
    all_done(swarm, running_then(swarm), runs=2)
    assert swarm.pids("s") == before


def test_what_cannot_be_failed_over_is_refused(hybrid: Engine) -> None:
    unknown = hybrid.ask(verb="failover", coordinator=9)
    assert (unknown["exit_code"], unknown["error"]) == (5, "coordinator 9 is unknown here; known: 1, 2, 3, 4")
    assert hybrid.ask(verb="failover", coordinator=1, how="gently")["exit_code"] == 2
    assert hybrid.ask(verb="failover", coordinator=0)["exit_code"] == 2


@pytest.mark.parametrize("ended_by", ["failover", "return", "deadline"])
def test_without_automatic_failover_its_teams_wait(engine: Engine, ended_by: str) -> None:
    engine.configure(
        CFN_MAX_AGENTS=100,
        CFN_TOPOLOGY="hybrid",
        CFN_COORDINATORS=4,
        CFN_COORDINATOR_FAILOVER="false",
        CFN_AGENT_COMMAND=engine.agent("true"),
    )
    engine.start_hybrid(4)
    engine.ask(verb="init", agents=AGENTS, swarm_id="s")
    time.sleep(1.1)  # what the start allows for coordinators to come
    engine.kill("coordinator-2")
    engine.until(lambda: engine.coordinator(2)["state"] == "down", 15)
    deadline_ms = 1_500 if ended_by == "deadline" else 20_000
    with engine.begin(task_id="t", agents=AGENTS, swarm_id="s", deadline_ms=deadline_ms):
        engine.until(lambda: len(engine.runs()) == 27, 15)
        time.sleep(0.3)
        assert len(engine.runs()) == 27
        assert engine.ask(verb="result", task_id="t")["state"] == "running"
        if ended_by == "failover":
            engine.ask(verb="failover", coordinator=2)
        elif ended_by == "return":
            engine.launch("coordinator-2")
        answer = engine.ask(verb="coordinate", task_id="t", agents=AGENTS, swarm_id="s")
    if ended_by != "deadline":
        all_done(engine, answer)
        return
    assert answer["states"] == {"done": 30, "failed": 0, "undelivered": 10, "unknown": 0}
    assert answer["total_time_ms"] < 5_000
    assert {r["reason"] for r in answer["results"] if r["state"] == "undelivered"} == {
        "no acknowledgement within 1500 ms",
        "no coordinator took its team",
    }


def test_a_second_coordinator_of_a_number_is_refused(hybrid: Engine) -> None:
    command = [sys.executable, "-m", "cfn", "coordinator", "2"]
    second = subprocess.run(command, env=hybrid.environment, capture_output=True, text=True, timeout=20)
    assert second.returncode == 5
    assert "another coordinator 2 is running" in second.stderr
    for wrong in (["0"], ["33"], ["x"], []):
        command = [sys.executable, "-m", "cfn", "coordinator", *wrong]
        refused = subprocess.run(command, env=hybrid.environment, capture_output=True, text=True, timeout=20)
        assert (refused.returncode, "1 to 32" in refused.stderr) == (2, True)


@pytest.mark.parametrize("failover", ["true", "false"])
def test_a_swarm_that_is_shut_down_while_its_coordinator_is_dead_leaves_no_worker(
    engine: Engine, failover: str
) -> None:
    engine.configure(CFN_TOPOLOGY="hybrid", CFN_COORDINATORS=4, CFN_COORDINATOR_FAILOVER=failover)
    engine.start_hybrid(4)
    for _ in range(3):
        engine.ask(verb="init", agents=AGENTS, swarm_id="s")
        engine.processes["coordinator-3"].kill()
        assert engine.ask(verb="shutdown", swarm_id="s")["agents"] == AGENTS
        engine.until(lambda: not engine.workers(), 15)
        engine.processes["coordinator-3"].wait(5)
        engine.launch("coordinator-3")
        engine.connected(3)
    ended = [line for line in engine.logged("conductor").read_text().splitlines() if "swarm ended" in line]
    assert len(ended) == 3


def test_a_swarm_that_is_shut_down_waits_for_no_dead_coordinator(swarm: Engine) -> None:
    send_signal(swarm.processes["coordinator-3"].pid, signal.SIGSTOP)
    with Client(swarm.paths.conductor_socket, timeout_s=15) as client:
        asked = client.request({"verb": "shutdown", "swarm_id": "s"})
        swarm.processes["coordinator-3"].kill()
        began_s = time.monotonic()
        assert next(asked)["agents"] == AGENTS
    assert time.monotonic() - began_s < STOP_S
    swarm.until(lambda: not swarm.workers(), 15)


@pytest.mark.parametrize("heard", [True, False])
def test_a_swarm_that_is_shut_down_while_what_runs_on_it_moves_leaves_no_worker(
    hybrid: Engine, heard: bool
) -> None:
    """Its coordinator dies after it `heard` of the end, with its agents in their grace; or before."""
    agent = hybrid.agent("trap '' TERM; sleep 60")
    hybrid.configure(CFN_TOPOLOGY="hybrid", CFN_COORDINATORS=4, CFN_AGENT_COMMAND=agent)
    time.sleep(1.1)  # the conductor looks at its configuration once a second
    hybrid.ask(verb="init", agents=AGENTS, swarm_id="s")
    with (
        hybrid.begin(task_id="t", agents=AGENTS, swarm_id="s"),
        Client(hybrid.paths.conductor_socket, timeout_s=15) as client,
    ):
        hybrid.until(lambda: len(hybrid.runs()) == AGENTS - 4, 10)
        if not heard:
            send_signal(hybrid.processes["coordinator-3"].pid, signal.SIGSTOP)
        asked = client.request({"verb": "shutdown", "swarm_id": "s"})
        hybrid.until(lambda: not hybrid.ask(verb="health")["swarms"], 15)
        hybrid.processes["coordinator-3"].kill()
        assert next(asked)["agents"] == AGENTS
    hybrid.until(lambda: not hybrid.workers(), 15)
    time.sleep(1)  # a hub that took the team for a kept one would have replaced its workers by now
    assert not hybrid.workers()


def test_a_stop_of_everything_leaves_no_process_socket_or_claim(swarm: Engine) -> None:
    with swarm.begin(task_id="t", agents=AGENTS, swarm_id="s"):
        swarm.until(lambda: len(swarm.runs()) == AGENTS - 4, 10)
        began_s = time.monotonic()
        for name in ("conductor", *coordinator_names(4), "spawner"):
            swarm.kill(name, signal.SIGTERM)
        swarm.until(lambda: not swarm.workers(), 15)
    assert time.monotonic() - began_s < 15  # a hang; bench measures it
    assert all(process.returncode == 0 for process in swarm.processes.values()), swarm.log()
    left = {str(path.relative_to(swarm.paths.root)) for path in swarm.paths.run.iterdir()}
    assert not [path for path in left if path.endswith(".sock")], left
    kept = {"claims", "conductor.lock", "generation", "inboxes", "outputs", "requests", "swarms"}
    assert set(os.listdir(swarm.paths.shm)) <= kept  # noqa: PTH208 - names only
    assert not [path for path in swarm.paths.shm.glob("inboxes/**/*") if path.is_file()]
    assert not any((swarm.paths.shm / "swarms").iterdir())
    assert not any(swarm.paths.outputs.iterdir())
    swarm.start("conductor")
    assert swarm.ask(verb="result", task_id="t")["state"] == "complete"


def test_a_worker_that_comes_to_a_hub_that_handed_its_team_over_lives_on(swarm: Engine) -> None:
    """The spawner is stopped, so that orders wait: of the team's first coordinator, then of its second."""
    first = swarm.pids("s")["agent-1"]
    send_signal(swarm.processes["spawner"].pid, signal.SIGSTOP)
    send_signal(first, signal.SIGKILL)
    swarm.until(lambda: "agent-1" not in swarm.pids("s"), 15)
    time.sleep(0.3)  # its replacement is ordered
    swarm.ask(verb="failover", coordinator=1, how="drain")
    send_signal(swarm.processes["spawner"].pid, signal.SIGCONT)
    swarm.until(lambda: len(swarm.pids("s")) == AGENTS - 4, 15)
    pids = swarm.pids("s")
    time.sleep(1.5)
    assert swarm.pids("s") == pids
    all_done(swarm, running_then(swarm))


@pytest.mark.full
def test_of_a_hundred_stops_below_the_bound_none_is_taken_for_a_death(engine: Engine) -> None:
    names = coordinator_names(7)
    engine.configure(CFN_TOPOLOGY="hybrid", CFN_COORDINATORS=7)
    engine.start_hybrid(7)
    stops = 0
    while stops < 100:
        for name in names:
            send_signal(engine.processes[name].pid, signal.SIGSTOP)
        time.sleep(HANG_S * 2 / 3)
        for name in names:
            send_signal(engine.processes[name].pid, signal.SIGCONT)
        stops += len(names)
        time.sleep(0.6)
    counters = engine.ask(verb="health")["counters"]
    assert (counters["hangs"], counters["failovers"]) == (0, 0), f"of {stops} stops"


@pytest.mark.parametrize("killed", ["", "coordinator-2", "conductor"])
def test_workers_of_a_done_team_wait_for_their_request_and_end_with_it(hybrid: Engine, killed: str) -> None:
    slow = hybrid.agent("[[ $CFN_AGENT_ID != agent-1 ]] || sleep 1.5")
    hybrid.configure(CFN_MAX_AGENTS=100, CFN_TOPOLOGY="hybrid", CFN_COORDINATORS=4, CFN_AGENT_COMMAND=slow)
    time.sleep(1.1)  # the conductor looks at its configuration once a second
    with hybrid.begin(task_id="t", agents=AGENTS):
        hybrid.until(lambda: len(hybrid.runs()) == AGENTS - 4, 10)
        time.sleep(0.5)  # three teams are done
        assert len(hybrid.leaders()) == AGENTS - 4
        if killed:
            hybrid.kill(killed)
            hybrid.launch(killed)
        answer = hybrid.ask(verb="coordinate", task_id="t", agents=AGENTS)
    assert answer["states"]["done"] == AGENTS
    hybrid.until(lambda: hybrid.leaders() == [], 15)
