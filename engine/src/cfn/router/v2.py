"""V2 as the router calls it: the conductor's client protocol, and what to do when it goes away."""

import asyncio
import base64
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cfn.coordination import AgentState, Coordination
from cfn.errors import EXIT_FAILED, EXIT_REFUSED, CfnError, DamagedError, NotRunningError, RefusedError
from cfn.ids import agent_ids
from cfn.router.decision import LEVEL_RATES, V2End, V2Result, settle, uniform
from cfn.router.gate import Gate
from cfn.router.request import Request
from cfn.router.v2_link import Link

ASK_TIME_S = 2.0
_AGAIN_S = 0.05
# A revocation is tried for at least this long, also beyond the deadline.
_REVOKE_S = 1.0
# Beyond an agent's own time limit, for its end to be reported.
_REPORT_GRACE_S = 5.0


# Below what the conductor runs and queues (docs/reference/engine.md, "Bounds"). A burst above it, as
# after a restart, waits for a moment.
MAX_TASKS = 256
_WAITING_PER_TASK = 8
MAX_WAIT_S = 5.0
_RETRY_AFTER_S = 1


class _AbsentError(CfnError):
    """The conductor does not know the task."""


class _OverloadedError(RefusedError):
    """The conductor refuses over its queue's bound, for now."""

    def __init__(self, text: str, retry_after_s: int) -> None:
        super().__init__(text, retry_after_s=retry_after_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class V2Task:
    """A request on its way through V2. Times are of the loop's clock, in seconds: when it came,
    when V1 is to be called in (None: never), by when every agent must have claimed it, and when
    the last agent must have ended."""

    request: Request
    arrived_s: float
    fallback_s: float | None
    deadline_s: float
    agent_timeout_s: float
    deadline_ms: int = field(kw_only=True)

    @property
    def final_s(self) -> float:
        """After this nothing more is waited for."""
        return self.deadline_s + self.agent_timeout_s + _REPORT_GRACE_S


class V2:
    """Client of the conductor behind `socket`. Belongs to one event loop."""

    def __init__(self, socket: Path) -> None:
        self._link = Link(socket)
        self._gate = Gate("the bound on tasks under way in V2", _WAITING_PER_TASK)

    def close(self) -> None:
        """Give idle connections back."""
        self._link.close()

    async def ask(self, question: dict[str, Any], *, timeout_s: float = ASK_TIME_S) -> dict[str, Any]:
        """One question, its last answer. Raises NotRunningError if nothing was sent, ConnectionError
        or TimeoutError if it is unknown what became of it, RefusedError if the conductor says no."""
        async with asyncio.timeout(timeout_s):
            return _checked((await self._link.exchange(question))[0])

    async def begin(self, task: V2Task) -> V2Result:
        """Run the task until every agent is final, or until V1 has to be called in.

        A connection lost on the way is made again and attached to the same id, which starts nothing
        twice. Never raises for what V2 does. Beyond MAX_TASKS at once it waits, at most MAX_WAIT_S.
        """
        try:
            await self._gate.enter(MAX_TASKS, MAX_WAIT_S)
        except RefusedError as error:
            return self._overloaded(task, str(error), _RETRY_AFTER_S)
        except TimeoutError:
            return self._overloaded(task, f"no turn came in {MAX_WAIT_S:g} s", _RETRY_AFTER_S)
        try:
            return await self._begin(task)
        finally:
            self._gate.leave()

    async def _begin(self, task: V2Task) -> V2Result:
        loop = asyncio.get_running_loop()
        until_s = task.final_s if task.fallback_s is None else min(task.fallback_s, task.final_s)
        sent, detail = False, "V2 did not answer in time"

        def note_sent() -> None:
            nonlocal sent
            sent = True

        while loop.time() < until_s:
            try:
                async with asyncio.timeout_at(until_s):
                    answer, raw = await self._link.exchange(_coordinate(task), note_sent)
                return V2Result(
                    end=V2End.ANSWERED,
                    coordination=Coordination.from_json(_checked(answer)),
                    raw=raw,
                    levels=_levels(answer),
                )
            except TimeoutError:
                break
            except NotRunningError as error:
                if not sent:
                    return self._uniform(task, V2End.NOT_ACCEPTED, str(error))
                detail = f"V2 went away: {error}"
            except (RefusedError, _AbsentError) as error:
                # A refusal that comes after a lost connection says nothing about what was before it.
                if detail.startswith("V2 went away"):
                    break
                if isinstance(error, _OverloadedError):
                    return self._overloaded(task, str(error), error.retry_after_s or _RETRY_AFTER_S)
                end = V2End.REFUSED if error.exit_code != EXIT_REFUSED else V2End.NOT_ACCEPTED
                return self._uniform(task, end, f"V2 refused: {error}")
            except (OSError, EOFError, DamagedError) as error:
                detail = f"V2 went away: {error}"
            await asyncio.sleep(_AGAIN_S)
        if not sent:
            return self._uniform(task, V2End.NOT_ACCEPTED, "V2 took no connection in time")
        return await self._revoke(task, detail)

    async def finish(self, task: V2Task, coordination: Coordination) -> Coordination:
        """Wait for the agents that still run, after a revocation. What is not heard of is unknown."""
        loop = asyncio.get_running_loop()
        while not coordination.complete and loop.time() < task.final_s:
            try:
                async with asyncio.timeout_at(task.final_s):
                    answer, _ = await self._link.exchange(_coordinate(task))
                coordination = Coordination.from_json(_checked(answer))
            except (OSError, EOFError, CfnError):
                await asyncio.sleep(_AGAIN_S)
        return settle(coordination, "V2 did not report its end")

    async def known(self, task_id: str, *, timeout_s: float = ASK_TIME_S) -> Coordination | None:
        """The task as the conductor knows it, or None if it does not or does not answer."""
        question = {"verb": "result", "task_id": task_id}
        try:
            return Coordination.from_json(await self.ask(question, timeout_s=timeout_s))
        except (OSError, EOFError, CfnError):
            return None

    async def recall(self, task: V2Task) -> Coordination | None:
        """What the conductor knows of a task that another process sent; None if it knows nothing.

        Asks until it answers. Raises NotRunningError if it did not by the task's deadline.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                answer = await self.ask({"verb": "result", "task_id": task.request.task_id})
                return Coordination.from_json(answer)
            except _AbsentError:
                return None
            except (OSError, EOFError, CfnError) as error:
                if loop.time() >= task.deadline_s:
                    raise NotRunningError(f"V2 cannot be asked: {error}") from error
            await asyncio.sleep(_AGAIN_S)

    async def _revoke(self, task: V2Task, detail: str) -> V2Result:
        """Make what is unclaimed undelivered, for certain. If the conductor cannot be reached, or no
        longer knows the task, nothing is certain, and every agent is unknown."""
        loop = asyncio.get_running_loop()
        question = {"verb": "revoke", "task_id": task.request.task_id}
        give_up_s = max(task.deadline_s, loop.time() + _REVOKE_S)
        while True:
            try:
                answer = await self.ask(
                    question, timeout_s=max(0.05, min(ASK_TIME_S, give_up_s - loop.time()))
                )
                return V2Result(
                    end=V2End.REVOKED,
                    coordination=Coordination.from_json(answer),
                    detail=detail,
                    levels=_levels(answer),
                )
            except _AbsentError as error:
                # What was sent may still lie unread in the conductor's socket.
                return self._uniform(task, V2End.LOST, f"{detail}; V2 does not know the task: {error}")
            except (OSError, EOFError, CfnError) as error:
                if loop.time() >= give_up_s:
                    return self._uniform(task, V2End.LOST, f"{detail}; it cannot be revoked: {error!s}")
            await asyncio.sleep(_AGAIN_S)

    def not_asked(self, task: V2Task, end: V2End, detail: str) -> V2Result:
        """The result of a task that V2 was ordered to run and is not asked to."""
        return self._uniform(task, end, detail)

    def _overloaded(self, task: V2Task, detail: str, retry_after_s: int) -> V2Result:
        result = self._uniform(task, V2End.OVERLOADED, f"V2 refused: {detail}")
        return replace(result, retry_after_s=retry_after_s)

    def _uniform(self, task: V2Task, end: V2End, detail: str) -> V2Result:
        state = AgentState.UNKNOWN if end is V2End.LOST else AgentState.UNDELIVERED
        elapsed_ms = (asyncio.get_running_loop().time() - task.arrived_s) * 1000
        agents = agent_ids(task.request.agents)
        return V2Result(
            end=end,
            coordination=uniform(task.request.task_id, agents, state, detail, elapsed_ms=elapsed_ms),
            detail=detail,
        )


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer, unless it is an error, which is raised."""
    if "error" not in answer:
        return answer
    code = answer.get("exit_code", EXIT_FAILED)
    text = f"{answer['error']} (exit code {code})"
    if answer.get("absent"):
        raise _AbsentError(text)
    retry_after_s = answer.get("retry_after_s")
    if isinstance(retry_after_s, int | float) and retry_after_s >= 0:
        raise _OverloadedError(text, max(1, math.ceil(retry_after_s)))
    refused = RefusedError(text)
    refused.exit_code = code
    raise refused


def _levels(answer: dict[str, Any]) -> dict[str, float]:
    """The delivery rates of the levels of a hybrid topology, where the engine reports them."""
    return {name: answer[name] for name in LEVEL_RATES if isinstance(answer.get(name), int | float)}


def _coordinate(task: V2Task) -> dict[str, Any]:
    question: dict[str, Any] = {
        "verb": "coordinate",
        "task_id": task.request.task_id,
        "agents": task.request.agents,
        "deadline_ms": task.deadline_ms,
    }
    if task.request.swarm_id:
        question["swarm_id"] = task.request.swarm_id
    if task.request.payload:
        question["payload_b64"] = base64.b64encode(task.request.payload).decode()
    return question
