"""The judge from end to end: files as the router and the collector write them, in; a verdict, out."""

import io
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cfn.commands.gate import main
from cfn.errors import DamagedError, UsageError
from cfn.judge import judge as judge_module
from cfn.judge.judge import judge
from cfn.judge.render import render
from cfn.judge.request import read_request

FULL_S = 66


def by_name(verdict: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in verdict["results"]}


def broken(verdict: dict[str, Any]) -> set[str]:
    return {each["name"] for each in verdict["results"] if each["verdict"] == "FAIL"}


# What V2 does


@pytest.mark.parametrize("part", ["staging", "production"])
def test_a_perfect_v2_passes(fleet: Any, part: str) -> None:
    fleet.traffic_pct = 100.0 if part == "staging" else 10.0
    verdict = fleet.write(FULL_S).judge(FULL_S, part=part)
    assert (verdict["verdict"], verdict["exit_code"]) == ("PASS", 0), verdict["reasons"]
    assert verdict["observed"]["v2_share_pct"] == pytest.approx(fleet.traffic_pct, abs=1.5)
    assert "1:10080; worth nothing outside the lab" in verdict["time_scale"]["note"]


@pytest.mark.parametrize(
    ("changes", "seconds", "culprits"),
    [
        ({"undelivered_pct": 30}, FULL_S, {"trigger_delivery_rate", "delivery_rate", "error_rate"}),
        ({"undelivered_pct": 30}, 20, {"trigger_delivery_rate", "delivery_rate", "error_rate"}),
        ({"failed_pct": 100}, 20, {"error_rate"}),
        ({"failed_pct": 4}, FULL_S, {"error_rate"}),
        ({"v2_time_ms": 9_000}, FULL_S, {"coordination_time"}),
        ({"v2_time_ms": 20_000}, 20, {"trigger_coordination_time", "coordination_time"}),
        ({"crash_at_s": 10}, 20, {"trigger_crash", "no_crash"}),
        ({"crash_at_s": 1}, 20, {"trigger_crash", "no_crash"}),
        ({"fallback": "error"}, 20, {"no_fallback"}),
        ({"tmpfs_pct": 91}, 20, {"trigger_tmpfs", "tmpfs_free"}),
        ({"fd_count": 12_001}, 20, {"trigger_fd_exhaustion"}),
    ],
)
def test_a_degraded_v2_fails_by_name(
    fleet: Any, behaviour: Any, changes: dict[str, Any], seconds: int, culprits: set[str]
) -> None:
    verdict = fleet.write(seconds, behaviour(**changes)).judge(seconds)
    assert (verdict["verdict"], verdict["exit_code"]) == ("FAIL", 10)
    assert broken(verdict) == culprits
    assert all(any(name in reason for reason in verdict["reasons"]) for name in culprits)


def test_growing_memory_fails_in_staging(fleet: Any, behaviour: Any) -> None:
    fleet.traffic_pct = 100.0
    verdict = fleet.write(FULL_S, behaviour(memory_growth_pct=200)).judge(FULL_S, part="staging")
    assert broken(verdict) == {"memory_stable"}


def test_the_reason_names_metric_value_unit_samples_and_limit(fleet: Any, behaviour: Any) -> None:
    verdict = fleet.write(FULL_S, behaviour(v2_time_ms=9_000)).judge(FULL_S)
    result = by_name(verdict)["coordination_time"]
    for part in ("p95", "coordination_time_ms", "ms", f"{result['samples']} requests", "below 5000 ms"):
        assert part in result["reason"]
    assert result["observed"] > 9_000


def test_what_v1_rescued_stays_the_failure_of_v2(fleet: Any, behaviour: Any) -> None:
    verdict = fleet.write(20, behaviour(undelivered_pct=30, fallback="delivery")).judge(20)
    assert {"delivery_rate", "no_fallback"} <= broken(verdict)


def test_a_few_errors_early_are_held_until_they_prove_something(fleet: Any, behaviour: Any) -> None:
    """Half a percent of errors can look like more than one percent in the first minutes."""
    verdict = fleet.write(12, behaviour(failed_pct=1.2)).judge(12)
    assert verdict["verdict"] == "INCONCLUSIVE"
    assert by_name(verdict)["error_rate"]["proof"]["proved_broken"] is False


# Time and evidence


def test_a_window_that_is_not_full_says_when_to_ask_again(fleet: Any) -> None:
    early = fleet.write(30).judge(30)
    assert (early["verdict"], early["exit_code"]) == ("INCONCLUSIVE", 11)
    assert early["ask_again_at"] == "2023-11-14T22:14:24.000Z"
    assert any("time until" in each for each in early["missing"])
    fleet.write(64)
    assert fleet.judge(64.0)["verdict"] == "PASS"
    assert fleet.judge(63.9)["verdict"] == "INCONCLUSIVE"


def test_while_traffic_settles_nothing_is_judged(fleet: Any, behaviour: Any) -> None:
    verdict = fleet.write(3, behaviour(v2_time_ms=60_000)).judge(3)
    assert verdict["verdict"] == "INCONCLUSIVE"
    assert "settling" in by_name(verdict)["coordination_time"]["reason"]


def test_idle_is_held_and_never_failed(fleet: Any, behaviour: Any) -> None:
    verdict = fleet.write(FULL_S, behaviour(requests_per_s=0)).judge(FULL_S)
    assert verdict["verdict"] == "INCONCLUSIVE"
    assert "idle" in verdict["reasons"][0]
    assert verdict["observed"]["v2_share_pct"] is None


def test_too_few_requests_are_held_and_counted(fleet: Any, behaviour: Any) -> None:
    verdict = fleet.write(FULL_S, behaviour(requests_per_s=1)).judge(FULL_S)
    assert verdict["verdict"] == "INCONCLUSIVE"
    assert any("more" in each for each in verdict["missing"])


def test_staging_wants_its_limits_proved(fleet: Any, behaviour: Any) -> None:
    fleet.traffic_pct = 100.0
    verdict = fleet.write(FULL_S, behaviour(requests_per_s=1)).judge(FULL_S, part="staging")
    assert by_name(verdict)["error_rate"]["verdict"] == "INCONCLUSIVE"
    assert "343 prove it" in by_name(verdict)["error_rate"]["missing"]
    assert by_name(verdict)["delivery_rate"]["verdict"] == "PASS"


@pytest.mark.parametrize("silent_s", [(0, FULL_S), (20, 45), (55, FULL_S), (3, 14)])
def test_a_silent_collector_is_no_data(fleet: Any, behaviour: Any, silent_s: tuple[float, float]) -> None:
    verdict = fleet.write(FULL_S, behaviour(collector_silent_s=silent_s)).judge(FULL_S)
    assert (verdict["verdict"], verdict["exit_code"]) == ("NO_DATA", 12)


def test_starts_that_cannot_be_read_are_no_sign_of_health(fleet: Any, behaviour: Any) -> None:
    verdict = fleet.write(FULL_S, behaviour(starts_readable=False)).judge(FULL_S)
    assert verdict["verdict"] == "NO_DATA"
    assert by_name(verdict)["no_crash"]["verdict"] == "NO_DATA"


def test_a_fail_outweighs_missing_data(fleet: Any, behaviour: Any) -> None:
    how = behaviour(undelivered_pct=30, collector_silent_s=(20, 45))
    assert fleet.write(FULL_S, how).judge(FULL_S)["verdict"] == "FAIL"


# Damaged and missing evidence


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
    old = head.replace('"generation": 7', '"generation": 6').replace(
        '"traffic_pct": 10.0', '"traffic_pct": 0'
    )
    moved = [
        line.replace('"generation": 7', '"generation": 6').replace('"traffic_pct": 10.0', '"traffic_pct": 0')
        for line in lines[:400]
        if '"ordered": "v1"' in line
    ]
    path.write_text("".join([old, head, *moved, *lines[400:]]))
    verdict = fleet.judge(FULL_S)
    assert verdict["hosts"]["h1"]["left_out"].keys() == {"6"}


@pytest.mark.parametrize(
    ("key", "value"),
    [("bucket_s", 4.0), ("since", "2023-11-14T22:14:00.000Z"), ("until", "2023-11-14T22:14:00.000Z")],
)
def test_evidence_for_another_window_is_an_error(fleet: Any, key: str, value: object) -> None:
    request = fleet.write(FULL_S).request(FULL_S)
    request["evidence"]["h1"][key] = value
    assert judge(read_request(request))["verdict"] == "ERROR"


def test_an_exception_in_the_judge_is_an_error(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    request = read_request(fleet.write(FULL_S).request(FULL_S))

    def fails(*_: object) -> None:
        raise ZeroDivisionError("by accident")

    with monkeypatch.context() as patched:
        patched.setattr(judge_module, "evaluate", fails)
        verdict = judge(request)
        assert (verdict["verdict"], len(verdict["results"])) == ("ERROR", 17)
    monkeypatch.setattr(judge_module, "_compose", fails)
    assert judge(request)["verdict"] == "ERROR"


def test_nothing_but_dry_runs_is_never_a_pass(fleet: Any) -> None:
    request = fleet.write(FULL_S).request(FULL_S)
    for each in request["criteria"] + request["triggers"]:
        each["dry_run"] = True
    verdict = judge(read_request(request))
    assert verdict["verdict"] == "ERROR"


def test_a_dry_run_is_shown_and_not_counted(fleet: Any, behaviour: Any) -> None:
    request = fleet.write(FULL_S, behaviour(v2_time_ms=9_000)).request(FULL_S)
    for each in request["criteria"]:
        each["dry_run"] = each.get("dry_run", False) or each["name"] == "coordination_time"
    verdict = judge(read_request(request))
    assert verdict["verdict"] == "PASS"
    assert by_name(verdict)["coordination_time"]["verdict"] == "FAIL"


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


# Requests


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"surprise": 1}, "unknown: surprise"),
        ({"v": 2}, "version 2"),
        ({"hosts": []}, "at least one host"),
        ({"hosts": ["h1", "h1", "h2", "h3"]}, "each once"),
        ({"hosts": ["h1"]}, "evidence of h2, h3"),
        ({"criteria": [], "triggers": []}, "nothing to judge"),
        ({"criteria": [{"name": "x", "metric": "y"}]}, "criterion 'x'"),
        ({"time_factor": 0}, "time_factor is 0"),
        ({"now": "soon"}, "not a time"),
        ({"since": "2030-01-01T00:00:00.000Z"}, "since lies after now"),
        ({"ordered": {"version": "v2", "traffic_pct": 175}}, "traffic_pct is 175"),
        ({"ordered": {"version": "v2", "traffic_pct": "abc"}}, "abc"),
        ({"ordered": {"version": "v2", "traffic_pct": "nan"}}, "nan"),
    ],
)
def test_a_request_that_cannot_be_judged_is_refused(fleet: Any, changes: dict[str, Any], said: str) -> None:
    request = fleet.write(4).request(4)
    with pytest.raises(UsageError, match=said):
        read_request(request | changes)


def test_a_missing_field_and_a_doubled_name_are_refused(fleet: Any) -> None:
    request = fleet.write(4).request(4)
    with pytest.raises(UsageError, match="missing: stage"):
        read_request({key: value for key, value in request.items() if key != "stage"})
    with pytest.raises(UsageError, match="two criteria have the name coordination_time"):
        read_request(request | {"criteria": request["criteria"] * 2})
    odd = request["criteria"][0] | {"name": "odd", "bucket_s": 86_400}
    with pytest.raises(UsageError, match="same bucket_s"):
        read_request(request | {"criteria": [*request["criteria"], odd]})


# The command


def run(monkeypatch: pytest.MonkeyPatch, request: object, *arguments: str) -> int:
    monkeypatch.setattr(
        "sys.stdin", io.StringIO(request if isinstance(request, str) else json.dumps(request))
    )
    return main(list(arguments))


def test_the_command_and_its_replay(
    fleet: Any,
    behaviour: Any,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = fleet.write(FULL_S).request(FULL_S)
    assert run(monkeypatch, good) == 0
    assert capsys.readouterr().out.startswith("PASS  lab stage1 step production\n")
    bad = fleet.write(20, behaviour(undelivered_pct=30)).request(20)
    assert run(monkeypatch, bad, "--json") == 10
    assert json.loads(capsys.readouterr().out)["verdict"] == "FAIL"
    assert run(monkeypatch, bad, "--record") == 10
    record = tmp_path / "record.json"
    record.write_text(capsys.readouterr().out)
    assert main(["--replay", str(record)]) == 0
    changed = json.loads(record.read_text())
    changed["verdict"]["verdict"] = "PASS"
    record.write_text(json.dumps({"data": changed}))
    with pytest.raises(DamagedError, match="another one when recomputed"):
        main(["--replay", str(record)])


def test_the_plan_is_what_metrics_is_asked_for(
    fleet: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    request = fleet.write(4).request(FULL_S)
    del request["evidence"]
    assert run(monkeypatch, request, "--plan") == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["since"], plan["until"], plan["bucket_s"]) == (
        "2023-11-14T22:13:26.000Z",
        "2023-11-14T22:14:26.000Z",
        2.0,
    )
    assert plan["argv"][:2] == ["cfn", "metrics"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"now": NaN}', "null"])
def test_what_is_no_request_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    with pytest.raises(UsageError):
        run(monkeypatch, text)


def test_a_verdict_is_readable(fleet: Any, behaviour: Any) -> None:
    text = render(fleet.write(20, behaviour(undelivered_pct=30)).judge(20))
    assert text.splitlines()[0].startswith("FAIL")
    assert "ordered v2 10 %" in text
    assert "worth nothing outside the lab" in text
    assert "(not counted)" in text
