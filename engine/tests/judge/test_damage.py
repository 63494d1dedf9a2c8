"""Evidence that is missing, damaged or not what was ordered: never PASS, and the host is named."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cfn.errors import UsageError
from cfn.judge.judge import judge
from cfn.judge.request import read_request
from cfn.metrics.times import format_ms

FULL_S = 66
SINCE_MS = 1_700_000_000_000


@pytest.mark.parametrize(
    ("evidence", "verdict", "said"),
    [
        (None, "NO_DATA", "h2: no evidence"),
        ({"error": "unreachable"}, "ERROR", "h2: unreachable"),
        ("text", "ERROR", "h2: its evidence is not an object"),
        ({}, "ERROR", "h2: its evidence is malformed"),
        ({"v": 1}, "ERROR", "h2: its evidence is malformed"),
    ],
)
def test_a_host_without_usable_evidence_is_named(
    fleet: Any, evidence: object, verdict: str, said: str
) -> None:
    request = fleet.write(FULL_S).request(FULL_S)
    request["evidence"]["h2"] = evidence
    found = judge(read_request(request))
    assert found["verdict"] == verdict
    assert said in found["reasons"][0]
    del request["evidence"]["h2"]
    assert judge(read_request(request))["verdict"] == "NO_DATA"


@pytest.mark.parametrize("name", ["events", "samples"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(random.Random(3).randbytes(100_000)),  # noqa: S311
        lambda path: path.write_text(path.read_text().replace(":", ": NaN, ", 50_000)),
        lambda path: path.write_text("".join('{"v": 1, "memory_kb": NaN}\n' for _ in range(500))),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 3]),
    ],
    ids=["missing", "empty", "binary", "half-nan", "nan", "cut"],
)
def test_damaged_files_never_pass(fleet: Any, name: str, damage: Callable[[Any], object]) -> None:
    fleet.write(FULL_S)
    tree = fleet.tree("h2")
    damage(tree.events if name == "events" else tree.samples)
    assert fleet.judge(FULL_S)["verdict"] not in ("PASS", "FAIL")


def test_a_cut_last_line_is_no_damage(fleet: Any) -> None:
    fleet.write(FULL_S)
    with fleet.tree("h1").events.open("a") as file:
        file.write('{"v": 1, "type": "coordi')
    assert fleet.judge(FULL_S)["verdict"] == "PASS"


def test_lost_lines_above_a_percent_are_an_error(fleet: Any) -> None:
    fleet.write(FULL_S)
    path = fleet.tree("h1").events
    lines = path.read_text().splitlines(keepends=True)
    for number in range(1_000, 1_040):
        lines[number] = lines[number][:50] + "\n"
    path.write_text("".join(lines))
    verdict = fleet.judge(FULL_S)
    assert (verdict["verdict"], verdict["exit_code"]) == ("ERROR", 13)
    assert "h1: 40 lines of its events are damaged" in verdict["reasons"][0]


def test_a_split_that_is_not_as_ordered_is_an_error(fleet: Any) -> None:
    fleet.write(FULL_S)
    path = fleet.tree("h3").events
    lines = path.read_text().splitlines(keepends=True)
    number = next(number for number in range(1_000, 2_000) if '"ordered": "v2"' in lines[number])
    lines[number] = lines[number].replace('"ordered": "v2"', '"ordered": "v1"')
    path.write_text("".join(lines))
    verdict = fleet.judge(FULL_S)
    assert verdict["verdict"] == "ERROR"
    assert "the split is not what was ordered" in verdict["reasons"][0]


def test_a_flip_that_is_younger_than_a_bucket_has_not_settled(fleet: Any) -> None:
    now_s = FULL_S + 1.5
    flipped = {
        "since": format_ms(SINCE_MS + int(1000 * (now_s - 0.5))),
        "ordered": {"version": "v2", "traffic_pct": 5},
    }
    verdict = fleet.write(now_s).judge(now_s, **flipped)
    assert verdict["verdict"] == "INCONCLUSIVE"
    seen = [result for result in verdict["results"] if result["where"] != "the ledger"]
    assert not any(result["verdict"] == "PASS" for result in seen)


@pytest.mark.parametrize(
    "ordered", [{"version": "v2", "traffic_pct": 5}, {"version": "v1", "traffic_pct": 0}]
)
def test_a_host_that_runs_something_else_is_an_error(fleet: Any, ordered: dict[str, Any]) -> None:
    verdict = fleet.write(FULL_S).judge(FULL_S, ordered=ordered)
    assert verdict["verdict"] == "ERROR"
    assert "it runs v2 10 %, ordered is" in verdict["reasons"][0]


def test_requests_of_another_generation_are_left_out_by_name(fleet: Any) -> None:
    fleet.write(FULL_S)
    path = fleet.tree("h1").events
    head, *lines = path.read_text().splitlines(keepends=True)

    def to_v1(line: str) -> str:
        line = line.replace('"generation": 7', '"generation": 6').replace(
            '"ordered": "v2"', '"ordered": "v1"'
        )
        return line.replace('"traffic_pct": 10.0', '"traffic_pct": 0')

    path.write_text("".join([to_v1(head), head, *map(to_v1, lines[:400]), *lines[400:]]))
    verdict = fleet.judge(FULL_S)
    left_out = verdict["hosts"]["h1"]["left_out"]
    assert left_out == {"6": 280}  # of 400 requests in 13 s, those in the window, from second 4 on
    assert verdict["observed"]["v1_requests"] + verdict["observed"]["v2_requests"] == 3 * 62 * 30 - 280


@pytest.mark.parametrize(
    ("since_s", "until_s", "bucket_ms", "said"),
    [
        (6, 66, 1_000, "buckets of 1000 ms; 2000 ms were asked for"),
        (20, 66, 2_000, "does not cover the window"),
        (6, 50, 2_000, "does not cover the window"),
    ],
)
def test_evidence_for_another_window_is_an_error(
    fleet: Any, since_s: int, until_s: int, bucket_ms: int, said: str
) -> None:
    request = fleet.write(FULL_S).request(FULL_S)
    request["evidence"]["h1"] = fleet.reduced("h1", since_s, until_s, bucket_ms)
    verdict = judge(read_request(request))
    assert verdict["verdict"] == "ERROR"
    assert said in verdict["reasons"][0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_the_evidence_ever_crashes_the_judge_or_turns_a_fail_into_a_pass(
    fleet: Any, behaviour: Any, data: st.DataObject
) -> None:
    if not fleet.evidence:
        fleet.evidence = fleet.write(20, behaviour(undelivered_pct=40, requests_per_s=10)).request(20)
    request = json.loads(json.dumps(fleet.evidence))
    assert judge(read_request(request))["verdict"] == "FAIL"
    for _ in range(data.draw(st.integers(1, 4))):
        node: Any = request["evidence"]
        path: list[Any] = []
        while isinstance(node, dict | list) and node and (not path or data.draw(st.integers(0, 5)) > 0):
            path.append(
                data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            )
            parent, node = node, node[path[-1]]
        if path:
            parent[path[-1]] = data.draw(
                st.sampled_from([None, -1, 0, 10**30, 1e308, float("nan"), "", "x", [], {}, True])
            )
    try:
        checked = read_request(request)
    except UsageError:  # NaN: no JSON, refused unjudged
        return
    assert judge(checked)["verdict"] != "PASS"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_random_damage_to_the_files_passes_a_bad_v2(
    fleet: Any, behaviour: Any, data: st.DataObject
) -> None:
    fleet.hosts = ("h1",)
    fleet.write(FULL_S, behaviour(undelivered_pct=30, requests_per_s=15))
    tree = fleet.tree("h1")
    for path in (tree.events, tree.samples):
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(0, 60))):
            place = data.draw(st.integers(0, len(content) - 1))
            content[place : place + data.draw(st.integers(0, 200))] = data.draw(st.binary(max_size=5))
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    assert fleet.judge(FULL_S)["verdict"] != "PASS"
