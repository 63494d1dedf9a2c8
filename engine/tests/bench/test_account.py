"""The account of a soak: what is unaccounted shows, and what a fault explains does not count."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from engine.bench.account import AFTER_S, Asked, Fault, Reading, account, render
from engine.bench.processes import ROLES, Process
from engine.bench.soak import choose

DONE = {"done": 10, "failed": 0, "undelivered": 0, "unknown": 0}
LOST = {"done": 9, "failed": 0, "undelivered": 0, "unknown": 1}
READING = Reading(
    at_s=0, daemons={}, processes={"worker": 10, "conductor": 1}, memory_mb=20.5, descriptors=50, tmpfs_mb=1.5
)


def asked(**values: Any) -> Asked:
    return replace(Asked(task_id="t", agents=10, began_s=100.0, ended_s=101.0, states=DONE), **values)


def fault(at_s: float) -> Fault:
    return Fault(at_s=at_s, role="worker", number=0, pid=1)


def report(
    *parts: Asked, faults: Sequence[Fault] = (), left_over: int = 0, problem: str = ""
) -> dict[str, Any]:
    return account(parts, faults, [READING], left_over=left_over, problem=problem)


def test_all_well() -> None:
    value = report(asked(coordination_time_ms=5.0), asked(coordination_time_ms=7.0))
    assert value["ok"] is True
    assert (value["coordinations"], value["answered"], value["agents"]) == (2, 2, 20)
    assert (value["delivery_rate_pct"], value["completion_rate_pct"]) == (100.0, 100.0)
    assert value["coordination_time_ms"] == {"p50": 5.0, "p95": 7.0, "p99": 7.0, "p100": 7.0}
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert render(value).endswith("everything is accounted for")


@pytest.mark.parametrize(
    ("parts", "finding"),
    [
        ([asked(states={}, error="nobody")], "unanswered"),
        ([asked(states={}, error="no", refused=True)], "refused"),
        ([asked(states=DONE | {"done": 11})], "wrong_sum"),
        ([asked(states=LOST)], "not_done_without_a_fault"),
    ],
)
def test_what_is_unaccounted(parts: list[Asked], finding: str) -> None:
    value = report(asked(), *parts)
    assert value["ok"] is False
    assert value[finding] == 1
    assert value["first"][finding][0]["task_id"] == "t"
    assert "NOT everything is accounted for" in render(value)


@pytest.mark.parametrize(
    ("at_s", "ok"),
    [
        (100.5, True),
        (100.0 - AFTER_S, True),
        (100.0 - AFTER_S - 0.1, False),
        (102.0, True),
        (102.1, False),
    ],
)
def test_a_fault_explains_what_is_near_it(at_s: float, ok: bool) -> None:
    assert report(asked(states=LOST), faults=[fault(at_s)])["ok"] is ok


def test_no_fault_explains_a_missing_answer() -> None:
    assert not report(asked(states={}, error="nobody"), faults=[fault(100.0)])["ok"]


@pytest.mark.parametrize("values", [{"left_over": 1}, {"problem": "no spawner"}])
def test_what_is_left_or_ended_it(values: dict[str, Any]) -> None:
    assert not report(asked(), **values)["ok"]


@pytest.mark.parametrize(("killed", "died"), [(1, {}), (2, {"spawner": 1})])
def test_a_daemon_that_nobody_killed(killed: int, died: dict[str, int]) -> None:
    before, after = ({1: "spawner", 7: "conductor"}, {3: "spawner", 7: "conductor"})
    readings = [replace(READING, daemons=daemons) for daemons in (before, after)]
    faults = [Fault(at_s=1, role="spawner", number=0, pid=killed)]
    value = account([asked()], faults, readings, left_over=0, problem="")
    assert (value["died_by_themselves"], value["ok"]) == (died, not died)


def test_nothing_asked_is_not_well() -> None:
    assert not report()["ok"]


def test_a_victim_is_drawn_by_role_and_the_seed_decides() -> None:
    crowd = [Process(100 + number, number, "worker") for number in range(700)]
    all_of_them = [*crowd, *(Process(number, number, role, number) for number, role in enumerate(ROLES[:3]))]
    draws = [random.Random(seed) for seed in range(400)]  # noqa: S311 - not a secret
    drawn = [choose(all_of_them, draw).role for draw in draws]
    assert {role for role in ROLES if drawn.count(role) < 60} == set()
    one, other = (random.Random(7) for _ in range(2))  # noqa: S311 - not a secret
    assert choose(all_of_them, one) == choose(all_of_them[::-1], other)
