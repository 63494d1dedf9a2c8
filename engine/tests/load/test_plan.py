"""The stream is fixed by its plan, and every plan is bounded."""

import itertools
from collections import Counter

import pytest

from cfn.errors import UsageError
from cfn.load.plan import LoadPlan, parse_sizes, schedule


def plan(**values: object) -> LoadPlan:
    base: dict[str, object] = {
        "router": "unix:/run/cfn/router.sock",
        "rate_per_s": 50.0,
        "requests": 1_000,
        "prefix": "load",
    }
    return LoadPlan(**base | values)  # type: ignore[arg-type]


def test_the_seed_alone_decides() -> None:
    sizes = ((1, 60), (10, 35), (100, 5))
    one, same = (list(schedule(plan(sizes=sizes, seed=7))) for _ in range(2))
    other = list(schedule(plan(sizes=sizes, seed=8)))
    assert one == same
    assert [shot.agents for shot in one] != [shot.agents for shot in other]
    assert len({shot.task_id for shot in one + other}) == 2_000
    assert (one[0].task_id, one[-1].task_id) == ("load-7-1", "load-7-1000")


def test_the_stream_is_steady_and_sizes_follow_their_weights() -> None:
    shots = list(schedule(plan(sizes=((1, 60), (10, 35), (100, 5)))))
    gaps = {round(b.due_s - a.due_s, 9) for a, b in itertools.pairwise(shots)}
    assert gaps == {0.02}
    counts = Counter(shot.agents for shot in shots)
    assert 540 < counts[1] < 660
    assert 290 < counts[10] < 410
    assert 25 < counts[100] < 85


def test_sizes_are_read() -> None:
    assert parse_sizes("1:60,10:35,100:5") == ((1, 60), (10, 35), (100, 5))


@pytest.mark.parametrize("text", ["", "1", "1:", ":1", "1:1,", "x:1", "1:-1", "1:1;2:2", "1:1.5"])
def test_bad_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="AGENTS:WEIGHT"):
        parse_sizes(text)


@pytest.mark.parametrize(
    "values",
    [
        {"rate_per_s": 0},
        {"rate_per_s": -1},
        {"rate_per_s": float("nan")},
        {"rate_per_s": float("inf")},
        {"requests": 0},
        {"requests": 10**9},
        {"concurrency": 0},
        {"sizes": ()},
        {"sizes": ((0, 1),)},
        {"sizes": ((2_001, 1),)},
        {"sizes": ((1, 0),)},
        {"deadline_ms": 0},
        {"answer_s": 1e9},
        {"prefix": "a/b"},
        {"prefix": ""},
        {"prefix": "x" * 200},
        {"router": "http://192.0.2.1:80"},
        {"router": "http://example.org"},
        {"router": "ftp://localhost"},
        {"router": "/run/cfn/router.sock"},
        {"swarm_id": "../x"},
    ],
)
def test_what_is_not_bounded_or_not_local_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        plan(**values)


@pytest.mark.parametrize(
    "router", ["unix:/x.sock", "http://localhost:8470", "http://127.0.0.1:8470", "http://[::1]:8470"]
)
def test_local_routers_are_allowed(router: str) -> None:
    assert plan(router=router).router == router


def test_a_remote_router_has_to_be_asked_for() -> None:
    assert plan(router="http://192.0.2.1:80", allow_remote=True)
