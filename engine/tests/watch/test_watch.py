"""The watch over a fleet of files: what it records, when it takes traffic back, what hosts do alone."""

import errno
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from cfn.errors import RefusedError, UsageError
from cfn.ledger import anchors
from cfn.ledger.chain import Entry
from cfn.ledger.entries import checked_entry
from cfn.ledger.joining import Joined, Known, unjoined
from cfn.ledger.store import LedgerStore
from cfn.metrics.times import format_ms
from cfn.paths import Paths
from cfn.rollout.plan import read_plan
from cfn.watch import heard as heard_side
from cfn.watch import host as host_side
from cfn.watch import spool
from cfn.watch.guard import Flip
from cfn.watch.memory import recall
from cfn.watch.tick import Watch
from engine.tests.judge.conftest import FACTOR, KEY, SINCE_MS, Behaviour, Fleet
from engine.tests.rollout.conftest import TABLE
from tests.conftest import PROJECT

OPERATIONS = yaml.safe_load((PROJECT / "inventories/common/group_vars/all/operations.yml").read_text())
HOSTS = ("h1", "h2", "h3")
BAD = Behaviour(undelivered_pct=60)


def plan(stage: str = "stage1", **watch: Any) -> Any:
    return read_plan(
        {
            "v": 1,
            "environment": "lab",
            "kind": "production",
            "stage": stage,
            "time_factor": FACTOR,
            "table": TABLE,
            "table_sha256": "ab" * 32,
            "severities": OPERATIONS["cfn_severities"],
            "attested_at_the_end": [],
            "hosts": list(HOSTS),
            "watch": {"blind_limit_s": 900, "attestations": False, **watch},
        }
    )


@dataclass
class Reach:
    """The hosts, without SSH: each answers from its own tree, and its guard acts like systemd's path unit."""

    fleet: Fleet
    now_ms: int = 0
    down: set[str] = field(default_factory=set)
    asked: list[Mapping[str, Any]] = field(default_factory=list)
    deaf_guards: bool = False

    def ask(self, requests: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        self.asked += requests.values()
        return {name: self._one(name, json.loads(json.dumps(each))) for name, each in requests.items()}

    def _one(self, name: str, request: Mapping[str, Any]) -> dict[str, Any]:
        if name in self.down:
            return {"error": f"{name}: no route"}
        tree = self.fleet.tree(name)
        if request.get("order") and not self.deaf_guards:
            threading.Thread(target=self._guard, args=(tree, request["order"]["id"])).start()
        found: dict[str, Any] = json.loads(json.dumps(host_side.answer(request, tree, now_ms=self.now_ms)))
        return found

    def _guard(self, tree: Paths, order: str) -> None:
        """Until the order is obeyed: the path unit sees it whenever it comes."""
        obeyed = host_side.folder(tree) / "obeyed.json"
        for _ in range(200):
            host_side.guard(tree, now_ms=self.now_ms, flipper=flipper(tree))
            if obeyed.exists() and order in obeyed.read_text():
                return
            time.sleep(0.05)


def config(tree: Paths, version: str = "v2", percent: str = "10", epoch: int = 3) -> None:
    tree.config.write_text(
        f'CFN_SPLIT_KEY="{KEY}"\nCFN_COORDINATION_VERSION="{version}"\nCFN_TRAFFIC_PERCENTAGE="{percent}"\n'
        f'CFN_EPOCH="{epoch}"\n'
    )


def flipper(tree: Paths) -> Any:
    """In place of the router's confirmation: the file is what is in force."""

    def flip(what: Flip) -> dict[str, Any]:
        config(tree, what.version, str(what.percent or 10), what.epoch)
        return {"changed": True, "confirmed": True}

    return flip


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    fleet = Fleet(tmp_path / "fleet")
    monkeypatch.setattr(host_side, "read_status", status)
    return fleet


def status(tree: Paths) -> dict[str, Any]:
    """What `cfn status` says of a tree of files."""
    now = host_side._in_force(tree)
    return {
        "version": now.version,
        "traffic_pct": float(now.traffic_pct),
        "epoch": now.epoch,
        "since": format_ms(SINCE_MS),
        "release_since": format_ms(SINCE_MS - 5_000),
        "release": "1.0.0",
    }


def prepared(fleet: Fleet, seconds: float, behaviour: Behaviour | None = None) -> Reach:
    fleet.write(seconds, behaviour)
    for name in HOSTS:
        tree = fleet.tree(name)
        config(tree)
        host_side.folder(tree).mkdir(parents=True)
    return Reach(fleet, now_ms=SINCE_MS + round(seconds * 1_000))


def watch(reach: Reach, *, stage: str = "stage1", flipped: bool = True, **options: Any) -> Watch:
    folder = reach.fleet.root / "ledger"
    store = LedgerStore(folder, lambda _: None)
    if flipped and not store.path.exists():
        hosts = {name: {"changed": True, "after": {"traffic_pct": 10}} for name in HOSTS}
        store.append(
            Entry(time=format_ms(SINCE_MS), environment="lab", kind="flipped", stage=stage, actor="t",
                  data={"hosts": hosts})
        )  # fmt: skip
    memory = reach.fleet.root / "memory.json"
    return Watch(
        plan=plan(stage, **options), hosts=reach, store=store, memory_path=memory, actor="cfn-watch@h1"
    )


def burns(watched: Watch, now_ms: int) -> None:
    """A critical incident of V2 is recorded."""
    incident = {"incident": "i-1", "severity": "P0", "attributed_to": "v2", "state": "open", "by": "t",
                "started": format_ms(SINCE_MS), "text": "t"}  # fmt: skip
    watched.store.append(
        Entry(time=format_ms(now_ms), environment="lab", kind="incident", stage="stage1", actor="t",
              data=incident)
    )  # fmt: skip


def kinds(watched: Watch) -> list[str]:
    return [record["kind"] for record in watched.store.oldest()]


def in_force(reach: Reach) -> list[str]:
    return [
        f"{each['version']} {each['traffic_pct']:g}" for each in map(status, map(reach.fleet.tree, HOSTS))
    ]


def test_a_due_look_is_judged_recorded_and_anchored(fleet: Fleet) -> None:
    reach = prepared(fleet, 64)
    watched = watch(reach)
    watched.store.append(
        checked_entry(
            kind="attested",
            stage="stage1",
            actor="operator",
            environment="lab",
            data={"item": "dashboards_healthy", "holds": True, "by": "operator", "note": "looked"},
            now_ms=reach.now_ms,
        )
    )
    said = watched.tick(reach.now_ms)
    record = watched.store.records(1)[0]
    assert kinds(watched)[-1] == "verdict", said
    assert record["data"]["verdict"]["verdict"] == "PASS", record["data"]["verdict"]["reasons"]
    assert in_force(reach) == ["v2 10"] * 3
    for name in HOSTS:
        heads = anchors.read(fleet.tree(name).state / "anchors", "lab")
        assert heads[-1].hash == record["hash"]
        assert [head.sequence for head in heads] == list(range(1, record["sequence"] + 1))


def test_a_critical_incident_takes_the_traffic_back(fleet: Fleet) -> None:
    reach = prepared(fleet, 64)
    watched = watch(reach)
    burns(watched, reach.now_ms)
    watched.tick(reach.now_ms)
    assert in_force(reach) == ["v1 10"] * 3


def test_between_looks_the_guardrails_are_watched_and_a_pass_of_them_is_no_verdict(fleet: Fleet) -> None:
    reach = prepared(fleet, 64)
    watched = watch(reach)
    watched.tick(reach.now_ms)
    before = kinds(watched)
    again = watch(reach)
    again.tick(reach.now_ms + 500)
    assert kinds(again).count("verdict") == before.count("verdict")


def test_a_fail_takes_the_traffic_back_on_every_host(fleet: Fleet) -> None:
    reach = prepared(fleet, 64, BAD)
    watched = watch(reach)
    said = watched.tick(reach.now_ms)
    assert in_force(reach) == ["v1 10"] * 3
    back = next(record for record in watched.store.oldest() if record["kind"] == "rolled_back")
    assert "V1, confirmed by 3 of 3 hosts. FAIL" in back["data"]["text"]
    assert any("rolled_back" in line for line in said)
    verdict = next(record for record in watched.store.oldest() if record["kind"] == "verdict")
    assert verdict["data"]["verdict"]["verdict"] == "FAIL"
    # From then on there is nothing to watch, and nothing more is ordered.
    after = watch(reach)
    after.tick(reach.now_ms + 60_000)
    assert kinds(after).count("rolled_back") == 1


def test_stage_2_goes_down_step_by_step(fleet: Fleet) -> None:
    reach = prepared(fleet, 64, BAD)
    for name in HOSTS:
        config(fleet.tree(name), percent="50")
    fleet.traffic_pct = 50
    fleet.write(64, BAD)
    for name in HOSTS:
        config(fleet.tree(name), percent="50")
    watched = watch(reach, stage="stage2")
    watched.tick(reach.now_ms)
    assert in_force(reach) == ["v2 10"] * 3


def test_guards_that_do_not_act_are_named(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_side, "OBEYED_WITHIN_S", 0.2)
    reach = prepared(fleet, 64, BAD)
    reach.deaf_guards = True
    watched = watch(reach)
    watched.tick(reach.now_ms)
    back = next(record for record in watched.store.oldest() if record["kind"] == "rolled_back")
    assert "NOT CONFIRMED on h1, h2, h3" in back["data"]["text"]


def test_blind_holds_first_and_falls_back_past_the_limit(fleet: Fleet) -> None:
    reach = prepared(fleet, 64, Behaviour(collector_silent_s=(20, 64)))
    limit = 10.0
    watch(reach, blind_limit_s=limit).tick(reach.now_ms)
    assert in_force(reach) == ["v2 10"] * 3
    watch(reach, blind_limit_s=limit).tick(reach.now_ms + 9_000)
    assert in_force(reach) == ["v2 10"] * 3
    last = watch(reach, blind_limit_s=limit)
    last.tick(reach.now_ms + 11_000)
    assert in_force(reach) == ["v1 10"] * 3
    escalated = [record["data"] for record in last.store.oldest() if record["kind"] == "escalated"]
    assert escalated[-1]["trigger"] == "blind"


def test_idle_is_held_and_never_rolled_back(fleet: Fleet) -> None:
    reach = prepared(fleet, 64, Behaviour(requests_per_s=0))
    for minute in range(4):
        watched = watch(reach, blind_limit_s=5.0)
        watched.tick(reach.now_ms)
        assert in_force(reach) == ["v2 10"] * 3, minute
    assert "rolled_back" not in kinds(watched)


def test_a_host_that_cannot_be_reached_is_no_data_and_named(fleet: Fleet) -> None:
    reach = prepared(fleet, 64)
    reach.down = {"h2"}
    watched = watch(reach)
    watched.tick(reach.now_ms)
    verdict = watched.store.records(1)[0]["data"]["verdict"]
    assert verdict["verdict"] == "NO_DATA"
    assert "h2" in verdict["reasons"][0]


def test_when_no_host_answers_nothing_is_ordered_and_the_alert_comes(fleet: Fleet) -> None:
    reach = prepared(fleet, 64)
    reach.down = set(HOSTS)
    watch(reach).tick(reach.now_ms)
    late = watch(reach)
    late.tick(reach.now_ms + 901_000)
    assert kinds(late) == ["flipped", "escalated"]


def test_missed_looks_are_told_once(fleet: Fleet) -> None:
    reach = prepared(fleet, 64)
    watch(reach).tick(reach.now_ms)
    for later_s in (600, 660):
        watched = watch(reach)
        watched.tick(reach.now_ms + later_s * 1_000)
    missed = [record["data"]["missed"] for record in watched.store.oldest() if "missed" in record["data"]]
    assert missed == [9]


def test_memory_that_is_lost_is_made_again_from_the_ledger(fleet: Fleet) -> None:
    reach = prepared(fleet, 64)
    first = watch(reach)
    first.tick(reach.now_ms)
    looks = kinds(first).count("verdict")
    first.memory_path.write_text("garbage")
    second = watch(reach)
    second.tick(reach.now_ms + 500)
    assert kinds(second).count("verdict") == looks


def test_an_exception_in_the_judge_never_passes_and_never_ends_the_watch(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach = prepared(fleet, 64)

    def broken(*_: object) -> None:
        raise ZeroDivisionError("broken")

    monkeypatch.setattr("cfn.judge.judge.read_hosts", broken)
    watched = watch(reach)
    watched.tick(reach.now_ms)
    assert watched.store.records(1)[0]["data"]["verdict"]["verdict"] == "ERROR"


def heard_s(tree: Paths) -> float | None:
    """How long ago a host heard that the watch lives."""
    found = heard_side.read(host_side.folder(tree) / "heard.json")
    booted, up_s = heard_side.boot()
    return None if found is None else found.age_s(now_ms=0, booted=booted, up_s=up_s)


def test_a_fail_acts_though_the_ledger_is_full_and_no_host_hears_that_the_watch_lives(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach = prepared(fleet, 64, BAD)
    watched = watch(reach)

    def full(_: object) -> None:
        raise RefusedError("No space left on device")

    monkeypatch.setattr(watched.store, "append_all", full)
    with pytest.raises(RefusedError, match="No space left"):
        watched.tick(reach.now_ms)
    assert in_force(reach) == ["v1 10"] * 3
    assert any("NOT RECORDED, rolled_back" in line for line in watched.said)
    assert [heard_s(fleet.tree(name)) for name in HOSTS] == [None] * 3


def test_a_watch_that_cannot_remember_says_so_and_lives_for_nobody(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach = prepared(fleet, 64)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cfn.watch.memory.write_atomically", full)
    with pytest.raises(RefusedError, match=r"memory.json: cannot be written.*No space left"):
        watch(reach).tick(reach.now_ms)
    assert [heard_s(fleet.tree(name)) for name in HOSTS] == [None] * 3


def test_a_tick_that_went_well_is_heard_by_every_host(fleet: Fleet) -> None:
    reach = prepared(fleet, 64)
    watch(reach).tick(reach.now_ms)
    assert None not in [heard_s(fleet.tree(name)) for name in HOSTS]


def test_clocks_that_differ_are_nothing_seen_and_do_not_end_the_watch(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach = prepared(fleet, 64)

    def ahead(tree: Paths) -> dict[str, Any]:
        return status(tree) | {"since": format_ms(reach.now_ms + 3_600_000)}

    monkeypatch.setattr(host_side, "read_status", ahead)
    for later_s in (0, 901):
        last = watch(reach)
        last.tick(reach.now_ms + later_s * 1_000)
    assert in_force(reach) == ["v1 10"] * 3
    assert "ERROR" in next(
        record["data"]["reason"] for record in last.store.oldest() if record["kind"] == "escalated"
    )


def test_a_clock_that_was_ahead_does_not_lengthen_the_blind_limit(fleet: Fleet) -> None:
    reach = prepared(fleet, 64)
    reach.down = {"h2"}
    day_ms = 86_400_000
    watch(reach).tick(reach.now_ms + day_ms)
    for later_s in (0, 901):
        watch(reach).tick(reach.now_ms + later_s * 1_000)
    reach.down = set()
    assert in_force(reach) == ["v1 10", "v2 10", "v1 10"]


def test_a_host_that_answers_and_does_not_obey_is_ordered_again(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_side, "OBEYED_WITHIN_S", 0.2)
    reach = prepared(fleet, 64, BAD)
    reach.deaf_guards = True
    watch(reach).tick(reach.now_ms)
    assert in_force(reach) == ["v2 10"] * 3
    reach.deaf_guards = False
    monkeypatch.setattr(host_side, "OBEYED_WITHIN_S", 10)
    fleet.write(64)  # what is seen now is no reason any more: the order is
    for name in HOSTS:
        config(fleet.tree(name))
    watch(reach).tick(reach.now_ms + 60_000)
    assert in_force(reach) == ["v1 10"] * 3


def test_another_ledger_is_read_from_its_begin(fleet: Fleet) -> None:
    reach = prepared(fleet, 64)
    first = watch(reach)
    attested = {"item": "dashboards_healthy", "holds": False, "by": "t", "note": "n"}
    for _ in range(5):
        first.store.append(
            Entry(time=format_ms(SINCE_MS), environment="lab", kind="attested", stage="stage1", actor="t",
                  data=attested)
        )  # fmt: skip
    first.tick(reach.now_ms)
    (fleet.root / "ledger").rename(fleet.root / "ledger.saved")
    second = watch(reach)
    burns(second, reach.now_ms)
    second.tick(reach.now_ms)
    assert in_force(reach) == ["v1 10"] * 3
    assert [each["kind"] for each in recall(second.memory_path, "stage1").people] == ["incident"]


# A host on its own


def heard(tree: Paths, *, limit_s: float = 900.0, watching: bool = True, ago_s: float = 0.0) -> None:
    booted, up_s = heard_side.boot()
    value = {"time": format_ms(SINCE_MS), "watching": watching, "blind_limit_s": limit_s, "booted": booted,
             "up_s": max(0.0, up_s - ago_s)}  # fmt: skip
    (host_side.folder(tree) / "heard.json").write_text(json.dumps(value))


@pytest.fixture
def alone(tmp_path: Path) -> Paths:
    tree = Paths(tmp_path)
    tree.config.parent.mkdir(parents=True)
    host_side.folder(tree).mkdir(parents=True)
    config(tree)
    return tree


def turn(tree: Paths, now_ms: int = SINCE_MS) -> str:
    return host_side.guard(tree, now_ms=now_ms, flipper=flipper(tree))


@pytest.mark.parametrize(
    ("limit_s", "ago_s", "watching", "falls"),
    [(2, 3, True, True), (900, 3, True, False), (2, 3, False, False)],
)
def test_a_host_falls_back_when_the_watch_is_silent_for_too_long(
    alone: Paths, limit_s: float, ago_s: float, watching: bool, falls: bool
) -> None:
    heard(alone, limit_s=limit_s, ago_s=ago_s, watching=watching)
    said = turn(alone)
    assert ("fell back to V1" in said) is falls
    now = host_side._in_force(alone)
    assert (now.version, now.epoch) == (("v1", 5) if falls else ("v2", 3))
    assert len(spool.lines(alone)) == falls
    assert turn(alone) == ""  # once


def test_a_host_that_was_never_watched_stays_as_it_is(alone: Paths) -> None:
    assert turn(alone) == ""
    (host_side.folder(alone) / "heard.json").write_text("garbage")
    assert turn(alone) == ""


def test_a_clock_that_jumps_is_no_silence(alone: Paths) -> None:
    heard(alone, limit_s=900)
    assert turn(alone, SINCE_MS + 10**9) == ""


@pytest.mark.parametrize(("wall_s", "up_s", "age_s"), [(300, 60, 300), (-86_400, 1_000, 1_000)])
def test_over_a_reboot_the_age_is_at_least_the_time_since(wall_s: float, up_s: float, age_s: float) -> None:
    last = heard_side.Heard(time_ms=SINCE_MS, watching=True, blind_limit_s=900, booted="before", up_s=5_000)
    now_ms = SINCE_MS + round(wall_s * 1_000)
    assert last.age_s(now_ms=now_ms, booted="after", up_s=up_s) == age_s


def test_what_a_guard_did_alone_is_joined_to_the_ledger_once(fleet: Fleet) -> None:
    reach = prepared(fleet, 64)
    tree = fleet.tree("h2")
    heard(tree, limit_s=1, ago_s=5)
    turn(tree, reach.now_ms)
    for _ in range(2):
        watched = watch(reach)
        watched.tick(reach.now_ms)
    joined = [record["data"]["text"] for record in watched.store.oldest() if record["kind"] == "rolled_back"]
    assert len([text for text in joined if "h2 fell back to V1 by itself" in text]) == 1


@pytest.mark.parametrize(
    ("order", "words", "expected"),
    [
        ({"percent": 5.0, "epoch": 4}, "obeyed", "v2 5"),
        ({"percent": None, "epoch": 4}, "obeyed", "v1 10"),
        ({"percent": 50.0, "epoch": 4}, "only lowers", "v2 10"),
        ({"percent": 5.0, "epoch": 2}, "older", "v2 10"),
        ({"percent": "5", "epoch": 4}, "not a number", "v2 10"),
    ],
)
def test_a_guard_only_lowers(alone: Paths, order: dict[str, Any], words: str, expected: str) -> None:
    path = host_side.folder(alone) / "order.json"
    path.write_text(json.dumps({"id": "o-1", "reason": "FAIL"} | order))
    assert words in turn(alone)
    found = host_side._in_force(alone)
    assert f"{found.version} {float(found.traffic_pct):g}" == expected
    assert turn(alone) == ""  # each order once


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"v": 1},
        {"v": 1, "watching": True, "blind_limit_s": 0},
        {"v": 1, "watching": True, "blind_limit_s": 9, "evidence": {"since": "x"}},
        {"v": 1, "watching": True, "blind_limit_s": 9, "order": {"id": "o", "percent": 200}},
        {"v": 1, "watching": True, "blind_limit_s": 9, "anchor": {"environment": "../x"}},
    ],
)
def test_a_malformed_request_is_refused(alone: Paths, request_: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        host_side.answer(request_, alone, now_ms=SINCE_MS)


@pytest.mark.parametrize(("alive", "known"), [({}, True), ({"alive": True}, True), ({"alive": False}, False)])
def test_being_told_that_the_watch_lives_is_remembered(
    alone: Paths, monkeypatch: pytest.MonkeyPatch, alive: dict[str, bool], known: bool
) -> None:
    monkeypatch.setattr(host_side, "read_status", status)
    request = {"v": 1, "watching": True, "blind_limit_s": 900, **alive}
    found = host_side.answer(request, alone, now_ms=time.time_ns() // 1_000_000)
    assert found["status"]["version"] == "v2"
    last = heard_side.read(host_side.folder(alone) / "heard.json")
    assert (last is not None and last.watching) is known


def taken_back(watched: Watch, pending: list[str], epoch: int = 9) -> None:
    data = {"text": "V1 serves", "to_pct": 0, "epoch": epoch, "pending": pending}
    watched.store.append(
        Entry(time=format_ms(SINCE_MS + 1_000), environment="lab", kind="rolled_back", stage="stage2",
              actor="t", data=data)
    )  # fmt: skip


@pytest.mark.parametrize(("forward", "expected"), [(False, "v1 10"), (True, "v2 10")])
def test_a_host_that_a_way_back_did_not_reach_follows_when_it_answers(
    fleet: Fleet, forward: bool, expected: str
) -> None:
    reach = prepared(fleet, 64)
    for name in ("h1", "h3"):
        config(fleet.tree(name), "v1", "10", 9)
    watched = watch(reach)
    taken_back(watched, ["h2"])
    if forward:  # what was decided later counts
        hosts = {"h1": {"changed": True, "after": {"traffic_pct": 10}}}
        watched.store.append(
            Entry(time=format_ms(SINCE_MS + 2_000), environment="lab", kind="flipped", stage="stage1",
                  actor="t", data={"hosts": hosts})
        )  # fmt: skip
    reach.down = {"h2"}
    watched.tick(reach.now_ms)
    assert in_force(reach)[1] == "v2 10"
    reach.down = set()
    for _ in range(2):
        watch(reach).tick(reach.now_ms + 60_000)
    assert in_force(reach)[1] == expected
    told = [
        record["data"]["text"] for record in watched.store.oldest() if "answered again" in str(record["data"])
    ]
    assert len(told) == (not forward)
    if not forward:
        assert host_side._in_force(fleet.tree("h2")).epoch == 9


def test_what_somebody_else_joins_while_the_watch_asks_is_not_joined_twice(fleet: Fleet) -> None:
    reach = prepared(fleet, 64)
    watched = watch(reach)
    spool.add(fleet.tree("h1"), {"time": format_ms(SINCE_MS + 1_000), "reason": "silent"})
    asks = reach.ask
    joined: list[Joined] = []

    def ask(requests: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        answers = asks(requests)
        if not joined:  # as status.yml would
            joined.extend(unjoined({"h1": answers["h1"]["spooled"]}, Known()))
            watched.store.append(
                checked_entry(kind="rolled_back", stage="stage1", actor="ada", environment="lab",
                              data=joined[0].data)
            )  # fmt: skip
        return answers

    reach.ask = ask  # type: ignore[method-assign]
    watched.tick(reach.now_ms)
    assert kinds(watched).count("rolled_back") == 1


def test_a_line_of_a_spool_that_a_crash_tore_costs_no_other(fleet: Fleet) -> None:
    tree = prepared(fleet, 1).fleet.tree("h1")
    with spool.place(tree).open("w") as file:
        file.write('{"time": "2026-')
    spool.add(tree, {"time": "t", "reason": "silent"})
    assert [each["reason"] for each in spool.lines(tree)] == ["silent"]


def test_a_way_back_that_nobody_could_record_is_joined_with_its_own_words(fleet: Fleet) -> None:
    reach = prepared(fleet, 64)
    back = {"id": "b-1", "stage": "stage2", "actor": "ada", "data": {"text": "V1 serves", "epoch": 9}}
    for name in ("h1", "h2"):
        spool.add(fleet.tree(name), {"time": format_ms(reach.now_ms), "reason": "V1 serves", "back": back})
    for _ in range(2):
        watched = watch(reach)
        watched.tick(reach.now_ms)
        watched.memory_path.unlink()  # and what the watch remembers may be lost
    joined = [record for record in watched.store.oldest() if record["kind"] == "rolled_back"]
    assert [(each["stage"], each["actor"], each["data"]["id"]) for each in joined] == [
        ("stage2", "ada", "b-1")
    ]
