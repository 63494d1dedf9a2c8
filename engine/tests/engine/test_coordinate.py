"""The main path and its bad inputs, against real processes."""

import base64
import json
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from .conftest import Engine

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("agents", [1, 10, 100])
def test_every_agent_claims_runs_and_answers(running: Engine, agents: int) -> None:
    payload = base64.b64encode(b"hello").decode()
    answer = running.ask(verb="coordinate", task_id="t", agents=agents, payload_b64=payload)
    assert answer["states"] == {"done": agents, "failed": 0, "undelivered": 0, "unknown": 0}
    assert answer["delivery_rate_pct"] == answer["completion_rate_pct"] == 100
    assert {result["output"] for result in answer["results"]} == {"hello"}
    assert 0 < answer["coordination_time_ms"] <= answer["total_time_ms"]
    running.until(lambda: not running.workers(), 15)


def test_a_long_output_is_kept_whole_up_to_its_bound(engine: Engine) -> None:
    engine.configure(
        CFN_MAX_OUTPUT=1000, CFN_AGENT_COMMAND=engine.agent("head -c 300000 /dev/zero | tr '\\0' x")
    )
    engine.start()
    answer = engine.ask(verb="coordinate", task_id="t", agents=2)
    assert [result["output"] for result in answer["results"]] == ["x" * 1000] * 2
    assert answer["states"]["done"] == 2


def test_a_known_task_starts_nothing(engine: Engine) -> None:
    engine.configure(CFN_AGENT_COMMAND=engine.agent("sleep 0.3; echo $CFN_SWARM_ID $CFN_TEAM $CFN_TASK_ID"))
    engine.start()
    with engine.begin(task_id="t", agents=3):
        joined = engine.ask(verb="coordinate", task_id="t", agents=3)
    again = engine.ask(verb="coordinate", task_id="t", agents=99)
    assert joined == again == engine.ask(verb="result", task_id="t")
    assert len(engine.runs()) == 3
    assert joined["results"][0]["output"] == "task:t team-1 t\n"


def test_a_result_can_be_asked_for_while_it_runs(engine: Engine) -> None:
    engine.configure(CFN_AGENT_COMMAND=engine.agent("sleep 0.5"))
    engine.start()
    with engine.begin(task_id="t", agent_ids=["a", "b"]):
        engine.until(lambda: len(engine.runs()) == 2, 15)
        assert engine.ask(verb="result", task_id="t")["state"] == "running"
        assert engine.ask(verb="health")["open_requests"] == 1
    engine.until(lambda: engine.ask(verb="result", task_id="t")["state"] == "complete", 15)
    assert engine.ask(verb="result", task_id="nobody") == {
        "error": "task nobody is not known here",
        "exit_code": 1,
        "absent": True,
    }


@pytest.mark.parametrize(
    ("request_", "code", "said"),
    [
        ({"agents": 101}, 5, "101 agents: this stage allows at most 100 (CFN_MAX_AGENTS)"),
        ({"agents": 10**30}, 5, "at most 100"),
        ({"agents": 0}, 2, "a whole number from 1"),
        ({"agents": -1}, 2, "a whole number from 1"),
        ({"agents": "x"}, 2, "a whole number from 1"),
        ({"agents": True}, 2, "a whole number from 1"),
        ({"agents": 1.5}, 2, "a whole number from 1"),
        ({"agent_ids": []}, 2, "at least one agent"),
        ({"agent_ids": ["a", "a"]}, 2, "named twice"),
        ({"agent_ids": ["a/b"]}, 2, "agent id 'a/b' is refused"),
        ({"agent_ids": [".."]}, 2, "agent id '..' is refused"),
        ({"agent_ids": ["a\nb"]}, 2, "is refused"),
        ({"agent_ids": ["a" * 10_000]}, 2, "10000 characters: at most 128"),
        ({"agents": 1, "task_id": "../x"}, 2, "task id"),
        ({"agents": 1, "task_id": None}, 2, "task id is needed"),
        ({"agents": 1, "payload_b64": "%"}, 2, "base64 is needed"),
        (
            {"agents": 1, "payload_b64": base64.b64encode(b"x" * 65_537).decode()},
            5,
            "65537 bytes: at most 65536",
        ),
        ({"agents": 1, "deadline_ms": 0}, 2, "deadline_ms"),
        ({"agents": 1, "swarm_id": "none"}, 5, "swarm none does not exist"),
    ],
)
def test_what_is_malformed_or_too_much_is_refused_and_starts_nothing(
    shared: Engine, request_: dict[str, object], code: int, said: str
) -> None:
    answer = shared.ask(**{"verb": "coordinate", "task_id": "bad", **request_})
    assert answer["exit_code"] == code
    assert said in answer["error"]
    assert shared.ask(verb="result", task_id="bad")["absent"]


@pytest.fixture(scope="module")
def shared() -> Iterator[Engine]:
    """One engine for all inputs that are refused."""
    engine = Engine(Path(tempfile.mkdtemp(prefix="cfn", dir="/dev/shm")))
    engine.configure(CFN_MAX_AGENTS=100)
    engine.start()
    yield engine
    engine.stop()
    shutil.rmtree(engine.paths.root)


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"verb":"nonsense"}', b'{"verb":7}', b"[" * 100_000]
)
def test_garbage_is_answered_with_an_error(shared: Engine, line: bytes) -> None:
    assert json.loads(raw(shared, line + b"\n"))["exit_code"] == 2


def test_a_request_without_end_is_cut_off(shared: Engine) -> None:
    assert "at most 1048576 bytes" in json.loads(raw(shared, b"x" * 1_200_000))["error"]


def raw(engine: Engine, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(engine.paths.conductor_socket))
        with suppress(BrokenPipeError):  # it may be cut off before all is sent
            connection.sendall(data)
        return connection.makefile("rb").readline()


def test_an_agent_that_fails_is_failed_with_its_exit_code(engine: Engine) -> None:
    engine.configure(CFN_AGENT_COMMAND=engine.agent("[[ $CFN_AGENT_ID != agent-2 ]] || exit 7; kill -9 $$"))
    engine.start()
    first, second = engine.ask(verb="coordinate", task_id="t", agents=2)["results"]
    assert (first["state"], first["exit_code"], first["reason"]) == ("failed", -9, "ended by signal 9")
    assert (second["state"], second["exit_code"], second["reason"]) == ("failed", 7, "ended with exit code 7")


def test_a_command_that_does_not_exist_cannot_look_healthy(engine: Engine) -> None:
    engine.configure(CFN_AGENT_COMMAND="/nowhere/agent --now")
    engine.start()
    answer = engine.ask(verb="coordinate", task_id="t", agents=3)
    assert (answer["delivery_rate_pct"], answer["completion_rate_pct"], answer["error_rate_pct"]) == (
        100,
        0,
        100,
    )
    assert {(r["state"], r["exit_code"]) for r in answer["results"]} == {("failed", 127)}


def test_out_of_time_ends_the_whole_process_group(engine: Engine) -> None:
    command = engine.agent("trap '' TERM; sleep 1000 & sleep 1000 & wait; wait")
    engine.configure(CFN_AGENT_COMMAND=command, CFN_AGENT_TIMEOUT_TIME=200)
    engine.start()
    answer = engine.ask(verb="coordinate", task_id="t", agents=2)
    assert {(r["state"], r["reason"]) for r in answer["results"]} == {("failed", "timed out")}
    assert answer["coordination_time_ms"] < answer["total_time_ms"] - 200
    engine.until(lambda: not engine.workers(), 15)


def test_the_payload_is_the_agents_input_and_need_not_be_read(engine: Engine) -> None:
    payload = base64.b64encode(b"y" * 65_536).decode()
    engine.configure(CFN_AGENT_COMMAND=engine.agent("[[ $CFN_AGENT_ID == agent-1 ]] && wc -c; true"))
    engine.start()
    answer = engine.ask(verb="coordinate", task_id="t", agents=2, payload_b64=payload)
    assert [r["output"].strip() for r in answer["results"]] == ["65536", ""]
    assert answer["states"]["done"] == 2


def test_a_changed_configuration_takes_effect_within_a_second(running: Engine) -> None:
    running.configure(CFN_MAX_AGENTS=3)
    running.until(lambda: running.ask(verb="health")["max_agents"] == 3, 15)
    assert 'CFN_MAX_AGENTS="3"' in running.paths.env.read_text()
    running.configure(CFN_MAX_AGENTS=0)
    running.until(lambda: "CFN_MAX_AGENTS='0' is refused" in running.ask(verb="health")["config_problem"], 15)
    assert running.ask(verb="coordinate", task_id="t", agents=4)["exit_code"] == 5
    assert running.ask(verb="coordinate", task_id="t", agents=3)["states"]["done"] == 3


def test_more_requests_than_run_at_once_wait_their_turn(engine: Engine) -> None:
    engine.configure(CFN_MAX_AGENTS=2, CFN_AGENT_COMMAND=engine.agent("sleep 0.1"))
    engine.start()
    clients = [engine.begin(task_id=f"t{number}", agents=2) for number in range(6)]
    assert engine.ask(verb="health")["queue_depths"]["coordinations"] > 0
    for number, client in enumerate(clients):
        assert engine.ask(verb="coordinate", task_id=f"t{number}", agents=2)["states"]["done"] == 2
        client.close()


def test_a_request_that_waits_past_its_deadline_is_undelivered(engine: Engine) -> None:
    engine.configure(CFN_MAX_AGENTS=1, CFN_AGENT_COMMAND=engine.agent("sleep 0.7"))
    engine.start()
    with engine.begin(task_id="a", agents=1), engine.begin(task_id="b", agents=1):
        answer = engine.ask(verb="coordinate", task_id="c", agents=1, deadline_ms=100)
    assert answer["results"][0]["state"] == "undelivered"
    assert "other requests were before it" in answer["results"][0]["reason"]
    time.sleep(0.8)
    assert len(engine.runs()) == 2


@pytest.mark.parametrize("agents", [2, 20])  # flat, hybrid
def test_the_longest_task_id_has_a_swarm_of_its_own(hybrid: Engine, agents: int) -> None:
    hybrid.configure(
        CFN_TOPOLOGY="hybrid", CFN_COORDINATORS=4, CFN_AGENT_COMMAND=hybrid.agent("echo $CFN_SWARM_ID")
    )
    time.sleep(1.1)  # until the configuration is read again
    first, second = (
        hybrid.ask(verb="coordinate", task_id="x" * 127 + end, agents=agents, payload_b64="") for end in "ab"
    )
    assert first["states"]["done"] == second["states"]["done"] == agents
    assert first["results"][-1]["output"] != second["results"][-1]["output"]
