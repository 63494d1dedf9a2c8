"""A client without a router: V1 directly, once for an id, also over the router's return."""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cfn.cli import main
from cfn.commands.metrics import collect
from cfn.paths import Paths
from cfn.router import direct
from cfn.router.answers import AnswerStore
from cfn.router.client import AnswerLostError, RouterClient
from cfn.router.request import Request

from .conftest import FakeConductor, StartRouter, configure, v1_script

Runs = Callable[[], list[str]]
TASK = {"task_id": "t", "agents": 2}


@pytest.fixture(autouse=True)
def _in_the_tree(tree: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFN_ROOT", str(tree.root))
    (tree.state / "router").mkdir(parents=True)
    tree.log.mkdir(parents=True)


async def coordinate(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any], str]:
    code = await asyncio.to_thread(main, ["coordinate", "--agents", "2", "t", "--json", *options])
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if '"event"' not in line]
    return code, json.loads(lines[-1]) if lines else {}, said.err


async def test_without_a_router_v1_runs_it_once(
    start_router: StartRouter, capsys: pytest.CaptureFixture[str], agents_that_write: Runs
) -> None:
    code, answer, _ = await coordinate(capsys)
    assert (code, answer["outcome"], answer["ordered"], answer["served"]) == (0, "done", "v2", "v1")
    assert answer["fallback"] == "error"
    assert "the router does not answer" in answer["detail"]
    assert await coordinate(capsys) == (0, answer, "")
    caller = await start_router()
    assert await caller.post(**TASK) == (200, answer)
    assert await caller.get("/v1/coordinate/t") == (200, answer)
    assert sorted(agents_that_write()) == ["t agent-1", "t agent-2"]


async def test_what_the_router_knows_is_not_run_beside_it(
    tree: Paths, capsys: pytest.CaptureFixture[str], agents_that_write: Runs
) -> None:
    store = AnswerStore(tree.state / "router/answers.journal")
    store.begin("t", {})
    store.close()
    code, _, said = await coordinate(capsys)
    assert (code, "it knows task t" in said) == (5, True)
    assert agents_that_write() == []


async def test_it_is_under_way_while_it_runs_and_unknown_if_it_was_cut_off(
    start_router: StartRouter, tree: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(tree, AGENT_COMMAND="/bin/sleep 0.5")
    running = asyncio.create_task(coordinate(capsys))
    while direct.kept(direct.folder(tree), "t") is None:
        await asyncio.sleep(0.01)
    caller = await start_router()
    assert (await caller.post(**TASK))[0] == 202
    assert (await running)[1]["outcome"] == "done"
    assert (await caller.post(**TASK))[1]["outcome"] == "done"
    # Killed at that moment, its file would have said:
    config = caller.router.service.generation.config
    os.close(direct._claim(tree, direct._job(config, Request(task_id="u", agents=1), None), "w"))
    _, answer = await caller.post(task_id="u", agents=1)
    assert (answer["outcome"], answer["coordination"]["states"]["unknown"]) == ("failed", 1)


async def test_it_is_recorded_under_the_generation_that_was_in_force(
    start_router: StartRouter, tree: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    first = await start_router()
    first.router.stop.set()
    while tree.router_socket.exists():
        await asyncio.sleep(0.01)
    await coordinate(capsys)
    [event] = first.events()
    assert (event["task_id"], event["ordered"], event["served"]) == ("t", "v2", "v1")
    assert (event["generation"], event["fallback"], event["delivery_rate_pct"]) == (1, "error", 0)
    evidence = collect(tree, 0, 10**13, 10**12, now_ms=10**13)
    assert (evidence.arms.checked, evidence.arms.mismatches, evidence.events.lost) == (1, 0, 0)
    # Under a configuration that the router never ran there is nothing to attribute it to.
    configure(tree, TRAFFIC_PERCENTAGE=30)
    await asyncio.to_thread(main, ["coordinate", "--agents", "1", "other", "--json"])
    assert len(first.events()) == 1


@pytest.mark.parametrize(
    ("options", "keys", "code", "words"),
    [
        (["--when-down", "fail"], {}, 3, "does not answer"),
        (["--router", "unix:/nobody/there"], {}, 3, "does not answer"),  # another host's, perhaps
        ([], {"V1_ENABLED": "false"}, 5, "there is no V1"),
        ([], {"V1_COMMAND": "/does/not/exist"}, 4, ""),
    ],
)
async def test_where_it_does_not_help(
    tree: Paths,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    keys: dict[str, str],
    code: int,
    words: str,
) -> None:
    configure(tree, **keys)
    found, _, said = await coordinate(capsys, *options)
    assert (found, words in said) == (code, True)


async def test_a_client_asks_again_for_an_answer_that_was_lost(
    start_router: StartRouter, tree: Paths, conductor: FakeConductor
) -> None:
    """The first router takes the request and goes away without an answer."""
    taken = asyncio.Event()

    async def cut_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        taken.set()
        writer.close()

    broken = await asyncio.start_unix_server(cut_off, tree.router_socket)
    client = RouterClient(f"unix:{tree.router_socket}")
    news: list[Any] = []
    asked = asyncio.create_task(asyncio.to_thread(client.coordinate, TASK, answer_s=10, progress=news.append))
    await taken.wait()
    broken.close()
    tree.router_socket.unlink(missing_ok=True)
    await start_router()
    status, answer = await asked
    assert (status, answer["outcome"], len(conductor.runs)) == (200, "done", 2)
    assert news[0]["state"] == "the router does not answer"


async def test_an_answer_that_stays_lost_is_no_reason_for_v1(
    tree: Paths, capsys: pytest.CaptureFixture[str], agents_that_write: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise AnswerLostError("cut off")

    monkeypatch.setattr(RouterClient, "coordinate", lost)
    code, _, said = await coordinate(capsys)
    assert (code, "the same command asks for it" in said) == (3, True)
    assert agents_that_write() == []
    assert not direct.folder(tree).exists()


async def test_progress_is_shown_on_a_terminal(
    start_router: StartRouter,
    tree: Paths,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = 'echo agent=agent-1 state=running; echo agent=agent-2 state=done; sleep 0.3; echo agent=agent-1 state=done; echo "delivery_rate=100.0 agents_coordinated=2 coordination_time_ms=1"'  # noqa: E501
    configure(tree, COORDINATION_VERSION="v1", V1_COMMAND=v1_script(tree, script))
    await start_router()
    monkeypatch.setattr("cfn.router.client._NEWS_MS", 100)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, answer, shown = await coordinate(capsys)
    assert (code, answer["outcome"]) == (0, "done")
    assert "t: 0 s, 1 running, 1 done" in shown
    assert shown.endswith("\r\033[K")


async def test_old_answers_are_forgotten(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("{}")
    os.utime(tmp_path / "old", (0, 0))
    (tmp_path / "new").write_text("{}")
    direct.sweep(tmp_path, 60.0, (tmp_path / "new").stat().st_mtime + 1)
    assert [file.name for file in tmp_path.iterdir()] == ["new"]
