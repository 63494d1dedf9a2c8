"""One task on its way: to V1, or to V2 and from there to V1 for what V2 does not finish."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

from cfn.config import Config
from cfn.coordination import AgentState, Coordination
from cfn.engine.log import log
from cfn.errors import NotRunningError
from cfn.ids import agent_ids
from cfn.router.answers import AnswerStore
from cfn.router.breaker import what_was_bad
from cfn.router.breaker_keeper import BreakerKeeper
from cfn.router.decision import Decision, V2End, V2Result, decide, merge, outcome_of, served_by, uniform
from cfn.router.engine_watch import EngineWatch
from cfn.router.job import Ending, Job
from cfn.router.request import Request
from cfn.router.split import Version
from cfn.router.v1 import V1, V1Result
from cfn.router.v2 import V2, V2Task


class Runner:
    """Runs routed tasks to their end. Each of its parts belongs to the same event loop."""

    def __init__(
        self, *, v1: V1, v2: V2, answers: AnswerStore, breaker: BreakerKeeper, engine: EngineWatch
    ) -> None:
        self._v1 = v1
        self._v2 = v2
        self._answers = answers
        self._breaker = breaker
        self._engine = engine

    async def run(self, job: Job, request: Request, config: Config) -> Ending:
        """Run a task to its end on the ordered version, V1 called in where V2 leaves something."""
        arrived_s = asyncio.get_running_loop().time()
        deadline_ms = request.deadline_ms or config.coordination_deadline_ms
        if job.ordered == "v1":
            result = await self._run_v1(job, agent_ids(job.agents), request, config, arrived_s, deadline_ms)
            return _ending_of_v1(result)
        fallback = config.fallback_enabled and config.v1_enabled
        task = V2Task(
            request=request,
            arrived_s=arrived_s,
            fallback_s=arrived_s + config.fallback_time_ms / 1000 if fallback else None,
            deadline_s=arrived_s + deadline_ms / 1000,
            agent_timeout_s=config.agent_timeout_ms / 1000,
            deadline_ms=deadline_ms,
        )
        first = await self._run_v2(job, task, config)
        never_started = len(first.coordination.never_started)
        takes_list = not 0 < never_started < job.agents or await self._v1.takes_list(config)
        decision = decide(first, config, v1_takes_list=takes_list, v1_free=self._v1.free(config))
        if decision.refuse:
            return _refusal(first.coordination, decision.detail, first.retry_after_s)
        ending = await (
            self._fall_back(job, task, config, first, decision)
            if decision.fallback
            else self._finish(task, first, decision)
        )
        if first.levels or first.end is V2End.HELD:
            return replace(ending, levels=first.levels, held=first.end is V2End.HELD)
        return ending

    async def conclude(self, job: Job, v1_agents: Sequence[str], config: Config) -> Ending | None:
        """The ending of a task that the last process left open; None if nothing of it was started."""
        detail = "the router was restarted while it ran"
        if len(v1_agents) == job.agents:
            return unknown(job, detail)
        now = asyncio.get_running_loop().time()
        task = V2Task(
            request=Request(task_id=job.task_id, agents=job.agents),
            arrived_s=now,
            fallback_s=None,
            deadline_s=now + config.coordination_deadline_ms / 1000,
            agent_timeout_s=config.agent_timeout_ms / 1000,
            deadline_ms=config.coordination_deadline_ms,
        )
        try:
            known = await self._v2.recall(task)
        except NotRunningError as error:
            return unknown(job, f"{detail}; {error}")
        if known is None:
            return None
        own = await self._v2.finish(task, known)
        lost = uniform(job.task_id, v1_agents, AgentState.UNKNOWN, detail, elapsed_ms=0.0)
        merged = merge(own, lost)
        return Ending(
            coordination=merged,
            own=own,
            served="both" if v1_agents else "v2",
            outcome=outcome_of(merged),
            fallback="error" if v1_agents else None,
            detail=detail,
        )

    async def _run_v2(self, job: Job, task: V2Task, config: Config) -> V2Result:
        """V2's part until V1 might be called in, judged for the breaker. A tester's own choice of V2 is
        outside of the breaker: that is how somebody finds out whether V2 is well again."""
        admission = self._breaker.admit() if job.reason == "split" else "v2"
        if admission == "held":
            return self._v2.not_asked(task, V2End.HELD, "the breaker is open")
        if self._engine.hangs:
            detail = f"V2 hangs: {self._engine.problem}"
            first = self._v2.not_asked(task, V2End.NOT_ACCEPTED, detail)
        else:
            self._answers.begin(job.task_id, job.as_facts())
            first = await self._v2.begin(task)
        if job.reason == "split":
            self._breaker.judged(admission, what_was_bad(first, config))
        return first

    async def _finish(self, task: V2Task, first: V2Result, decision: Decision) -> Ending:
        own = await self._v2.finish(task, first.coordination)
        return Ending(
            coordination=own,
            own=own,
            served=served_by(first, decision, v1_ran=False),
            outcome=outcome_of(own),
            detail=decision.detail,
            raw=first.raw,
            phases_ms={"v2": own.total_time_ms},
        )

    async def _fall_back(
        self, job: Job, task: V2Task, config: Config, first: V2Result, decision: Decision
    ) -> Ending:
        log("fallback", task_id=job.task_id, cause=decision.fallback, agents=len(decision.agents))
        v1_result, own = await asyncio.gather(
            self._run_v1(job, decision.agents, task.request, config, task.arrived_s, task.deadline_ms),
            self._v2.finish(task, first.coordination),
        )
        if v1_result.refused and decision.whole:
            return _refusal(own, f"{decision.detail}; {v1_result.problem}", v1_result.retry_after_s, by="v1")
        merged = merge(own, v1_result.coordination)
        return Ending(
            coordination=merged,
            own=own,
            served=served_by(first, decision, v1_ran=v1_result.ran),
            outcome=outcome_of(merged),
            fallback=decision.fallback,
            detail="; ".join(part for part in (decision.detail, v1_result.problem) if part),
            phases_ms={"v2": own.total_time_ms} | _phases(v1_result),
        )

    async def _run_v1(
        self,
        job: Job,
        agents: Sequence[str],
        request: Request,
        config: Config,
        arrived_s: float,
        deadline_ms: int,
    ) -> V1Result:
        return await self._v1.run(
            job.task_id,
            agents,
            payload=request.payload,
            config=config,
            arrived_s=arrived_s,
            # Called in late, V1 has as much time as V2 had.
            deadline_s=asyncio.get_running_loop().time() + deadline_ms / 1000,
            on_start=lambda: self._answers.begin(job.task_id, job.as_facts(v1_agents=list(agents))),
        )


def unknown(job: Job, detail: str) -> Ending:
    """The ending of a task of which nothing can be found out."""
    elapsed_ms = max(0.0, time.time() - job.arrived_unix_s) * 1000
    lost = uniform(job.task_id, agent_ids(job.agents), AgentState.UNKNOWN, detail, elapsed_ms=elapsed_ms)
    return Ending(coordination=lost, own=lost, served=job.ordered, outcome="failed", detail=detail)


def _ending_of_v1(result: V1Result) -> Ending:
    if result.refused:
        return _refusal(result.coordination, result.problem, result.retry_after_s, by="v1")
    return Ending(
        coordination=result.coordination,
        own=result.coordination,
        served="v1" if result.ran else "none",
        outcome=outcome_of(result.coordination),
        detail=result.problem,
        phases_ms=_phases(result),
    )


def _refusal(untouched: Coordination, detail: str, retry_after_s: int, *, by: Version = "v2") -> Ending:
    return Ending(
        coordination=untouched,
        own=untouched,
        served="none",
        outcome="refused",
        detail=detail,
        refused_by=by,
        retry_after_s=retry_after_s,
    )


def _phases(result: V1Result) -> dict[str, float]:
    return {"v1_wait": result.waited_s * 1000, "v1": result.ran_s * 1000}
