"""`cfn fallback` on a router and V1 of its own: proof, refusal, and what a dead V2 or router changes."""

import asyncio
import json
from typing import Any

import pytest

from cfn.cli import main
from cfn.config import parse
from cfn.paths import Paths

from .conftest import StartRouter, configure, v1_script

pytestmark = pytest.mark.processes
with_v2 = pytest.mark.usefixtures("conductor")


@pytest.fixture(autouse=True)
def _in_the_tree(tree: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFN_ROOT", str(tree.root))


async def fallback(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any], str]:
    argv = ["fallback", "--json", "--agents", "2", "--within-ms", "3000", *options]
    code = await asyncio.to_thread(main, argv)
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if line.startswith("{") and '"event"' not in line]
    return code, json.loads(lines[-1]) if lines else {}, said.err


@with_v2
async def test_v1_is_tried_flipped_to_and_proved(
    start_router: StartRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    caller = await start_router()
    code, answer, _ = await fallback(capsys, "--check", "--epoch", "50")
    assert (code, answer["v1"]["works"], answer["engine"]) == (0, True, "running")
    assert (await caller.get("/status"))[1]["version"] == "v2"
    code, answer, _ = await fallback(capsys, "--epoch", "50")
    assert (code, answer["proved"], answer["confirmed"], answer["epoch"]) == (0, True, True, 50)
    status = (await caller.get("/status"))[1]
    assert (status["version"], status["epoch"]) == ("v1", 50)
    assert caller.events()[-1]["served"] == "v1"


@with_v2
async def test_a_later_epoch_of_the_hosts_own_is_no_refusal(
    start_router: StartRouter, tree: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(tree, EPOCH=90)
    await start_router()
    code, answer, _ = await fallback(capsys, "--epoch", "50")
    assert (code, answer["epoch"]) == (0, 92)
    # What was under way when it was overtaken comes too late.
    assert await asyncio.to_thread(main, ["traffic", "--version", "v2", "--epoch", "91"]) == 5


@with_v2
@pytest.mark.parametrize(
    ("script", "words"),
    [("exit 1", "completion 0.0 %"), ("sleep 60", "it did not end in"), (None, "does not exist")],
)
async def test_a_v1_that_does_not_work_takes_nothing_from_a_v2_that_does(
    start_router: StartRouter,
    tree: Paths,
    capsys: pytest.CaptureFixture[str],
    script: str | None,
    words: str,
) -> None:
    command = v1_script(tree, script) if script else tree.root / "gone"
    configure(tree, V1_COMMAND=command)
    caller = await start_router()
    code, answer, _ = await fallback(capsys, "--within-ms", "500")
    assert (code, answer["v1"]["decommissioned"]) == (5, script is None)
    assert words in answer["refused"]
    assert "restore_v1.yml" in answer["refused"]
    assert (await caller.get("/status"))[1]["version"] == "v2"
    if script == "exit 1":
        code, answer, _ = await fallback(capsys, "--force")
        assert (code, answer["refused"], answer["proved"]) == (1, "", False)
        assert (await caller.get("/status"))[1]["version"] == "v1"


async def test_where_v2_is_dead_too_it_goes_all_the_same(
    start_router: StartRouter, tree: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(tree, V1_COMMAND=v1_script(tree, "exit 1"))
    caller = await start_router()
    code, answer, _ = await fallback(capsys)
    assert (code, answer["proved"]) == (1, False)
    assert "completion 0.0 %" in answer["problem"]
    assert (await caller.get("/status"))[1]["version"] == "v1"


async def test_a_decommissioned_v1_is_named_whoever_forces_it(
    tree: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(tree, V1_ENABLED="false")
    for options in ([], ["--force"]):
        code, answer, _ = await fallback(capsys, *options)
        assert code == 5
        assert "decommissioned" in answer["refused"]
        assert "restore_v1.yml" in answer["refused"]


async def test_a_router_that_is_down_holds_v1_from_its_start(
    tree: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    code, answer, _ = await fallback(capsys, "--epoch", "50")
    assert (code, answer["proved"], answer["confirmed"]) == (1, False, False)
    assert "holds from the router's start" in answer["problem"]
    config = parse(tree.config.read_text(), source="test").config
    assert (config.coordination_version, config.epoch) == ("v1", 50)
