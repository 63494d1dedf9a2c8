"""The simulator, and the judge over what it makes up."""

import io
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cfn.commands.gate import main as gate
from cfn.commands.metrics import collect
from cfn.commands.simulate import main
from cfn.errors import UsageError
from cfn.judge.judge import judge
from cfn.judge.request import read_request
from cfn.paths import Paths
from cfn.simulate.criteria import of_table
from cfn.simulate.damage import KINDS, damage, unpacked
from cfn.simulate.files import write_files
from cfn.simulate.request import SINCE_MS, simulated_evidence, simulated_request
from cfn.simulate.scenario import Scenario

TABLE = Path(__file__).parents[3] / "inventories/common/group_vars/all/stages.yml"
SHORT = {"hours": 4.0, "requests_per_h": 9_000.0, "bursts_per_day": 0.0, "hosts": 2, "error_pct": 0.2}


def verdict_of(kind: str = "production", **changes: Any) -> dict[str, Any]:
    scenario = Scenario.read(SHORT | changes)
    asked = of_table(TABLE, "stage1", kind) | {"window_s": (scenario.hours - 0.25) * 3_600}
    return judge(read_request(simulated_request(scenario, asked)))


def broken(verdict: dict[str, Any]) -> set[str]:
    return {each["name"] for each in verdict["results"] if each["verdict"] == "FAIL"}


# Scenarios


@pytest.mark.parametrize(
    ("changes", "wanted", "culprits"),
    [
        ({}, "PASS", set()),
        ({"error_pct": 0.0}, "PASS", set()),
        ({"clustering": 0.01}, "PASS", set()),
        ({"v2_error_factor": 20.0}, "FAIL", {"error_rate", "error_vs_v1"}),
        ({"step_at_h": 1.5, "step_factor": 50.0}, "FAIL", {"error_rate", "error_vs_v1"}),
        ({"v2_time_factor": 12.0}, "FAIL", {"coordination_time"}),
        ({"restart_at_h": 2.0}, "FAIL", {"trigger_crash", "no_crash"}),
        ({"reboot_at_h": 2.0}, "FAIL", {"trigger_crash", "no_crash"}),
        ({"gap_at_h": 1.0, "gap_h": 1.4}, "NO_DATA", set()),
        ({"clock_jump_at_h": 1.0, "clock_jump_s": 7_200.0}, "NO_DATA", set()),
        ({"idle_from_h": 0.0}, "INCONCLUSIVE", set()),
        ({"requests_per_h": 100.0}, "INCONCLUSIVE", set()),
    ],
)
def test_the_verdict_on_a_scenario(changes: dict[str, Any], wanted: str, culprits: set[str]) -> None:
    found = verdict_of(**changes)
    assert (found["verdict"], broken(found)) == (wanted, culprits), found["reasons"]


def test_a_perfect_v2_passes_staging_at_one_coordination_in_five_minutes() -> None:
    found = verdict_of(
        "staging", hours=72.5, requests_per_h=12.0, traffic_pct=100.0, error_pct=0.0, memory_noise=0.02
    )
    assert found["verdict"] == "PASS", found["reasons"]


def test_a_leak_of_a_percent_a_day_fails_staging_by_name() -> None:
    found = verdict_of(
        "staging", hours=72.5, requests_per_h=12.0, traffic_pct=100.0, error_pct=0.0, leak_pct_per_day=1.0
    )
    assert "memory_no_leak" in broken(found)


def test_what_hits_both_versions_is_not_v2s() -> None:
    """Bursts of forty times the errors, many a day: the limit may stay unproved, V2 is never to blame."""
    for seed in range(1, 7):
        found = verdict_of(seed=seed, bursts_per_day=30.0, burst_factor=40.0)
        assert not broken(found), found["reasons"]
        assert found["verdict"] in ("PASS", "INCONCLUSIVE")


# What the asker should do


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, "advance"),
        ({"v2_error_factor": 20.0}, "roll_back"),
        ({"idle_from_h": 0.0}, "hold"),
        ({"gap_at_h": 1.0, "gap_h": 1.4}, "hold"),  # it is back
        ({"idle_from_h": 0.0, "gap_at_h": 3.5, "gap_h": 9.0}, "fall_back"),
        ({"gap_at_h": 3.5, "gap_h": 9.0}, "fall_back"),
        ({"traffic_pct": 0.0, "gap_at_h": 3.5, "gap_h": 9.0}, "hold"),
    ],
)
def test_idle_is_held_and_blindness_falls_back(changes: dict[str, Any], advice: str) -> None:
    found = verdict_of(**changes)
    assert found["advice"] == advice, (found["verdict"], found["blind"])


def test_a_look_at_the_past_never_asks_for_a_change() -> None:
    scenario = Scenario.read(SHORT | {"v2_error_factor": 20.0})
    asked = of_table(TABLE, "stage1", "production") | {"window_s": 10_000, "retrospective": True}
    found = judge(read_request(simulated_request(scenario, asked)))
    assert (found["verdict"], found["advice"], found["retrospective"]) == ("FAIL", "hold", True)


# What people recorded


@pytest.mark.parametrize(
    ("facts", "wanted", "said"),
    [
        (None, "INCONCLUSIVE", "no_critical_incident"),
        ({"critical_incidents": 1, "incidents": ["db-down"], "attested": {"dashboards_healthy": True}},
         "FAIL", "db-down"),
        ({"critical_incidents": 0, "incidents": [], "attested": {}}, "INCONCLUSIVE", "dashboards_healthy"),
        ({"critical_incidents": 0, "incidents": [], "attested": {"dashboards_healthy": False}},
         "FAIL", "attested as not holding"),
    ],
)  # fmt: skip
def test_incidents_and_attestations_are_criteria(facts: object, wanted: str, said: str) -> None:
    scenario = Scenario.read(SHORT)
    asked = of_table(TABLE, "stage1", "production") | {"window_s": 13_500, "facts": facts}
    found = judge(read_request(simulated_request(scenario, asked)))
    assert found["verdict"] == wanted
    assert any(said in reason for reason in found["reasons"])


def test_facts_that_are_none_are_refused() -> None:
    request = simulated_request(Scenario.read(SHORT), of_table(TABLE, "stage1", "production"))
    wrong: list[Any] = [{}, {"critical_incidents": "none", "incidents": [], "attested": {}}, []]
    for facts in wrong:
        with pytest.raises(UsageError):
            read_request(request | {"facts": facts})


# Damage


def healthy() -> str:
    scenario = Scenario(hours=1.5, hosts=2, bursts_per_day=0, error_pct=0.1)
    asked = of_table(TABLE, "stage1", "production") | {"window_s": 5_100}
    request = unpacked(simulated_request(scenario, asked))
    assert judge(read_request(request))["verdict"] == "PASS"
    return json.dumps(request)


def damaged(count: int) -> Counter[tuple[str, str]]:
    text = healthy()
    found: Counter[tuple[str, str]] = Counter()
    for seed in range(count):
        request = json.loads(text)
        how = damage(request, random.Random(seed))  # noqa: S311
        try:
            verdict = judge(read_request(request))["verdict"]
        except UsageError:
            verdict = "refused"
        assert verdict != "PASS", (seed, how)
        found[how.split(" of host")[0], verdict] += 1
    return found


def test_no_damage_passes() -> None:
    assert {kind for kind, _ in damaged(120)} == set(KINDS)


@pytest.mark.full
def test_none_of_ten_thousand_damages_passes() -> None:
    assert sum(damaged(10_000).values()) == 10_000


# The commands


def test_the_same_options_give_the_same_bytes_and_a_gate_takes_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = []
    for seed in ("1", "1", "2"):
        assert main(["--hours", "3", "--hosts", "2", "--seed", seed, "--v2-error-factor", "6"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    monkeypatch.setattr("sys.stdin", io.StringIO(texts[0]))
    assert gate([]) == 10
    assert "error_vs_v1: V2 is proved worse" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--hours", "0"], "hours is 0"),
        (["--hosts", "100000"], "hosts is 100000"),
        (["--traffic-pct", "175"], "traffic_pct is 175"),
        (["--error-pct", "nan"], "error_pct is nan"),
        (["--table", "/nonexistent.yml"], "cannot be read"),
        (["--table", str(TABLE), "--stage", "stage9"], "no production of stage9"),
    ],
)
def test_what_cannot_be_simulated_is_refused(options: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        main(options)


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown field surprise"):
        Scenario.read({"surprise": 1})


def test_files_reduce_to_what_is_simulated_without_them(tmp_path: Path) -> None:
    scenario = Scenario.read(SHORT | {"hours": 1.0, "error_pct": 5.0, "hosts": 1, "undelivered_share": 100.0})
    write_files(scenario, tmp_path / "fleet")
    until_ms = SINCE_MS + 3_600_000
    files = collect(Paths(tmp_path / "fleet/host1"), SINCE_MS, until_ms, 300_000, now_ms=until_ms)
    direct = simulated_evidence(scenario)["host1"]
    assert (files.arms.mismatches, files.events.lost, files.samples.lost) == (0, 0, 0)
    assert set(files.requests) == set(direct.requests)
    for key, cell in direct.requests.items():
        for mine, other in ((cell.v1, files.requests[key].v1), (cell.v2, files.requests[key].v2)):
            assert (mine.requests, mine.rates["error_rate_pct"]) == (
                other.requests,
                other.rates["error_rate_pct"],
            )
    with pytest.raises(UsageError, match="is not empty"):
        main(["--files", str(tmp_path)])
