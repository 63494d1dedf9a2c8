"""Growth of memory, and false alarms of health checks."""

import random

import pytest

from cfn.collector.alarms import Growth, HealthChecks


def grown(values: list[float], step_s: float = 60) -> float | None:
    growth = Growth()
    found = None
    for number, value in enumerate(values):
        found = growth.add(number * step_s, value)
    return found


def test_growth_is_the_slope_a_minute() -> None:
    assert grown([1_000 + 50 * n for n in range(60)]) == 50
    assert grown([1_000.0] * 60) == 0


def test_growth_needs_a_quarter_of_an_hour() -> None:
    assert grown([1.0] * 15) is None
    assert grown([1.0] * 16) == 0
    assert Growth().add(0, None) is None


def test_one_burst_is_no_growth() -> None:
    values = [1_000.0] * 60
    values[30:34] = [9_000.0] * 4
    assert grown(values) == 0


def test_noise_of_5_percent_hides_no_leak() -> None:
    noise = random.Random(1)  # noqa: S311 - the same on every machine
    found = grown([100_000 * (1 + 0.05 * noise.uniform(-1, 1)) + 1_500 * n for n in range(61)])
    assert found is not None
    assert 1_000 < found < 2_000


def test_growth_forgets_what_is_older_than_an_hour_and_is_bounded() -> None:
    growth = Growth()
    for second in range(2 * 3_600):
        growth.add(second, float(min(second, 3_600)))
    assert growth.add(7_200, 3_600.0) == 0
    assert len(growth._points) <= 121


def pct(*turns: tuple[int | None, int | None], reported: list[int | None] | None = None) -> float | None:
    checks = HealthChecks()
    found = None
    for number, (conductor, router) in enumerate(turns):
        found = checks.add({"conductor": conductor, "router": router}, reported[number] if reported else None)
    return found


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([(1, 2)] * 10, 0),
        ([(1, 2), (None, 2), (1, 2)], 100 / 6),  # the same process had been there all the time
        ([(1, 2), (None, 2), (7, 2)], 0),  # it had died: the alarm was true
        ([(None, None)] * 3, None),  # never there: nothing was checked
        ([(1, 2), (None, 2)], 0),  # not known yet
    ],
)
def test_false_alarms(turns: list[tuple[int | None, int | None]], expected: float | None) -> None:
    assert pct(*turns) == (None if expected is None else pytest.approx(expected))


def test_the_conductors_own_false_alarms_count_and_a_restart_puts_its_count_back() -> None:
    assert pct(*[(1, 2)] * 4, reported=[5, 6, 0, 0]) == pytest.approx(100 / 8)
