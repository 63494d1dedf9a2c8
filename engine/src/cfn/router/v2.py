"""V2 as the router calls it: the conductor's client protocol, and what to do when it goes away."""

import asyncio
import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cfn.coordination import AgentState, Coordination
from cfn.errors import EXIT_FAILED, CfnError, DamagedError, NotRunningError, RefusedError
from cfn.ids import agent_ids
from cfn.router.decision import V2End, V2Result, settle, uniform
from cfn.router.request import Request

ASK_TIME_S = 2.0
_AGAIN_S = 0.05
# A revocation is tried for at least this long, also beyond the deadline.
_REVOKE_S = 1.0
_LINE_LIMIT_BYTES = 512 * 1024 * 1024
# Beyond an agent's own time limit, for its end to be reported.
_REPORT_GRACE_S = 5.0


class _AbsentError(CfnError):
    """The conductor does not know the task."""


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
    """Client of the conductor behind `socket`. One connection for each question."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def ask(self, question: dict[str, Any], *, timeout_s: float = ASK_TIME_S) -> dict[str, Any]:
        """One question, its last answer. Raises NotRunningError if nothing was sent, ConnectionError
        or TimeoutError if it is unknown what became of it, RefusedError if the conductor says no."""
        async with asyncio.timeout(timeout_s):
            return await self._exchange(question)

    async def begin(self, task: V2Task) -> V2Result:
        """Run the task until every agent is final, or until V1 has to be called in.

        A connection lost on the way is made again and attached to the same id, which starts nothing
        twice. Never raises for what V2 does.
        """
        loop = asyncio.get_running_loop()
        until_s = task.final_s if task.fallback_s is None else min(task.fallback_s, task.final_s)
        sent, detail = False, "V2 did not answer in time"

        def note_sent() -> None:
            nonlocal sent
            sent = True

        while loop.time() < until_s:
            try:
                async with asyncio.timeout_at(until_s):
                    answer = await self._exchange(_coordinate(task), on_sent=note_sent)
                return V2Result(end=V2End.ANSWERED, coordination=Coordination.from_json(answer))
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
                return self._uniform(task, V2End.NOT_ACCEPTED, f"V2 refused: {error}")
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
                    answer = await self._exchange(_coordinate(task))
                coordination = Coordination.from_json(answer)
            except (OSError, EOFError, CfnError):
                await asyncio.sleep(_AGAIN_S)
        return settle(coordination, "V2 did not report its end")

    async def known(self, task_id: str) -> Coordination | None:
        """The task as the conductor knows it, or None if it does not or does not answer."""
        try:
            return Coordination.from_json(await self.ask({"verb": "result", "task_id": task_id}))
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
                return V2Result(end=V2End.REVOKED, coordination=Coordination.from_json(answer), detail=detail)
            except _AbsentError as error:
                # What was sent may still lie unread in the conductor's socket.
                return self._uniform(task, V2End.LOST, f"{detail}; V2 does not know the task: {error}")
            except (OSError, EOFError, CfnError) as error:
                if loop.time() >= give_up_s:
                    return self._uniform(task, V2End.LOST, f"{detail}; it cannot be revoked: {error!s}")
            await asyncio.sleep(_AGAIN_S)

    def _uniform(self, task: V2Task, end: V2End, detail: str) -> V2Result:
        state = AgentState.UNDELIVERED if end is V2End.NOT_ACCEPTED else AgentState.UNKNOWN
        elapsed_ms = (asyncio.get_running_loop().time() - task.arrived_s) * 1000
        agents = agent_ids(task.request.agents)
        return V2Result(
            end=end,
            coordination=uniform(task.request.task_id, agents, state, detail, elapsed_ms=elapsed_ms),
            detail=detail,
        )

    async def _exchange(
        self, question: dict[str, Any], on_sent: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket, limit=_LINE_LIMIT_BYTES)
        except OSError as error:
            raise NotRunningError(f"{self._socket} does not answer: {error.strerror or error}") from error
        try:
            on_sent()  # from here on, nobody knows what the conductor has read
            writer.write(json.dumps(question).encode() + b"\n")
            while True:
                line = await reader.readline()
                if not line.endswith(b"\n"):
                    raise EOFError("the connection ended before the answer")
                answer = json.loads(line)
                if "error" in answer:
                    kind = _AbsentError if answer.get("absent") else RefusedError
                    raise kind(f"{answer['error']} (exit code {answer.get('exit_code', EXIT_FAILED)})")
                if set(answer) != {"state", "task_id"}:  # those two alone are an interim state
                    return dict(answer)
        except ValueError as error:
            raise DamagedError(f"{self._socket} answered what is not JSON: {error}") from error
        finally:
            writer.close()


def _coordinate(task: V2Task) -> dict[str, Any]:
    question: dict[str, Any] = {
        "verb": "coordinate",
        "task_id": task.request.task_id,
        "agents": task.request.agents,
        "deadline_ms": task.deadline_ms,
    }
    if task.request.payload:
        question["payload_b64"] = base64.b64encode(task.request.payload).decode()
    return question
