"""`cfn coordinate` and `cfn status` as a person or a playbook calls them."""

import asyncio
import json
from typing import Any

import pytest

from cfn.cli import main
from cfn.paths import Paths

from .conftest import FakeConductor, StartRouter, configure


@pytest.fixture(autouse=True)
def _in_the_tree(tree: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFN_ROOT", str(tree.root))


async def cfn(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = await asyncio.to_thread(main, [*arguments, "--json"])
    output = capsys.readouterr().out
    lines = [line for line in output.splitlines() if '"event"' not in line]  # the router logs here too
    return code, json.loads(lines[-1]) if lines else {}


async def test_coordinate_through_the_router(
    start_router: StartRouter, conductor: FakeConductor, capsys: pytest.CaptureFixture[str]
) -> None:
    await start_router()
    code, answer = await cfn(capsys, "coordinate", "--agents", "3", "t-1", "--payload", "x")
    assert (code, answer["outcome"], answer["served"]) == (0, "done", "v2")
    assert conductor.questions[-1]["payload_b64"] == "eA=="


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_coordinate_directly_needs_no_router(
    conductor: FakeConductor, capsys: pytest.CaptureFixture[str], version: str
) -> None:
    code, answer = await cfn(capsys, "coordinate", "--direct", version, "--agents", "3", "t-1")
    assert (code, answer["served"], answer["coordination"]["agents"]) == (0, version, 3)
    assert len(conductor.runs) == (3 if version == "v2" else 0)


async def test_exit_codes_of_coordinate(
    start_router: StartRouter, tree: Paths, conductor: FakeConductor, capsys: pytest.CaptureFixture[str]
) -> None:
    down = ("coordinate", "--when-down", "fail", "--agents", "1", "t-0")
    assert (await cfn(capsys, *down))[0] == 3
    configure(tree, FALLBACK_ENABLED="false")
    await start_router()
    conductor.claims = lambda _: 1
    assert (await cfn(capsys, "coordinate", "--agents", "2", "t-1"))[0] == 4
    configure(tree, COORDINATION_VERSION="v1", AGENT_COMMAND="/bin/false")
    await asyncio.sleep(0.3)
    assert (await cfn(capsys, "coordinate", "--agents", "2", "t-2"))[0] == 1
    for arguments in (["--agents", "0", "t"], ["--agents", "-1", "t"], ["--agents", "2", "../t"]):
        assert (await cfn(capsys, "coordinate", *arguments))[0] == 2


async def test_status_of_a_host_on_which_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code, status = await cfn(capsys, "status")
    assert (code, status["version"], status["traffic_pct"], status["generation"]) == (0, "v2", 100, None)
    assert status["engine"].startswith("not running")
    assert status["router"].startswith("not running")


@pytest.mark.usefixtures("conductor")
async def test_status_for_people_says_that_v1_is_held(
    start_router: StartRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    await start_router()
    assert await asyncio.to_thread(main, ["status"]) == 0
    assert "closed, 0 of V2's last 0 requests bad" in capsys.readouterr().out
    order = ["traffic", "--breaker", "open", "--by", "ann"]
    assert await asyncio.to_thread(main, order) == 2  # without a reason
    assert await asyncio.to_thread(main, [*order, "--reason", "drill"]) == 0
    assert "breaker open" in capsys.readouterr().out
    assert await asyncio.to_thread(main, ["status"]) == 0
    shown = capsys.readouterr().out
    assert "by ann: drill; V1 serves" in shown
    assert await asyncio.to_thread(main, ["traffic", "--percent", "50"]) == 0  # less of V2
    assert await asyncio.to_thread(main, ["traffic", "--percent", "60"]) == 5


@pytest.mark.usefixtures("conductor")
async def test_status_of_a_running_host(
    start_router: StartRouter, tree: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(tree, TRAFFIC_PERCENTAGE="0.5", TOPOLOGY="hybrid", EPOCH=9)
    caller = await start_router()
    await caller.post(task_id="t", agents=1)
    _, status = await cfn(capsys, "status")
    assert (status["engine"], status["router"], status["config_problem"]) == ("running", "running", "")
    assert (status["topology"], status["traffic_pct"], status["epoch"]) == ("hybrid", 0.5, 9)
    assert (status["generation"], status["observed_share_pct"]) == (1, 0.0)
    tree.config.write_text("CFN_EPOCH=x\n")
    await asyncio.sleep(0.3)
    assert "CFN_EPOCH='x'" in (await cfn(capsys, "status"))[1]["config_problem"]
