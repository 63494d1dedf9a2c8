"""What a request can say beside its body, and what a busy or a lonely V2 answers."""

import asyncio
import os
import time
from collections.abc import Callable
from decimal import Decimal

import pytest

from cfn.commands.metrics import collect
from cfn.config import Config
from cfn.paths import Paths
from cfn.router.client import RouterClient
from cfn.router.split import bucket, ordered_version

from .conftest import Caller, FakeConductor, StartRouter, configure, v1_script
from .test_holding import notes

KEY = Config().split_key
Runs = Callable[[], list[str]]


async def post(
    caller: Caller, task_id: str, *, agents: int = 1, **headers: str
) -> tuple[int, dict[str, object]]:
    names = {name: f"X-Cfn-{name.title().replace('_', '-')}" for name in headers}
    sent = {names[name]: value for name, value in headers.items()}
    body = {"task_id": task_id, "agents": agents}
    async with caller.session.post("/v1/coordinate", json=body, headers=sent) as response:
        return response.status, await response.json()


@pytest.mark.usefixtures("conductor")
async def test_a_sticky_key_decides_in_the_place_of_the_id(start_router: StartRouter, tree: Paths) -> None:
    configure(tree, TRAFFIC_PERCENTAGE=50)
    caller = await start_router()
    for customer in ("customer-1", "customer-2", "customer-3", "customer-4"):
        expected = ordered_version("v2", Decimal(50), bucket(KEY, customer))
        found = {(await post(caller, f"{customer}-{n}", sticky_key=customer))[1]["ordered"] for n in range(6)}
        assert found == {expected}
    events = caller.events()
    assert {event["bucket"] for event in events} == {bucket(KEY, f"customer-{n}") for n in range(1, 5)}
    assert {event["sticky_key"] for event in events} == {f"customer-{n}" for n in range(1, 5)}
    # The gate finds each of them where the split orders it.
    evidence = collect(tree, 0, 10**13, 10**12, now_ms=10**13)
    assert (evidence.arms.checked, evidence.arms.mismatches, evidence.events.lost) == (24, 0, 0)


@pytest.mark.parametrize("key", ["", "a b", "x" * 129, "ä"])
async def test_bad_sticky_keys_are_refused(start_router: StartRouter, key: str) -> None:
    caller = await start_router()
    status, answer = await post(caller, "t", sticky_key=key)
    assert (status, "1 to 128 visible ASCII" in str(answer["error"])) == (400, True)


@pytest.mark.usefixtures("conductor")
@pytest.mark.parametrize(
    ("peers", "status"),
    [("", 403), ("loopback", 403), ("4711", 403), (str(os.geteuid()), 200), (f"9,{os.geteuid()}", 200)],
)
async def test_only_allowed_peers_choose_the_version(
    start_router: StartRouter, tree: Paths, peers: str, status: int
) -> None:
    configure(tree, TRAFFIC_PERCENTAGE=0, OVERRIDE_PEERS=peers)
    caller = await start_router()
    found, answer = await post(caller, "t", version="v2")
    assert found == status
    if status == 403:
        assert "CFN_OVERRIDE_PEERS" in str(answer["error"])
        assert caller.events() == []
        return
    assert (answer["ordered"], answer["served"], answer["reason"]) == ("v2", "v2", "override")
    # A tester's choice is no evidence of the split.
    assert caller.events() == []
    assert [note["task_id"] for note in notes(tree, "coordination")] == ["t"]
    _, shown = await caller.get("/status")
    assert (shown["observed_share_pct"], shown["overrides"]["total"]) == (None, 1)
    assert (await post(caller, "t-2", version="v3"))[0] == 400


async def test_over_loopback_only_where_that_is_allowed(start_router: StartRouter, tree: Paths) -> None:
    configure(tree, OVERRIDE_PEERS="loopback")
    caller = await start_router()
    client = RouterClient(f"http://127.0.0.1:{caller.router.service.generation.config.router_port}")
    headers = {"X-Cfn-Version": "v1"}
    asked = ("POST", "/v1/coordinate", {"task_id": "t", "agents": 1}, 5.0, headers)
    status, answer = await asyncio.to_thread(client._ask, *asked)
    assert (status, answer["ordered"], answer["reason"]) == (200, "v1", "override")


async def test_a_tester_may_try_v2_while_the_breaker_is_open(
    start_router: StartRouter, tree: Paths, conductor: FakeConductor
) -> None:
    configure(tree, OVERRIDE_PEERS=os.geteuid())
    caller = await start_router()
    client = RouterClient(f"unix:{tree.router_socket}")
    await asyncio.to_thread(client.move_breaker, "open", reason="drill", by="ann")
    assert (await post(caller, "held"))[1]["served"] == "v1"
    assert (await post(caller, "tried", version="v2"))[1]["served"] == "v2"
    assert [question["task_id"] for question in conductor.questions] == ["tried"]


@pytest.mark.usefixtures("conductor")
async def test_a_kept_swarm_is_named_to_v2(start_router: StartRouter, conductor: FakeConductor) -> None:
    caller = await start_router()
    await caller.post(task_id="t", agents=1, swarm_id="warm")
    assert conductor.questions[-1]["swarm_id"] == "warm"
    for bad in ("../x", "", 5):
        assert (await caller.post(task_id="t-2", agents=1, swarm_id=bad))[0] == 400


async def test_an_overloaded_v2_uses_a_free_v1_and_does_not_drown_a_busy_one(
    start_router: StartRouter, tree: Paths, conductor: FakeConductor
) -> None:
    may_end = tree.root / "may-end"
    slow = f"while [ ! -e {may_end} ]; do sleep 0.01; done"
    slow += '; echo "delivery_rate=100.0 agents_coordinated=$1 coordination_time_ms=1"'
    configure(tree, V1_CONCURRENCY=1, V1_COMMAND=v1_script(tree, slow))
    conductor.refuse, conductor.retry_after_s = "the queue is full", 2.5
    caller = await start_router()
    first = asyncio.create_task(caller.post(task_id="first", agents=1))
    while not caller.router.service.v1.gate.running:
        await asyncio.sleep(0.001)
    body = {"task_id": "second", "agents": 1}
    async with caller.session.post("/v1/coordinate", json=body) as response:
        refused = await response.json()
        assert (response.status, response.headers["Retry-After"]) == (429, "3")
    assert (refused["outcome"], refused["served"]) == ("refused", "none")
    assert "the queue is full" in refused["detail"]
    may_end.touch()
    status, answer = await first
    assert (status, answer["served"], answer["fallback"]) == (200, "v1", "error")
    # Nothing of it was started: it may come again, and is served then.
    conductor.refuse = ""
    assert (await caller.post(**body))[1]["outcome"] == "done"
    outcomes = [(event["task_id"], event["outcome"]) for event in caller.events()]
    assert outcomes == [("second", "refused"), ("first", "done"), ("second", "done")]
    assert (await caller.get("/status"))[1]["refused"]["total"] == 1


async def test_more_tasks_at_once_than_v2_is_asked_are_told_to_come_again(
    start_router: StartRouter, tree: Paths, conductor: FakeConductor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfn.router.v2.MAX_TASKS", 3)
    monkeypatch.setattr("cfn.router.v2.MAX_WAIT_S", 60.0)
    monkeypatch.setattr("cfn.router.v2._WAITING_PER_TASK", 2)
    configure(tree, FALLBACK_ENABLED="false")
    conductor.end_s = 0.3
    caller = await start_router()
    answers = await asyncio.gather(*(caller.post(task_id=f"t-{n}", agents=1) for n in range(11)))
    assert sorted(status for status, _ in answers) == [200] * 9 + [429] * 2  # three at a time, six wait
    assert len(conductor.runs) == 9
    monkeypatch.setattr("cfn.router.v2.MAX_WAIT_S", 0.05)
    answers = await asyncio.gather(*(caller.post(task_id=f"u-{n}", agents=1) for n in range(5)))
    assert sorted(status for status, _ in answers) == [200, 200, 200, 429, 429]


async def test_v1_full_says_when_to_come_again(start_router: StartRouter, tree: Paths) -> None:
    may_end = tree.root / "may-end"
    command = v1_script(tree, f"while [ ! -e {may_end} ]; do sleep 0.01; done")
    configure(tree, COORDINATION_VERSION="v1", V1_CONCURRENCY=1, V1_CAPACITY=4, V1_COMMAND=command)
    caller = await start_router()
    running = [asyncio.create_task(caller.post(task_id=f"t-{n}", agents=1)) for n in range(17)]
    while caller.router.service.v1.gate.waiting < 16:
        await asyncio.sleep(0.001)
    async with caller.session.post("/v1/coordinate", json={"task_id": "x", "agents": 1}) as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "4")  # 16 wait, 4 a second
    _, shown = await caller.get("/status")
    assert shown["v1"] | {"running": 1, "waiting": 16} == {
        "enabled": True,
        "running": 1,
        "waiting": 16,
        "concurrency": 1,
        "queue": 16,
        "capacity_per_s": 4.0,
        "capacity_declared": True,
    }
    may_end.touch()
    await asyncio.gather(*running)


async def test_without_v1_v2_serves_everything(
    start_router: StartRouter, tree: Paths, conductor: FakeConductor, agents_that_write: Runs
) -> None:
    configure(tree, V1_ENABLED="false", MAX_AGENTS=10, AGENT_COMMAND=tree.root / "agent", OVERRIDE_PEERS=0)
    conductor.claims = lambda _: 0
    caller = await start_router()
    for number in range(12):  # more than would open a breaker
        _, answer = await caller.post(task_id=f"t-{number}", agents=2)
        assert (answer["outcome"], answer["served"], answer["fallback"]) == ("failed", "v2", None)
    assert "CFN_V1_ENABLED is false" in answer["detail"]
    status, answer = await caller.post(task_id="large", agents=11)
    assert (status, "at most 10 agents" in answer["error"]) == (400, True)
    assert (await caller.get("/status"))[1]["breaker"]["state"] == "closed"
    assert (await caller.get("/readyz"))[1]["v1"] is False
    assert agents_that_write() == []
    # Ordering V1 where there is none leaves V2 in force, and says so.
    configure(tree, V1_ENABLED="false", COORDINATION_VERSION="v1")
    await asyncio.sleep(0.3)
    _, shown = await caller.get("/status")
    assert (shown["version"], "restore V1 first" in shown["config_problem"]) == ("v2", True)


async def test_a_clock_that_is_set_is_no_duration(
    start_router: StartRouter, conductor: FakeConductor, monkeypatch: pytest.MonkeyPatch
) -> None:
    conductor.end_s = 0.2
    caller = await start_router()
    now_s = time.time()
    for jump_s in (-3600.0, 3600.0):
        asked = asyncio.create_task(caller.post(task_id=f"t{jump_s:.0f}".replace("-", "m"), agents=1))
        await asyncio.sleep(0.05)
        monkeypatch.setattr("cfn.router.service.time.time", lambda set_s=now_s + jump_s: set_s)
        assert (await asked)[1]["outcome"] == "done"
        monkeypatch.undo()
        assert 100 < caller.events()[-1]["total_time_ms"] < 5_000


async def test_what_a_hybrid_engine_says_of_its_levels_is_in_the_event(
    start_router: StartRouter, conductor: FakeConductor
) -> None:
    conductor.extra = {"mesh_delivery_rate_pct": 99.5, "worker_delivery_rate_pct": 98.0, "teams": []}
    caller = await start_router()
    _, answer = await caller.post(task_id="t", agents=1)
    assert answer["coordination"]["mesh_delivery_rate_pct"] == 99.5
    [event] = caller.events()
    assert (event["mesh_delivery_rate_pct"], event["worker_delivery_rate_pct"]) == (99.5, 98.0)
    conductor.extra = {}
    await caller.post(task_id="flat", agents=1)
    assert "mesh_delivery_rate_pct" not in caller.events()[-1]


@pytest.mark.parametrize(("output", "result", "differ"), [("", "same", 0), ("other", "different", 2)])
async def test_a_shadow_is_compared_and_thrown_away(
    start_router: StartRouter, tree: Paths, conductor: FakeConductor, output: str, result: str, differ: int
) -> None:
    script = (
        f"echo agent=agent-1 state=done output={output}; echo agent=agent-2 state=done output={output};"
        'echo "delivery_rate=100.0 agents_coordinated=$1 coordination_time_ms=1"'
    )
    configure(tree, TRAFFIC_PERCENTAGE=0, SHADOW_PERCENTAGE=100, V1_COMMAND=v1_script(tree, script))
    caller = await start_router()
    _, answer = await caller.post(task_id="t", agents=2, payload="x")
    assert (answer["outcome"], answer["served"]) == ("done", "v1")
    while not notes(tree, "shadow"):
        await asyncio.sleep(0.01)
    [note] = notes(tree, "shadow")
    assert (note["task_id"], note["result"], note["agents_different"]) == ("t", result, differ)
    assert [(q["task_id"], q["payload_b64"]) for q in conductor.questions] == [("shadow:t", "eA==")]
    assert [event["task_id"] for event in caller.events()] == ["t"]
    assert (await caller.get("/status"))[1]["shadow"][result] == 1


async def test_no_shadow_without_a_declared_dry_run(
    start_router: StartRouter, tree: Paths, conductor: FakeConductor, agents_that_write: Runs
) -> None:
    keys = {"TRAFFIC_PERCENTAGE": 0, "SHADOW_PERCENTAGE": 100, "AGENT_COMMAND": tree.root / "agent"}
    configure(tree, TRAFFIC_PERCENTAGE=0, AGENT_COMMAND=tree.root / "agent")
    caller = await start_router()
    configure(tree, **keys)
    await asyncio.sleep(0.3)
    assert "CFN_SHADOW_DRY_RUN" in (await caller.get("/status"))[1]["config_problem"]
    await caller.post(task_id="t", agents=1)
    configure(tree, **keys, SHADOW_DRY_RUN="true")
    await asyncio.sleep(0.3)
    await caller.post(task_id="t-2", agents=1)
    while not notes(tree, "shadow"):
        await asyncio.sleep(0.01)
    assert [question["task_id"] for question in conductor.questions] == ["shadow:t-2"]
    assert sorted(agents_that_write()) == ["t agent-1", "t-2 agent-1"]
