"""The cadence of the stage table: when looks are due, and which were missed."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfn.errors import UsageError
from cfn.judge.timescale import TimeScale
from cfn.rollout.cadence import Cadence, due, read_cadence, schedule
from engine.tests.rollout.conftest import DAY_MS, HOUR_MS, T0, TABLE

STAGE1, STAGE2, STAGE3 = (TABLE[stage]["production"] for stage in ("stage1", "stage2", "stage3"))


def cadence(figures: Any = STAGE1, traffic: float = 10, factor: float = 1) -> Cadence:
    return read_cadence(figures, traffic, TimeScale(factor))


def hours(figures: Any, count: int) -> list[float]:
    times = schedule(cadence(figures), T0)
    return [(times.time(number)[0] - T0) / HOUR_MS for number in range(count)]


def test_the_looks_of_stage_1() -> None:
    found = hours(STAGE1, 24 + 8 + 4)
    assert found[:24] == [2.0 * n for n in range(1, 25)]  # days 1 and 2
    assert found[24:32] == [48 + 6.0 * n for n in range(1, 9)]  # days 3 and 4
    assert found[32:] == [120, 144, 168, 192]  # daily, and on


def test_the_looks_of_stage_2() -> None:
    found = hours(STAGE2, 24 + 12 + 2)
    assert found[:24] == [float(n) for n in range(1, 25)]
    assert found[24:36] == [24 + 4.0 * n for n in range(1, 13)]
    assert found[36:] == [96, 120]


@pytest.mark.parametrize(
    ("now_h", "looks_h", "is_due", "next_h", "missed_h"),
    [
        (1, [], False, 2, []),
        (2, [], True, 2, []),
        (2.4, [], True, 2, []),
        (2.6, [], True, 2, [2]),
        (3, [2.1], False, 4, []),
        (6.1, [2.1], True, 6, [4]),
        (6.1, [2.1, 6.05], False, 8, [4]),
        (5, [2, 4], False, 6, []),
    ],
)
def test_due_and_missed(
    now_h: float, looks_h: list[float], is_due: bool, next_h: float, missed_h: list[float]
) -> None:
    looks = [T0 + round(each * HOUR_MS) for each in looks_h]
    found = due(cadence(), T0, looks, T0 + round(now_h * HOUR_MS))
    assert (found.now_due, (found.next_ms - T0) / HOUR_MS) == (is_due, next_h)
    assert [(each - T0) / HOUR_MS for each in found.missed] == missed_h
    assert found.missed_count == len(missed_h)


@given(st.integers(-5, 3_000))
def test_numbers_and_times_agree(number: int) -> None:
    times = schedule(cadence(STAGE2, 50), T0)
    if number < 0:
        assert times.number(T0 + number) == -1
        return
    assert times.number(times.time(number)[0]) == number
    assert times.number(times.time(number)[0] - 1) == number - 1


def test_years_without_a_look_cost_nothing_and_name_a_few() -> None:
    found = due(cadence(factor=20_160), T0, [], T0 + 3 * 365 * DAY_MS)
    assert found.missed_count > 1_000_000
    assert len(found.missed) == 20


@pytest.mark.parametrize(
    ("figures", "traffic", "intensive_h", "closely_h"),
    [(STAGE1, 10, 24, 2), (STAGE2, 50, 4, 4), (STAGE3, 75, 8, 8), (STAGE3, 100, 24, 8)],
)
def test_what_a_fresh_flip_switches_on(
    figures: Any, traffic: float, intensive_h: float, closely_h: float
) -> None:
    found = due(cadence(figures, traffic), T0, [], T0)
    assert (found.intensive_until_ms - T0, found.closely_until_ms - T0) == (
        intensive_h * HOUR_MS,
        closely_h * HOUR_MS,
    )


def test_the_lab_shortens_all_of_it() -> None:
    found = due(cadence(factor=20_160), T0, [], T0 + 100)
    assert (found.next_ms - T0, found.now_due) == (60_000, False)
    assert found.intensive_until_ms - T0 == round(DAY_MS / 20_160)


@pytest.mark.parametrize(
    "figures",
    [
        {},
        {"looks": []},
        {"looks": [{"until_s": 10}]},
        {"looks": [{"until_s": 10, "every_s": "2 h"}]},
        {"looks": [{"until_s": 10, "every_s": 5}, {"until_s": 10, "every_s": 5}]},
    ],
)
def test_a_cadence_that_is_none_is_refused(figures: Any) -> None:
    with pytest.raises(UsageError, match="cadence"):
        cadence(figures)
