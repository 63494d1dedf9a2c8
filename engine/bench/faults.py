"""A fault in the middle of a load on a real stack, and the account of every agent afterwards.

Each agent appends its task and name to a file, so what ran twice shows there, whatever anybody says.
"""

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfn.load.account import LoadReport
from cfn.load.plan import LoadPlan, schedule
from cfn.load.stream import run_async
from cfn.router.client import RouterClient
from engine.bench.stack import Stack

AGENT = """#!/bin/sh
echo "$CFN_TASK_ID $CFN_AGENT_ID" >>{record}
sleep 0.05
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultReport:
    """What became of a load with a fault in it. `states` are of agents, by the answers; `ran` and
    `ran_twice` are of agents, by the file; `contradictions` names agents whose answer and file differ."""

    load: LoadReport
    agents_asked: int
    states: Mapping[str, int]
    ran: int
    ran_twice: int
    unaccounted: int
    contradictions: list[str]
    detail: str

    @property
    def kept(self) -> bool:
        """Whether every caller has its answer, and every agent is in one state and ran at most once."""
        return (
            self.load.answered_once == self.load.sent
            and not self.ran_twice
            and not self.unaccounted
            and not self.contradictions
        )


def kill_conductor(stack: Stack, _: random.Random) -> str:
    """SIGKILL, and another one is started at once."""
    stack.kill("conductor")
    stack.start("conductor")
    return "conductor killed"


def kill_router(stack: Stack, _: random.Random) -> str:
    """SIGKILL, and another one is started at once."""
    stack.kill("router")
    stack.start("router")
    return "router killed"


def stop_worker(stack: Stack, draw: random.Random) -> str:
    """SIGSTOP of a worker; the engine has to find it and to end it."""
    return f"worker {_stopped(stack, draw)} stopped"


def pause_worker(stack: Stack, draw: random.Random) -> str:
    """SIGSTOP of a worker, and SIGCONT a little later."""
    pid = _stopped(stack, draw)
    time.sleep(0.5)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    return f"worker {pid} stopped for 0.5 s"


FAULTS: Mapping[str, Callable[[Stack, random.Random], str]] = {
    "kill -9 of the conductor": kill_conductor,
    "kill -9 of the router": kill_router,
    "SIGSTOP of a worker": stop_worker,
}


def with_fault(
    stack: Stack,
    fault: Callable[[Stack, random.Random], str],
    *,
    requests: int,
    rate_per_s: float,
    seed: int,
    prefix: str = "fault",
) -> FaultReport:
    """Run a load on a stack that runs, the fault at a moment in its middle third that the seed fixes.
    The stack's configuration is written anew. Blocks until every task has ended or was given up."""
    record = stack.paths.root / f"ran-{prefix}"
    agent = stack.paths.root / f"agent-{prefix}"
    agent.write_text(AGENT.format(record=record))
    agent.chmod(0o755)
    stack.configure(AGENT_COMMAND=agent, AGENT_TIMEOUT_TIME=2_000, BREAKER_FAILURES=0)
    time.sleep(1.2)  # conductor and router have taken it up by then
    plan = LoadPlan(
        router=stack.address,
        rate_per_s=rate_per_s,
        requests=requests,
        prefix=prefix,
        seed=seed,
        sizes=((1, 3), (2, 2), (5, 1)),
        answer_s=90.0,
    )
    draw = random.Random(seed)  # noqa: S311 - reproducible, not secret
    moment_s = requests / rate_per_s * (1 + draw.random()) / 3
    details: list[str] = []
    timer = threading.Timer(moment_s, lambda: details.append(fault(stack, draw)))
    timer.start()
    load = asyncio.run(run_async(plan, progress=lambda _: None, stop=asyncio.Event()))
    timer.join()
    return _account(stack, plan, load, record, "".join(details))


def _account(stack: Stack, plan: LoadPlan, load: LoadReport, record: Path, detail: str) -> FaultReport:
    client = RouterClient(stack.address, timeout_s=10)
    ran = Counter(record.read_text().splitlines())
    states: Counter[str] = Counter()
    contradictions: list[str] = []
    asked = 0
    for shot in schedule(plan):
        asked += shot.agents
        answer: dict[str, Any] = client.get(f"/v1/coordinate/{shot.task_id}")[1]
        for result in answer.get("coordination", {}).get("results", []):
            states[result["state"]] += 1
            times = ran[f"{shot.task_id} {result['agent']}"]
            if (result["state"] == "done" and times != 1) or (result["state"] == "undelivered" and times):
                contradictions.append(f"{shot.task_id} {result['agent']}: {result['state']}, ran {times}")
    return FaultReport(
        load=load,
        agents_asked=asked,
        states=dict(states),
        ran=len(ran),
        ran_twice=sum(count > 1 for count in ran.values()),
        unaccounted=asked - sum(states[state] for state in ("done", "failed", "undelivered", "unknown")),
        contradictions=contradictions,
        detail=detail,
    )


def _stopped(stack: Stack, draw: random.Random) -> int:
    """Stop some worker in the middle of its work and return its process id. Raises TimeoutError."""
    ends_s = time.monotonic() + 10
    while time.monotonic() < ends_s:
        workers = stack.workers()
        if not workers:
            time.sleep(0.001)
            continue
        pid = draw.choice(workers)
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.002)
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T":
                return pid
    raise TimeoutError("no worker could be stopped")
