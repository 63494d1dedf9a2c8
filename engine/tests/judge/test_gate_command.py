"""The gate's request and its command: what is refused, planned, judged and replayed."""

import io
import json
from typing import Any

import pytest

from cfn.commands.gate import main
from cfn.errors import DamagedError, UsageError
from cfn.judge.render import render
from cfn.judge.request import read_request

FULL_S = 66


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
        ({"since": "2030-01-01T00:00:00.000Z"}, "check the clocks"),
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
        "2023-11-14T22:13:24.000Z",
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
