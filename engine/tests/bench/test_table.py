"""Rows: figures, ratios, refusals, and the bars."""

import json

import pytest

from engine.bench.bars import BARS, Bar, verdicts
from engine.bench.table import Row, growth, measured, refused, render


def test_a_row_is_the_median_and_its_ratios_are_those_of_the_medians() -> None:
    row = measured(
        "cold", [30.0, 10.0, 20.0], against={"limit": [4.0, 5.0, 6.0], "redis": [400.0], "nats": [0.0]}
    )
    assert (row.value, row.samples, row.min, row.max) == (20.0, 3, 10.0, 30.0)
    assert (row.ratio_to_limit, row.ratio_to_redis, row.ratio_to_nats) == (4.0, 0.05, None)


def test_what_was_not_compared_has_no_ratio() -> None:
    assert measured("cold", [1.0]).ratio_to_limit is None


def test_a_row_as_json() -> None:
    value = json.loads(json.dumps(measured("warm", [1.0, 2.0], "count").as_json(), allow_nan=False))
    assert value == {
        "name": "warm", "value": 1.5, "unit": "count", "samples": 2, "min": 1.0, "max": 2.0,
        "ratio_to_limit": None, "ratio_to_redis": None, "ratio_to_nats": None,
        "busy_pct": None, "refused": "",
    }  # fmt: skip


def test_a_refusal_is_never_a_number() -> None:
    row = refused("cold", "topology hybrid is not available")
    assert (row.value, row.min, row.max, row.samples) == (None, None, None, 0)
    text = render([row, measured("warm", [1.0])])
    assert "cold       refused: topology hybrid is not available" in text
    assert len(text.splitlines()) == 3


def test_growth_is_the_cost_of_one_agent_against_that_of_one_in_a_small_swarm() -> None:
    rows = [measured("small", [50.0]), measured("large", [1_500.0])]
    assert growth("growth", rows, ("small", 100), ("large", 2_000)).value == 1.5


@pytest.mark.parametrize("rows", [[], [measured("small", [50.0]), refused("large", "no")]])
def test_growth_needs_both_rows(rows: list[Row]) -> None:
    assert growth("growth", rows, ("small", 100), ("large", 2_000)).refused


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            measured("cold", [20.0], against={"limit": [4.0]}),
            "met          cold: ratio_to_limit 5",
        ),
        (
            measured("cold", [21.0], against={"limit": [4.0]}),
            "NOT MET      cold: ratio_to_limit 5.25",
        ),
        (measured("cold", [20.0]), "not measured cold: ratio_to_limit -"),
        (refused("cold", "no"), "not measured cold: ratio_to_limit -"),
    ],
)
def test_a_bar(row: Row, words: str) -> None:
    assert list(verdicts([row], [Bar("cold", "ratio_to_limit", 5)])) == [f"{words}, at most 5"]


def test_a_bar_on_the_worst_sample() -> None:
    [line] = verdicts([measured("hang", [1.0, 1.0, 6_000.0])], [Bar("hang", "max", 5_000)])
    assert line == "NOT MET      hang: max 6,000, at most 5,000"


@pytest.mark.parametrize(("rate", "word"), [(30.0, "met    "), (29.0, "NOT MET")])
def test_a_bar_to_be_exceeded(rate: float, word: str) -> None:
    row = measured("rate", [rate], "1/s", against={"limit": [100.0]})
    [line] = verdicts([row], [Bar("rate", "ratio_to_limit", 0.3, least=True)])
    assert line == f"{word}      rate: ratio_to_limit {rate / 100:.4g}, at least 0.3"


def test_a_bar_whose_row_is_not_there_is_not_measured() -> None:
    assert all(line.startswith("not measured") for line in verdicts([]))
    assert len(list(verdicts([]))) == len(BARS)
