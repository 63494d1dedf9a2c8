"""The HTTP interface: what is refused, what is remembered, what is told."""

import asyncio
import base64
import os

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cfn.paths import Paths
from cfn.router.client import RouterClient
from cfn.router.split import bucket, ordered_version

from .conftest import FakeConductor, StartRouter, configure


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "not JSON"),
        (b'{"task_id":"t","agents":0}', 400, "agents is 0; allowed: a whole number from 1 to 2000"),
        (b'{"task_id":"t","agents":-1}', 400, "agents is -1"),
        (b'{"task_id":"t","agents":"x"}', 400, 'agents is "x"'),
        (b'{"task_id":"../t","agents":1}', 400, "task id"),
        (b'{"task_id":"t","agents":1,"colour":"red"}', 400, "unknown field"),
        (b'{"task_id":"t","agents":1,"payload":"' + b"x" * 70_000 + b'"}', 400, "at most 65536"),
        (b"x" * 2_000_000, 413, "too large"),
    ],
)
async def test_bad_requests_start_nothing(
    start_router: StartRouter, body: bytes, status: int, says: str
) -> None:
    caller = await start_router()
    async with caller.session.post("/v1/coordinate", data=body) as response:
        assert response.status == status
        assert says in (await response.json())["error"]
    assert caller.events() == []


async def test_errors_of_http_itself_are_json_too(start_router: StartRouter) -> None:
    caller = await start_router()
    assert (await caller.get("/nowhere"))[0] == 404
    assert (await caller.get("/v1/coordinate"))[0] == 405
    assert (await caller.get("/v1/coordinate/..%2f..%2fetc"))[0] == 400
    status, answer = await caller.get("/v1/coordinate/never-seen")
    assert (status, answer["task_id"]) == (404, "never-seen")


async def test_a_repeated_id_starts_nothing_and_gets_the_same_answer(
    start_router: StartRouter, conductor: FakeConductor
) -> None:
    caller = await start_router()
    conductor.end_s = 0.1
    first, second = await asyncio.gather(
        caller.post(task_id="t", agents=2), caller.post(task_id="t", agents=2)
    )
    third = await caller.post(task_id="t", agents=5)  # also with another size
    assert first == second == third == await caller.get("/v1/coordinate/t")
    assert len(conductor.runs) == 2
    assert len(caller.events()) == 1


async def test_what_takes_longer_than_the_wait_is_asked_for(
    start_router: StartRouter, conductor: FakeConductor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfn.router.http._WAIT_GRACE_S", 0.1)
    caller = await start_router()
    conductor.end_s = 0.4
    status, answer = await caller.post(task_id="t", agents=1, deadline_ms=1)
    assert (status, answer["state"], answer["ask"]) == (202, "running", "/v1/coordinate/t")
    assert (await caller.get(answer["ask"]))[0] == 202
    while (got := await caller.get(answer["ask"]))[0] == 202:
        await asyncio.sleep(0.02)
    assert got[1]["outcome"] == "done"


async def test_a_caller_says_how_long_it_waits_and_hears_how_far_it_is(
    start_router: StartRouter, tree: Paths, conductor: FakeConductor
) -> None:
    caller = await start_router()
    conductor.end_s = 0.3
    for version in ("v2", "v1"):
        configure(tree, COORDINATION_VERSION=version, AGENT_COMMAND="/bin/sleep 0.3")
        await asyncio.sleep(0.3)
        body = {"task_id": version, "agents": 2}
        async with caller.session.post("/v1/coordinate?wait_ms=100", json=body) as response:
            answer = await response.json()
        assert (response.status, answer["states"]) == (202, {"running": 2})
        assert answer["elapsed_ms"] >= 90
        status, answer = await caller.get(f"/v1/coordinate/{version}?wait_ms=60000")
        assert (status, answer["outcome"], answer["served"]) == (200, "done", version)
    for bad in ("-1", "x", "1e3", "3600001", "9" * 5_000):
        status, answer = await caller.get(f"/v1/coordinate/v1?wait_ms={bad}")
        assert (status, "outcome" in answer) == (200, True)  # what is known needs no waiting
        async with caller.session.post(f"/v1/coordinate?wait_ms={bad}", json=body) as response:
            assert (response.status, "wait_ms" in (await response.json())["error"]) == (400, True)


async def test_a_task_that_only_the_conductor_knows(
    start_router: StartRouter, conductor: FakeConductor
) -> None:
    caller = await start_router()
    conductor._start("elsewhere", 2)
    await asyncio.sleep(0.05)
    status, answer = await caller.get("/v1/coordinate/elsewhere")
    assert (status, answer["served"], answer["coordination"]["states"]["done"]) == (200, "v2", 2)


async def test_loopback_and_unix_socket_are_one_router(start_router: StartRouter) -> None:
    caller = await start_router()
    port = caller.router.service.generation.config.router_port
    client = RouterClient(f"http://127.0.0.1:{port}")
    status = (await asyncio.to_thread(client.get, "/status"))[1]
    assert status["pid"] == (await caller.get("/status"))[1]["pid"] == os.getpid()


async def test_ready_while_one_version_could_serve(
    start_router: StartRouter, tree: Paths, conductor: FakeConductor
) -> None:
    caller = await start_router()
    assert await caller.get("/readyz") == (200, {"ready": True, "v1": True, "v2": True})
    tree.v1_command.unlink()
    assert await caller.get("/readyz") == (200, {"ready": True, "v1": False, "v2": True})
    await conductor.stop()
    assert (await caller.get("/readyz"))[0] == 503


@pytest.mark.usefixtures("conductor")
async def test_one_event_per_coordination_with_the_version_that_its_id_orders(
    start_router: StartRouter, tree: Paths
) -> None:
    configure(tree, TRAFFIC_PERCENTAGE=30, MAX_AGENTS=5)
    caller = await start_router()
    config = caller.router.service.generation.config
    tasks = [f"task-{n}" for n in range(60)]
    await asyncio.gather(*(caller.post(task_id=task, agents=1) for task in tasks))
    await caller.post(task_id="large", agents=6)
    events = caller.events()
    assert sorted(event["task_id"] for event in events) == sorted([*tasks, "large"])
    for event in events:
        assert event["bucket"] == bucket(config.split_key, event["task_id"])
        if event["reason"] == "split":
            assert event["ordered"] == ordered_version("v2", config.traffic_pct, event["bucket"])
        assert sum(event["states"].values()) == event["agents"]
        assert (event["v"], event["generation"], event["version"], event["traffic_pct"]) == (1, 1, "v2", 30)
    [large] = [event for event in events if event["task_id"] == "large"]
    assert (large["ordered"], large["reason"]) == ("v1", "over_capacity")

    _, status = await caller.get("/status")
    by_version = status["observed"]["since_generation"]
    on_v2 = sum(event["ordered"] == "v2" for event in events)
    assert by_version == {"v1": 60 - on_v2, "v2": on_v2}
    assert status["observed_share_pct"] == round(100 * on_v2 / 60, 3)
    assert status["over_capacity"]["total"] == 1
    async with caller.session.get("/metrics") as response:
        families = {f.name: f for f in text_string_to_metric_families(await response.text())}
    ended = {
        (sample.labels["ordered"], sample.labels["reason"]): sample.value
        for sample in families["cfn_router_requests"].samples
        if sample.name.endswith("_total")
    }
    assert sum(ended.values()) == 61
    assert ended["v2", "split"] == on_v2
    [ordered, observed] = [s.value for s in families["cfn_router_v2_traffic_ratio"].samples]
    assert (ordered, round(observed, 5)) == (0.3, round(on_v2 / 60, 5))


async def test_a_full_disk_does_not_stop_serving(start_router: StartRouter, tree: Paths) -> None:
    tree.log.mkdir(parents=True)
    tree.events.symlink_to("/dev/full")
    caller = await start_router()
    _, answer = await caller.post(task_id="t", agents=1)
    assert answer["outcome"] == "done"
    _, status = await caller.get("/status")
    assert status["events_lost"] == 2  # the generation's and the task's
    assert "No space left" in status["events_problem"]


async def test_any_payload_reaches_v1(start_router: StartRouter, tree: Paths) -> None:
    seen = tree.root / "seen"
    agent = tree.root / "agent"
    agent.write_text(f"#!/bin/sh\ncat >{seen}\n")
    agent.chmod(0o755)
    configure(tree, COORDINATION_VERSION="v1", AGENT_COMMAND=agent)
    payload = bytes(range(256)) * 64
    await (await start_router()).post(task_id="t", agents=1, payload_b64=base64.b64encode(payload).decode())
    assert seen.read_bytes() == payload
