"""A host's way back to V1: V1 is tried beside the router, the traffic flipped, and V1 proved through it.

A V1 that does not work takes no traffic from a V2 that does. Where V2 is dead too, it goes all the same.
"""

import asyncio
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cfn.config import Config, parse
from cfn.coordination import Coordination
from cfn.errors import CfnError
from cfn.ids import agent_ids
from cfn.paths import Paths
from cfn.router.client import RouterClient
from cfn.router.flip import Order, flip, v1_bears
from cfn.router.v1 import V1
from cfn.watch.guard import EPOCHS_UP

FLIP_WAIT_S = 10.0
RESTORE = "restore it first: ansible-playbook restore_v1.yml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What V1 must do to count as working (`agents` in `within_ms`, `delivery_pct` of them), the least
    epoch to order, and whether a V1 that does not work is given the traffic nevertheless."""

    agents: int
    within_ms: int
    delivery_pct: float
    epoch: int
    force: bool = False


def found(tree: Paths, asked: Asked, status: Mapping[str, Any]) -> dict[str, Any]:
    """How the host stands: what is in force, whether V2's engine answers, and V1, tried for real beside
    the router. `status` is what `cfn status` says. Blocks for the trial, `within_ms` and a little more."""
    router = dict(status["router_status"])
    return {
        "before": {name: status[name] for name in ("version", "traffic_pct", "epoch")},
        "max_agents": status["max_agents"],
        "engine": status["engine"],
        "breaker": (status["breaker"] or {}).get("state"),
        "v1": _tried(tree, asked) | v1_bears(router),
    }


def refusal(standing: Mapping[str, Any], asked: Asked) -> str:
    """Why the traffic must not go to V1; empty if it may."""
    v1 = standing["v1"]
    if v1["decommissioned"]:
        return f"V1 was decommissioned: {v1['problem']}; {RESTORE}"
    if v1["works"] or asked.force or standing["engine"] != "running":
        return ""
    return (
        f"V1 does not work: {v1['problem']}; V2 answers, so the traffic stays. Mend V1, or {RESTORE}; "
        "to go nevertheless: -e force_v1=true (cfn fallback --force)"
    )


def fall_back(tree: Paths, asked: Asked, standing: Mapping[str, Any], router: RouterClient) -> dict[str, Any]:
    """Flip to V1 and prove it. Returns `after`, `changed`, `confirmed`, `epoch`, `seconds`, `proved` and
    `problem`. Raises CfnError only where the configuration cannot be changed."""
    epoch = max(asked.epoch, int(standing["before"]["epoch"] or 0) + EPOCHS_UP)
    order = Order(version="v1", epoch=epoch)
    went = {"epoch": epoch, "changed": True, "confirmed": False, "seconds": 0.0, "after": None}
    problem = ""
    try:
        done = flip(tree.config, order, router, check=False, wait_s=FLIP_WAIT_S)
        went |= {name: done[name] for name in ("changed", "confirmed", "seconds", "after")}
        problem = _proof(router, asked)
    except CfnError as error:
        if in_file(tree).epoch != epoch:
            raise
        problem = str(error)
    return {**went, "proved": not problem, "problem": problem}


def in_file(tree: Paths) -> Config:
    """The configuration as it is written; the defaults where it cannot be read."""
    try:
        return parse(tree.config.read_text(), source=str(tree.config)).config
    except (OSError, UnicodeDecodeError, CfnError):
        return Config()


def _tried(tree: Paths, asked: Asked) -> dict[str, Any]:
    config = in_file(tree)
    v1 = V1(tree)
    command = v1.command(config)[0]
    problem = ""
    if not config.v1_enabled:
        problem = "CFN_V1_ENABLED is false"
    elif not (os.path.lexists(command) or shutil.which(command)):
        problem = f"{command} does not exist"
    if problem:
        return {"works": False, "decommissioned": True, "problem": problem}

    async def trial() -> tuple[Coordination, str]:
        now_s = asyncio.get_running_loop().time()
        result = await v1.run(
            _task("trial"),
            agent_ids(asked.agents),
            payload=b"",
            config=config,
            arrived_s=now_s,
            deadline_s=now_s + asked.within_ms / 1000,
        )
        return result.coordination, result.problem

    coordination, why = asyncio.run(trial())
    measured = coordination.as_json()
    problem = _missed(measured, asked, why)
    times = {name: measured[name] for name in ("coordination_time_ms", "delivery_rate_pct")}
    return {"works": not problem, "decommissioned": False, "problem": problem, **times}


def _proof(router: RouterClient, asked: Asked) -> str:
    """What a coordination through the router missed; empty if V1 served it as it should."""
    request = {"task_id": _task("proof"), "agents": asked.agents, "deadline_ms": asked.within_ms}
    status, answer = router.coordinate(request, answer_s=2 * asked.within_ms / 1000)
    if status != 200:
        return (
            f"the router answered {status} to a coordination: {answer.get('error') or answer.get('detail')}"
        )
    if answer["served"] != "v1":
        return f"a coordination was served by {answer['served']}, not by v1"
    return _missed(answer["coordination"], asked, str(answer.get("detail") or ""))


def _missed(measured: Mapping[str, Any], asked: Asked, why: str) -> str:
    missed = [
        f"{name.split('_')[0]} {measured[name]:.1f} %, required {asked.delivery_pct:g} %"
        for name in ("delivery_rate_pct", "completion_rate_pct")
        if measured[name] < asked.delivery_pct
    ]
    if measured["coordination_time_ms"] > asked.within_ms:
        missed.append(f"{measured['coordination_time_ms']:.0f} ms, allowed {asked.within_ms} ms")
    if not missed:
        return ""
    return f"{asked.agents} agents: {', '.join(missed)}" + (f" ({why})" if why else "")


def _task(what: str) -> str:
    return f"fallback-{what}-{uuid.uuid4().hex[:12]}"
