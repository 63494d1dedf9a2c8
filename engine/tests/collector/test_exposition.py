"""`/metrics`: each field of a sample under one name with unit and help; no series for what is absent."""

import re
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cfn.collector.exposition import EXPOSED, Exposition
from cfn.metrics.series import GAUGE_SERIES
from engine.tests.collector.test_collector import coordinated

FULL: dict[str, Any] = {each.field: 2.0 for each in EXPOSED} | {"starts": {"conductor": 3}}


def exposed(record: dict[str, Any], *ended: Any) -> dict[str, float]:
    exposition = Exposition()
    exposition.show(record, ended, in_force=None, as_ordered=lambda event: event.task_id != "t-4000")
    families = text_string_to_metric_families(generate_latest(exposition.registry).decode())
    return {
        sample.name + "".join(f",{key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_whole_sample_is_exposed_in_base_units() -> None:
    found = exposed(FULL)
    assert found["cfn_memory_bytes"] == 2_048
    assert found["cfn_tmpfs_used_ratio"] == 0.02
    assert found["cfn_coordination_time_seconds,quantile=0.95"] == 0.002
    assert found["cfn_delivery_ratio,level=mesh"] == 0.02
    assert found["cfn_unit_starts,unit=conductor"] == 3


def test_what_a_sample_lacks_has_no_series() -> None:
    found = exposed({"timestamp": 5.0})
    gauges = {name.split(",")[0] for name in found} & {each.name for each in EXPOSED}
    assert gauges == {"cfn_sample_timestamp_seconds"}


def test_coordinations_are_counted_by_ordered_version_within_the_split() -> None:
    ended = [
        coordinated(250, delivery_rate_pct=90.0),
        coordinated(4_000, fallback="time"),
        coordinated(1, ordered="v1", version="v1"),
        coordinated(9, ordered="v1", reason="over_capacity"),
    ]
    found = exposed({}, *ended)
    assert found["cfn_coordinations_total,ordered=v2,outcome=done"] == 2
    assert found["cfn_coordinations_total,ordered=v1,outcome=done"] == 1
    assert found["cfn_coordination_delivery_ratio_sum_total,ordered=v2"] == pytest.approx(1.9)
    assert found["cfn_coordination_duration_seconds_bucket,le=5.0,ordered=v2"] == 2
    assert found["cfn_coordination_duration_seconds_bucket,le=0.5,ordered=v2"] == 1
    assert (found["cfn_split_checked_total"], found["cfn_split_mismatches_total"]) == (4, 1)
    assert found["cfn_coordinations_outside_split_total"] == 1
    assert found["cfn_fallbacks_total,cause=time"] == 1


def test_every_name_says_its_unit_and_has_one_help() -> None:
    for each in EXPOSED:
        if each.scale in (0.001,):
            assert each.name.endswith("_seconds"), each
        elif each.scale == 0.01:
            assert each.name.endswith("_ratio"), each
        elif each.scale >= 1_024:
            assert "_bytes" in each.name, each
    for name in {each.name for each in EXPOSED}:
        assert re.fullmatch(r"cfn_[a-z0-9_]+", name)
        assert len([each for each in EXPOSED if each.name == name and each.help]) == 1, name


def test_what_is_exposed_is_what_the_gate_asks_a_prometheus_for() -> None:
    own = {each.field: (each.name, each.scale, each.label) for each in EXPOSED}
    for field, shown in GAUGE_SERIES.items():
        assert own[field] == (shown.series, shown.scale, shown.label)


def test_it_is_served_at_one_place_at_a_time(unused_tcp_port_factory: Callable[[], int]) -> None:
    first, second = unused_tcp_port_factory(), unused_tcp_port_factory()
    exposition = Exposition()
    exposition.show({"tmpfs_pct": 50.0}, (), in_force=None, as_ordered=lambda _: True)
    for port, other in ((first, second), (first, second), (second, first)):
        assert exposition.serve("127.0.0.1", port)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            assert b"cfn_tmpfs_used_ratio 0.5" in answer.read()
        with pytest.raises(urllib.error.URLError, match="refused"):
            urllib.request.urlopen(f"http://127.0.0.1:{other}/metrics")
    assert not Exposition().serve("127.0.0.1", second)
    assert exposition.serve("127.0.0.1", 0)
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{second}/metrics")
