"""The breaker and the engine's silence in a running router: who serves the next request, and who may
change that."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cfn.commands.metrics import collect
from cfn.errors import CfnError, NotRunningError, RefusedError
from cfn.paths import Paths
from cfn.router.client import RouterClient
from cfn.router.daemon import NOTES
from cfn.router.flip import Order, flip

from .conftest import Caller, FakeConductor, StartRouter, configure

QUICK = {"BREAKER_WINDOW": 4, "BREAKER_FAILURES": 2, "BREAKER_MINIMUM": 2}


def notes(tree: Paths, kind: str) -> list[dict[str, Any]]:
    path = tree.log / NOTES
    lines = path.read_text().splitlines() if path.exists() else []
    return [note for note in map(json.loads, lines) if note["type"] == kind]


async def in_thread(function: Any, *arguments: Any, **options: Any) -> Any:
    return await asyncio.to_thread(function, *arguments, **options)


async def opened(start_router: StartRouter, tree: Paths, conductor: FakeConductor, **keys: object) -> Caller:
    """A router whose breaker two undelivered tasks have opened."""
    configure(tree, **QUICK | keys)
    conductor.claims = lambda _: 0
    caller = await start_router()
    for number in (1, 2):
        _, answer = await caller.post(task_id=f"bad-{number}", agents=2)
        assert answer["fallback"] == "delivery"
    conductor.claims = lambda agents: agents
    conductor.questions.clear()
    return caller


async def test_open_breaker_to_full_v1_service_is_the_next_request(
    start_router: StartRouter, tree: Paths, conductor: FakeConductor
) -> None:
    caller = await opened(start_router, tree, conductor)
    status, answer = await caller.post(task_id="next", agents=2)
    assert (status, answer["outcome"], answer["ordered"], answer["served"]) == (200, "done", "v2", "v1")
    assert conductor.questions == []
    event = caller.events()[-1]
    # V2 was ordered and did not serve: its loss, whoever decided.
    assert (event["fallback"], event["held_by_breaker"], event["delivery_rate_pct"]) == ("error", True, 0)
    # The gate reads every line, and finds it where the split orders it.
    evidence = collect(tree, 0, 10**13, 10**12, now_ms=10**13)
    assert (evidence.arms.checked, evidence.arms.mismatches, evidence.events.lost) == (3, 0, 0)
    [move] = notes(tree, "breaker")
    assert (move["before"], move["state"], move["by"]) == ("closed", "open", "router")
    assert move["reason"] == "2 of V2's last 2 requests were bad: 2 delivery"
    _, shown = await caller.get("/status")
    assert (shown["breaker"]["state"], shown["breaker"]["since"]) == ("open", move["time"])
    async with caller.session.get("/metrics") as response:
        families = {f.name: f for f in text_string_to_metric_families(await response.text())}
    states = {s.labels["state"]: s.value for s in families["cfn_router_breaker_state"].samples}
    assert states == {"closed": 0, "open": 1, "half_open": 0}


async def test_it_stays_open_over_a_restart_until_somebody_closes_it(
    start_router: StartRouter, tree: Paths, conductor: FakeConductor
) -> None:
    first = await opened(start_router, tree, conductor)
    first.router.stop.set()
    while tree.router_socket.exists():
        await asyncio.sleep(0.01)
    caller = await start_router()
    assert (await caller.post(task_id="held", agents=1))[1]["served"] == "v1"
    client = RouterClient(f"unix:{tree.router_socket}")
    moved = await in_thread(client.move_breaker, "closed", reason="mended", by="ann")
    assert (moved["changed"], moved["breaker"]["by"]) == (True, "ann")
    assert not (await in_thread(client.move_breaker, "closed", reason="again", by="ann"))["changed"]
    assert (await caller.post(task_id="free", agents=1))[1]["served"] == "v2"


async def test_who_may_move_it_and_with_what(start_router: StartRouter) -> None:
    caller = await start_router()
    port = caller.router.service.generation.config.router_port
    order = {"state": "open", "reason": "r", "by": "b"}
    for bad in ({"state": "ajar"}, {"reason": ""}, {"by": 3}, {"more": 1}):
        async with caller.session.post("/v1/breaker", json=order | bad) as response:
            assert response.status == 400, bad
    assert caller.router.service.breaker.as_json()["state"] == "closed"
    client = RouterClient(f"http://127.0.0.1:{port}")
    with pytest.raises(CfnError, match="only root and the router's user"):
        await in_thread(client.move_breaker, "open", reason="r", by="b")


@pytest.mark.parametrize(
    ("order", "refused"),
    [
        (Order(percent="60"), True),
        (Order(version="v2", percent="51", epoch=9), True),
        (Order(version="v2", percent="50"), False),
        (Order(percent="10"), False),
        (Order(version="v1"), False),
        (Order(percent="60", breaker="closed", reason="mended", by="ann"), False),
    ],
)
async def test_more_traffic_for_v2_is_refused_while_it_is_open(
    start_router: StartRouter, tree: Paths, order: Order, refused: bool
) -> None:
    configure(tree, TRAFFIC_PERCENTAGE=50)
    await start_router()
    client = RouterClient(f"unix:{tree.router_socket}")
    await in_thread(client.move_breaker, "open", reason="drill", by="ann")
    before = tree.config.read_text()
    if refused:
        with pytest.raises(RefusedError, match=r"open since .*\(drill\).*cfn traffic --breaker closed"):
            await in_thread(flip, tree.config, order, client, check=False, wait_s=5)
        assert tree.config.read_text() == before
        return
    predicted = await in_thread(flip, tree.config, order, client, check=True, wait_s=5)
    assert tree.config.read_text() == before
    done = await in_thread(flip, tree.config, order, client, check=False, wait_s=5)
    assert predicted["changed"] == done["changed"]
    assert done["before"]["breaker"] == "open"
    assert done["after"]["breaker"] == ("closed" if order.breaker or order.version == "v1" else "open")


@pytest.mark.parametrize("fault", ["silent", "absent", "no_spawner"])
async def test_a_dead_engine_is_detected_and_not_waited_for(
    start_router: StartRouter,
    tree: Paths,
    conductor: FakeConductor,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    monkeypatch.setattr("cfn.router.engine_watch.LIMIT_S", 0.1)
    monkeypatch.setattr("cfn.router.engine_watch.EVERY_S", 0.02)
    configure(tree, BREAKER_ENGINE_TIME=400)
    caller = await start_router()
    if fault == "absent":
        await conductor.stop()
    elif fault == "silent":
        conductor.silent = True
    else:
        conductor.spawner = "down"
    async with asyncio.timeout(5):
        while not caller.router.service.engine.hangs:
            await asyncio.sleep(0.01)
        _, answer = await caller.post(task_id="hangs", agents=1)
        assert (answer["served"], answer["fallback"]) == ("v1", "error")
        assert "V2 hangs" in answer["detail"]
        while (await caller.get("/status"))[1]["breaker"]["state"] == "closed":
            await asyncio.sleep(0.01)
    [move] = notes(tree, "breaker")
    assert move["reason"].startswith("the engine has not answered for 0.")
    assert [question["verb"] for question in conductor.questions] == []


async def test_an_engine_that_comes_back_in_time_moves_nothing(
    start_router: StartRouter, tree: Paths, conductor: FakeConductor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfn.router.engine_watch.EVERY_S", 0.02)
    caller = await start_router()
    await conductor.stop()
    await asyncio.sleep(0.3)
    assert caller.router.service.engine.silent_s > 0
    # Requests in between go to V1, and say nothing of V2's own work.
    for number in range(20):
        assert (await caller.post(task_id=f"t-{number}", agents=1))[1]["served"] == "v1"
    await conductor.start()
    await asyncio.sleep(0.3)
    assert caller.router.service.engine.silent_s == 0
    assert (await caller.post(task_id="back", agents=1))[1]["served"] == "v2"
    assert notes(tree, "breaker") == []


async def test_v1_ordered_needs_no_engine(
    start_router: StartRouter, tree: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfn.router.engine_watch.EVERY_S", 0.02)
    configure(tree, COORDINATION_VERSION="v1", BREAKER_ENGINE_TIME=1)
    caller = await start_router()
    await asyncio.sleep(0.3)
    _, status = await caller.get("/status")
    assert (status["engine"]["silent_s"], status["breaker"]["state"]) == (0, "closed")


async def test_a_probe_goes_to_v2_and_closes_nothing(
    start_router: StartRouter, tree: Paths, conductor: FakeConductor
) -> None:
    caller = await opened(start_router, tree, conductor, BREAKER_PROBE_TIME=3_600_000)
    assert (await caller.post(task_id="early", agents=1))[1]["served"] == "v1"
    keeper = caller.router.service.breaker
    keeper.breaker = replace(keeper.breaker, next_probe_s=0.0)  # an hour has passed
    served = [(await caller.post(task_id=f"t-{n}", agents=1))[1]["served"] for n in range(4)]
    assert served == ["v2", "v1", "v1", "v1"]
    _, status = await caller.get("/status")
    assert (status["breaker"]["state"], status["breaker"]["probes"]) == ("half_open", {"good": 1, "bad": 0})


async def test_a_restart_in_which_v2_refuses_opens_nothing(
    start_router: StartRouter, tree: Paths, conductor: FakeConductor
) -> None:
    configure(tree, **QUICK)
    conductor.refuse = "the conductor is stopping"
    caller = await start_router()
    for number in range(6):
        assert (await caller.post(task_id=f"t-{number}", agents=1))[1]["served"] == "v1"
    assert caller.router.service.breaker.as_json()["state"] == "closed"
    conductor.refuse_code = 1  # not a matter of now
    for number in range(6, 8):
        assert (await caller.post(task_id=f"t-{number}", agents=1))[1]["served"] == "v1"
    assert caller.router.service.breaker.as_json()["reason"] == (
        "2 of V2's last 2 requests were bad: 2 refused"
    )


async def test_v2_slower_than_the_threshold_by_1_ms_counts_and_reruns_nothing(
    start_router: StartRouter, conductor: FakeConductor
) -> None:
    caller = await start_router()
    for time_ms, bad in ((30_000, 0), (30_001, 1)):
        conductor.time_ms = time_ms
        _, answer = await caller.post(task_id=f"t-{time_ms}", agents=2)
        assert (answer["served"], answer["fallback"], answer["outcome"]) == ("v2", None, "done")
        assert caller.router.service.breaker.as_json()["bad"] == bad
    assert len(conductor.runs) == 4


def test_closing_needs_a_router_and_a_reason(tree: Paths, tmp_path: Path) -> None:
    client = RouterClient(f"unix:{tmp_path}/nobody")
    with pytest.raises(NotRunningError):
        flip(tree.config, Order(breaker="closed", reason="r", by="b"), client, check=False, wait_s=0)
