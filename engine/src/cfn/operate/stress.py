"""Stress of one host, bounded in time and size, that ends what it began whatever happens.

Each scenario returns figures; checks.py holds them against limits. What it makes bears the name
`stress-...`; `clean` ends that after a scenario that could not end it itself.
"""

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import psutil

from cfn.agent import Bus
from cfn.client import Client
from cfn.engine import placement
from cfn.errors import CfnError, NotRunningError, RefusedError, UsageError
from cfn.operate import coordinators as known
from cfn.operate.engine_client import ask, end, health, swarm, unique, until
from cfn.operate.service import disturbed
from cfn.operate.trials import Figures, bus_of
from cfn.paths import Paths

WORD = "stress"
BACK_S = 20.0
CONNECT_S = 5.0
DEADLINE_MS = 30_000

ADVICE: Mapping[str, str] = {
    "agents_not_done": "The coordinations are in coordination-events.jsonl; look at journalctl -u 'cfn-*'.",
    "served_s": "Look at journalctl -u cfn-coordination: when it lost the coordinators, and who took over.",
    "messages_delivered_pct": "Look at the hubs' refused_... in cfn status --json: which bound it was.",
    "coordinators_missing": "Bring them back with failover.yml -e coordinator=ID.",
    "swarms_left": "message-bus.sh shutdown ends a swarm; cfn stress clean ends all that are left.",
}

Bounds = Mapping[str, float]


def rapid_cycles(here: Paths, bounds: Bounds) -> Figures:
    """Swarm after swarm: made, coordinated on, ended, one each `every_s` (0: at once) for `run_s`."""
    agents, ends_s = int(bounds["agents"]), time.monotonic() + bounds["run_s"]
    cycles = lost = 0
    while time.monotonic() < ends_s:
        due_s = time.monotonic() + bounds["every_s"]
        with swarm(here, agents, WORD) as swarm_id:
            lost += _lost(_coordinate(here, agents, swarm_id=swarm_id))
        cycles += 1
        time.sleep(max(0.0, min(due_s, ends_s) - time.monotonic()))
    return {"cycles": cycles, "agents_not_done": lost}


def cascade(here: Paths, bounds: Bounds) -> Figures:
    """So many `coordinators` stopped at once in the middle of a coordination, and started again."""
    agents, count = int(bounds["agents"]), int(bounds["coordinators"])
    rows = known.listed(health(here))
    up = [each.number for each in rows if each.state == known.UP]
    if len(up) <= count:
        raise RefusedError(f"{len(up)} coordinators are up: {count} cannot be stopped and one be left")
    units = [f"cfn-coordinator@{number}.service" for number in up[:count]]
    with swarm(here, agents, WORD) as swarm_id:
        try:
            served = disturbed(here, swarm_id, agents, lambda: _systemctl("stop", units), within_s=60.0)
        finally:
            _systemctl("start", units)
        until(lambda: _missing(here) == 0, BACK_S)
        lost = _lost(_coordinate(here, agents, swarm_id=swarm_id))
    return {
        "served_s": round(served.seconds, 3),
        "agents_not_done": lost + sum(served.states.values()) - served.states["done"],
    }


def memory_pressure(here: Paths, bounds: Bounds) -> Figures:
    """Coordinations while this process holds `memory_mb`. Refused where that would leave the host less
    than as much again."""
    wanted, free = int(bounds["memory_mb"]), psutil.virtual_memory().available >> 20
    if free < 2 * wanted:
        raise RefusedError(
            f"{free} MB of memory are available: {2 * wanted} MB are needed to hold {wanted} MB of them"
        )
    held = bytearray(b"\1") * (wanted << 20)  # written, so that the memory is really taken
    figures = _for_a_while(here, bounds)
    del held
    return figures


def descriptor_pressure(here: Paths, bounds: Bounds) -> Figures:
    """Coordinations while so many idle `connections` hold descriptors of the conductor's."""
    with ExitStack() as idle:
        for _ in range(int(bounds["connections"])):
            idle.enter_context(_connected(here))
        return _for_a_while(here, bounds)


def message_storm(here: Paths, bounds: Bounds) -> Figures:
    """One agent of each team but the last sends `messages` to one of the last team, all at once."""
    count, payload = int(bounds["messages"]), b"x" * int(bounds["payload_bytes"])
    agents = int(bounds["agents"])
    coordinators = placement.coordinators_for(agents, len(known.listed(health(here))))
    plans = placement.numbered(agents, coordinators)
    with swarm(here, agents, WORD) as swarm_id, ExitStack() as stack:
        buses = [
            stack.enter_context(bus_of(here, swarm_id, plan.team, plan.shard, plan.agents[0]))
            for plan in plans
        ]
        receiver, senders = buses[-1], buses[:-1]
        began_s = time.monotonic()
        with ThreadPoolExecutor(len(buses)) as pool:
            taken = pool.submit(_take, receiver, count * len(senders), bounds["run_s"])
            for sent in [pool.submit(_send, bus, receiver.agent, count, payload) for bus in senders]:
                sent.result()
            came = taken.result()
        took_s = time.monotonic() - began_s
    return {
        "messages_delivered_pct": round(100 * came / (count * len(senders)), 3),
        "messages_per_s": round(came / took_s),
    }


def concurrent(here: Paths, bounds: Bounds) -> Figures:
    """`at_once` callers, each of whom coordinates again and again, small and large in turn."""
    sizes = (1, int(bounds["agents"]))
    ends_s = time.monotonic() + bounds["run_s"]

    def caller(number: int) -> tuple[int, int]:
        asked = lost = 0
        while time.monotonic() < ends_s:
            lost += _lost(_coordinate(here, sizes[(asked + number) % 2]))
            asked += 1
        return asked, lost

    with ThreadPoolExecutor(int(bounds["at_once"])) as pool:
        found = list(pool.map(caller, range(int(bounds["at_once"]))))
    return {
        "coordinations": sum(asked for asked, _ in found),
        "agents_not_done": sum(lost for _, lost in found),
    }


STRESSES: Mapping[str, Callable[[Paths, Bounds], Figures]] = {
    "rapid_cycles": rapid_cycles,
    "cascade": cascade,
    "memory_pressure": memory_pressure,
    "descriptor_pressure": descriptor_pressure,
    "message_storm": message_storm,
    "concurrent": concurrent,
}

# Figures that say how much was done, and that nothing is held against.
COUNTS = ("cycles", "coordinations", "messages_per_s")


def stress(here: Paths, name: str, bounds: Bounds) -> Figures:
    """One scenario, and what it left: coordinators that are missing, swarms of its own. Raises UsageError
    for bounds that are missing, RefusedError in a flat topology, and whatever stopped it."""
    if health(here)["topology"] != "hybrid":
        raise RefusedError("the topology is flat: the stress of a host is of coordinators, too")
    try:
        figures = STRESSES[name](here, bounds)
    except KeyError as error:
        raise UsageError(f"bound {error} of {name} is missing") from None
    until(lambda: _missing(here) == 0, BACK_S)
    return {**figures, "coordinators_missing": _missing(here), "swarms_left": len(_swarms(here))}


def clean(here: Paths) -> dict[str, Any]:
    """End every swarm of a stress, and start coordinators that are stopped. Raises CfnError."""
    try:
        left = _swarms(here)
        down = [each.number for each in known.listed(health(here)) if each.state == known.DOWN]
    except NotRunningError:
        return {"swarms": [], "started": []}
    ended = [swarm_id for swarm_id in left if end(here, swarm_id)]
    if down:
        _systemctl("start", [f"cfn-coordinator@{number}.service" for number in down])
    return {"swarms": ended, "started": down}


def _for_a_while(here: Paths, bounds: Bounds) -> Figures:
    asked, lost, ends_s = 0, 0, time.monotonic() + bounds["run_s"]
    while time.monotonic() < ends_s:
        lost += _lost(_coordinate(here, int(bounds["agents"])))
        asked += 1
    return {"coordinations": asked, "agents_not_done": lost}


def _coordinate(here: Paths, agents: int, **more: Any) -> dict[str, Any]:
    return ask(
        here,
        verb="coordinate",
        task_id=unique(WORD),
        agents=agents,
        deadline_ms=DEADLINE_MS,
        timeout_s=300.0,
        **more,
    )


def _connected(here: Paths) -> Client:
    """A connection, tried again while more wait to be accepted than the kernel keeps."""
    ends_s = time.monotonic() + CONNECT_S
    while True:
        try:
            return Client(here.conductor_socket)
        except NotRunningError:
            if time.monotonic() > ends_s:
                raise
            time.sleep(0.01)


def _lost(answer: Mapping[str, Any]) -> int:
    return int(answer["agents"]) - int(answer["states"]["done"])


def _send(bus: Bus, receiver: str, count: int, payload: bytes) -> None:
    bus.post_all(receiver, WORD, [payload] * count)
    bus.flush(timeout_s=60.0)


def _take(bus: Bus, count: int, limit_s: float) -> int:
    """How many came, until all have or the time is up."""
    ends_s, came = time.monotonic() + limit_s, 0
    while came < count and (left_s := ends_s - time.monotonic()) > 0:
        came += bus.receive(left_s) is not None
    return came


def _missing(here: Paths) -> int:
    return sum(each.state != known.UP for each in known.listed(health(here)))


def _swarms(here: Paths) -> list[str]:
    found = [str(row["swarm_id"]) for row in health(here)["swarms"]]
    return [swarm_id for swarm_id in found if swarm_id.startswith(f"{WORD}-")]


def _systemctl(verb: str, units: Sequence[str]) -> None:
    done = subprocess.run(["systemctl", verb, *units], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CfnError(f"systemctl {verb} {' '.join(units)}: {done.stderr.strip()}")
