"""The router's work: each task is routed once, run to an end, recorded as one event and kept as one
answer."""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from cfn.config import Config
from cfn.coordination import AgentState
from cfn.engine.log import log
from cfn.errors import NotRunningError
from cfn.ids import agent_ids
from cfn.router.answers import AnswerStore
from cfn.router.decision import decide, merge, outcome_of, route, served_by, uniform
from cfn.router.events import EventLog
from cfn.router.generation import Generation
from cfn.router.job import Ending, Job, answer, coordination_event
from cfn.router.request import Request
from cfn.router.stats import Stats
from cfn.router.v1 import V1, V1Result
from cfn.router.v2 import V2, V2Task

# A task under way. Its result is the answer; None if nothing of it was ever started, so that its id
# may be used again (only after a restart).
Run = asyncio.Task[bytes | None]


class Service:
    """Runs tasks on V1 and V2. `generation` is replaced when the configuration changes; a task keeps
    the one it was routed under. Belongs to one event loop."""

    def __init__(
        self,
        *,
        generation: Generation,
        v1: V1,
        v2: V2,
        events: EventLog,
        answers: AnswerStore,
        stats: Stats,
        host: str,
        release: str,
    ) -> None:
        self.generation = generation
        self.v1 = v1
        self.v2 = v2
        self.events = events
        self.answers = answers
        self.stats = stats
        self._origin = {"host": host, "release": release}
        self._running: dict[str, Run] = {}

    def submit(self, request: Request) -> Run | bytes:
        """Start the task, unless its id is known: then its answer, or the run that is under way."""
        known = self.find(request.task_id)
        if known is not None:
            return known
        config = self.generation.config
        where = route(config, request.task_id, request.agents)
        job = Job(
            task_id=request.task_id,
            agents=request.agents,
            bucket=where.bucket,
            generation=self.generation.number,
            version=config.coordination_version,
            traffic_pct=self.generation.traffic_pct,
            ordered=where.ordered,
            reason=where.reason,
            arrived_unix_s=time.time(),
        )
        self.stats.began(job)
        return self._start(job, self._serve(job, request, config))

    def find(self, task_id: str) -> Run | bytes | None:
        """The answer of a task, or its run while it is under way, or None."""
        return self._running.get(task_id) or self.answers.get(task_id)

    def resume(self) -> None:
        """Take up what the router's last process left open. Nothing of it is started again: its ids
        are under way from here on, and what V1 was running is unknown."""
        for task_id, facts in self.answers.begun().items():
            try:
                job, v1_agents = Job.from_facts(facts), facts["v1_agents"]
            except (KeyError, TypeError):
                self.answers.forget(task_id)
                continue
            log("resumed", task_id=task_id, v1_agents=v1_agents)
            self.stats.resumed()
            self._start(job, self._conclude(job, v1_agents or []))

    async def drain(self, timeout_s: float) -> None:
        """Wait for what is under way. What is not done by then is left to the next process."""
        if self._running:
            await asyncio.wait(self._running.values(), timeout=timeout_s)
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _start(self, job: Job, running: Coroutine[Any, Any, Ending | None]) -> Run:
        task = asyncio.create_task(self._finish(job, running), name=f"coordinate {job.task_id}")
        self._running[job.task_id] = task
        return task

    async def _finish(self, job: Job, running: Coroutine[Any, Any, Ending | None]) -> bytes | None:
        """Await the ending, whatever it is, and record it."""
        try:
            ending = await running
        except Exception as error:  # the caller must hear, and the defect must show
            log("router-defect", task_id=job.task_id, error=repr(error))
            ending = self._unknown(job, f"the router failed: {error!r}")
        finally:
            self._running.pop(job.task_id, None)
        if ending is None:
            self.answers.forget(job.task_id)
            self.stats.dropped()
            return None
        body = answer(job, ending)
        self.answers.put(job.task_id, body)
        now = time.time()
        self.events.append(coordination_event(job, ending, **self._origin, now_unix_s=now))
        self.stats.ended(job, ending, total_s=max(0.0, now - job.arrived_unix_s))
        return body

    async def _serve(self, job: Job, request: Request, config: Config) -> Ending:
        arrived_s = asyncio.get_running_loop().time()
        deadline_ms = request.deadline_ms or config.coordination_deadline_ms
        if job.ordered == "v1":
            result = await self._run_v1(job, agent_ids(job.agents), request, config, arrived_s, deadline_ms)
            return _ending_of_v1(result)
        fallback_s = arrived_s + config.fallback_time_ms / 1000 if config.fallback_enabled else None
        task = V2Task(
            request=request,
            arrived_s=arrived_s,
            fallback_s=fallback_s,
            deadline_s=arrived_s + deadline_ms / 1000,
            agent_timeout_s=config.agent_timeout_ms / 1000,
            deadline_ms=deadline_ms,
        )
        self.answers.begin(job.task_id, job.as_facts())
        first = await self.v2.begin(task)
        never_started = len(first.coordination.never_started)
        takes_list = not 0 < never_started < job.agents or await self.v1.takes_list(config)
        decision = decide(first, config, v1_takes_list=takes_list)
        if decision.fallback is None:
            own = await self.v2.finish(task, first.coordination)
            return Ending(
                coordination=own,
                own=own,
                served=served_by(first, decision, v1_ran=False),
                outcome=outcome_of(own),
                detail=decision.detail,
            )
        log("fallback", task_id=job.task_id, cause=decision.fallback, agents=len(decision.agents))
        v1_result, own = await asyncio.gather(
            self._run_v1(job, decision.agents, request, config, arrived_s, deadline_ms),
            self.v2.finish(task, first.coordination),
        )
        merged = merge(own, v1_result.coordination)
        return Ending(
            coordination=merged,
            own=own,
            served=served_by(first, decision, v1_ran=v1_result.ran),
            outcome=outcome_of(merged),
            fallback=decision.fallback,
            detail="; ".join(part for part in (decision.detail, v1_result.problem) if part),
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
        return await self.v1.run(
            job.task_id,
            agents,
            payload=request.payload,
            config=config,
            arrived_s=arrived_s,
            # Called in late, V1 has as much time as V2 had.
            deadline_s=asyncio.get_running_loop().time() + deadline_ms / 1000,
            on_start=lambda: self.answers.begin(job.task_id, job.as_facts(v1_agents=list(agents))),
        )

    async def _conclude(self, job: Job, v1_agents: Sequence[str]) -> Ending | None:
        """The ending of a task that the last process left open; None if nothing of it was started."""
        detail = "the router was restarted while it ran"
        if len(v1_agents) == job.agents:
            return self._unknown(job, detail)
        config = self.generation.config
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
            known = await self.v2.recall(task)
        except NotRunningError as error:
            return self._unknown(job, f"{detail}; {error}")
        if known is None:
            return None
        own = await self.v2.finish(task, known)
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

    def _unknown(self, job: Job, detail: str) -> Ending:
        elapsed_ms = (time.time() - job.arrived_unix_s) * 1000
        lost = uniform(job.task_id, agent_ids(job.agents), AgentState.UNKNOWN, detail, elapsed_ms=elapsed_ms)
        return Ending(coordination=lost, own=lost, served=job.ordered, outcome="failed", detail=detail)


def _ending_of_v1(result: V1Result) -> Ending:
    return Ending(
        coordination=result.coordination,
        own=result.coordination,
        served="v1" if result.ran else "none",
        outcome="refused" if result.refused else outcome_of(result.coordination),
        detail=result.problem,
    )
