"""The router's work: each task is routed once, run to an end, recorded as one event and kept as one
answer."""

import asyncio
import json
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfn.config import Config
from cfn.engine.log import log
from cfn.errors import UsageError
from cfn.router import direct, shadow
from cfn.router.answers import AnswerStore
from cfn.router.breaker import State
from cfn.router.breaker_keeper import BreakerKeeper
from cfn.router.clock import utc_text
from cfn.router.decision import route
from cfn.router.engine_watch import EngineWatch
from cfn.router.events import EventLog
from cfn.router.generation import Generation
from cfn.router.job import Answer, Ending, Job, answer, coordination_event
from cfn.router.request import Request
from cfn.router.runner import Runner, unknown
from cfn.router.shadow import Shadow
from cfn.router.stats import Stats
from cfn.router.v1 import V1
from cfn.router.v2 import V2

# A task under way. Its result is the answer; None if nothing of it was ever started, so that its id
# may be used again (only after a restart).
Run = asyncio.Task[Answer | None]


@dataclass(frozen=True, slots=True)
class Running:
    """A task under way and since when (the loop's clock)."""

    run: Run
    job: Job
    since_s: float


class Service:
    """Runs tasks on V1 and V2. `generation` is replaced when the configuration changes; a task keeps
    the one it was routed under. `events` is what the gate reads, `notes` what it does not. Belongs to
    one event loop."""

    def __init__(
        self,
        *,
        generation: Generation,
        v1: V1,
        v2: V2,
        events: EventLog,
        notes: EventLog,
        answers: AnswerStore,
        breaker: BreakerKeeper,
        engine: EngineWatch,
        stats: Stats,
        direct_answers: Path,
        host: str,
        release: str,
    ) -> None:
        self.generation = generation
        self.v1 = v1
        self.v2 = v2
        self.events = events
        self.answers = answers
        self.breaker = breaker
        self.engine = engine
        self.stats = stats
        self._direct = str(direct_answers)
        self.notes = notes
        self.shadow = Shadow(v2, self._note)
        self._runner = Runner(v1=v1, v2=v2, answers=answers, breaker=breaker, engine=engine)
        self._origin = {"host": host, "release": release}
        self._running: dict[str, Running] = {}

    def submit(self, request: Request) -> Running | Answer:
        """Start the task, unless its id is known: then its answer, or the run that is under way.

        Raises UsageError for more agents than V2 takes when there is no V1.
        """
        known = self.find(request.task_id)
        if known is not None:
            return known
        config = self.generation.config
        where = route(
            config,
            request.task_id,
            request.agents,
            sticky_key=request.sticky_key,
            override=request.override,
        )
        if where.ordered == "v1" and not config.v1_enabled:
            wanted = f"{request.agents} agents" if where.reason == "over_capacity" else "X-Cfn-Version: v1"
            raise UsageError(
                f"{wanted}: there is no V1 (CFN_V1_ENABLED is false), and V2 takes at most "
                f"{config.max_agents} agents (CFN_MAX_AGENTS)"
            )
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
            sticky_key=request.sticky_key,
        )
        self.stats.began(job)
        return self._start(job, self._runner.run(job, request, config), request, config)

    def find(self, task_id: str) -> Running | Answer | None:
        """The answer of a task, or its run while it is under way, or None."""
        running = self._running.get(task_id)
        if running is not None:
            return running
        kept = self.answers.get(task_id)
        if kept is None:  # a client may have run it while there was no router
            kept = direct.kept(self._direct, task_id)
            if kept == direct.RUNNING:
                return Answer(json.dumps({"task_id": task_id, "state": "running"}).encode(), 202)
        return Answer(kept) if kept is not None else None

    @property
    def earlier_in_flight(self) -> int:
        """Tasks under way that were routed under an earlier generation, and keep to it."""
        now = self.generation.number
        return sum(running.job.generation != now for running in self._running.values())

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
            self._start(job, self._runner.conclude(job, v1_agents or [], self.generation.config))

    async def drain(self, timeout_s: float) -> None:
        """Wait for what is under way. What is not done by then is left to the next process."""
        runs = [running.run for running in self._running.values()]
        if runs:
            await asyncio.wait(runs, timeout=timeout_s)
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)
        await self.shadow.stop()
        self.v2.close()

    def _note(self, record: Mapping[str, Any]) -> None:
        self.notes.append({"v": 1, **self._origin, "time": utc_text(time.time()), **record})

    def _start(
        self,
        job: Job,
        ending: Coroutine[Any, Any, Ending | None],
        request: Request | None = None,
        config: Config | None = None,
    ) -> Running:
        run = asyncio.create_task(self._finish(job, ending, request, config))
        running = Running(run, job, asyncio.get_running_loop().time())
        self._running[job.task_id] = running
        return running

    async def _finish(
        self,
        job: Job,
        running: Coroutine[Any, Any, Ending | None],
        request: Request | None,
        config: Config | None,
    ) -> Answer | None:
        """Await the ending, whatever it is, and record it."""
        began_s = time.monotonic()
        try:
            ending = await running
        except Exception as error:  # the caller must hear, and the defect must show
            log("router-defect", task_id=job.task_id, error=repr(error))
            ending = unknown(job, f"the router failed: {error!r}")
        finally:
            self._running.pop(job.task_id, None)
        if ending is None:
            self.answers.forget(job.task_id)
            self.stats.dropped()
            return None
        said = answer(job, ending)
        if ending.outcome == "refused":
            self.answers.forget(job.task_id)
        else:
            self.answers.put(job.task_id, said.body)
        now = time.time()
        # A task of the last process began before this one did: only the clock on the wall knows when.
        total_s = time.monotonic() - began_s if request else max(0.0, now - job.arrived_unix_s)
        states = ending.coordination.states
        event = coordination_event(
            job, ending, states=states, **self._origin, now_unix_s=now, total_s=total_s
        )
        # What a tester chose is no evidence of the split, and the gate does not see it.
        (self.notes if job.reason == "override" else self.events).append(event)
        self.stats.ended(job, ending, states=states, total_s=total_s)
        if request is not None and config is not None and shadow.wanted(job, ending, config):
            well = self.breaker.breaker.state is State.CLOSED and not self.engine.hangs
            self.shadow.repeat(job, request, ending, config, well=well)
        return said
