"""Reading and flipping the traffic: the file, the epoch, the confirmation, and nobody notices."""

import asyncio
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest

from cfn.coordination import AgentState
from cfn.errors import CfnError, ConfigError, NotRunningError, RefusedError, UsageError
from cfn.load.plan import LoadPlan
from cfn.load.stream import run_async
from cfn.paths import Paths
from cfn.router.client import RouterClient
from cfn.router.flip import Order, apply, flip, plan

from .conftest import FakeConductor, StartRouter, configure

TEXT = '# by hand\nexport CFN_TRAFFIC_PERCENTAGE=10 # ten\nCFN_COORDINATION_VERSION="v2"\nCFN_EPOCH="7"\n'


@pytest.mark.parametrize(
    ("order", "changes"),
    [
        (Order(), {}),
        (Order(version="v2", percent="10"), {}),
        (Order(percent="10.00", epoch=7), {}),
        (Order(percent="10.00", epoch=9), {"epoch": "9"}),
        (Order(version="v1"), {"coordination_version": "v1"}),
        (Order(version="v1", epoch=7), {"coordination_version": "v1"}),
        (Order(percent="0.5", epoch=8), {"traffic_pct": "0.5", "epoch": "8"}),
        (Order(version="v1", percent="0"), {"coordination_version": "v1", "traffic_pct": "0"}),
    ],
)  # fmt: skip
def test_plan(order: Order, changes: dict[str, str]) -> None:
    made = plan(TEXT, order, source="config.sh")
    found = {
        name: str(getattr(made.after, name))
        for name in ("coordination_version", "traffic_pct", "epoch")
        if getattr(made.after, name) != getattr(made.before, name)
    }
    assert found == changes
    assert (made.text is None) == (not changes)
    if made.text is not None:
        assert made.text.startswith("# by hand\n")


@pytest.mark.parametrize("percent", ["175", "-1", "abc", "", "1e1", "10.123", "NaN", "10 "])
def test_bad_percentages_are_refused(percent: str) -> None:
    with pytest.raises(UsageError, match=r"allowed: a number from 0 to 100"):
        plan(TEXT, Order(percent=percent), source="config.sh")


def test_an_older_epoch_is_refused_with_both_named() -> None:
    with pytest.raises(RefusedError, match=r"epoch 6 is refused: .* at epoch 7"):
        plan(TEXT, Order(version="v1", epoch=6), source="config.sh")


def test_a_file_that_is_wrong_elsewhere_is_not_touched(tree: Paths) -> None:
    tree.config.write_text(TEXT + "CFN_MAX_AGENTS=many\n")
    with pytest.raises(ConfigError, match="CFN_MAX_AGENTS"):
        flip(
            tree.config,
            Order(version="v1"),
            RouterClient(f"unix:{tree.router_socket}"),
            check=False,
            wait_s=0,
        )
    assert "many" in tree.config.read_text()


async def do_flip(tree: Paths, order: Order, *, check: bool = False) -> dict:  # type: ignore[type-arg]
    client = RouterClient(f"unix:{tree.router_socket}")
    return await asyncio.to_thread(flip, tree.config, order, client, check=check, wait_s=5)


async def test_flip_confirm_repeat_and_check(start_router: StartRouter, tree: Paths) -> None:
    caller = await start_router()
    tree.config.chmod(0o604)
    os.chown(tree.config, 12, 34)
    done = await do_flip(tree, Order(version="v2", percent="25", epoch=3))
    assert (done["changed"], done["confirmed"]) == (True, True)
    before = {
        "version": "v2",
        "traffic_pct": 100,
        "epoch": 0,
        "v1_enabled": True,
        "generation": 1,
        "breaker": "closed",
    }
    assert done["before"] == before
    assert done["after"] == before | {"traffic_pct": 25, "epoch": 3, "generation": 2}
    assert done["seconds"] < 1
    status = tree.config.stat()
    assert (status.st_mode & 0o777, status.st_uid, status.st_gid) == (0o604, 12, 34)

    repeated = await do_flip(tree, Order(version="v2", percent="25", epoch=3))
    assert (repeated["changed"], repeated["confirmed"]) == (False, True)
    assert tree.config.stat() == status

    predicted = await do_flip(tree, Order(version="v1"), check=True)
    assert (predicted["changed"], predicted["confirmed"], predicted["after"]["version"]) == (
        True,
        False,
        "v1",
    )
    assert tree.config.stat() == status
    assert [event["generation"] for event in caller.events("generation")] == [1, 2]
    assert 'CFN_TRAFFIC_PERCENTAGE="25"' in tree.env.read_text()


def test_without_a_router_the_file_is_changed_and_the_command_says_so(tree: Paths) -> None:
    client = RouterClient(f"unix:{tree.router_socket}")
    assert flip(tree.config, Order(), client, check=False, wait_s=0)["confirmed"] is False
    with pytest.raises(NotRunningError, match=r"systemctl .*now says v1 at 100 %"):
        flip(tree.config, Order(version="v1"), client, check=False, wait_s=0)
    assert 'VERSION="v1"' in tree.config.read_text()


async def test_a_bad_file_leaves_the_last_good_one_in_force(start_router: StartRouter, tree: Paths) -> None:
    caller = await start_router()
    tree.config.write_text("CFN_TRAFFIC_PERCENTAGE=175\n")
    await asyncio.sleep(0.3)
    _, status = await caller.get("/status")
    assert (status["generation"], status["traffic_pct"]) == (1, 100)
    assert "CFN_TRAFFIC_PERCENTAGE='175'" in status["config_problem"]
    configure(tree, TRAFFIC_PERCENTAGE=5)
    await asyncio.sleep(0.3)
    _, status = await caller.get("/status")
    assert (status["generation"], status["traffic_pct"], status["config_problem"]) == (2, 5, "")


async def test_the_shell_way(start_router: StartRouter, tree: Paths) -> None:
    caller = await start_router()
    subprocess.run(["sed", "-i", 's/VERSION="v2"/VERSION="v1"/', str(tree.config)], check=True)
    caller.router.reload.set()
    await asyncio.sleep(0.05)
    _, status = await caller.get("/status")
    assert (status["generation"], status["version"]) == (2, "v1")


async def test_a_task_keeps_the_generation_it_was_routed_under(
    start_router: StartRouter, tree: Paths, conductor: FakeConductor
) -> None:
    caller = await start_router()
    conductor.end_s = 4.0
    asked = asyncio.create_task(caller.post(task_id="t", agents=1))
    await asyncio.sleep(0.1)
    await do_flip(tree, Order(version="v1"))
    _, answer = await asked
    assert (answer["generation"], answer["ordered"], answer["served"]) == (1, "v2", "v2")
    assert caller.events()[0]["generation"] == 1


async def test_v1_ends_when_nothing_under_way_may_call_it_and_comes_back_with_the_traffic(
    start_router: StartRouter, tree: Paths, conductor: FakeConductor
) -> None:
    caller = await start_router()
    conductor.end_s = 4.0
    asked = asyncio.create_task(caller.post(task_id="t", agents=1))
    await asyncio.sleep(0.1)
    client = RouterClient(f"unix:{tree.router_socket}")
    ending = Order(v1_enabled=False, epoch=3)
    with pytest.raises(CfnError, match="1 coordinations from before are still under way"):
        await asyncio.to_thread(flip, tree.config, ending, client, check=False, wait_s=1.5)
    assert not asked.done()
    ended = await do_flip(tree, ending)  # it waits
    assert (ended["changed"], ended["confirmed"], ended["after"]["v1_enabled"]) == (False, True, False)
    _, status = await caller.get("/status")
    assert (status["v1"]["enabled"], status["earlier_in_flight"]) == (False, 0)
    assert {result.state for result in conductor.tasks["t"].values()} == {AgentState.DONE}
    await asked

    with pytest.raises(ConfigError, match="restore V1 first"):
        await do_flip(tree, Order(version="v1", epoch=4))
    with pytest.raises(RefusedError, match="epoch 2 is refused"):
        await do_flip(tree, Order(v1_enabled=True, epoch=2))

    back = await do_flip(tree, Order(v1_enabled=True, version="v1", epoch=4))
    assert (back["after"]["version"], back["after"]["v1_enabled"]) == ("v1", True)


@pytest.mark.usefixtures("conductor")
async def test_v1_does_not_end_below_all_of_the_traffic(start_router: StartRouter, tree: Paths) -> None:
    await start_router()
    await do_flip(tree, Order(percent="75", epoch=1))
    text = tree.config.read_text()
    with pytest.raises(ConfigError, match="CFN_TRAFFIC_PERCENTAGE=100 is allowed"):
        await do_flip(tree, Order(v1_enabled=False, epoch=2))
    assert tree.config.read_text() == text


@pytest.mark.usefixtures("conductor")
async def test_flips_under_load_lose_nothing(start_router: StartRouter, tree: Paths) -> None:
    caller = await start_router()
    load = LoadPlan(
        router=f"unix:{tree.router_socket}", rate_per_s=200, requests=200, prefix="flip", concurrency=500
    )
    running = asyncio.create_task(run_async(load, progress=lambda _: None, stop=asyncio.Event()))
    flips = 0
    while not running.done():
        flips += 1
        order = Order(version=("v1", "v2")[flips % 2], percent=str(flips % 90 + 5), epoch=flips)
        assert (await do_flip(tree, order))["confirmed"]
    report = await running
    assert report.ok, report.failures
    assert report.answered_once == 200
    assert flips >= 5
    events = caller.events()
    assert len({event["task_id"] for event in events}) == len(events) == 200
    generations = {event["generation"]: event for event in caller.events("generation")}
    for event in events:
        ordered_by = generations[event["generation"]]
        on_v2 = ordered_by["version"] == "v2" and event["bucket"] < ordered_by["traffic_pct"] * 100
        assert event["ordered"] == ("v2" if on_v2 else "v1")


def test_two_writers_lose_no_flip(tree: Paths) -> None:
    """One orders versions, the other percentages: neither may write back what it read too early."""

    def versions() -> None:
        for n in range(41):
            apply(tree.config, Order(version=("v1", "v2")[n % 2]), check=False)

    def percentages() -> None:
        for n in range(41):
            before = apply(tree.config, Order(percent=str(n)), check=False).before
            assert before.traffic_pct == (n - 1 if n else 100)

    with ThreadPoolExecutor() as threads:
        for writing in [threads.submit(versions), threads.submit(percentages)]:
            writing.result()
    after = apply(tree.config, Order(), check=True).after
    assert (after.coordination_version, after.traffic_pct) == ("v1", Decimal(40))


@pytest.mark.parametrize("arguments", [["--percent", "175"], ["--version", "v3"], ["--epoch", "x"]])
def test_command_line_refuses_with_exit_code_2(tree: Paths, arguments: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "cfn", "traffic", *arguments],
        env={**os.environ, "CFN_ROOT": str(tree.root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert arguments[1] in ended.stderr


def test_a_router_that_is_not_there_is_not_waited_for(tree: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfn.router.flip._RESTART_S", 0.1)
    began = time.monotonic()
    client = RouterClient("unix:" + str(Path(tree.root, "nobody.sock")))
    with pytest.raises(NotRunningError):
        flip(tree.config, Order(percent="0.50"), client, check=False, wait_s=60)
    assert 'CFN_TRAFFIC_PERCENTAGE="0.5"' in tree.config.read_text()
    assert time.monotonic() - began < 60  # what it waits for one that is there
