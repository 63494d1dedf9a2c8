"""What hosts noted for the ledger is joined once, whichever host brings it and whenever."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from cfn.cli import main
from cfn.ledger.joining import Known, unjoined
from cfn.paths import Paths
from cfn.watch import spool

ALONE: dict[str, Any] = {"time": "2026-01-31T12:00:00.000Z", "reason": "the watch was not heard of"}
BACK: dict[str, Any] = {
    "time": "2026-01-31T12:05:00.000Z",
    "reason": "V1 serves",
    "back": {
        "id": "b-1",
        "stage": "stage2",
        "actor": "ada",
        "data": {"text": "V1 serves", "to_pct": 0, "epoch": 9},
    },
}


def as_record(data: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "rolled_back", "data": data}


def test_one_way_back_on_many_hosts_is_one_record() -> None:
    known = Known()
    found = unjoined({"a": [ALONE, BACK], "b": [BACK]}, known)
    assert [(each.stage, each.actor) for each in found] == [("stage2", "ada"), ("", "")]
    data = found[0].data
    assert (data["id"], data["epoch"], data["spooled"]) == ("b-1", 9, True)
    assert data["hosts"] == {"a": {"time": BACK["time"]}, "b": {"time": BACK["time"]}}
    assert "a fell back to V1 by itself" in found[1].data["text"]
    assert unjoined({"a": [ALONE, BACK], "b": [BACK]}, known) == []


def test_what_the_ledger_has_is_not_joined_again_by_a_host_that_comes_late() -> None:
    first = unjoined({"a": [BACK]}, Known())
    known = Known()  # another run, which reads the ledger
    known.take_in(as_record(first[0].data))
    assert unjoined({"a": [BACK], "late": [BACK]}, known) == []
    assert len(unjoined({"late": [{**ALONE, "time": "2026-01-31T13:00:00.000Z"}]}, known)) == 1


def test_a_record_that_reached_the_ledger_though_its_answer_did_not_return() -> None:
    known = Known()
    known.take_in(as_record({"id": "b-1", "text": "V1 serves"}))
    assert unjoined({"a": [BACK]}, known) == []


def run(
    argv: list[str], given: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, dict[str, Any]]:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(given)))
    code = main(argv)
    out = capsys.readouterr().out
    return code, json.loads(out) if out else {}


def test_added_on_a_host_and_joined_on_the_control_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CFN_ROOT", str(tmp_path))
    tree = Paths(tmp_path)
    spool.place(tree).parent.mkdir(parents=True)
    assert run(["spool", "add"], BACK["back"], monkeypatch, capsys)[0] == 0
    with spool.place(tree).open("a") as file:
        file.write("torn\n")
    _, shown = run(["spool", "show"], None, monkeypatch, capsys)
    join = ["spool", "join", "--environment", "lab", "--stage", "rollout", "--actor", "me"]
    join += ["--folder", str(tmp_path / "ledger")]
    join = [*join[:1], *join[-2:], *join[1:-2]]
    _, joined = run(join, {"h1": shown["lines"], "h2": []}, monkeypatch, capsys)
    assert [(each["stage"], each["actor"], each["data"]["text"]) for each in joined["records"]] == [
        ("stage2", "ada", "V1 serves")
    ]
    _, again = run(join, {"h1": shown["lines"]}, monkeypatch, capsys)
    assert again["records"] == []


@pytest.mark.parametrize(
    "back", [{}, {"id": "x", "stage": "stage1", "actor": "a"}, {**BACK["back"], "data": {}}]
)
def test_a_record_that_says_nothing_is_refused(
    back: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CFN_ROOT", str(tmp_path))
    assert run(["spool", "add"], back, monkeypatch, capsys)[0] == 2
