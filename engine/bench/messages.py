"""Measure messages between two agents, against a raw pair of processes in the same run.

Two agents and their hub are a process each; the hub is the deployed code, without a conductor. The
raw pair is what any Python program could do at best with the same promise to its reader: one
process sends datagrams over a SEQPACKET socket pair, the other receives each and appends it to a
file in tmpfs.

    python engine/bench/messages.py        (a table; `rows` is for the bench of the whole engine)
"""

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cfn.agent import Bus
from cfn.engine.loop import Loop
from cfn.engine.messages.bounds import MessageBounds
from cfn.engine.messages.mesh import Mesh
from cfn.engine.messages.office import Messages

SWARM, TEAM, SENDER, RECEIVER = "swarm-bench", "team-1", "agent-1", "agent-2"
PAYLOAD_BYTES = 100
MESSAGES = 100_000
ROUNDS = 5
PINGS = 2_000
PING_PAUSE_S = 0.001
START_S = 10.0
RATE = MessageBounds(max_sender_rate_per_s=10_000_000)  # measured is the path, not the limit

Row = dict[str, Any]


class OneTeam:
    """A directory of two agents on hub 0."""

    def team_of(self, swarm_id: str, agent: str) -> str | None:
        """The only team."""
        return TEAM if swarm_id == SWARM and agent in (SENDER, RECEIVER) else None

    def hub_of(self, _swarm_id: str, _team: str) -> int | None:
        """The only hub."""
        return 0

    def teams(self, _swarm_id: str) -> list[str]:
        """The only team."""
        return [TEAM]


def serve(folder: Path) -> None:
    """Be the hub, until killed."""
    loop = Loop()
    links = Mesh(loop, 0, 1, lambda hub: folder / f"mesh-{hub}.sock", lambda: ())
    office = Messages(
        loop,
        links,
        bus=folder / "bus-0.sock",
        folder=folder / "inboxes",
        bounds=lambda: RATE,
        directory=OneTeam(),
    )
    office.open_team(SWARM, TEAM, (SENDER, RECEIVER))
    while True:
        loop.turn(1.0)


def send(batched: bool) -> None:
    """Be the agent that sends, when it is told to start on standard input."""
    payload = b"x" * PAYLOAD_BYTES
    with Bus() as bus:
        sys.stdin.readline()
        if batched:
            bus.post_all(RECEIVER, "bench", (payload for _ in range(MESSAGES)))
        else:
            for _ in range(MESSAGES):
                bus.post(RECEIVER, "bench", payload)


def receive() -> None:
    """Be the agent that receives: print the messages of a second, from the first one to the last."""
    with Bus() as bus:
        print("ready", flush=True)
        messages = iter(bus)
        next(messages)
        begin = time.perf_counter()
        for _ in range(MESSAGES - 1):
            next(messages)
        print((MESSAGES - 1) / (time.perf_counter() - begin), flush=True)


def echo() -> None:
    """Be the agent that answers pings."""
    with Bus() as bus:
        print("ready", flush=True)
        for number, message in enumerate(bus, start=1):
            bus.post(message.sender, "pong", message.payload)
            if number == PINGS:
                return


def ping() -> None:
    """Be the agent that sends a ping each ms or so: print half of each round trip in ms."""
    with Bus() as bus:
        sys.stdin.readline()
        for _ in range(PINGS):
            begin = time.perf_counter()
            bus.post(RECEIVER, "ping", b"x" * PAYLOAD_BYTES)
            bus.receive()
            print((time.perf_counter() - begin) * 500)
            time.sleep(PING_PAUSE_S)


def raw_pair(file: Path) -> float:
    """The messages of a second between two processes with nothing between them."""
    payload = b"x" * PAYLOAD_BYTES
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        near.close()
        sending = far.send
        for _ in range(MESSAGES):
            sending(payload)
        os._exit(0)
    far.close()
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    receiving, write = near.recv, os.write
    write(descriptor, receiving(65_536))
    begin = time.perf_counter()
    for _ in range(MESSAGES - 1):
        write(descriptor, receiving(65_536))
    rate = (MESSAGES - 1) / (time.perf_counter() - begin)
    os.waitpid(child, 0)
    os.close(descriptor)
    near.close()
    file.unlink()
    return rate


@contextmanager
def hub() -> Iterator[dict[str, str]]:
    """A hub with two agents' inboxes in tmpfs; the environment of its agents, but for their name."""
    with tempfile.TemporaryDirectory(prefix="cfn-bench-", dir="/dev/shm") as folder:
        server = _start("serve", {}, folder)
        try:
            ends = time.monotonic() + START_S
            while not Path(folder, "bus-0.sock").exists():
                if time.monotonic() > ends:
                    raise SystemExit("bench: the hub did not start")
                time.sleep(0.01)
            yield {"CFN_BUS": f"{folder}/bus-0.sock", "CFN_SWARM_ID": SWARM, "CFN_TEAM": TEAM}
        finally:
            server.kill()
            server.wait()


def _start(role: str, environment: dict[str, str], *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, __file__, role, *arguments],
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _between(active: str, passive: str, environment: dict[str, str]) -> tuple[str, str]:
    """Run two agents against one another; what each printed."""
    second = _start(passive, environment | {"CFN_AGENT_ID": RECEIVER})
    if second.stdout is None or second.stdout.readline() != "ready\n":
        raise SystemExit(f"bench: {passive} did not start")
    first = _start(active, environment | {"CFN_AGENT_ID": SENDER})
    said, _ = first.communicate("go\n")
    heard, _ = second.communicate()
    if first.returncode or second.returncode:
        raise SystemExit(f"bench: {active} ended with {first.returncode}, {passive} with {second.returncode}")
    return said, heard


def rows() -> list[Row]:
    """All figures of messages: name, value, unit, samples, min, max, and the ratio to the raw pair."""
    rates: dict[str, list[float]] = {"raw": [], "send": [], "send-batched": []}
    with hub() as environment:
        for _ in range(ROUNDS):
            rates["raw"].append(raw_pair(Path(environment["CFN_BUS"]).with_name("raw")))
            for role in ("send", "send-batched"):
                rates[role].append(float(_between(role, "receive", environment)[1]))
        latencies = sorted(map(float, _between("ping", "echo", environment)[0].split()))
    limit = statistics.median(rates["raw"])
    found = [
        _row("messages, raw pair", rates["raw"], "1/s", limit),
        _row("messages, agent to agent, unbatched", rates["send"], "1/s", limit),
        _row("messages, agent to agent, batched", rates["send-batched"], "1/s", limit),
    ]
    for percentile in (50, 95, 99):
        value = latencies[min(len(latencies) - 1, len(latencies) * percentile // 100)]
        found.append(
            _row(f"message latency, p{percentile}", latencies, "ms", None) | {"value": round(value, 4)}
        )
    return found


def _row(name: str, values: list[float], unit: str, limit: float | None) -> Row:
    median = statistics.median(values)
    return {
        "name": name,
        "value": round(median, 3),
        "unit": unit,
        "samples": len(values),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "ratio_to_limit": None if limit is None else round(median / limit, 3),
    }


def main() -> None:
    """Measure and print, or be one of the processes that are measured."""
    role = sys.argv[1] if len(sys.argv) > 1 else ""
    if role == "serve":
        serve(Path(sys.argv[2]))
    elif role in ("send", "send-batched"):
        send(role == "send-batched")
    elif role in ("receive", "echo", "ping"):
        {"receive": receive, "echo": echo, "ping": ping}[role]()
    else:
        print(f"load of the machine: {os.getloadavg()[0]:.2f}")
        for line in rows():
            print(
                f"{line['name']:40} {line['value']:14,.3f} {line['unit']:4} min {line['min']:,.3f} "
                f"max {line['max']:,.3f} ratio {line['ratio_to_limit']}"
            )


if __name__ == "__main__":
    main()
