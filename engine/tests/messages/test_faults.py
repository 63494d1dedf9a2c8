"""Garbage on every socket, and processes killed at random: nobody else is harmed, nothing lost or doubled."""

import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cfn.agent import Bus
from cfn.engine.messages import datagram, mesh
from cfn.errors import RefusedError

from .conftest import Hubs, made_hubs
from .test_bus import in_background, note, received

pytestmark = pytest.mark.processes

STREAMERS = ("a", "b", "c", "d")
FAULTS = 12


@pytest.fixture(scope="module")
def target() -> Iterator[Hubs]:
    """One hub that all the garbage of this module is thrown at."""
    with made_hubs() as hubs:
        hubs.plan(t=(0, ["a", "b", "good", "other"]))
        hubs.start(0, hubs=2)
        yield hubs


def alive(hubs: Hubs) -> None:
    """The hub still serves others."""
    with hubs.bus("good") as good, hubs.bus("other") as other:
        good.send("other", "n", b"x")
        assert received(other, 1) == [b"x"]


def thrown(path: Path, datagrams: list[bytes]) -> None:
    """Send all this to a socket, as far as it takes it."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(1)
    connection.connect(str(path))
    try:
        for raw in datagrams:
            connection.send(raw)
    except OSError:
        pass
    connection.close()


def spoiled(valid: bytes) -> st.SearchStrategy[bytes]:
    """A valid datagram with a few bytes overwritten, and cut or extended."""

    def spoil(changes: list[tuple[int, int]], length: int) -> bytes:
        raw = bytearray(valid)
        for place, value in changes:
            raw[place % len(raw)] = value
        return bytes(raw[:length]) + b"y" * (length - len(raw))

    places = st.tuples(st.integers(0, 500), st.integers(0, 255))
    return st.builds(spoil, st.lists(places, max_size=4), st.integers(1, len(valid) + 40))


HELLO = datagram.pack(datagram.HELLO, 8, incarnation=7, sender=b"a", receiver=b"t", type_=b"s")
ON_THE_BUS = [
    HELLO,
    note(),
    datagram.pack(datagram.CONSUMED, 1),
    datagram.pack(datagram.BATCH, payload=note() + note(number=9)),
]
ON_THE_MESH = [
    mesh.pack(mesh.HELLO, token=1, number=1),
    mesh.pack(mesh.MESSAGE, swarm_id="s", name="t", token=5, body=note()),
    mesh.pack(mesh.DECISIONS, body=mesh.DECISION.pack(1, 0, 0)),
    mesh.pack(mesh.TAKE, swarm_id="s", name="a", token=5),
    mesh.pack(mesh.TAKEN, token=5, code=1, body=note()),
    mesh.pack(mesh.CONFIRM, swarm_id="s", name="b", number=1),
]
hurried = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@hurried
@given(st.booleans(), st.lists(st.one_of(st.binary(max_size=300), *map(spoiled, ON_THE_BUS)), max_size=8))
def test_garbage_on_the_bus(target: Hubs, hello: bool, datagrams: list[bytes]) -> None:
    thrown(target.folder / "bus-0.sock", [HELLO] * hello + datagrams)
    alive(target)


@hurried
@given(st.booleans(), st.lists(st.one_of(st.binary(max_size=300), *map(spoiled, ON_THE_MESH)), max_size=8))
def test_garbage_on_the_mesh(target: Hubs, hello: bool, datagrams: list[bytes]) -> None:
    thrown(target.folder / "mesh-0.sock", ON_THE_MESH[:1] * hello + datagrams)
    alive(target)


@pytest.mark.parametrize(
    "hello",
    [
        mesh.pack(mesh.HELLO, token=7, number=1),
        mesh.pack(mesh.TAKE, swarm_id="s", name="a"),
        b"x",
    ],
    ids=["a hub that is none", "no hello", "garbage"],
)
def test_a_stranger_on_the_mesh_is_cut_off(target: Hubs, hello: bytes) -> None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(5)
    connection.connect(str(target.folder / "mesh-0.sock"))
    connection.send(hello)
    assert mesh.Frame(connection.recv(500)).kind == mesh.HELLO
    assert connection.recv(500) == b""


def test_a_stopped_reader_holds_nobody_else_up(hubs: Hubs) -> None:
    hubs.plan(t=(0, ["a", "b", "c"]))
    hubs.start(0, hubs=1, max_inbox_messages=2_000, inbox_wait_ms=100)
    script = "from cfn.agent import Bus\nwith Bus() as bus:\n print('up', flush=True)\n for m in bus: pass"
    reader = subprocess.Popen(
        [sys.executable, "-c", script], env=hubs.environment("b"), stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "up\n"
    reader.send_signal(signal.SIGSTOP)
    try:
        with hubs.bus("a") as a, hubs.bus("c") as c:
            with pytest.raises(RefusedError, match="CFN_MAX_INBOX"):
                a.post_all("b", "n", [b"x" * 200] * 3_000)
            c.send("a", "n", b"fine")
            assert received(a, 1) == [b"fine"]
            assert a.receive(0) is None
            reader.send_signal(signal.SIGCONT)
            hubs.until(0, queued_messages=0)
            with pytest.raises(RefusedError, match="CFN_MAX_INBOX"):
                a.flush(5)
            a.send("b", "n", b"again")
    finally:
        reader.kill()
        reader.wait()
        reader.stdout.close()


def test_a_killed_agent_finds_what_it_was_not_done_with(pair: Hubs) -> None:
    """Its next process is given every message that the killed one had not finished, in order."""
    script = (
        "from cfn.agent import Bus\n"
        "with Bus() as bus:\n"
        "  for m in bus: print(m.number, m.payload.decode(), flush=True)\n"
    )
    got: dict[int, str] = {}
    with pair.bus("a") as a:
        for round_ in range(5):
            reader = subprocess.Popen(
                [sys.executable, "-c", script], env=pair.environment("b"), stdout=subprocess.PIPE, text=True
            )
            assert reader.stdout is not None
            for number in range(200):
                a.post("b", "n", str(round_ * 200 + number).encode())
            for _ in range(100):
                number_text, text = reader.stdout.readline().split()
                assert got.setdefault(int(number_text), text) == text
            reader.kill()
            for line in reader.stdout:
                number_text, text = line.split()
                assert got.setdefault(int(number_text), text) == text
            reader.wait()
            reader.stdout.close()
        a.flush(5)
    with pair.bus("b") as b:
        while (message := b.receive(0.2)) is not None:
            assert got.setdefault(message.number, message.payload.decode()) == message.payload.decode()
    assert got == {number + 1: str(number) for number in range(1_000)}


class Streamer:
    """An agent that sends numbered messages to every other one for as long as it is told, and notes what
    it is sent. Two threads of one process cannot share a Bus: it does both in turns."""

    def __init__(self, hubs: Hubs, name: str, stop: threading.Event) -> None:
        self.sent = dict.fromkeys((other for other in STREAMERS if other != name), 0)
        self.got: dict[str, list[int]] = {other: [] for other in self.sent}
        self.bus: Bus = hubs.bus(name)
        self._stop = stop
        self.thread = in_background(self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            for other in self.sent:
                self.bus.post(other, "n", str(self.sent[other]).encode())
                self.sent[other] += 1
            self.drain(0.001)
        while self.bus._undecided:  # keep reading, so that nobody's inbox is full for long
            self.drain(0.01)

    def drain(self, timeout_s: float) -> None:
        while (message := self.bus.receive(timeout_s)) is not None:
            self.got[message.sender].append(int(message.payload))


@pytest.mark.parametrize("seed", [1])
def test_hubs_killed_and_teams_moved_at_random(hubs: Hubs, seed: int) -> None:
    """Four agents in two teams, three hubs: kills, restarts, stops and moves. What was accepted arrives
    once and in order, and nothing was refused."""
    random_ = random.Random(seed)  # noqa: S311 - a test that can be repeated
    hubs.plan(t=(1, ["a", "b"]), u=(2, ["c", "d"]))
    hubs.start(0, 1, 2, hubs=3, inbox_wait_ms=60_000)
    stop = threading.Event()
    streamers = {name: Streamer(hubs, name, stop) for name in STREAMERS}
    for _ in range(FAULTS):
        time.sleep(random_.uniform(0.01, 0.1))
        fault = random_.choice(["kill", "kill and move", "move"])
        team = random_.choice(["t", "u"])
        hub = hubs.teams[team]["hub"]
        if fault != "move":
            hubs.kill(hub)
        if fault != "kill":
            hubs.move(team, random_.choice([one for one in range(3) if one != hub]))
        if fault != "move":
            hubs.restart(hub)
    stop.set()
    for streamer in streamers.values():
        streamer.thread.join(30)
        assert not streamer.thread.is_alive()
    for streamer in streamers.values():
        streamer.drain(0.1)
        streamer.bus.close()
    for name, streamer in streamers.items():
        for other, count in streamer.sent.items():
            assert streamers[other].got[name] == list(range(count)), (name, other)
    assert min(sum(streamer.sent.values()) for streamer in streamers.values()) > 100
