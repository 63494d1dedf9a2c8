"""Things that happen at the same moment: two requests, a verb and a crash, a change of the configuration."""

import json
import os
import resource
import signal
import socket
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from cfn.client import Client
from cfn.engine import verbs
from cfn.engine.directory import SwarmDirectory
from cfn.engine.loop import READ, Loop
from cfn.engine.messages.callers import Callers

from .conftest import Engine
from .harness import SOURCE, send_signal

pytestmark = pytest.mark.processes

CHAT = """
import os, sys
sys.path.insert(0, {source!r})
from cfn.agent import Bus
number = int(os.environ["CFN_AGENT_ID"].split("-")[1])
bus = Bus()
for _ in range(25):
    bus.send(f"agent-{{number % 8 + 1}}", "x", b"hi")
    while bus.receive(0.1):
        pass
"""


LATE = """
import os, sys, time
sys.path.insert(0, {source!r})
from cfn.agent import Bus
if int(os.environ["CFN_AGENT_ID"].split("-")[1]) <= 4:
    time.sleep(1.5)
    with Bus() as bus:
        bus.send("agent-8", "x", b"hi")
        bus.broadcast("x", b"all")
"""


def start_with(engine: Engine, agent: str) -> None:
    """Two coordinators, and agents that run this program."""
    program = engine.paths.root / "agent.py"
    program.write_text(agent.format(source=str(SOURCE)))
    command = f"{sys.executable} -S {program}"
    engine.configure(CFN_MAX_AGENTS=100, CFN_TOPOLOGY="hybrid", CFN_COORDINATORS=2, CFN_AGENT_COMMAND=command)
    engine.start_hybrid(2)


def pipelined(engine: Engine, *requests: dict[str, Any]) -> socket.socket:
    """Ask several things at once, over one connection."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(30)
    connection.connect(str(engine.paths.conductor_socket))
    connection.sendall(b"".join(json.dumps(request).encode() + b"\n" for request in requests))
    return connection


def finals(connection: socket.socket, count: int) -> list[dict[str, Any]]:
    """So many final answers."""
    with connection, connection.makefile("rb") as lines:
        found: list[dict[str, Any]] = []
        while len(found) < count:
            answer = json.loads(lines.readline())
            if set(answer) != {"state", "task_id"}:
                found.append(answer)
    return found


def configured(engine: Engine, **values: object) -> None:
    """Another configuration, and the conductor has seen it."""
    before = engine.logged("conductor").read_text().count('"configuration changed"')
    engine.configure(**values)
    engine.until(lambda: engine.logged("conductor").read_text().count('"configuration changed"') > before, 15)


def test_two_requests_at_once_on_workers_that_have_just_died_are_both_served(running: Engine) -> None:
    running.ask(verb="init", agents=8, swarm_id="s")
    for turn in range(3):
        for pid in running.pids("s").values():
            send_signal(pid, signal.SIGKILL)
        asked = [
            {"verb": "coordinate", "task_id": f"{name}{turn}", "agents": 8, "swarm_id": "s"}
            for name in ("a", "b")
        ]
        answers = finals(pipelined(running, *asked), 2)
        assert [answer["states"]["done"] for answer in answers] == [8, 8], answers


def test_a_request_in_the_same_breath_as_its_swarm_is_served(running: Engine) -> None:
    made = {"verb": "init", "agents": 8, "swarm_id": "s"}
    answers = finals(
        pipelined(running, made, {"verb": "coordinate", "task_id": "t", "agents": 8, "swarm_id": "s"}), 2
    )
    assert {"live": 8, "done": 8} in (
        {"live": first.get("live"), "done": second.get("states", {}).get("done")}
        for first, second in (answers, answers[::-1])
    )


@pytest.mark.parametrize("kept", [False, True])
def test_agents_that_talk_do_not_notice_that_the_conductor_died(engine: Engine, kept: bool) -> None:
    start_with(engine, CHAT)
    request: dict[str, Any] = {"task_id": "t", "agents": 10}
    if kept:
        engine.ask(verb="init", agents=10, swarm_id="s")
        request["swarm_id"] = "s"
    with engine.begin(**request):
        time.sleep(1)
        engine.kill("conductor")
        engine.launch("conductor")
        answer = engine.ask(verb="coordinate", **request)
    assert answer["states"]["done"] == 10, answer


@pytest.mark.parametrize("killed", ["", "coordinator-2", "conductor"])
def test_who_writes_to_a_team_that_has_ended_does_not_wait(engine: Engine, killed: str) -> None:
    """Nobody will read it; on one hub it would have been taken too."""
    start_with(engine, LATE)
    with engine.begin(task_id="t", agents=10):
        time.sleep(0.7)
        if killed:
            engine.kill(killed)
        if killed == "conductor":
            engine.launch(killed)
        answer = engine.ask(verb="coordinate", task_id="t", agents=10)
    assert answer["states"]["done"] == 10, answer
    assert not list((engine.paths.shm / "inboxes").rglob("team-*"))


def test_a_fetch_that_the_spawner_took_along_is_asked_for_again(engine: Engine) -> None:
    engine.configure(CFN_TOPOLOGY="hybrid", CFN_COORDINATORS=2, CFN_AGENT_COMMAND=engine.agent("sleep 1"))
    engine.start_hybrid(2)
    with engine.begin(task_id="t", agents=10, deadline_ms=60_000):
        engine.until(lambda: len(engine.runs()) == 8, 15)
        send_signal(engine.processes["spawner"].pid, signal.SIGSTOP)
        engine.kill("coordinator-1")
        lost = "coordinator lost"
        engine.until(lambda: lost in engine.logged("conductor").read_text(), 15)
        engine.kill("spawner")
        engine.launch("spawner")
        engine.launch("coordinator-1")
        answer = engine.ask(verb="coordinate", task_id="t", agents=10)
    assert answer["states"]["done"] == 10, answer
    assert answer["total_time_ms"] < 60_000  # it would have been looked for at the deadline only


def test_a_swarm_that_is_made_again_at_once_keeps_its_agents(engine: Engine) -> None:
    """What ran on the old one still ends, on another hub, under the same name."""
    agent = engine.agent("trap '' TERM; sleep 60")
    engine.configure(CFN_TOPOLOGY="hybrid", CFN_COORDINATORS=2, CFN_AGENT_COMMAND=agent)
    engine.start_hybrid(2)
    engine.ask(verb="init", agents=10, swarm_id="s")
    with (
        engine.begin(task_id="t", agents=10, swarm_id="s"),
        Client(engine.paths.conductor_socket, timeout_s=15) as client,
    ):
        engine.until(lambda: len(engine.runs()) == 8, 15)
        send_signal(engine.processes["coordinator-1"].pid, signal.SIGSTOP)
        ended = client.request({"verb": "shutdown", "swarm_id": "s"})
        engine.until(lambda: not engine.ask(verb="health")["swarms"], 15)
        engine.kill("coordinator-1")
        next(ended)
        assert engine.ask(verb="init", agents=10, swarm_id="s")["live"] == 10
        engine.ask(verb="coordinate", task_id="t", agents=10, swarm_id="s")
    time.sleep(1)  # for what the end of the old request might take along
    assert len(engine.pids("s")) == 9  # a team's coordinator has no process of its own
    sent = engine.ask(verb="broadcast", type="x", swarm_id="s")
    assert (sent["sent"], sent["delivered"]) == (10, 10)


def test_what_was_taken_of_an_inbox_whose_swarm_is_gone_is_confirmed_to_nobody() -> None:
    state: Any = SimpleNamespace(directory=SwarmDirectory())
    links: Any = SimpleNamespace(number=0)
    nothing: Any = None
    Callers(nothing, state, nothing, links, nothing).confirm("gone", "agent-2", 1)


def test_an_agent_from_outside_that_is_gone_is_nobody_else(running: Engine) -> None:
    running.configure(CFN_AGENT_COMMAND=running.agent("true"))
    running.ask(verb="init", agents=2, swarm_id="s")
    connection = pipelined(running, {"verb": "join", "agent": "x"})
    connection.recv(200)
    request: dict[str, Any] = {"task_id": "t", "agent_ids": ["x"], "swarm_id": "s", "deadline_ms": 15_000}
    with running.begin(**request), connection:
        running.kill("conductor")
        running.launch("conductor")
        answer = running.ask(verb="coordinate", **request)
    assert (answer["states"]["undelivered"], running.runs()) == (1, [])
    assert finals(pipelined(running, {"verb": "join", "agent": "x"}), 1)[0]["joined"] == "x"


def test_a_stop_waits_for_what_is_being_shut_down(running: Engine) -> None:
    running.ask(verb="init", agents=4, swarm_id="s")
    send_signal(running.pids("s")["agent-1"], signal.SIGSTOP)
    with Client(running.paths.conductor_socket, timeout_s=30) as client:
        ended = client.request({"verb": "shutdown", "swarm_id": "s"})
        running.until(lambda: not running.ask(verb="health")["swarms"], 15)
        running.kill("conductor", signal.SIGTERM)
        assert next(ended)["agents"] == 4
    assert not list((running.paths.shm / "swarms").iterdir())


def test_processes_that_cannot_be_made_are_ordered_again_once_a_second(engine: Engine) -> None:
    engine.configure(CFN_MAX_AGENTS=300)
    engine.start()
    engine.up()
    spawner = engine.processes["spawner"].pid
    taken = len(os.listdir(f"/proc/{spawner}/fd")) + 1  # noqa: PTH208 - numbers only
    resource.prlimit(spawner, resource.RLIMIT_NOFILE, (taken, 4_096))
    with pipelined(engine, {"verb": "init", "agents": 250, "swarm_id": "s"}):
        time.sleep(4.5)
    lines = engine.logged("spawner").read_text().splitlines()
    failed = [value["agents"] for line in lines if (value := json.loads(line))["event"] == "fork failed"]
    assert 250 <= sum(failed) <= 6 * 250, failed
    resource.prlimit(spawner, resource.RLIMIT_NOFILE, (4_096, 4_096))
    engine.until(lambda: len(engine.pids("s")) == 250, 15)


@pytest.mark.parametrize(("short", "ended"), [("conductor", "spawner"), ("coordinator-1", "conductor")])
def test_who_has_no_descriptor_to_connect_again_lives_on(engine: Engine, short: str, ended: str) -> None:
    engine.configure(CFN_MAX_AGENTS=100, CFN_TOPOLOGY="hybrid", CFN_COORDINATORS=1)
    engine.start_hybrid(1)
    process = engine.processes[short]
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (3, 4_096))  # what is open stays so
    engine.kill(ended)
    time.sleep(0.3)
    assert process.poll() is None, engine.log()
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (4_096, 4_096))
    engine.launch(ended)
    engine.connected(1)


def test_fewer_coordinators_take_over_from_one_that_is_over(engine: Engine) -> None:
    values = {"CFN_MAX_AGENTS": 100, "CFN_TOPOLOGY": "hybrid"}
    engine.configure(CFN_COORDINATORS=3, **values)
    engine.start_hybrid(3)
    engine.ask(verb="init", agents=24, swarm_id="s")
    configured(engine, CFN_COORDINATORS=2, **values)
    engine.kill("coordinator-3")
    engine.launch("coordinator-3")
    engine.until(lambda: len(engine.ask(verb="health")["coordinators"]) == 3, 15)
    time.sleep(0.5)  # for it to be given what it should not have
    last = engine.ask(verb="status")["agents"][-1]["agent"]
    assert "message" in engine.ask(verb="send", **{"from": "agent-1"}, to=last, type="x")
    assert len(engine.ask(verb="recv", agent=last)["messages"]) == 1


def test_a_drain_of_one_that_the_configuration_has_no_more_is_answered(engine: Engine) -> None:
    values = {"CFN_MAX_AGENTS": 100, "CFN_TOPOLOGY": "hybrid"}
    engine.configure(CFN_COORDINATORS=3, **values)
    engine.start_hybrid(3)
    engine.ask(verb="init", agents=24, swarm_id="s")
    send_signal(engine.processes["coordinator-3"].pid, signal.SIGSTOP)
    connection = pipelined(engine, {"verb": "failover", "coordinator": 3, "how": "drain"})
    engine.configure(CFN_COORDINATORS=2, **values)
    assert finals(connection, 1)[0]["state"] in ("down", "hung", "draining")
    assert engine.processes["conductor"].poll() is None, engine.log()


def test_the_rows_of_a_large_team_are_told(engine: Engine) -> None:
    engine.configure(CFN_MAX_AGENTS=400, CFN_TOPOLOGY="hybrid", CFN_COORDINATORS=1)
    engine.start_hybrid(1)
    engine.ask(verb="init", agents=340, swarm_id="s")
    for number in range(4):
        engine.ask(verb="broadcast", type=f"{number}" + "k" * 127)
    assert len(engine.ask(verb="status")["agents"]) == 340
    assert engine.ask(verb="health")["coordinators"][0]["failovers"] == 0


def test_a_retention_beyond_all_measure_is_refused(running: Engine) -> None:
    assert running.ask(verb="sweep", retention_s=10**400)["exit_code"] == 2
    assert running.processes["conductor"].poll() is None


def test_names_that_no_datagram_holds_are_refused(running: Engine) -> None:
    configured(running, CFN_MAX_AGENTS=2_000)
    names = [f"{number:05}" + "n" * 122 for number in range(1_900)]
    answer = running.ask(verb="coordinate", task_id="t", agent_ids=names)
    assert "150000 bytes of names are allowed" in answer["error"]


def test_nothing_is_kept_of_an_answered_request() -> None:
    told: list[Any] = []

    def accept(_asked: object, tell: object) -> str:
        told.append(tell)
        return "accepted"

    client = SimpleNamespace(on_close=[], say=lambda _: None, finish_raw=lambda _: None)
    conductor = SimpleNamespace(
        accepting=lambda: None,
        config=SimpleNamespace(
            coordination_deadline_ms=1_000, max_payload_bytes=10, agent_command="", agent_commands=""
        ),
        coordinations=SimpleNamespace(coordinate=accept, forget=lambda *_: None),
    )
    verbs.coordinate(conductor, client, {"task_id": "t", "agents": 1})  # type: ignore[arg-type]
    assert len(client.on_close) == 1
    told[0](b'{"state":"complete"}')
    assert client.on_close == []


def test_an_event_is_not_anothers_whose_number_is_the_same() -> None:
    loop = Loop()
    heard: list[str] = []
    first, second = socket.socketpair(), socket.socketpair()
    new: list[tuple[socket.socket, socket.socket]] = []

    def taken(_events: int) -> None:
        """The second one is closed, and its number is given to another, which has nothing to read."""
        first[0].recv(1)
        number = second[0].fileno()
        loop.remove(number)
        second[0].close()
        pair = socket.socketpair()
        assert number in (pair[0].fileno(), pair[1].fileno())
        new.append(pair)
        loop.add(number, READ, lambda _events: heard.append("the new one"))

    loop.add(first[0].fileno(), READ, taken)
    loop.add(second[0].fileno(), READ, lambda _events: heard.append("the old one"))
    for pair in (first, second):
        pair[1].send(b"x")
    loop.turn(1)
    assert heard == []
    loop.close()
    for each in (*first, second[1], *new[0]):
        each.close()
