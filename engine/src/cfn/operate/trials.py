"""Trials that disturb nobody: is the load balanced, does the mesh deliver, what is used, do teams talk.

Each makes a swarm of its own and ends it; each takes seconds. Figures only; checks.py judges them.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from cfn.agent import Bus, Message
from cfn.collector import probes
from cfn.collector.processes import Daemons, Processes
from cfn.engine import placement
from cfn.errors import CfnError, NotDeliveredError, RefusedError
from cfn.operate import coordinators as known
from cfn.operate.engine_client import ask, health, swarm, unique, until
from cfn.paths import Paths

SETTLE_S = 5.0  # for the teams of a new swarm to show in health, half a second old at most
MESSAGE_S = 10.0  # for a message to come

Figures = dict[str, float | None]

ADVICE: Mapping[str, str] = {
    "worker_imbalance_pct": "Look for a coordinator that is down or draining: cfn coordinators list. "
    "cfn coordinators return ID brings its teams home.",
    "coordinators_missing": "Bring them back with failover.yml -e coordinator=ID; "
    "journalctl -u 'cfn-coordinator@*' says why they are gone.",
    "mesh_delivery_rate_pct": "A coordinator did not take its team: cfn coordinators list, then "
    "failover.yml -e coordinator=ID for the one that is slow or down.",
    "worker_delivery_rate_pct": "Workers did not claim in time: look at memory and at "
    "journalctl -u cfn-workers -u cfn-coordination.",
    "memory_coordinator_kb": "Restart it without a loss with failover.yml -e coordinator=ID, and look for "
    "what it holds: inboxes, long outputs.",
    "memory_worker_kb": "Look at what the agents' command holds; capacity.yml -e agents=N runs fewer.",
    "fd_count": "capacity.yml -e agents=N runs fewer agents; CFN_MAX_FD is the units' limit.",
    "tmpfs_used_mb": "cleanup.yml removes what has outlived its retention; capacity.yml -e retention_s=S "
    "shortens that.",
    "messages_delivered_pct": "Look at message-bus.sh status, and at mesh_links in cfn status --json.",
}


def hybrid(here: Paths) -> dict[str, Any]:
    """The engine's health. Raises RefusedError in a flat topology."""
    found = health(here)
    if found["topology"] != "hybrid":
        raise RefusedError(
            f"this host's topology is {found['topology']}: these trials are of coordinators, "
            "which stages 2 and 3 have"
        )
    return found


def load_balance(here: Paths, agents: int, _rounds: int) -> Figures:
    """Are the workers of a swarm of this size spread evenly?

    Health counts whoever else is there too. Live requests come and go, a team in a wrong place stays: of
    the looks of a few seconds the evenest counts, and the first if nobody else is there.
    """
    expected = len(known.listed(hybrid(here)))
    looks: list[list[known.Coordinator]] = []
    with swarm(here, agents, "trial"):

        def alone() -> bool:
            rows = known.listed(health(here))
            present = sum(each.agents or 0 for each in rows if each.state == known.UP)
            if present >= agents - expected:
                looks.append(rows)
            return bool(looks) and present <= agents

        until(alone, SETTLE_S)
        last = known.listed(health(here))
    found = [known.imbalance_pct(rows) for rows in looks or [last]]
    return {
        "coordinators_missing": float(expected - sum(each.state == known.UP for each in last)),
        "worker_imbalance_pct": min((each for each in found if each is not None), default=None),
    }


def mesh_reliability(here: Paths, agents: int, rounds: int) -> Figures:
    """Does every coordinator take its team, and every worker its task, in so many coordinations?"""
    hybrid(here)
    mesh: list[float] = []
    workers: list[float] = []
    for _ in range(rounds):
        answer = ask(here, verb="coordinate", task_id=unique("trial"), agents=agents, timeout_s=120.0)
        if answer.get("mesh_delivery_rate_pct") is None:
            raise NotDeliveredError(f"{agents} agents were coordinated flat: at least four for each "
                                    "coordinator are needed")  # fmt: skip
        mesh.append(answer["mesh_delivery_rate_pct"])
        workers.append(answer["worker_delivery_rate_pct"])
    return {
        "mesh_delivery_rate_pct": round(sum(mesh) / len(mesh), 3),
        "worker_delivery_rate_pct": round(sum(workers) / len(workers), 3),
    }


def resource_analysis(here: Paths, agents: int, _rounds: int) -> Figures:
    """What do coordinators, workers, descriptors and tmpfs come to while a swarm of this size lives?"""
    hybrid(here)
    with swarm(here, agents, "trial"):
        figures = usage(here)
    del figures["memory_kb"]  # of all together nobody says what is allowed
    return figures


def usage(here: Paths) -> Figures:
    """The figures of now; None for what cannot be read."""
    engine, router = probes.conductor_health(here.conductor_socket), probes.router_status(here.router_socket)
    daemons = Daemons(
        conductor=probes.count(engine, "pid"),
        spawner=probes.count(engine, "spawner_pid"),
        router=probes.count(router, "pid"),
        coordinators={
            each.name: each.pid
            for each in probes.coordinators(engine) or ()
            if each.pid and each.state == "up"
        },
    )
    read = Processes().read(daemons)
    tmpfs = probes.tmpfs_used(here.shm)
    return {
        "memory_kb": read.get("memory_kb"),
        "memory_coordinator_kb": read.get("memory_coordinator_kb"),
        "memory_worker_kb": read.get("memory_worker_kb"),
        "fd_count": read.get("fd_count"),
        "tmpfs_used_mb": round(tmpfs[1], 1) if tmpfs else None,
    }


def teams(here: Paths, agents: int, _rounds: int) -> Figures:
    """A workflow over all teams: a plan goes from the first team's leader to every other leader, work
    from each leader to a member of its team, results back the same way."""
    coordinators = len(known.listed(hybrid(here)))
    plans = placement.numbered(agents, placement.coordinators_for(agents, coordinators))
    if len(plans) < 2 or min(plan.count for plan in plans) < 2:
        raise RefusedError(f"{agents} agents make no teams of a leader and a member each")
    sent = came = 0
    with swarm(here, agents, "trial") as swarm_id:
        buses: list[Bus] = []
        try:
            for plan in plans:
                buses += [bus_of(here, swarm_id, plan.team, plan.shard, name) for name in plan.agents[:2]]
            leaders, members = buses[::2], buses[1::2]
            hops = [(leaders[0], leader) for leader in leaders[1:]]
            work = list(zip(leaders, members, strict=True))
            for word, pairs in (
                ("plan", hops),
                ("work", work),
                ("result", [(member, leader) for leader, member in work]),
                ("result", [(leader, first) for first, leader in hops]),
            ):
                for sender, receiver in pairs:
                    sender.send(receiver.agent, word, swarm_id.encode())
                sent += len(pairs)
                came += sum(_came(receiver, word, swarm_id) for _, receiver in pairs)
        finally:
            for bus in buses:
                with suppress(CfnError):  # its swarm ends anyhow
                    bus.close()
    return {"messages_delivered_pct": round(100 * came / sent, 3)}


def bus_of(here: Paths, swarm_id: str, team: str, hub: int, agent: str) -> Bus:
    """The connection of one agent of a swarm, by its team and that team's hub; for the caller to close."""
    return Bus(
        {
            "CFN_BUS": str(here.bus_socket(hub)),
            "CFN_SWARM_ID": swarm_id,
            "CFN_TEAM": team,
            "CFN_AGENT_ID": agent,
        },
        connect_s=MESSAGE_S,
    )


def _came(bus: Bus, word: str, swarm_id: str) -> bool:
    """Whether the next message is the one that was sent; what others sent is passed over."""
    ends_s = time.monotonic() + MESSAGE_S
    while (left_s := ends_s - time.monotonic()) > 0:
        message: Message | None = bus.receive(left_s)
        if message is not None and message.type == word and message.payload == swarm_id.encode():
            return True
    return False


TRIALS: Mapping[str, Callable[[Paths, int, int], Figures]] = {
    "load_balance": load_balance,
    "mesh_reliability": mesh_reliability,
    "resource_analysis": resource_analysis,
    "teams": teams,
}
