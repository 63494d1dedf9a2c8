"""The stage table: it loads, every criterion can be judged as written, and the plan's figures are in it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cfn.config import KEYS
from cfn.judge.criterion import Criterion, read_criterion
from cfn.judge.measures import MEASURES
from cfn.judge.timescale import TimeScale

FILE = Path(__file__).parents[3] / "inventories/common/group_vars/all/stages.yml"
TABLE: dict[str, Any] = yaml.safe_load(FILE.read_text())["cfn_stages"]
DOCUMENT = (Path(__file__).parents[3] / "docs/reference/stages.md").read_text()
KINDS = ("staging", "production")
STAGES = ("stage1", "stage2", "stage3")


def criteria() -> Iterator[tuple[str, dict[str, Any], float]]:
    for stage, entry in TABLE.items():
        for kind in KINDS:
            for each in entry.get(kind, {}).get("criteria", []):
                yield f"{stage}-{kind}-{each['name']}", each, entry[kind]["window_s"]
        for each in entry["triggers"]:
            yield f"{stage}-{each['name']}", each, entry["production"]["window_s"]


def read(stage: str, kind: str) -> dict[str, Criterion]:
    entry = TABLE[stage]
    window_s = entry["production" if kind == "triggers" else kind]["window_s"]
    raw = entry["triggers"] if kind == "triggers" else entry[kind]["criteria"]
    return {each["name"]: read_criterion(each, window_s=window_s) for each in raw}


@pytest.mark.parametrize(("criterion", "window_s"), [pytest.param(c, w, id=n) for n, c, w in criteria()])
def test_every_criterion_is_valid_and_its_metric_known(criterion: dict[str, Any], window_s: float) -> None:
    known = read_criterion(criterion, window_s=window_s)
    scaled = TimeScale(10_080).criterion(known)
    assert scaled.window_s >= 10 * scaled.bucket_s


def test_the_stages_are_there() -> None:
    assert list(TABLE) == [*STAGES, "epic"]


@pytest.mark.parametrize("stage", TABLE)
def test_names_are_unique_within_what_one_request_holds(stage: str) -> None:
    for kind in KINDS:
        if kind in TABLE[stage]:
            names = [each["name"] for each in TABLE[stage][kind]["criteria"] + TABLE[stage]["triggers"]]
            assert len(names) == len(set(names))


@pytest.mark.parametrize("stage", STAGES)
def test_the_configuration_is_one_that_the_engine_takes(stage: str) -> None:
    keys = {key.name: key for key in KEYS}
    for name, value in TABLE[stage]["config"].items():
        keys[name].parse(str(value).lower())


@pytest.mark.parametrize("stage", TABLE)
def test_nothing_that_decides_is_left_to_a_point_estimate_that_is_looked_at_early(stage: str) -> None:
    """A rate or a quantile is proved; an exact 100 %, which no number of requests proves, is not."""
    for kind in KINDS:
        for name, criterion in (read(stage, kind) if kind in TABLE[stage] else {}).items():
            rate = MEASURES[criterion.metric].statistics == {"mean": "pct"}
            if criterion.quantile is not None or (rate and criterion.threshold < 100):
                assert criterion.proved, name


@pytest.mark.parametrize("stage", TABLE)
def test_a_dry_run_is_named_in_the_documentation(stage: str) -> None:
    for kind in (*KINDS, "triggers"):
        if kind == "triggers" or kind in TABLE[stage]:
            dry = [name for name, criterion in read(stage, kind).items() if criterion.dry_run]
            assert all(f"`{name}`" in DOCUMENT for name in dry), dry


@pytest.mark.parametrize(
    ("stage", "kind", "name", "figures"),
    [
        ("stage1", "staging", "coordination_time", ("lt", 5_000, "ms")),
        ("stage1", "production", "coordination_time", ("lt", 5_000, "ms")),
        ("stage1", "production", "delivery_rate", ("ge", 95, "pct")),
        ("stage1", "production", "error_rate", ("le", 1, "pct")),
        ("stage1", "staging", "memory_stable", ("le", 10, "pct")),
        ("stage1", "triggers", "trigger_coordination_time", ("le", 15_000, "ms")),
        ("stage1", "triggers", "trigger_delivery_rate", ("ge", 80, "pct")),
        ("stage1", "triggers", "trigger_fd_exhaustion", ("le", 12_000, "count")),
        ("stage1", "triggers", "trigger_memory", ("le", 8_000_000, "kb")),
        ("stage1", "triggers", "trigger_tmpfs", ("le", 90, "pct")),
        ("stage2", "staging", "coordination_time", ("lt", 12_000, "ms")),
        ("stage2", "production", "mesh_delivery_rate", ("ge", 100, "pct")),
        ("stage2", "production", "worker_delivery_rate", ("ge", 90, "pct")),
        ("stage2", "production", "failover_time", ("lt", 30, "s")),
        ("stage2", "triggers", "trigger_coordination_time", ("le", 25_000, "ms")),
        ("stage2", "triggers", "trigger_mesh_delivery", ("ge", 95, "pct")),
        ("stage2", "triggers", "trigger_worker_delivery", ("ge", 80, "pct")),
        ("stage2", "triggers", "trigger_cascade", ("ge", 6, "count")),
        ("stage2", "staging", "workers_balanced", ("le", 10, "pct")),
        ("stage2", "staging", "no_coordinator_crash", ("le", 0, "count")),
        ("stage3", "staging", "coordination_time", ("lt", 10_000, "ms")),
        ("stage3", "staging", "coordination_time_large", ("lt", 20_000, "ms")),
        ("stage3", "staging", "matches_mvp", ("ge", 97.8, "pct")),
        ("stage3", "staging", "memory_coordinator", ("lt", 1_500_000, "kb")),
        ("stage3", "staging", "memory_worker", ("lt", 100_000, "kb")),
        ("stage1", "staging", "health_checks_accurate", ("lt", 1, "pct")),
        ("stage1", "production", "error_vs_v1", ("le", 1.25, "ratio")),
        ("stage2", "production", "coordination_time_p95_vs_v1", ("le", 1.25, "ratio")),
        ("epic", "production", "no_critical_incident", ("le", 0, "count")),
        ("epic", "production", "v1_restoration_documented", ("ge", 1, "count")),
        ("stage3", "staging", "fd_within_limit", ("lt", 10_000, "count")),
        ("stage3", "staging", "tmpfs_within_limit", ("lt", 800, "mb")),
        ("stage3", "production", "coordination_time", ("lt", 10_000, "ms")),
        ("stage3", "production", "delivery_rate", ("ge", 90, "pct")),
        ("stage3", "triggers", "trigger_coordination_time", ("le", 30_000, "ms")),
        ("stage3", "triggers", "trigger_delivery_rate", ("ge", 80, "pct")),
        ("epic", "production", "capacity", ("ge", 500, "count")),
        ("epic", "production", "coordination_time", ("lt", 10_000, "ms")),
    ],
)
def test_the_figures_of_the_plan(stage: str, kind: str, name: str, figures: tuple[str, float, str]) -> None:
    criterion = read(stage, kind)[name]
    assert (criterion.compare, criterion.threshold, criterion.unit) == figures


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("stage1.traffic", {"min_pct": 1, "max_pct": 10, "default_pct": 10}),
        ("stage2.traffic", {"min_pct": 11, "max_pct": 50, "default_pct": 50}),
        ("stage3.traffic", {"min_pct": 51, "max_pct": 100, "default_pct": 75}),
        ("stage1.staging.window_s", 3 * 86_400),
        ("stage1.production.window_s", 7 * 86_400),
        ("stage1.production.watch_closely_s", 2 * 3_600),
        ("stage3.production.intensive_logging_s", 8 * 3_600),
        ("epic.production.window_s", 14 * 86_400),
        ("stage1.objectives.rollback_s", 300),
        ("stage3.objectives.rollback_s", 900),
        ("stage2.objectives.failover_s", 30),
        ("stage3.objectives.rollback_to_pct", [50, 10, 0]),
        ("epic.objectives.v1_restored_s", 3_600),
    ],
)
def test_windows_objectives_and_ranges(path: str, value: object) -> None:
    found: Any = TABLE
    for part in path.split("."):
        found = found[part]
    assert found == value


@pytest.mark.parametrize("stage", STAGES)
def test_looks_reach_the_end_of_their_window(stage: str) -> None:
    for kind in KINDS:
        looks = TABLE[stage][kind]["looks"]
        untils = [look["until_s"] for look in looks]
        assert untils == sorted(untils)
        assert untils[-1] >= TABLE[stage][kind]["window_s"]
