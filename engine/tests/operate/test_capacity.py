"""Capacity while the engine runs, and what a cleanup says it will and did remove."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cfn.engine.retention import size_bytes, stale
from cfn.errors import UsageError
from cfn.operate.capacity import wanted
from cfn.paths import Paths
from engine.tests.engine.conftest import Engine, engine

__all__ = ["engine"]


@pytest.mark.parametrize(
    ("agents", "retention_s", "keys"),
    [
        (None, None, {}),
        ("300", None, {"CFN_MAX_AGENTS": "300"}),
        (None, "default", {"CFN_RETENTION_TIME": "86400"}),
        ("1", "60", {"CFN_MAX_AGENTS": "1", "CFN_RETENTION_TIME": "60"}),
    ],
)
def test_what_is_typed_becomes_keys(
    agents: str | None, retention_s: str | None, keys: dict[str, str]
) -> None:
    assert wanted(agents, retention_s) == keys


@pytest.mark.parametrize(
    ("agents", "retention_s"), [("0", None), ("many", None), (None, "0"), ("2001", None)]
)
def test_what_is_refused(agents: str | None, retention_s: str | None) -> None:
    with pytest.raises(UsageError, match="is refused"):
        wanted(agents, retention_s)


def test_what_is_stale_by_its_files(tmp_path: Path) -> None:
    here = Paths(tmp_path)
    for name in ("requests/1.log", "requests/2.log", "inboxes/used/a", "inboxes/gone/a", "swarms/old.json"):
        path = here.shm / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if name == "requests/2.log" else "12345")
    for path in [*here.shm.glob("*/*")]:
        os.utime(path, (time.time() - 100, time.time() - 100))
    found = stale(here, 50, ["used"], live=True)
    assert {kind: [entry.name for entry in entries] for kind, entries in found.items()} == {
        "requests": ["1.log"],
        "outputs": [],
        "swarms": [],
        "inboxes": ["gone"],
    }
    assert size_bytes(here.shm / "inboxes/gone") == 5
    assert [entry.name for entry in stale(here, 50, [], live=False)["swarms"]] == ["old.json"]
    assert stale(here, 200, [], live=True)["requests"] == []


@pytest.mark.processes
def test_a_prediction_removes_nothing_and_is_what_goes(engine: Engine) -> None:
    engine.start()
    engine.ask(verb="coordinate", task_id="t", agents=2)
    time.sleep(1.1)

    def cleanup(*more: str) -> dict[str, int]:
        argv = [sys.executable, "-m", "cfn", "cleanup", "--json", "--retention-s", "1", *more]
        done = subprocess.run(argv, env=engine.environment, capture_output=True, text=True, check=True)
        found: dict[str, int] = json.loads(done.stdout)
        return found

    predicted = cleanup("--check")
    assert predicted["requests"] == 1
    assert engine.ask(verb="result", task_id="t")["states"]["done"] == 2
    removed = cleanup()
    assert removed == predicted
    assert removed["freed_bytes"] > 0
    assert engine.ask(verb="result", task_id="t")["absent"]
