"""The bash front against a real engine: what is printed, and the exit codes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.tests.engine.conftest import BIN, Engine

pytestmark = pytest.mark.processes


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(Path(tempfile.mkdtemp(prefix="cfn", dir="/dev/shm")))
    made.configure(CFN_MAX_AGENTS=100)
    yield made
    made.stop()
    shutil.rmtree(made.paths.root)


@pytest.fixture(scope="module")
def shared() -> Iterator[Engine]:
    """One engine without a swarm, for commands that leave nothing behind."""
    made = Engine(Path(tempfile.mkdtemp(prefix="cfn", dir="/dev/shm")))
    made.configure(CFN_MAX_AGENTS=100)
    made.start()
    yield made
    made.stop()
    shutil.rmtree(made.paths.root)


def run(
    engine: Engine, *words: str, script: str = "message-bus.sh", code: int = 0, stdin: str | None = None
) -> str:
    done = subprocess.run(
        [BIN / script, *words],
        env=engine.environment,
        capture_output=True,
        text=True,
        timeout=30,
        input=stdin,
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout.strip() if code in (0, 4) else done.stderr.strip()


def test_the_smoke_test_of_the_reference(engine: Engine) -> None:
    engine.start()
    assert run(engine, "init", "10").endswith("agents=10")
    assert run(engine, "broadcast", "test:ping") == "sent=10 delivered=10"
    lines = run(engine, "status").splitlines()
    assert len([line for line in lines if "test:ping:ack" in line]) == 10
    assert lines[0] == "agent-1 up inbox=0 test:ping:ack"
    assert run(engine, "shutdown").endswith("agents=10 undrained=0")
    engine.until(lambda: not engine.workers(), 15)
    assert "no swarm" in run(engine, "status", code=5)


def test_coordinate_prints_the_line_that_programs_parse(shared: Engine) -> None:
    line = run(shared, "coordinate", "100", "c-100")
    assert line.startswith("delivery_rate=100.0 agents_coordinated=100 coordination_time_ms=")
    assert run(shared, "coordinate", "100", "c-100") == line
    answer = json.loads(run(shared, "--json", "coordinate", "2", "c-2", "--payload-file", "-", stdin="hi\n"))
    assert [result["output"] for result in answer["results"]] == ["hi\n", "hi\n"]


def test_an_answer_of_megabytes_is_printed(shared: Engine) -> None:
    words = ("--json", "coordinate", "100", "c-large", "--payload-file", "-")
    answer = json.loads(run(shared, *words, stdin="x" * 20_000))
    assert {len(result["output"]) for result in answer["results"]} == {20_000}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["coordinate", "0", "t"], 2, "whole number"),
        (["coordinate", "-1", "t"], 2, "whole number"),
        (["coordinate", "x", "t"], 2, "whole number"),
        (["coordinate", "1e3", "t"], 2, "whole number"),
        (["coordinate", "101", "t"], 5, "101 agents: this stage allows at most 100 (CFN_MAX_AGENTS)"),
        (["init", "101"], 5, "at most 100"),
        (["coordinate", "1", "a/b"], 2, "is refused"),
        (["coordinate", "1", "a..b"], 2, "is refused"),
        (["coordinate", "1", "a\nb"], 2, "is refused"),
        (["coordinate", "1", 'a","verb":"shutdown'], 2, "is refused"),
        (["coordinate", "1", "a" * 10_000], 2, "10000 characters: at most 128"),
        (["coordinate", "1", ""], 2, "is refused"),
        (["coordinate", "1"], 2, "usage"),
        (["coordinate", "1", "t", "--payload-file", "/nowhere"], 2, "cannot be read"),
        (["send", "a", "b"], 2, "usage"),
        (["recv", "../x"], 2, "is refused"),
        (["recv", "agent-1"], 5, "init N makes one"),
        (["broadcast", ":x"], 2, "is refused"),
        (["nonsense"], 2, "unknown command"),
        ([], 2, "usage"),
    ],
)
def test_what_is_malformed_or_too_much_is_refused(
    shared: Engine, words: list[str], code: int, said: str
) -> None:
    assert said in run(shared, *words, code=code)


def test_errors_as_json_keep_their_exit_code(shared: Engine) -> None:
    done = subprocess.run(
        [BIN / "message-bus.sh", "--json", "coordinate", "101", "t"],
        env=shared.environment, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, json.loads(done.stdout)["exit_code"]) == (5, 5)


def test_a_payload_over_the_limit_names_both_sizes(shared: Engine, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 65_537)
    said = run(shared, "coordinate", "1", "big", "--payload-file", str(tmp_path / "big"), code=5)
    assert "payload of 65537 bytes: at most 65536" in said


def test_messages_wait_in_a_bounded_inbox_and_survive_the_conductor(engine: Engine) -> None:
    engine.configure(CFN_MAX_INBOX=2)
    engine.start()
    run(engine, "init", "2")
    assert run(engine, "send", "agent-1", "agent-2", "note", "hello there").startswith("message=")
    assert run(engine, "send", "agent-1", "agent-2", "ping").startswith("message=")
    assert "(CFN_MAX_INBOX)" in run(engine, "send", "agent-1", "agent-2", "ping", code=5)
    assert "has no agent agent-3" in run(engine, "send", "agent-1", "agent-3", "ping", code=2)
    engine.kill("conductor")
    engine.start("conductor")
    engine.until(lambda: all(a["state"] == "up" for a in engine.ask(verb="status")["agents"]), 15)
    assert run(engine, "recv", "agent-2").splitlines() == [
        "1 agent-1 note aGVsbG8gdGhlcmU=",
        "2 agent-1 ping",
    ]
    assert run(engine, "recv", "agent-2") == ""
    run(engine, "send", "agent-2", "agent-1", "ping")
    assert run(engine, "shutdown").endswith("agents=2 undrained=1")


def test_nobody_at_the_socket_is_exit_code_3(engine: Engine) -> None:
    assert "the engine is not running" in run(engine, "status", code=3)
    engine.start("conductor")
    engine.kill("conductor")
    assert "does not answer" in run(engine, "status", code=3)


def test_a_conductor_that_ends_before_it_answers_is_no_success(shared: Engine, tmp_path: Path) -> None:
    (tmp_path / "run/cfn").mkdir(parents=True)
    shutil.copy(shared.paths.env, tmp_path / "run/cfn/env")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "run/cfn/conductor.sock"))
        listener.listen()
        caller = subprocess.Popen(
            [BIN / "message-bus.sh", "--json", "coordinate", "1", "lost-1"],
            env={**os.environ, "CFN_ROOT": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        connection, _ = listener.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(b'{"state":"accepted","task_id":"lost-1"}\n')
        output, errors = caller.communicate(timeout=30)
    assert (caller.returncode, output) == (3, b"")
    assert b"the conductor ended before it answered" in errors


def test_not_all_delivered_is_exit_code_4(engine: Engine) -> None:
    engine.start("conductor")  # no spawner
    line = run(engine, "coordinate", "3", "t", "--deadline-ms", "100", code=4)
    assert line == "delivery_rate=0.0 agents_coordinated=0 coordination_time_ms=100.0"


def test_the_scripts_are_found_through_links(shared: Engine, tmp_path: Path) -> None:
    (tmp_path / "coordination").symlink_to(BIN)
    (tmp_path / "bus").symlink_to(tmp_path / "coordination" / "message-bus.sh")
    done = subprocess.run([tmp_path / "bus", "coordinate", "1", "linked"], env=shared.environment)
    assert done.returncode == 0


def test_the_rendered_configuration_is_read_and_never_executed(shared: Engine, tmp_path: Path) -> None:
    sourced = f"set -u; source {BIN}/coordination-config.sh && echo $CFN_MAX_AGENTS $CFN_TOPOLOGY"
    done = subprocess.run(["bash", "-c", sourced], env=shared.environment, capture_output=True, text=True)
    assert done.stdout == "100 flat\n"
    (tmp_path / "run/cfn").mkdir(parents=True)
    for damaged in ('CFN_MAX_AGENTS="$(touch /tmp/cfn-executed)"\n', 'CFN_MAX_AGENTS="7"\n', "rm -rf x\n"):
        (tmp_path / "run/cfn/env").write_text(damaged)
        done = subprocess.run(
            ["bash", "-c", sourced],
            env={**os.environ, "CFN_ROOT": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert done.stdout == ""


def test_any_program_joins_a_swarm(engine: Engine) -> None:
    engine.configure(CFN_AGENT_TIMEOUT_TIME=1000)
    engine.start()
    swarm = engine.ask(verb="init", agents=1)["swarm_id"]
    script = '[[ $CFN_TASK_ID != slow ]] || sleep 60; printf "%s:%s:" $CFN_AGENT_ID $CFN_TASK_ID; cat; exit 3'
    with subprocess.Popen(
        [BIN / "agent-wrapper.sh", "guest", "--", "bash", "-c", script],
        env=engine.environment, stdout=subprocess.PIPE, text=True,
    ) as wrapper:  # fmt: skip
        assert wrapper.stdout is not None
        assert wrapper.stdout.readline() == f"joined {swarm} as guest\n"
        ask = {
            "verb": "coordinate",
            "agent_ids": ["agent-1", "guest"],
            "swarm_id": swarm,
            "payload_b64": "aGk=",
        }
        first, second = engine.ask(**ask, task_id="a")["results"]
        assert (first["state"], first["output"]) == ("done", "hi")
        assert (second["state"], second["exit_code"], second["output"]) == ("failed", 3, "guest:a:hi")
        assert engine.ask(**ask, task_id="slow")["results"][1]["reason"] == "timed out"
        assert "has an agent guest already" in run(
            engine, "guest", "--", "true", script="agent-wrapper.sh", code=5
        )
        assert run(engine, "broadcast", "test:ping") == "sent=2 delivered=2"
        run(engine, "shutdown")
        assert wrapper.wait(5) == 0
    assert "no swarm" in run(engine, "guest", "--", "true", script="agent-wrapper.sh", code=5)
    run(engine, "guest", script="agent-wrapper.sh", code=2)


def test_a_guest_that_dies_while_it_runs_is_unknown(engine: Engine) -> None:
    engine.start()
    swarm = engine.ask(verb="init", agents=1)["swarm_id"]
    command = engine.agent("sleep 5")
    with subprocess.Popen(
        [BIN / "agent-wrapper.sh", "guest", "--", command],
        env=engine.environment, stdout=subprocess.PIPE, start_new_session=True,
    ) as wrapper:  # fmt: skip
        assert wrapper.stdout is not None
        wrapper.stdout.readline()
        with engine.begin(task_id="t", agent_ids=["guest"], swarm_id=swarm):
            engine.until(lambda: bool(engine.runs()), 15)
            os.killpg(wrapper.pid, signal.SIGKILL)
            answer = engine.ask(verb="coordinate", task_id="t", agents=1)
    assert answer["states"]["unknown"] == 1


def test_cleanup_removes_what_is_old_and_nothing_live(engine: Engine) -> None:
    command = engine.agent("[[ $CFN_TASK_ID == old ]] || sleep 1")
    engine.configure(CFN_AGENT_COMMAND=command)
    engine.start()
    engine.ask(verb="init", agents=1)
    engine.ask(verb="coordinate", task_id="old", agents=1)
    (engine.paths.outputs / "0000000000000001").mkdir()
    (engine.paths.shm / "inboxes/gone").mkdir(parents=True)
    with engine.begin(task_id="live", agents=1):
        engine.until(lambda: len(engine.runs()) == 2, 15)
        time.sleep(0.01)
        cleanup = ["python3", "-m", "cfn", "cleanup", "--retention-s", "0"]
        done = subprocess.run(cleanup, env=engine.environment, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("requests=1 outputs=1 swarms=0 inboxes=1 processes=0 freed_bytes=")
        assert engine.ask(verb="coordinate", task_id="live", agents=1)["states"]["done"] == 1
    assert engine.ask(verb="result", task_id="old")["absent"]
    assert len(engine.ask(verb="status")["agents"]) == 1


def test_cleanup_kills_what_a_dead_worker_left(engine: Engine) -> None:
    engine.configure(CFN_AGENT_COMMAND=engine.agent("sleep 1000"))
    engine.start()
    with engine.begin(task_id="t", agents=1):
        engine.until(lambda: len(engine.runs()) == 1, 15)
        engine.kill("spawner")
        worker = next(pid for pid in engine.workers() if os.getsid(pid) == pid)
        os.kill(worker, signal.SIGKILL)
        assert engine.ask(verb="coordinate", task_id="t", agents=1)["states"]["unknown"] == 1
    cleanup = ["python3", "-m", "cfn", "cleanup", "--json"]
    done = subprocess.run(cleanup, env=engine.environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["processes"] >= 1
    engine.until(lambda: not engine.workers(), 15)
