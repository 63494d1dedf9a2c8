"""A V2 that misbehaves, under a real router and the real V1: who runs what, what the caller sees and
what the event says. Nothing may run twice."""

from collections import Counter
from collections.abc import Callable

import pytest

from cfn.paths import Paths

from .conftest import FakeConductor, StartRouter, configure, v1_script

Runs = Callable[[], list[str]]


def ran_twice(conductor: FakeConductor, runs: Runs) -> list[str]:
    counts = Counter(runs()) + Counter(f"{task} {agent}" for task, agent in conductor.runs)
    return [run for run, count in counts.items() if count > 1]


async def test_v2_answers_and_v1_is_left_alone(
    start_router: StartRouter, conductor: FakeConductor, agents_that_write: Runs
) -> None:
    caller = await start_router()
    status, answer = await caller.post(task_id="t", agents=3, payload="hello")
    assert (status, answer["outcome"], answer["ordered"], answer["served"]) == (200, "done", "v2", "v2")
    assert conductor.questions[0]["payload_b64"] == "aGVsbG8="
    assert agents_that_write() == []
    [event] = caller.events()
    assert (event["served"], event["fallback"], event["coordination_time_ms"]) == ("v2", None, 1.0)


async def test_nobody_on_the_socket_and_v1_answers(
    start_router: StartRouter, agents_that_write: Runs
) -> None:
    caller = await start_router()
    status, answer = await caller.post(task_id="t", agents=3)
    assert (status, answer["outcome"], answer["served"], answer["fallback"]) == (200, "done", "v1", "error")
    assert len(agents_that_write()) == 3
    [event] = caller.events()
    # V2's loss stays V2's, whatever V1 rescued.
    assert (event["ordered"], event["delivery_rate_pct"], event["error_rate_pct"]) == ("v2", 0, 100)
    assert event["states"]["done"] == 3


async def test_a_refusal_goes_to_v1(start_router: StartRouter, conductor: FakeConductor) -> None:
    conductor.refuse = "the queue is full"
    _, answer = await (await start_router()).post(task_id="t", agents=2)
    assert (answer["outcome"], answer["served"], answer["fallback"]) == ("done", "v1", "error")
    assert "the queue is full" in answer["detail"]


@pytest.mark.parametrize(("claimed", "cause"), [(4, None), (3, "delivery"), (0, "delivery")])
async def test_delivery_below_the_threshold_reruns_what_never_started(
    start_router: StartRouter,
    conductor: FakeConductor,
    agents_that_write: Runs,
    claimed: int,
    cause: str | None,
) -> None:
    conductor.claims = lambda _: claimed
    caller = await start_router()
    _, answer = await caller.post(task_id="t", agents=5)
    assert answer["fallback"] == cause
    assert answer["outcome"] == ("partial" if cause is None else "done")
    assert len(agents_that_write()) == (0 if cause is None else 5 - claimed)
    assert ran_twice(conductor, agents_that_write) == []
    [event] = caller.events()
    assert event["delivery_rate_pct"] == claimed * 20
    assert event["served"] == {4: "v2", 3: "both", 0: "v1"}[claimed]


async def test_out_of_time_v2_revokes_and_v1_runs_the_rest(
    start_router: StartRouter, tree: Paths, conductor: FakeConductor, agents_that_write: Runs
) -> None:
    configure(tree, FALLBACK_THRESHOLD_TIME=100, AGENT_COMMAND=tree.root / "agent")
    conductor.claims, conductor.end_s = lambda _: 3, 0.3
    caller = await start_router()
    _, answer = await caller.post(task_id="t", agents=5)
    assert (answer["fallback"], answer["served"], answer["outcome"]) == ("time", "both", "done")
    assert sorted(agents_that_write()) == ["t agent-4", "t agent-5"]
    assert ran_twice(conductor, agents_that_write) == []


async def test_slow_but_complete_reruns_nothing(
    start_router: StartRouter, tree: Paths, conductor: FakeConductor, agents_that_write: Runs
) -> None:
    configure(tree, FALLBACK_THRESHOLD_TIME=50, AGENT_COMMAND=tree.root / "agent")
    conductor.end_s = 0.3
    _, answer = await (await start_router()).post(task_id="t", agents=5)
    assert (answer["fallback"], answer["served"], answer["outcome"]) == (None, "v2", "done")
    assert agents_that_write() == []


async def test_a_lost_connection_is_made_again_and_attached(
    start_router: StartRouter, conductor: FakeConductor, agents_that_write: Runs
) -> None:
    conductor.drop_accepted = 2
    _, answer = await (await start_router()).post(task_id="t", agents=4)
    assert (answer["fallback"], answer["served"], answer["outcome"]) == (None, "v2", "done")
    assert len(conductor.questions) == 3
    assert len(conductor.runs) == 4
    assert agents_that_write() == []


@pytest.mark.parametrize("fault", ["silent", "garbage"])
async def test_what_is_unknown_is_reported_and_never_rerun(
    start_router: StartRouter,
    tree: Paths,
    conductor: FakeConductor,
    agents_that_write: Runs,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    configure(tree, FALLBACK_THRESHOLD_TIME=50, AGENT_COMMAND=tree.root / "agent")
    monkeypatch.setattr("cfn.router.v2._REVOKE_S", 0.2)
    setattr(conductor, fault, True)
    caller = await start_router()
    _, answer = await caller.post(task_id="t", agents=2, deadline_ms=100)
    assert (answer["outcome"], answer["fallback"], answer["served"]) == ("failed", None, "v2")
    assert answer["coordination"]["states"]["unknown"] == 2
    assert "cannot be revoked" in answer["detail"]
    assert agents_that_write() == []


async def test_fallback_disabled_answers_v2s_outcome(start_router: StartRouter, tree: Paths) -> None:
    configure(tree, FALLBACK_ENABLED="false")
    caller = await start_router()
    _, answer = await caller.post(task_id="t", agents=2)
    assert (answer["outcome"], answer["served"]) == ("failed", "none")
    assert answer["coordination"]["states"]["undelivered"] == 2


@pytest.mark.parametrize(("claimed", "outcome", "served"), [(0, "done", "v1"), (1, "partial", "v2")])
async def test_a_v1_without_lists_gets_only_untouched_tasks(
    start_router: StartRouter,
    tree: Paths,
    conductor: FakeConductor,
    claimed: int,
    outcome: str,
    served: str,
) -> None:
    own = v1_script(
        tree,
        '[[ $1 == --* ]] && exit 2; echo "delivery_rate=100.0 agents_coordinated=$1 coordination_time_ms=1"',
    )
    configure(tree, V1_COMMAND=own)
    conductor.claims = lambda _: claimed
    _, answer = await (await start_router()).post(task_id="t", agents=3)
    assert (answer["outcome"], answer["served"]) == (outcome, served)


async def test_a_v1_that_is_gone_leaves_undelivered_what_v2_did_not_start(
    start_router: StartRouter, tree: Paths, conductor: FakeConductor
) -> None:
    tree.v1_command.unlink()
    conductor.claims = lambda _: 0
    caller = await start_router()
    _, answer = await caller.post(task_id="t", agents=3)
    assert (answer["outcome"], answer["served"], answer["fallback"]) == ("failed", "none", "delivery")
    assert "V1 cannot be started" in answer["detail"]
    assert caller.events()[0]["states"] == {"done": 0, "failed": 0, "undelivered": 3, "unknown": 0}
