"""A tree of its own for each test, a router in it, and a conductor that misbehaves on demand."""

import asyncio
import contextlib
import json
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cfn.coordination import AgentResult, AgentState, Coordination
from cfn.ids import agent_ids
from cfn.paths import Paths
from cfn.router.daemon import Router

V1_COMMAND = Path(__file__).parents[2] / "v1/coordinate"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def tree() -> Iterator[Paths]:
    """An installation with the built-in V1 and everything on V2. Its path is short: a Unix socket's
    may not be long."""
    root = Path(tempfile.mkdtemp(prefix="cfn-"))
    paths = Paths(root)
    paths.config.parent.mkdir(parents=True)
    paths.v1_command.parent.mkdir(parents=True)
    paths.run.mkdir(parents=True)
    shutil.copy2(V1_COMMAND, paths.v1_command)
    configure(paths)
    yield paths
    shutil.rmtree(root)


def configure(paths: Paths, **values: object) -> None:
    """Write the configuration: all on V2, unless `values` (keys without CFN_) say otherwise."""
    keys = {"COORDINATION_VERSION": "v2", "TRAFFIC_PERCENTAGE": 100, "ROUTER_PORT": free_port()} | values
    fresh = paths.config.with_suffix(".new")
    fresh.write_text("".join(f'CFN_{name}="{value}"\n' for name, value in keys.items()))
    fresh.replace(paths.config)


def v1_script(paths: Paths, text: str) -> Path:
    """A V1 of the test's own."""
    path = paths.root / "own-v1"
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path


@dataclass
class Caller:
    """A running router, as its callers see it."""

    router: Router
    session: aiohttp.ClientSession
    paths: Paths

    async def post(self, **request: object) -> tuple[int, dict[str, Any]]:
        async with self.session.post("/v1/coordinate", json=request) as response:
            return response.status, await response.json()

    async def get(self, path: str) -> tuple[int, dict[str, Any]]:
        async with self.session.get(path) as response:
            return response.status, await response.json()

    def events(self, kind: str = "coordination") -> list[dict[str, Any]]:
        lines = self.paths.events.read_text().splitlines() if self.paths.events.exists() else []
        return [event for event in map(json.loads, lines) if event["type"] == kind]


StartRouter = Callable[[], Awaitable[Caller]]


@pytest.fixture
async def start_router(tree: Paths) -> AsyncIterator[StartRouter]:
    """Starts routers in the test's tree, and ends them."""
    async with contextlib.AsyncExitStack() as stack:

        async def start() -> Caller:
            router = Router(tree)
            running = asyncio.create_task(router.run([]))
            connector = aiohttp.UnixConnector(str(tree.router_socket), limit=0)
            session = await stack.enter_async_context(
                aiohttp.ClientSession("http://router", connector=connector)
            )

            async def end() -> None:
                router.stop.set()
                await running

            stack.push_async_callback(end)
            while not tree.router_socket.exists():
                await asyncio.sleep(0.005)
            return Caller(router, session, tree)

        yield start


@dataclass
class FakeConductor:
    """Speaks the conductor's client protocol and misbehaves as told: what a real one cannot be made
    to do on demand (a lost connection between two lines, a claim that never comes, garbage).

    `claims` says how many of a task's agents are claimed; the others wait until they are revoked,
    or for ever. `end_s` is the time an agent takes. `drop_accepted` connections are cut after
    "accepted". `silent` makes it read and never answer. `refuse` is what it refuses tasks with, under
    `refuse_code`, and `retry_after_s` makes that its load. `extra` is added to each coordination.
    """

    path: Path
    claims: Callable[[int], int] = lambda agents: agents
    end_s: float = 0.0
    drop_accepted: int = 0
    silent: bool = False
    refuse: str = ""
    refuse_code: int = 5
    retry_after_s: float | None = None
    time_ms: float = 1.0
    spawner: str = "up"
    extra: dict[str, Any] = field(default_factory=dict)
    garbage: bool = False
    unclaimed_end: bool = True
    runs: list[tuple[str, str]] = field(default_factory=list)
    questions: list[dict[str, Any]] = field(default_factory=list)
    tasks: dict[str, dict[str, AgentResult]] = field(default_factory=dict)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    server: asyncio.Server | None = None
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def start(self) -> None:
        self.server = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        if self.server:
            self.server.close()
            self.path.unlink(missing_ok=True)
            for writer in self.writers:
                writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                question = json.loads(line)
                if question["verb"] != "health":
                    self.questions.append(question)
                if self.silent:
                    await asyncio.sleep(60)
                elif self.garbage:
                    writer.write(b"\x00nonsense\n")
                else:
                    await self._answer(question, writer)
                await writer.drain()
        self.writers.discard(writer)
        writer.close()

    async def _answer(self, question: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        task_id = question.get("task_id", "")
        if question["verb"] == "health":
            return _say(writer, {"spawner": self.spawner})
        if self.refuse:
            later = {} if self.retry_after_s is None else {"retry_after_s": self.retry_after_s}
            return _say(writer, {"error": self.refuse, "exit_code": self.refuse_code, **later})
        if question["verb"] == "coordinate":
            state = "complete" if task_id in self.tasks and self.view(task_id).complete else "accepted"
            self._start(task_id, question["agents"])
            _say(writer, {"state": state, "task_id": task_id})
            if self.drop_accepted:
                self.drop_accepted -= 1
                return writer.close()
            async with self.changed:
                await self.changed.wait_for(lambda: self.view(task_id).complete)
            return _say(writer, self.view(task_id).as_json() | self.extra)
        if task_id not in self.tasks:
            return _say(writer, {"error": "no such task", "exit_code": 1, "absent": True})
        if question["verb"] == "revoke":
            await self._end(task_id, AgentState.WAITING, AgentState.UNDELIVERED)
        return _say(writer, self.view(task_id).as_json())

    def view(self, task_id: str) -> Coordination:
        results = tuple(self.tasks[task_id].values())
        return Coordination(
            task_id=task_id, coordination_time_ms=self.time_ms, total_time_ms=2.0, results=results
        )

    def _start(self, task_id: str, agents: int) -> None:
        if task_id in self.tasks:
            return
        claimed = self.claims(agents)
        self.tasks[task_id] = {
            agent: AgentResult(
                agent=agent, state=AgentState.RUNNING if number < claimed else AgentState.WAITING
            )
            for number, agent in enumerate(agent_ids(agents))
        }
        self.runs += [(task_id, agent) for agent in agent_ids(agents)[:claimed]]
        asyncio.get_running_loop().call_later(self.end_s, self._finish, task_id)

    def _finish(self, task_id: str) -> None:
        self.pending = asyncio.gather(
            self._end(task_id, AgentState.RUNNING, AgentState.DONE),
            *([self._end(task_id, AgentState.WAITING, AgentState.UNDELIVERED)] if self.unclaimed_end else []),
        )

    async def _end(self, task_id: str, before: AgentState, after: AgentState) -> None:
        async with self.changed:
            for agent, result in self.tasks[task_id].items():
                if result.state is before:
                    self.tasks[task_id][agent] = AgentResult(agent=agent, state=after)
            self.changed.notify_all()


def _say(writer: asyncio.StreamWriter, value: dict[str, Any]) -> None:
    writer.write(json.dumps(value).encode() + b"\n")


@pytest.fixture
async def conductor(tree: Paths) -> AsyncIterator[FakeConductor]:
    """A conductor at the tree's socket; every agent is done at once unless it is told otherwise."""
    fake = FakeConductor(tree.conductor_socket)
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
def agents_that_write(tree: Paths) -> Callable[[], list[str]]:
    """Makes each agent append its task and name to a file; returns a reader of that file's lines."""
    record = tree.root / "runs"
    command = tree.root / "agent"
    command.write_text(f'#!/bin/sh\necho "$CFN_TASK_ID $CFN_AGENT_ID" >>{record}\n')
    command.chmod(0o755)
    configure(tree, AGENT_COMMAND=command)
    return lambda: record.read_text().splitlines() if record.exists() else []
