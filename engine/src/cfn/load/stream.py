"""Send a plan's stream to a router, open loop, and settle the account at its end."""

import asyncio
import base64
import contextlib
import json
from collections.abc import Callable, Iterable

import aiohttp

from cfn.load.account import Account, LoadReport
from cfn.load.plan import LoadPlan, Shot, schedule

MAX_RETRIES = 8
_FIRST_BACK_OFF_S = 0.05
_LONGEST_BACK_OFF_S = 1.0
_STATUS_EVERY_S = 0.5
_SECOND_LOOKS = 500
_AGAIN_S = 0.2
# A connection that ended says nothing of the task: the same id is safe to send again.
_CONNECTION_LOST = (aiohttp.ClientConnectionError, ConnectionError)


def run(
    plan: LoadPlan,
    *,
    progress: Callable[[str], None] = lambda _: None,
    stop: asyncio.Event | None = None,
) -> LoadReport:
    """Run the plan and return the account. Blocks for the length of the stream, and at most
    `plan.answer_s` twice more for answers that are still out. `progress` is called about each second.
    """
    return asyncio.run(run_async(plan, progress=progress, stop=stop or asyncio.Event()))


async def run_async(plan: LoadPlan, *, progress: Callable[[str], None], stop: asyncio.Event) -> LoadReport:
    """As `run`, inside an event loop. Setting `stop` ends the sending; what was sent is settled."""
    account = Account(planned=plan.requests)
    loop = asyncio.get_running_loop()
    async with _session(plan) as session:
        stream = _Stream(plan, session, account)
        watching = asyncio.create_task(stream.watch(progress))
        began_s = loop.time()
        try:
            await stream.send_all(schedule(plan), stop)
            seconds = loop.time() - began_s
            await stream.settle()
            await stream.read_generation()
        finally:
            watching.cancel()
    progress(account.progress())
    return account.report(seconds)


def _session(plan: LoadPlan) -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=plan.answer_s)
    if plan.router.startswith("unix:"):
        path = plan.router.removeprefix("unix:")
        return aiohttp.ClientSession(
            "http://router", connector=aiohttp.UnixConnector(path, limit=0), timeout=timeout
        )
    return aiohttp.ClientSession(plan.router, connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


class _Stream:
    def __init__(self, plan: LoadPlan, session: aiohttp.ClientSession, account: Account) -> None:
        self._plan = plan
        self._session = session
        self._account = account
        self._slots = asyncio.Semaphore(plan.concurrency)

    async def send_all(self, shots: Iterable[Shot], stop: asyncio.Event) -> None:
        """Start each request when it is due, or when a slot is free, and wait for all of them."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        async with asyncio.TaskGroup() as group:
            for shot in shots:
                wait_s = began_s + shot.due_s - loop.time()
                if wait_s > 0:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), wait_s)
                await self._slots.acquire()
                if stop.is_set():
                    break
                self._account.open(shot.task_id, late_s=max(0.0, loop.time() - began_s - shot.due_s))
                group.create_task(self._send(shot))

    async def _send(self, shot: Shot) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        body = json.dumps(_request(self._plan, shot)).encode()
        back_off_s = _FIRST_BACK_OFF_S
        refused = False
        try:
            for attempt in range(MAX_RETRIES + 1):
                if attempt:
                    self._account.retried(shot.task_id, refused=refused)
                    await asyncio.sleep(back_off_s)
                    back_off_s = min(2 * back_off_s, _LONGEST_BACK_OFF_S)
                try:
                    async with self._session.post("/v1/coordinate", data=body) as response:
                        answer = await response.read()
                except _CONNECTION_LOST as error:
                    self._account.unanswered(shot.task_id, repr(error))
                    refused = isinstance(error, aiohttp.ClientConnectorError)
                    continue
                if response.status == 202:
                    self._account.unanswered(shot.task_id, "still running")
                else:
                    latency_s = loop.time() - began_s
                    self._account.answered(shot.task_id, response.status, answer, latency_s=latency_s)
                return
        except (aiohttp.ClientError, OSError) as error:  # a timeout is an OSError
            self._account.unanswered(shot.task_id, repr(error))
        finally:
            self._slots.release()

    async def settle(self) -> None:
        """Ask for what has no answer until it has one, and for a second look at what was answered."""
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + self._plan.answer_s
        waiting = self._account.open_ids()
        while waiting:
            await self._ask_all(waiting)
            waiting = self._account.open_ids()
            if loop.time() >= ends_s:
                break
            if waiting:
                await asyncio.sleep(_AGAIN_S)
        await self._ask_all(self._account.answered_ids(_SECOND_LOOKS))

    async def _ask_all(self, task_ids: Iterable[str]) -> None:
        async with asyncio.TaskGroup() as group:
            for task_id in task_ids:
                await self._slots.acquire()
                group.create_task(self._ask(task_id))

    async def _ask(self, task_id: str) -> None:
        try:
            async with self._session.get(f"/v1/coordinate/{task_id}") as response:
                answer = await response.read()
            if response.status == 404:
                self._account.not_known(task_id)
            elif response.status != 202:
                self._account.answered(task_id, response.status, answer, latency_s=None)
        except (aiohttp.ClientError, OSError) as error:
            self._account.unanswered(task_id, repr(error))
        finally:
            self._slots.release()

    async def watch(self, progress: Callable[[str], None]) -> None:
        """Note each generation that the router reports; report about each second."""
        tick = 0
        while True:
            await self.read_generation()
            if tick % 2 == 0:
                progress(self._account.progress())
            tick += 1
            await asyncio.sleep(_STATUS_EVERY_S)

    async def read_generation(self) -> None:
        """Note what the router orders now, if it answers."""
        with contextlib.suppress(aiohttp.ClientError, OSError, KeyError, ValueError):
            async with self._session.get("/status", timeout=aiohttp.ClientTimeout(total=2)) as response:
                self._account.saw_generation(await response.json())


def _request(plan: LoadPlan, shot: Shot) -> dict[str, object]:
    request: dict[str, object] = {"task_id": shot.task_id, "agents": shot.agents}
    if plan.payload:
        request["payload_b64"] = base64.b64encode(plan.payload.encode()).decode()
    if plan.swarm_id:
        request["swarm_id"] = plan.swarm_id
    if plan.deadline_ms is not None:
        request["deadline_ms"] = plan.deadline_ms
    return request
