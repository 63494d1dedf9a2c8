"""V1 as the router calls it, with real processes: whatever it does, the caller hears in time."""

import asyncio
import subprocess
import time

import pytest

from cfn.paths import Paths

from .conftest import Caller, StartRouter, configure, v1_script

ONE = "echo agent=agent-1 state=done"
OK = 'echo "delivery_rate=100.0 agents_coordinated=$1 coordination_time_ms=1"'


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfn.router.process.TERM_GRACE_S", 0.2)
    monkeypatch.setattr("cfn.router.process.OUTPUT_GRACE_S", 0.2)


async def ask(start_router: StartRouter, tree: Paths, script: str, **request: object) -> tuple[Caller, dict]:  # type: ignore[type-arg]
    configure(tree, COORDINATION_VERSION="v1", V1_COMMAND=v1_script(tree, script))
    caller = await start_router()
    status, answer = await caller.post(**{"task_id": "t", "agents": 3, "deadline_ms": 400} | request)
    assert status == 200
    return caller, answer


@pytest.mark.parametrize(
    ("script", "outcome", "states", "says"),
    [
        (OK, "done", {"done": 3}, ""),
        ("cat >/dev/null; " + OK, "done", {"done": 3}, ""),
        ("echo hello", "failed", {"unknown": 3}, "it printed 'hello'"),
        ("head -c 3000 /dev/urandom", "failed", {"unknown": 3}, "without its last line"),
        ("exit 3", "failed", {"unknown": 3}, "exited 3"),
        ("echo oh dear >&2; exit 3", "failed", {"unknown": 3}, "standard error ends: oh dear"),
        (OK + "; exit 1", "failed", {"unknown": 3}, "exited 1 after"),
        ("kill -9 $$", "failed", {"unknown": 3}, "exited -9"),
        ("sleep 60", "failed", {"unknown": 3}, "did not end in time"),
        ("trap '' TERM; " + ONE + "; sleep 60", "partial", {"done": 1, "unknown": 2}, "in time"),
        ("yes", "failed", {"unknown": 3}, "output limit"),
        ("sleep 60 & " + OK, "done", {"done": 3}, ""),
    ],
)  # fmt: skip
async def test_whatever_v1_does(
    start_router: StartRouter, tree: Paths, script: str, outcome: str, states: dict[str, int], says: str
) -> None:
    began = time.monotonic()
    caller, answer = await ask(start_router, tree, script)
    assert time.monotonic() - began < 60  # what V1 sleeps
    assert answer["outcome"] == outcome
    assert {name: count for name, count in answer["coordination"]["states"].items() if count} == states
    assert says in answer["detail"]
    assert bool(says) == bool(answer["detail"])
    [event] = caller.events()
    assert (event["ordered"], event["served"], event["outcome"]) == ("v1", "v1", outcome)


async def test_nothing_of_a_hanging_v1_stays_behind(start_router: StartRouter, tree: Paths) -> None:
    await ask(start_router, tree, "sleep 61.5 & trap '' TERM; sleep 61.5")
    assert subprocess.run(["pgrep", "-f", "sleep 61.5"], capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("command", ["/does/not/exist", "/etc/passwd"])
async def test_a_missing_v1_starts_nothing(start_router: StartRouter, tree: Paths, command: str) -> None:
    configure(tree, COORDINATION_VERSION="v1", V1_COMMAND=command)
    caller = await start_router()
    _, answer = await caller.post(task_id="t", agents=3)
    assert (answer["outcome"], answer["served"]) == ("failed", "none")
    assert answer["coordination"]["states"]["undelivered"] == 3
    assert command in answer["detail"]


async def test_agents_that_have_begun_may_take_longer_than_the_deadline(
    start_router: StartRouter, tree: Paths
) -> None:
    configure(tree, COORDINATION_VERSION="v1", AGENT_COMMAND="/bin/sleep 0.6")
    caller = await start_router()
    _, answer = await caller.post(task_id="t", agents=3, deadline_ms=300)
    assert answer["outcome"] == "done"
    assert answer["coordination"]["coordination_time_ms"] < 300 < answer["coordination"]["total_time_ms"]


async def test_too_many_at_once_wait_and_then_are_refused(start_router: StartRouter, tree: Paths) -> None:
    configure(
        tree, COORDINATION_VERSION="v1", V1_CONCURRENCY=1, V1_COMMAND=v1_script(tree, "sleep 0.05;" + OK)
    )
    caller = await start_router()
    answers = await asyncio.gather(*(caller.post(task_id=f"t-{n}", agents=1) for n in range(20)))
    assert sorted(status for status, _ in answers) == [200] * 17 + [503] * 3
    [refused, *_] = [answer for status, answer in answers if status == 503]
    assert (refused["outcome"], refused["served"]) == ("refused", "none")
    assert "CFN_V1_CONCURRENCY is 1" in refused["detail"]
    assert len(caller.events()) == 20
    # Nothing of it was started, so its id may come again.
    assert (await caller.get(f"/v1/coordinate/{refused['task_id']}"))[0] == 404
    assert (await caller.post(task_id=refused["task_id"], agents=1))[0] == 200


async def test_v1_sees_the_agents_command_and_not_the_routers_own_secrets(
    start_router: StartRouter, tree: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    configure(tree, COORDINATION_VERSION="v1", AGENT_COMMAND="/usr/bin/env")
    caller = await start_router()
    _, answer = await caller.post(task_id="t-1", agents=1)
    output = answer["coordination"]["results"][0]["output"]
    assert "CFN_TASK_ID=t-1\n" in output
    assert "CFN_AGENT_ID=agent-1\n" in output
    assert "NOTIFY_SOCKET" not in output
