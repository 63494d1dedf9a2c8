"""Demand and V1's capacity: what an abort is checked against."""

from pathlib import Path

import pytest

from cfn.config import Config
from cfn.paths import Paths
from cfn.router.flip import v1_bears
from cfn.router.stats import DEMAND_S, Demand
from cfn.router.v1 import V1


@pytest.mark.parametrize(
    ("arrivals_s", "now_s", "per_s"),
    [
        ([], 1_000.0, 0.0),
        ([1_000.5], 1_000.9, 0.0),  # the running second is not whole yet
        ([1_000.5] * 7, 1_001.2, 7.0),  # one second since the start
        ([1_000.5 + second for second in range(10)], 1_010.0, 1.0),
        ([1_000.0 + second / 2 for second in range(400)], 1_200.0, 2.0),
        ([1_000.0] * 60, 1_030.0, 2.0),
        ([1_000.0] * 60, 1_000.0 + DEMAND_S, 1.0),
        ([1_000.0] * 60, 1_002.0 + DEMAND_S, 0.0),  # longer ago than it looks
        ([1_000.0], 1e9, 0.0),
    ],
)
def test_demand_over_the_last_minute(arrivals_s: list[float], now_s: float, per_s: float) -> None:
    demand = Demand(began_s=1_000.0)
    for arrival_s in arrivals_s:
        demand.add(arrival_s)
    assert demand.per_s(now_s) == pytest.approx(per_s)


def test_capacity_is_declared_or_measured() -> None:
    v1 = V1(Paths(Path("/nowhere")))
    assert v1.capacity_per_s(Config()) is None
    v1._mean_s = 0.5
    assert v1.capacity_per_s(Config(v1_concurrency=32)) == 64.0
    assert v1.capacity_per_s(Config(v1_concurrency=32, v1_capacity_per_s=10)) == 10.0


@pytest.mark.parametrize(
    ("capacity_per_s", "demand_per_s", "bears_all"),
    [(10.0, 10.0, True), (10.0, 10.1, False), (None, 5.0, None), (10.0, None, None)],
)
def test_whether_v1_bears_all(
    capacity_per_s: float | None, demand_per_s: float | None, bears_all: bool | None
) -> None:
    status = {"v1": {"capacity_per_s": capacity_per_s}, "demand_per_s": demand_per_s}
    assert v1_bears(status)["bears_all"] is bears_all
    assert v1_bears(None)["bears_all"] is None
