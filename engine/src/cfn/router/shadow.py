"""Shadow traffic: a share of what V1 served is repeated on V2, compared, and thrown away.

The caller has its answer before that begins. V2's agents see an id that begins with `shadow:`, and the
configuration has to declare that their command does nothing real then; the echo does nothing real.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cfn.config import Config
from cfn.coordination import Coordination
from cfn.ids import MAX_ID_CHARS
from cfn.router.decision import V2End
from cfn.router.job import Ending, Job
from cfn.router.request import Request
from cfn.router.split import bucket, ordered_version
from cfn.router.v2 import V2, V2Task

PREFIX = "shadow:"
MAX_AT_ONCE = 16


def wanted(job: Job, ending: Ending, config: Config) -> bool:
    """Whether a task is one of the share. Tasks are drawn by a hash of their own, apart from the split's."""
    return (
        bool(config.shadow_pct)
        and job.ordered == "v1"
        and job.reason == "split"
        and ending.served == "v1"
        and ordered_version("v2", config.shadow_pct, bucket(config.split_key, PREFIX + job.task_id)) == "v2"
    )


def differences(v1: Coordination, v2: Coordination) -> int:
    """How many agents ended otherwise: another state, exit code or output."""
    there = {result.agent: (result.state, result.exit_code, result.output) for result in v2.results}
    return sum(
        there.get(result.agent) != (result.state, result.exit_code, result.output) for result in v1.results
    )


class Shadow:
    """Repeats tasks on V2, at most MAX_AT_ONCE at a time; what is more is left out, and counted.
    `record` writes one event (without `v`, host, release)."""

    def __init__(self, v2: V2, record: Callable[[Mapping[str, Any]], None]) -> None:
        self._v2 = v2
        self._record = record
        self._running: set[asyncio.Task[None]] = set()
        self.results = {"same": 0, "different": 0, "failed": 0, "left_out": 0}

    def repeat(self, job: Job, request: Request, ending: Ending, config: Config, *, well: bool) -> None:
        """Begin to repeat a task that V1 has served, unless V2 is not well."""
        if not well or len(self._running) >= MAX_AT_ONCE:
            self.results["left_out"] += 1
            return
        task = asyncio.create_task(self._repeat(job, request, ending.coordination, config))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def stop(self) -> None:
        """Give up what runs."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _repeat(self, job: Job, request: Request, v1: Coordination, config: Config) -> None:
        now_s = asyncio.get_running_loop().time()
        task = V2Task(
            request=replace(request, task_id=(PREFIX + job.task_id)[:MAX_ID_CHARS]),
            arrived_s=now_s,
            fallback_s=None,
            deadline_s=now_s + config.coordination_deadline_ms / 1000,
            agent_timeout_s=config.agent_timeout_ms / 1000,
            deadline_ms=config.coordination_deadline_ms,
        )
        result = await self._v2.begin(task)
        v2 = await self._v2.finish(task, result.coordination)
        differ = differences(v1, v2)
        outcome = "failed" if result.end is not V2End.ANSWERED else "different" if differ else "same"
        self.results[outcome] += 1
        self._record(
            {
                "type": "shadow",
                "task_id": job.task_id,
                "agents": job.agents,
                "generation": job.generation,
                "result": outcome,
                "agents_different": differ,
                "v1_time_ms": round(v1.coordination_time_ms, 3),
                "v2_time_ms": round(v2.coordination_time_ms, 3),
                "detail": result.detail,
            }
        )
