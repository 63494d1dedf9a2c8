"""The split: its documented test vector, and what holds for every id."""

import hashlib
import hmac
import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfn.config import Config
from cfn.router.decision import route
from cfn.router.split import BUCKETS, bucket, ordered_version

VECTOR = json.loads((Path(__file__).parents[3] / "docs/reference/split-vector.json").read_text())

ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,40}", fullmatch=True)
percentages = st.integers(0, 10_000).map(lambda hundredths: Decimal(hundredths) / 100)


@pytest.mark.parametrize(("task_id", "expected"), VECTOR["buckets"].items())
def test_vector(task_id: str, expected: int) -> None:
    assert bucket(VECTOR["key"], task_id) == expected


@pytest.mark.parametrize("case", VECTOR["cases"], ids=lambda case: case["split_on"][:20])
def test_vector_of_other_keys(case: dict[str, Any]) -> None:
    digest = hmac.digest(case["key"].encode(), case["split_on"].encode(), hashlib.sha256)
    assert digest[:8].hex() == case["first_8_bytes"]
    assert bucket(case["key"], case["split_on"]) == case["bucket"]
    lowest = Decimal(str(case["on_v2_from_pct"]))
    assert ordered_version("v2", lowest, case["bucket"]) == "v2"
    assert ordered_version("v2", lowest - Decimal("0.01"), case["bucket"]) == "v1"


@pytest.mark.parametrize("edge", VECTOR["edges"], ids=lambda edge: str(edge["bucket"]))
def test_vector_at_the_edges_of_percentages(edge: dict[str, Any]) -> None:
    config = Config(coordination_version="v2", split_key=VECTOR["key"])
    for text in ("0", "0.5", "10", "50", "75", "100"):
        where = route(replace(config, traffic_pct=Decimal(text)), edge["task_id"], 1)
        assert where.bucket == edge["bucket"]
        assert where.ordered == ("v2" if edge["bucket"] < float(text) * 100 else "v1")


@given(key=ids, task_id=ids, low=percentages, high=percentages)
def test_a_task_on_v2_stays_there_as_the_percentage_rises(
    key: str, task_id: str, low: Decimal, high: Decimal
) -> None:
    low, high = sorted((low, high))
    task_bucket = bucket(key, task_id)
    if ordered_version("v2", low, task_bucket) == "v2":
        assert ordered_version("v2", high, task_bucket) == "v2"


@given(task_bucket=st.integers(0, BUCKETS - 1), percentage=percentages)
def test_exact_at_the_ends_and_v1_means_v1(task_bucket: int, percentage: Decimal) -> None:
    assert ordered_version("v2", Decimal(0), task_bucket) == "v1"
    assert ordered_version("v2", Decimal(100), task_bucket) == "v2"
    assert ordered_version("v1", percentage, task_bucket) == "v1"


@pytest.mark.parametrize("percentage", ["0.5", "10", "50", "75"])
def test_share_of_100_000_ids(percentage: str) -> None:
    requests, share = 100_000, float(percentage) / 100
    served = sum(
        ordered_version("v2", Decimal(percentage), bucket("some-key", f"task-{n}")) == "v2"
        for n in range(requests)
    )
    chi_square = (served - requests * share) ** 2 / (requests * share * (1 - share))
    assert chi_square < 10.83  # p > 0.001 with one degree of freedom


def test_more_agents_than_the_stage_allows_are_outside_the_split() -> None:
    config = Config(coordination_version="v2", traffic_pct=Decimal(100), max_agents=100)
    assert (route(config, "t", 100).ordered, route(config, "t", 100).reason) == ("v2", "split")
    assert (route(config, "t", 101).ordered, route(config, "t", 101).reason) == ("v1", "over_capacity")
    chosen = route(config, "t", 101, override="v2")
    assert (chosen.ordered, chosen.reason) == ("v1", "over_capacity")  # also a tester's


@given(first=ids, second=ids, sticky_key=ids, percentage=percentages)
def test_one_sticky_key_is_on_one_version(
    first: str, second: str, sticky_key: str, percentage: Decimal
) -> None:
    config = Config(coordination_version="v2", traffic_pct=percentage)
    assert route(config, first, 1, sticky_key=sticky_key) == route(config, second, 1, sticky_key=sticky_key)
    assert route(config, sticky_key, 1) == route(config, first, 1, sticky_key=sticky_key)
