"""The lock: one run at a time, who and since when is said, and a dead run does not hold it for ever."""

import io
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from cfn.commands import lock as command
from cfn.errors import CfnError, RefusedError, UsageError
from cfn.ledger.joining import Known, unjoined
from cfn.ledger.store import LedgerStore
from cfn.metrics.times import format_ms
from cfn.rollout.lock import Lock, breaking, held, releasing, taking
from engine.tests.rollout.conftest import HOUR_MS, T0, Story

ASKED = {"run": "r-2", "controller": "desk", "purpose": "stage2"}


def lock(story: Story, hour: float, run: str = "r-1") -> None:
    story.tell(hour, "locked", "stage1", taking([], ASKED | {"run": run}, T0 + round(hour * HOUR_MS))[1])


def newest(story: Story) -> list[dict[str, Any]]:
    return story.records[::-1]


def holder(story: Story, hour: float) -> Lock | None:
    return held(newest(story), T0 + round(hour * HOUR_MS))


def test_a_free_lock_is_taken_and_given_back(story: Story) -> None:
    assert holder(story, 0) is None
    lock(story, 0)
    found = holder(story, 1)
    assert found is not None
    assert (found.run, found.since, found.stage) == ("r-1", "2026-01-05T00:00:00.000Z", "stage1")
    story.tell(1, "unlocked", "stage1", releasing(newest(story), "r-1", T0))
    assert holder(story, 1) is None


def test_another_run_hears_who_since_when_and_how_to_break_it(story: Story) -> None:
    lock(story, 0)
    with pytest.raises(RefusedError) as refused:
        taking(newest(story), ASKED, T0 + HOUR_MS)
    for words in ("a test holds", "2026-01-05T00:00:00.000Z", "desk", "break_lock_reason", "cfn lock break"):
        assert words in str(refused.value)


@pytest.mark.parametrize(("happened", "held_still"), [(0.5, True), (1.5, False)])
def test_a_way_back_that_is_told_late_ends_only_what_was_locked_before_it(
    story: Story, happened: float, held_still: bool
) -> None:
    lock(story, 1)
    alone = {"time": format_ms(T0 + round(happened * HOUR_MS)), "reason": "the watch was not heard of"}
    story.tell(2, "rolled_back", "stage1", unjoined({"one": [alone]}, Known())[0].data)
    assert (holder(story, 2) is not None) is held_still


@pytest.mark.parametrize("kind", ["rolled_back", "restored"])
def test_a_way_back_ends_the_lock_that_it_finds(story: Story, kind: str) -> None:
    lock(story, 0)
    story.tell(1, kind, "stage1", {"text": "V1 serves"})
    assert holder(story, 1) is None


@pytest.mark.parametrize(
    ("changes", "hour"),
    [
        ({"run": "r-1"}, 1),
        ({"dead_run": "r-1"}, 1),
        ({"break_reason": "their machine burnt down"}, 1),
        ({}, 2),
    ],
    ids=["own", "dead", "broken", "lease ended"],
)
def test_what_takes_a_held_lock(story: Story, changes: dict[str, Any], hour: float) -> None:
    lock(story, 0)
    _, data = taking(newest(story), ASKED | changes, T0 + round(hour * HOUR_MS))
    assert data["run"] == changes.get("run", "r-2")
    assert ("taken_from" in data) is ("dead_run" in changes or "break_reason" in changes)


def test_a_run_of_another_machine_is_not_known_to_be_dead(story: Story) -> None:
    lock(story, 0)
    with pytest.raises(RefusedError):
        taking(newest(story), ASKED | {"dead_run": "r-1", "controller": "elsewhere"}, T0)


def test_a_rollback_ends_the_lock_it_finds(story: Story) -> None:
    lock(story, 0)
    story.back(0.5, "stage1")
    assert holder(story, 1) is None


def test_only_the_holder_gives_back_and_breaking_needs_a_reason(story: Story) -> None:
    lock(story, 0)
    with pytest.raises(RefusedError, match="a test"):
        releasing(newest(story), "r-2", T0)
    with pytest.raises(UsageError):
        breaking(newest(story), " ", T0)
    assert breaking(newest(story), "gone", T0)["broken"]["actor"] == "a test"
    with pytest.raises(RefusedError, match="nothing to break"):
        breaking([], "gone", T0)


@pytest.mark.parametrize("damage", [{"run": ""}, {"run": 1}, {"lease_s": 0}, {"lease_s": "2 h"}])
def test_what_is_malformed_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        taking([], ASKED | damage, T0)


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str, stdin: object = None) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(stdin)))
    return command.main(["--folder", str(folder), "--environment", "lab", "--json", *arguments])


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, "take", "--actor", "ada", "--stage", "stage1", stdin=ASKED) == 0
    assert json.loads(capsys.readouterr().out)["lock"]["actor"] == "ada"
    with pytest.raises(RefusedError, match="ada holds"):
        run(monkeypatch, tmp_path, "take", "--actor", "bob", stdin=ASKED | {"run": "r-9"})
    assert run(monkeypatch, tmp_path, "break", "--actor", "bob", "--reason", "gone") == 0
    assert json.loads(capsys.readouterr().out) == {"lock": None}
    records = LedgerStore(tmp_path, lambda _: None).records(9)
    assert [each["kind"] for each in records] == ["locked", "unlocked"]


def _take(folder: Path, number: int, results: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        try:
            run(patch, folder, "take", "--actor", f"a{number}", stdin=ASKED | {"run": f"r-{number}"})
            results.put(number)
        except CfnError:
            results.put(None)


def test_of_two_controllers_at_once_one_gets_it(tmp_path: Path) -> None:
    results: Any = multiprocessing.Queue()
    takers = [multiprocessing.Process(target=_take, args=(tmp_path, n, results)) for n in range(6)]
    for taker in takers:
        taker.start()
    got = [results.get(timeout=30) for _ in takers]
    for taker in takers:
        taker.join(30)
    assert sum(each is not None for each in got) == 1


def test_json_is_taken_before_the_action_and_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["--json", "show"], ["show", "--json"]):
        assert command.main(["--folder", str(tmp_path), *arguments]) == 0
        assert json.loads(capsys.readouterr().out) == {"lock": None}
