"""Garbage, floods, liars and thieves on every socket of the engine; what is planted before it starts."""

import array
import ast
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cfn.engine import team_calls
from cfn.engine.lean import control, records, wire
from cfn.engine.lean.worker import Worker
from cfn.engine.messages import datagram

from .conftest import Engine
from .harness import SOURCE, send_signal

pytestmark = pytest.mark.processes

LARGEST = b"x" * 190_000  # near what a Unix socket takes at once


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(5)
    connection.connect(str(path))
    return connection


def serves(engine: Engine, agents: int = 20) -> None:
    """The engine goes on as if nothing had been."""
    task = f"t{time.monotonic_ns()}"
    answer = engine.ask(verb="coordinate", task_id=task, agents=agents)
    assert answer["states"]["done"] == agents, (answer, engine.log())
    assert all(process.poll() is None for process in engine.processes.values()), engine.log()


# The coordinators' socket

HELLO = team_calls.encode({"hello": 9, "teams": []})
FROM_COORDINATORS: list[list[bytes]] = [
    [b"\0"],
    [b"\xff" * 40],
    [LARGEST],
    [b"\5\0\0\0{}"],
    [team_calls.encode({})],
    [team_calls.encode({"hello": "x", "teams": []})],
    [team_calls.encode({"hello": 0, "teams": []})],
    [team_calls.encode({"hello": 33, "teams": []})],
    [team_calls.encode({"hello": 10**40, "teams": []})],
    [team_calls.encode({"hello": 9, "teams": [["a"]]})],
    [team_calls.encode({"hello": 9, "teams": 3})],
    [team_calls.encode({"hello": 1, "teams": []})],  # there already
    [HELLO, b"garbage"],
    [HELLO, LARGEST],
    [HELLO, HELLO],
    [HELLO, team_calls.encode({"ask": 99, "done": {}})],
    [HELLO, team_calls.encode({"ask": 1, "more": True}, b"x" * 1000)],
    [HELLO, team_calls.encode({"ask": [], "done": {}})],
    [HELLO, team_calls.encode({"beat": 3})],
    [HELLO, team_calls.encode({"beat": {"agents": "many"}})],
    [HELLO, team_calls.encode({"beat": {"messages": 7}})],
]


@pytest.mark.parametrize("datagrams", FROM_COORDINATORS)
def test_what_is_no_coordinator_changes_nothing(shared: Engine, datagrams: list[bytes]) -> None:
    with connect(shared.paths.coordinators_socket) as liar:
        for datagram in datagrams:
            with suppress(BrokenPipeError, ConnectionResetError):
                liar.send(datagram)
        assert "error" not in shared.ask(verb="health")
    assert [row["state"] for row in shared.ask(verb="health")["coordinators"][:4]] == ["up"] * 4
    serves(shared)


def test_a_coordinator_that_lies_about_an_order_is_cut_off_and_its_part_goes_elsewhere(
    engine: Engine,
) -> None:
    engine.configure(CFN_TOPOLOGY="hybrid", CFN_COORDINATORS=2)
    engine.start("spawner", "conductor", "coordinator-1")
    engine.connected(1)
    with connect(engine.paths.coordinators_socket) as liar:
        liar.send(team_calls.encode({"hello": 2, "teams": []}))
        liar.recv(200_000)  # welcome
        with engine.begin(task_id="t", agents=20):
            ask = 0
            while not ask:
                head, _ = team_calls.decode(liar.recv(200_000))
                ask = head["ask"] if head.get("do") == "begin" else 0
            liar.send(team_calls.encode({"ask": ask, "begun": 1.0}))
            liar.send(team_calls.encode({"ask": ask, "done": {"tally": {"done": "all"}}}))
            answer = engine.ask(verb="coordinate", task_id="t", agents=20)
    assert answer["states"]["done"] == 20
    assert engine.processes["conductor"].poll() is None


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One hybrid engine for all garbage."""
    engine = Engine(tmp_path_factory.mktemp("shared"))
    engine.configure(CFN_MAX_AGENTS=100, CFN_TOPOLOGY="hybrid", CFN_COORDINATORS=4)
    try:
        engine.start_hybrid(4)
        serves(engine)
        serves(engine, agents=1)
        yield engine
    finally:
        engine.stop()


# A coordinator's connection to its conductor

WELCOME = {
    "welcome": 1,
    "settings": {"spawn_rate": 0, "hubs": [0, 1], "bounds": {}},
    "swarms": [],
    "teams": [],
    "directory": True,
}
ORDER = {
    **dict.fromkeys(("key", "epoch", "shard", "base", "accepted_at_s", "deadline_ms", "timeout_ms"), 0),
    **dict.fromkeys(("max_output_bytes", "slow_ms"), 0),
    **{"task_id": "t", "swarm_id": "s", "team": "team-1", "agents": ["a"], "command": ["/bin/true"]},
    **{"lost": [], "kept": False, "fresh": True},
}
FROM_CONDUCTOR: list[bytes] = [
    b"\0",
    LARGEST,
    team_calls.encode({"do": "nonsense"}),
    team_calls.encode({"do": "begin"}),
    team_calls.encode({"do": "begin", "ask": 1, "order": {}}),
    team_calls.encode({"do": "open_team", "ask": 1, "swarm_id": "s"}),
    team_calls.encode({"do": "give_up", "ask": 1, "epoch": "x", "reason": ""}),
    team_calls.encode({"do": ["begin"]}),
    team_calls.encode({"welcome": "x"}),
    team_calls.encode({"settings": {}}),
    team_calls.encode({"settings": {"spawn_rate": 0, "hubs": [0], "bounds": {"unknown": 1}}}),
    team_calls.encode({"directory": True}, b'{"s": [{}]}'),
    team_calls.encode({"directory": True}, b"3"),
    team_calls.encode({"directory": True}),
    team_calls.encode({"do": "begin", "ask": 1, "order": {**ORDER, "swarm_id": "a/b"}}),
    team_calls.encode({"do": "begin", "ask": 1, "order": {**ORDER, "key": -1}}),
]


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, socket.socket]]:
    """A coordinator whose conductor is this test."""
    engine = Engine(tmp_path_factory.mktemp("lone"))
    engine.paths.run.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(engine.paths.coordinators_socket))
        listener.listen(8)
        listener.settimeout(10)
        process = engine.launch("coordinator-1")
        yield engine, listener
        assert process.poll() is None, engine.log()
        engine.stop()


@pytest.mark.parametrize("datagram", FROM_CONDUCTOR)
def test_a_coordinator_that_is_told_garbage_connects_again(
    lone: tuple[Engine, socket.socket], datagram: bytes
) -> None:
    engine, listener = lone
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(5)
        head, _ = team_calls.decode(connection.recv(200_000))
        assert head["hello"] == 1
        connection.send(team_calls.encode(WELCOME, b"{}"))
        connection.send(datagram)
        with suppress(ConnectionResetError):
            while connection.recv(200_000):  # heartbeats, then the end
                continue
    assert engine.processes["coordinator-1"].poll() is None, engine.log()


# The spawner's socket

SPAWN = control.message("spawn", "liars", 0, "a 0 0 0")
FROM_HUBS: list[list[bytes]] = [
    [b"\0"],
    [b"\xff\xfe"],
    [LARGEST],
    [b"nonsense"],
    [control.message("welcome", 1)],
    [control.message("hello", "x", 0)],
    [control.message("hello", 0, 0)],  # a conductor that was replaced
    [control.message("spawn", "s")],
    [control.message("spawn", "s", "x", "a 0 0 0")],
    [control.message("spawn", "s", 0, "a")],
    [control.message("spawn", "s", 0, "a x 0 0")],
    [control.message("spawn", "s", 0, "a 0 0 0", tail=b"no task")],
    [control.message("spawn", "s", "../../etc/passwd", "a 0 0 0")],
    [control.message("adopt", "s", "a x")],
    [control.message("adopt", "s", "a 0")],
    [control.message("adopt", "s", "a -1")],
    [control.message("adopt", "s", "a 1\nb x")],
    [control.message("adopt", "s", f"a {2**22}\nb {2**22}\nc {2**22}\nd {2**22}")],
    [control.message("adopt", "s", f"a {10**40}")],
    [control.message("kill", "s", "a")],
    [control.message("kill", "s", "a", 0)],
    [control.message("kill", "s", "a", -1)],
    [control.message("kill", "s", "a", 10**40)],
    [control.message("fetch", "s")],
    [control.message("end", "s", "a b")],
    [control.message("retain", "x", "s")],
    [SPAWN[:-1] + b"\xff"],
]


@pytest.mark.parametrize("datagrams", FROM_HUBS)
def test_what_is_no_hub_changes_nothing(shared: Engine, datagrams: list[bytes]) -> None:
    spawner = shared.processes["spawner"].pid
    before = len(os.listdir(f"/proc/{spawner}/fd"))  # noqa: PTH208 - a count
    with connect(shared.paths.spawner_socket) as liar:
        for datagram in datagrams:
            with suppress(BrokenPipeError, ConnectionResetError):
                # Descriptors that it may not keep: they come along with everything.
                liar.sendmsg(
                    [datagram], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
                )
        serves(shared)
    shared.until(
        lambda: len(os.listdir(f"/proc/{spawner}/fd")) <= before,  # noqa: PTH208
        5,
    )


@pytest.fixture
def in_reach(shared: Engine) -> list[Path]:
    """The sockets of an engine whose folders are open to all users."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    sockets = list(shared.paths.run.glob("*.sock"))
    assert len(sockets) > 10
    for folder in [shared.paths.root, *shared.paths.root.parents]:
        if (
            folder.stat().st_mode & 0o001 == 0
            and folder.owner() == "root"
            and str(folder).startswith("/tmp/")
        ):
            folder.chmod(folder.stat().st_mode | 0o011)
    shared.paths.run.chmod(0o755)
    return sockets


def as_another_user(body: str, sockets: list[Path]) -> str:
    """What a loop over the sockets prints, run by a user that the engine does not know."""
    script = (
        "import os,socket,sys\nos.setgroups([]); os.setgid(64999); os.setuid(64999)\n"
        "for path in sys.argv[1:]:\n"
        "    kind = socket.SOCK_STREAM if 'conductor' in path else socket.SOCK_SEQPACKET\n"
        "    peer = socket.socket(socket.AF_UNIX, kind); peer.settimeout(5)\n"
    ) + textwrap.indent(textwrap.dedent(body), "    ")
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, sockets)], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    return done.stdout


def test_other_users_cannot_reach_a_socket(in_reach: list[Path]) -> None:
    body = """\
        try: peer.connect(path)
        except PermissionError: continue
        print(path)
        """
    assert as_another_user(body, in_reach) == ""


def test_other_users_are_sent_away_from_a_socket_that_somebody_opened_to_them(in_reach: list[Path]) -> None:
    body = """\
        peer.connect(path)
        try: answer = peer.recv(4096)
        except ConnectionResetError: answer = b''
        except TimeoutError: answer = b'no answer'
        print(os.path.basename(path), answer)
        """
    modes = {path: path.stat().st_mode for path in in_reach}
    for path in in_reach:
        path.chmod(0o777)
    try:
        answers = dict(line.split(" ", 1) for line in as_another_user(body, in_reach).splitlines())
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert len(answers) == len(in_reach)
    assert "this user may not ask" in answers.pop("conductor.sock")
    stranger = repr(datagram.pack(datagram.GOODBYE, answers=datagram.STRANGER))
    assert {name: answer for name, answer in answers.items() if answer not in ("b''", stranger)} == {}


# A worker's socket, from both sides


def steal(pid: int, descriptor: int) -> socket.socket:
    """Another process's socket, as a thief with its rights gets it (pidfd_getfd)."""
    pidfd = os.pidfd_open(pid)
    number = ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, descriptor, 0)
    os.close(pidfd)
    assert number >= 0, os.strerror(ctypes.get_errno())
    return socket.socket(fileno=number)


def worker_garbage(epoch: int) -> list[bytes]:
    return [
        b"\0",
        b"\xff" * 23,
        LARGEST,
        wire.answer(wire.RESULT, 0, epoch, output=b"abc")[:-1],
        wire.answer(wire.RESULT, 2**32 - 1, epoch),
        wire.answer(wire.RESULT, 1, epoch, output=b"another's"),
        wire.answer(wire.RESULT, 0, epoch - 1, output=b"late"),
        wire.answer(wire.RESULT, 0, 2**64 - 1, output=b"early"),
        wire.answer(wire.CLAIMED, 1, epoch),
        wire.answer(wire.REFUSED, 1, epoch),
        wire.answer(wire.RECEIVED, 0, 10**6),
        wire.stop(),
    ]


def test_a_worker_that_talks_garbage_and_floods_disturbs_nobody(engine: Engine) -> None:
    engine.configure(CFN_AGENT_COMMAND=engine.agent("sleep 0.5; echo own"))
    engine.start()
    engine.ask(verb="init", agents=3, swarm_id="s")
    liar = engine.pids("s")["agent-1"]
    generation = engine.ask(verb="health")["epoch"]
    with engine.begin(task_id="t", agents=3, swarm_id="s"), steal(liar, 0) as thief:
        engine.until(lambda: len(engine.runs()) == 3, 15)
        for epoch in range(generation << 32, (generation << 32) + 8):
            for datagram in worker_garbage(epoch):
                thief.send(datagram)
        flood_s = time.monotonic() + 1
        thief.setblocking(False)
        flood = wire.answer(wire.CLAIMED, 0, 1)
        while time.monotonic() < flood_s:
            with suppress(BlockingIOError):
                thief.send(flood)
        began_s = time.monotonic()
        assert engine.ask(verb="coordinate", task_id="u", agents=3)["states"]["done"] == 3
        assert time.monotonic() - began_s < 10
        answer = engine.ask(verb="coordinate", task_id="t", agents=3)
    assert answer["states"]["done"] == 3
    # Its own part it can lie about; the others' it cannot.
    assert [result["output"] for result in answer["results"][1:]] == ["own\n"] * 2


@contextmanager
def forked_worker(tmp_path: Path) -> Iterator[socket.socket]:
    """A worker, its hub is this test."""
    arena = os.open(tmp_path / "0", os.O_RDWR | os.O_CREAT, 0o600)
    os.pwrite(arena, records.ticket(7) + records.ticket(8) * 70, 0)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            ours.close()
            Worker("a", theirs.fileno(), arena).run(None)
            code = 0
        finally:
            os._exit(code)
    theirs.close()
    ours.settimeout(5)
    try:
        yield ours
    finally:
        ours.close()
        limit = time.monotonic() + 5
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0 and time.monotonic() < limit:
            time.sleep(0.01)
        if ended[0] == 0:
            send_signal(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(arena)
        assert ended[0] == pid, "it did not end with its hub"
        assert os.waitstatus_to_exitcode(ended[1]) == 0


def order(slot: int, epoch: int, *, key: int = 7, command: tuple[str, ...] = ()) -> bytes:
    task = wire.Task("t", "s", "m", "/none", "", 5_000, 100, 0, command)
    return wire.head(slot, slot) + wire.common(epoch, key, records.ticket(key), task, b"hello")


@pytest.mark.parametrize(
    "garbage",
    [
        [b"\0"],
        [b"\xff"],
        [LARGEST],
        [order(1, 5)[:20]],
        [order(1, 5)[:100]],
        [order(1, 5).replace(b"5000", b"x000")],
        [wire.message(1)[:5]],
        [wire.answer(wire.RESULT, 0, 0)],
        [bytes([wire.ASSIGN])],
    ],
)
def test_a_worker_that_is_told_garbage_goes_on(tmp_path: Path, garbage: list[bytes]) -> None:
    with forked_worker(tmp_path) as hub:
        for datagram in garbage:
            hub.send(datagram)
        hub.send(order(0, 5))
        while (raw := hub.recv(wire.MAX_DATAGRAM_BYTES))[0] == wire.RECEIVED:
            continue
        assert wire.read_answer(raw) == (wire.RESULT, 0, 0, 5, 0, b"hello")


def test_orders_out_of_order_start_nothing_twice(tmp_path: Path) -> None:
    with forked_worker(tmp_path) as hub:
        hub.send(order(0, 2 << 32))
        hub.send(order(1, 1 << 32))  # of a conductor that was replaced
        hub.send(order(0, 2 << 32))  # again
        hub.send(order(0, 3 << 32))  # by the next one
        answers = [wire.read_answer(hub.recv(wire.MAX_DATAGRAM_BYTES)) for _ in range(3)]
        assert [(a[0], a[2], a[3] >> 32, a[5]) for a in answers] == [
            (wire.RESULT, 0, 2, b"hello"),
            (wire.RESULT, 0, 2, b"hello"),
            (wire.RESULT, 0, 3, b"hello"),
        ]


def test_a_worker_takes_no_more_orders_than_it_can_hold(tmp_path: Path) -> None:
    with forked_worker(tmp_path) as hub:
        hub.send(order(0, 5, command=("/bin/sleep", "0.3")))
        for slot in range(1, 71):
            hub.send(order(slot, 5, key=8))
        hub.send(order(0, 6))  # the one that runs has another hub now
        done = []
        with suppress(TimeoutError):
            hub.settimeout(1)
            while True:
                kind, _, index, epoch, *_ = wire.read_answer(hub.recv(wire.MAX_DATAGRAM_BYTES))
                done += [(index, epoch)] if kind == wire.RESULT else []
        assert done == [(0, 6), *((slot, 5) for slot in range(1, 65))]  # the others are sent again


# What agents do


def test_a_gigabyte_of_output_is_read_and_dropped(engine: Engine) -> None:
    engine.configure(
        CFN_MAX_OUTPUT=1_000, CFN_AGENT_COMMAND=engine.agent("head -c 1G /dev/zero | tr '\\0' x")
    )
    engine.start()
    answer = engine.ask(verb="coordinate", task_id="t", agents=1)
    assert (answer["states"]["done"], answer["results"][0]["output"]) == (1, "x" * 1_000)


def test_children_that_outlive_their_agent_are_ended_with_it(engine: Engine) -> None:
    command = engine.agent("sleep 1000 & (trap '' TERM; sleep 1000) & (sleep 1000 & disown) & exit 0")
    engine.configure(CFN_AGENT_COMMAND=command)
    engine.start()
    assert engine.ask(verb="coordinate", task_id="t", agents=4)["states"]["done"] == 4
    engine.until(lambda: not engine.workers(), 15)


def test_an_agent_cannot_reach_its_workers_sockets(engine: Engine) -> None:
    engine.configure(CFN_AGENT_COMMAND=engine.agent("ls -l /proc/self/fd | grep -c socket; true"))
    engine.start()
    assert engine.ask(verb="coordinate", task_id="t", agents=1)["results"][0]["output"] == "0\n"


# What is there before a daemon starts


def test_what_a_crash_left_is_no_obstacle(engine: Engine) -> None:
    paths = engine.paths
    engine.configure(CFN_TOPOLOGY="hybrid", CFN_COORDINATORS=2)
    (paths.shm / "requests").mkdir(parents=True)
    paths.shm.chmod(0o750)
    paths.run.mkdir(parents=True)
    for path in (
        paths.conductor_socket,
        paths.coordinators_socket,
        paths.spawner_socket,
        *(paths.bus_socket(number) for number in range(3)),
        *(paths.mesh_socket(number) for number in range(3)),
    ):
        stale = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stale.bind(str(path))
        stale.close()
    (paths.shm / "requests" / "000000000001.log").write_bytes(b"CFNR\1\0\0\0" + b"\xff" * 30)
    (paths.shm / "generation").write_text("")
    (paths.shm / "conductor.lock").write_text("123")
    paths.claims.mkdir()
    (paths.claims / "0").write_bytes(b"old" * 100)
    engine.start_hybrid(2)
    serves(engine)
    serves(engine, agents=3)


@pytest.mark.parametrize("name", ["conductor", "spawner", "coordinator-2"])
def test_a_second_one_is_refused_and_the_first_goes_on(shared: Engine, name: str) -> None:
    command = [sys.executable, "-m", "cfn", *name.split("-")]
    second = subprocess.run(command, env=shared.environment, capture_output=True, text=True, timeout=20)
    assert second.returncode == 5
    assert f"another {name.replace('-', ' ')} is running" in second.stderr
    serves(shared)


def test_two_swarms_of_one_name(shared: Engine) -> None:
    assert shared.ask(verb="init", agents=20, swarm_id="twin")["live"] == 20
    pids = shared.pids("twin")
    again = shared.ask(verb="init", agents=5, swarm_id="twin")
    assert (again["exit_code"], "exists already" in again["error"]) == (5, True)
    assert shared.ask(verb="init", agents=1, swarm_id="task:t")["exit_code"] == 5
    assert shared.pids("twin") == pids
    shared.ask(verb="shutdown", swarm_id="twin")


# Time

WALL_CLOCK = {  # what may read a clock that jumps: dates for people and retention, never a duration
    "conductor.py": 1,  # a generation when the count is lost
    "coordinations.py": 1,  # retention
    "log.py": 1,
    "request_log.py": 2,  # the age of segments
    "retention.py": 1,
}


def test_nothing_is_decided_by_a_clock_that_jumps() -> None:
    found: Counter[str] = Counter()
    for path in (SOURCE / "cfn" / "engine").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                wall = {"time", "time_ns", "now", "utcnow", "today", "CLOCK_REALTIME"}
                base = node.value.id if isinstance(node.value, ast.Name) else ""
                if node.attr in wall and base in ("time", "datetime", "date"):
                    found[path.name] += 1
    assert found.keys() <= WALL_CLOCK.keys()
    assert all(found[name] <= number for name, number in WALL_CLOCK.items()), found


def test_json_of_the_right_shape_and_wrong_content_is_answered(shared: Engine) -> None:
    for value in (
        {"verb": "failover", "coordinator": "1"},
        {"verb": "failover", "coordinator": 1, "how": []},
        {"verb": "task", "say": "claim", "task_id": "t", "epoch": 1},
        {"verb": "recv", "swarm_id": "none", "agent": "a"},
        {"verb": "send", "from": 1},
        {"verb": "broadcast", "type": "../x"},
        {"verb": "status", "swarm_id": ["s"]},
        {"verb": "join"},
        {"verb": "init", "agents": 10**9},
        {"verb": "shutdown", "swarm_id": "none"},
    ):
        answer = shared.ask(**value)
        assert answer["exit_code"] in (2, 5), (value, answer)
        json.dumps(answer)
    serves(shared)
