"""Restarts and deaths under load, with real processes: of the router, and of the real conductor."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cfn.config import Config
from cfn.load.account import LoadReport
from cfn.load.plan import LoadPlan
from cfn.load.stream import run_async
from cfn.paths import Paths
from cfn.router.client import RouterClient

from .conftest import FakeConductor, configure

pytestmark = pytest.mark.processes

Process = subprocess.Popen[bytes]
Spawn = Callable[[str], Process]
Runs = Callable[[], list[str]]


@pytest.fixture
def spawn(tree: Paths) -> Iterator[Spawn]:
    """Starts `cfn WORD` in the tree. Routers get sockets that outlive them, as systemd holds them.
    What still runs at the end is killed."""
    with contextlib.ExitStack() as stack:
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(str(tree.router_socket))
        unix.listen(1024)
        loopback = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        passed = (unix.fileno(), loopback.fileno())
        as_systemd = f'exec 3<&{passed[0]} 4<&{passed[1]}; LISTEN_PID=$$ LISTEN_FDS=2 exec "$@"'

        def start(word: str) -> Process:
            command = [sys.executable, "-m", "cfn", word]
            if word == "router":
                command = ["bash", "-c", as_systemd, "bash", *command]
            process = subprocess.Popen(
                command,
                env={**os.environ, "CFN_ROOT": str(tree.root)},
                stdout=stack.enter_context((tree.root / f"{word}.log").open("ab")),
                stderr=subprocess.STDOUT,
                pass_fds=passed,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        yield start


@pytest.fixture
def engine(tree: Paths, spawn: Spawn) -> Callable[[], Process]:
    """Starts the real conductor and, once, the real spawner."""
    tree.shm.mkdir(parents=True)
    spawn("spawner")

    def start() -> Process:
        return spawn("conductor")

    return start


async def answering(tree: Paths) -> None:
    """Wait until the router serves, and the conductor, if it was started, too."""
    client = RouterClient(f"unix:{tree.router_socket}", timeout_s=10)
    ends_s = time.monotonic() + 10
    while not (await asyncio.to_thread(client.get, "/readyz"))[1].get("v2") and tree.shm.exists():
        assert time.monotonic() < ends_s, (tree.root / "conductor.log").read_text()
        await asyncio.sleep(0.05)


async def under_load(tree: Paths, fault: Callable[[], object], **options: object) -> LoadReport:
    """Run a load, and the fault in the middle of it."""
    settings: dict[str, object] = {"rate_per_s": 120, "requests": 120, "prefix": "crash", "answer_s": 20}
    plan = LoadPlan(router=f"unix:{tree.router_socket}", **settings | options)  # type: ignore[arg-type]
    running = asyncio.create_task(run_async(plan, progress=lambda _: None, stop=asyncio.Event()))
    await asyncio.sleep(0.8 * plan.requests / plan.rate_per_s / 2)
    await asyncio.to_thread(fault)
    return await running


def run_more_than_once(runs: Runs) -> list[str]:
    return [run for run, count in Counter(runs()).items() if count > 1]


def events(tree: Paths) -> list[dict]:  # type: ignore[type-arg]
    found = map(json.loads, tree.events.read_text().splitlines())
    return [event for event in found if event["type"] == "coordination"]


async def test_a_restart_under_load_refuses_nobody(
    tree: Paths, spawn: Spawn, agents_that_write: Runs
) -> None:
    configure(tree, COORDINATION_VERSION="v1", AGENT_COMMAND=tree.root / "agent")
    old = spawn("router")
    await answering(tree)

    def restart() -> None:
        old.terminate()
        assert old.wait(10) == 0
        spawn("router")

    report = await under_load(tree, restart)
    assert report.ok, report.failures
    assert (report.answered_once, report.answered_twice, report.never) == (120, 0, 0)
    assert len(agents_that_write()) == 120
    assert run_more_than_once(agents_that_write) == []
    assert len(events(tree)) == 120


async def test_a_stopping_router_finishes_also_what_nobody_waits_for(tree: Paths, spawn: Spawn) -> None:
    may_end, agent = tree.root / "may-end", tree.root / "waiting-agent"
    agent.write_text(f"#!/bin/sh\nwhile [ ! -e {may_end} ]; do sleep 0.01; done\n")
    agent.chmod(0o755)
    configure(tree, COORDINATION_VERSION="v1", AGENT_COMMAND=agent)
    router = spawn("router")
    await answering(tree)
    client = RouterClient(f"unix:{tree.router_socket}", timeout_s=10)
    status, _ = await asyncio.to_thread(client.coordinate, {"task_id": "t", "agents": 1}, answer_s=0.5)
    assert status == 202
    router.terminate()
    may_end.touch()
    assert await asyncio.to_thread(router.wait, 10) == 0
    assert [event["outcome"] for event in events(tree)] == ["done"]


async def test_a_killed_router_answers_when_it_is_back_and_runs_nothing_twice(
    tree: Paths, spawn: Spawn, agents_that_write: Runs
) -> None:
    slow = tree.root / "slow-agent"
    slow.write_text(f"#!/bin/sh\n{tree.root}/agent\nsleep 0.1\n")
    slow.chmod(0o755)
    configure(tree, COORDINATION_VERSION="v1", AGENT_COMMAND=slow)
    old = spawn("router")
    await answering(tree)

    def kill() -> None:
        old.kill()
        old.wait()
        spawn("router")

    report = await under_load(tree, kill)
    assert (report.answered_once, report.answered_twice, report.never) == (120, 0, 0), report.failures
    assert run_more_than_once(agents_that_write) == []
    # What V1 was running when the router died is unknown, and said to be.
    assert 1 <= report.failed <= Config().v1_concurrency
    assert all("the router was restarted" in reason for reason in report.failures)
    assert sorted(event["task_id"] for event in events(tree)) == sorted({e["task_id"] for e in events(tree)})
    assert len(events(tree)) == 120


async def test_a_killed_router_takes_up_what_v2_was_running(
    tree: Paths, spawn: Spawn, conductor: FakeConductor
) -> None:
    """A fake conductor: the real one cannot be made to take exactly this long."""
    conductor.end_s = 1.0
    old = spawn("router")
    await answering(tree)
    client = RouterClient(f"unix:{tree.router_socket}", timeout_s=10)
    asked = asyncio.create_task(
        asyncio.to_thread(client.coordinate, {"task_id": "t", "agents": 3}, answer_s=10)
    )
    while not conductor.runs:
        await asyncio.sleep(0.01)
    old.kill()
    spawn("router")
    # The client asks for the same id again, which joins the run and does not start another.
    status, answer = await asked
    assert (status, answer["outcome"], answer["served"]) == (200, "done", "v2")
    assert len(conductor.runs) == 3
    assert len(events(tree)) == 1


async def test_an_id_of_which_nothing_was_started_may_be_used_after_a_crash(
    tree: Paths, spawn: Spawn, conductor: FakeConductor
) -> None:
    tree.state.joinpath("router").mkdir(parents=True)
    facts = {
        "task_id": "t", "agents": 3, "bucket": 1, "generation": 1, "version": "v2", "traffic_pct": 100,
        "ordered": "v2", "reason": "split", "arrived_unix_s": 0.0, "v1_agents": None,
    }  # fmt: skip
    journal = tree.state / "router/answers.journal"
    journal.write_text(f"t begun {json.dumps(facts)}\n")
    spawn("router")
    client = RouterClient(f"unix:{tree.router_socket}", timeout_s=10)
    _, answer = await asyncio.to_thread(client.coordinate, {"task_id": "t", "agents": 3}, answer_s=10)
    assert (answer["outcome"], answer["served"]) == ("done", "v2")
    assert len(conductor.runs) == 3


async def test_the_real_engine_end_to_end(
    tree: Paths, spawn: Spawn, engine: Callable[[], Process], agents_that_write: Runs
) -> None:
    configure(tree, TRAFFIC_PERCENTAGE=50, AGENT_COMMAND=tree.root / "agent", MAX_AGENTS=10)
    engine()
    spawn("router")
    await answering(tree)
    report = await under_load(tree, lambda: None, rate_per_s=50, requests=50, sizes=((1, 6), (4, 3), (11, 1)))
    assert report.ok, report.failures
    assert report.by_served == report.by_ordered
    assert (report.fallbacks, report.expected_share_pct) == (0, 50.0)
    assert report.over_capacity > 0
    assert run_more_than_once(agents_that_write) == []
    assert len(agents_that_write()) == sum(event["agents"] for event in events(tree))


async def test_a_killed_conductor_loses_nothing_and_runs_nothing_twice(
    tree: Paths, spawn: Spawn, engine: Callable[[], Process], agents_that_write: Runs
) -> None:
    first = engine()
    spawn("router")
    await answering(tree)

    def kill() -> None:
        first.kill()
        first.wait()
        engine()

    report = await under_load(tree, kill, rate_per_s=50, requests=50, sizes=((3, 1),))
    assert report.ok, (report.failures, Path(tree.root, "conductor.log").read_text()[-2000:])
    assert (report.answered_once, report.answered_twice, report.never) == (50, 0, 0)
    assert run_more_than_once(agents_that_write) == []
    assert len(agents_that_write()) == 150
