"""The stream against a router that loses connections, answers late, or answers twice."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from cfn.load import stream
from cfn.load.account import LoadReport
from cfn.load.plan import LoadPlan
from cfn.load.stream import MAX_RETRIES, run, run_async

Answer = Callable[[web.Request, str], Awaitable[web.StreamResponse]]


def done(task_id: str, **values: object) -> web.Response:
    answer = {"outcome": "done", "ordered": "v2", "served": "v2", "generation": 1, "fallback": None}
    return web.json_response(answer | {"task_id": task_id, "reason": "split"} | values)


class FakeRouter:
    """Answers as told; the real one cannot be made to lose or double an answer."""

    def __init__(self, socket: Path) -> None:
        self.address = f"unix:{socket}"
        self.asked: Counter[str] = Counter()
        self.post: Answer = lambda _, task_id: self.answer(task_id)
        self.get: Answer = lambda _, task_id: self.answer(task_id)

    async def answer(self, task_id: str) -> web.Response:
        return done(task_id)

    async def on_post(self, http: web.Request) -> web.StreamResponse:
        task_id = (await http.json())["task_id"]
        self.asked[task_id] += 1
        return await self.post(http, task_id)

    async def on_get(self, http: web.Request) -> web.StreamResponse:
        return await self.get(http, http.match_info["task_id"])

    async def status(self, _: web.Request) -> web.Response:
        return web.json_response({"generation": 1, "version": "v2", "traffic_pct": 100})

    async def load(self, requests: int = 10, **options: object) -> LoadReport:
        base: dict[str, object] = {"rate_per_s": 500, "prefix": "t", "answer_s": 1}
        plan = LoadPlan(router=self.address, requests=requests, **base | options)  # type: ignore[arg-type]
        return await run_async(plan, progress=lambda _: None, stop=asyncio.Event())


@pytest.fixture
async def router() -> AsyncIterator[FakeRouter]:
    with tempfile.TemporaryDirectory(prefix="cfn-") as folder:
        fake = FakeRouter(Path(folder) / "s")
        app = web.Application()
        app.add_routes(
            [
                web.post("/v1/coordinate", fake.on_post),
                web.get("/v1/coordinate/{task_id}", fake.on_get),
                web.get("/status", fake.status),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(Path(folder) / "s")).start()
        yield fake
        await runner.cleanup()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_FIRST_BACK_OFF_S", 0.001)
    monkeypatch.setattr(stream, "_LONGEST_BACK_OFF_S", 0.01)


def drop(http: web.Request) -> web.StreamResponse:
    assert http.transport is not None
    http.transport.abort()
    return web.Response()


async def test_every_request_is_sent_once_and_accounted_for(router: FakeRouter) -> None:
    report = await router.load(50)
    assert report.ok
    assert set(router.asked.values()) == {1}
    assert (report.sent, report.expected_share_pct, report.observed_share_pct) == (50, 100.0, 100.0)
    assert report.latency_ms["v2"]["count"] == 50


async def test_a_lost_connection_is_retried_with_the_same_id(router: FakeRouter) -> None:
    async def lose_the_first(http: web.Request, task_id: str) -> web.StreamResponse:
        return drop(http) if router.asked[task_id] == 1 else done(task_id)

    router.post = lose_the_first
    report = await router.load(10)
    assert report.ok
    assert report.retries == 10


async def test_retries_are_bounded_and_the_answer_is_asked_for(router: FakeRouter) -> None:
    async def lose(http: web.Request, _: str) -> web.StreamResponse:
        return drop(http)

    router.post = lose
    report = await router.load(1)
    assert router.asked == {"t-1-1": MAX_RETRIES + 1}
    assert (report.ok, report.answered_by_asking) == (True, 1)


async def test_who_is_never_answered_is_never(router: FakeRouter) -> None:
    async def hang(_: web.Request, task_id: str) -> web.StreamResponse:
        await asyncio.sleep(5)
        return done(task_id)

    async def unknown(_: web.Request, __: str) -> web.StreamResponse:
        return web.json_response({"error": "not known"}, status=404)

    router.post, router.get = hang, unknown
    began = time.monotonic()
    report = await router.load(3, answer_s=0.3)
    assert (report.never, report.answered_once, report.ok) == (3, 0, False)
    assert time.monotonic() - began < 5  # the answer it would have waited for


async def test_an_answer_that_changes_counts_as_two(router: FakeRouter) -> None:
    async def differs(_: web.Request, task_id: str) -> web.StreamResponse:
        return done(task_id, served="both" if task_id == "t-1-4" else "v2")

    router.get = differs
    report = await router.load(5)
    assert (report.answered_once, report.answered_twice, report.ok) == (4, 1, False)


async def test_still_running_is_asked_for_until_it_has_ended(router: FakeRouter) -> None:
    asked: Counter[str] = Counter()

    async def running(_: web.Request, __: str) -> web.StreamResponse:
        return web.json_response({"state": "running"}, status=202)

    async def third_time(_: web.Request, task_id: str) -> web.StreamResponse:
        asked[task_id] += 1
        return done(task_id) if asked[task_id] >= 3 else await running(_, task_id)

    router.post, router.get = running, third_time
    report = await router.load(4)
    assert (report.ok, report.answered_by_asking) == (True, 4)


async def test_a_slow_router_makes_starts_late_and_never_more_at_once(router: FakeRouter) -> None:
    now = most = 0

    async def slow(_: web.Request, task_id: str) -> web.StreamResponse:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.05)
        now -= 1
        return done(task_id)

    router.post = slow
    report = await router.load(20, concurrency=4)
    assert report.ok
    assert most == 4
    assert report.late_starts > 5
    assert report.latest_start_ms > 100


def test_nobody_there_is_never_and_bounded() -> None:
    plan = LoadPlan(router="unix:/nowhere.sock", rate_per_s=100, requests=2, prefix="t", answer_s=0.2)
    began = time.monotonic()
    report = run(plan)
    assert (report.never, report.sent, report.ok) == (2, 2, False)
    assert report.retries == 2 * MAX_RETRIES
    assert time.monotonic() - began < 30  # a hang


async def test_sigterm_ends_the_sending_and_settles_what_was_sent(router: FakeRouter) -> None:
    arguments = ["load", "--rate", "50", "--seconds", "60", "--sizes", "1:1", "--json"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cfn", *arguments, "--router", router.address,
        stdout=subprocess.PIPE, env=dict(os.environ),
    )  # fmt: skip
    while len(router.asked) < 5:
        await asyncio.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = await asyncio.wait_for(process.communicate(), 10)
    report = json.loads(output)
    assert process.returncode == 0
    assert report["ok"]
    assert 5 <= report["sent"] == report["answered_once"] < report["planned"] == 3_000


async def test_command_line_exit_code_and_text(router: FakeRouter) -> None:
    async def partial(_: web.Request, task_id: str) -> web.StreamResponse:
        return done(task_id, outcome="partial")

    router.post = router.get = partial
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cfn", "load", "--rate", "100", "--requests", "3", "--router", router.address,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    output, _ = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 1
    assert b"3 answered once, 0 twice, 0 never; 0 failed, 3 partial" in output
