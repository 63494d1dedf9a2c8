"""Each stress on a small engine, what it leaves, and what is refused."""

import subprocess
import sys

import pytest

from cfn.errors import RefusedError, UsageError
from cfn.operate import stress
from cfn.operate.engine_client import health
from engine.tests.engine.conftest import Engine, engine

__all__ = ["engine"]

pytestmark = pytest.mark.processes

BOUNDS: dict[str, dict[str, float]] = {
    "rapid_cycles": {"agents": 16, "every_s": 0, "run_s": 0.5},
    "memory_pressure": {"agents": 16, "memory_mb": 16, "run_s": 0.5},
    "descriptor_pressure": {"agents": 16, "connections": 200, "run_s": 0.5},
    "message_storm": {"agents": 16, "messages": 500, "payload_bytes": 64, "run_s": 30},
    "concurrent": {"agents": 16, "at_once": 3, "run_s": 0.5},
}


@pytest.fixture
def hybrid(engine: Engine) -> Engine:
    """Three coordinators."""
    engine.configure(CFN_MAX_AGENTS=100, CFN_TOPOLOGY="hybrid", CFN_COORDINATORS=3)
    engine.start_hybrid(3)
    return engine


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_nothing_is_lost_and_nothing_is_left(hybrid: Engine, name: str) -> None:
    found = stress.stress(hybrid.paths, name, BOUNDS[name])
    assert (found["coordinators_missing"], found["swarms_left"]) == (0, 0)
    assert found.get("agents_not_done", 0) == 0
    assert found.get("messages_delivered_pct", 100) == 100
    assert any((found.get(count) or 0) > 0 for count in stress.COUNTS)


def test_a_cascade_stops_two_and_starts_them_again(hybrid: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    ordered: list[tuple[str, list[str]]] = []

    def systemctl(verb: str, units: list[str]) -> None:
        numbers = [unit.partition("@")[2].partition(".")[0] for unit in units]
        ordered.append((verb, numbers))
        for number in numbers:
            if verb == "stop":
                hybrid.kill(f"coordinator-{number}", 15)
            else:
                hybrid.launch(f"coordinator-{number}")

    monkeypatch.setattr(stress, "_systemctl", systemctl)
    found = stress.stress(hybrid.paths, "cascade", {"agents": 16, "coordinators": 2})
    assert ordered == [("stop", ["1", "2"]), ("start", ["1", "2"])]
    assert (found["agents_not_done"], found["coordinators_missing"]) == (0, 0)
    with pytest.raises(RefusedError, match="3 cannot be stopped"):
        stress.stress(hybrid.paths, "cascade", {"agents": 16, "coordinators": 3})


def test_what_cannot_be_done_is_refused(hybrid: Engine) -> None:
    with pytest.raises(RefusedError, match="MB of memory are available"):
        stress.stress(hybrid.paths, "memory_pressure", {"agents": 1, "memory_mb": 10**9, "run_s": 1})
    with pytest.raises(UsageError, match="connections"):
        stress.stress(hybrid.paths, "descriptor_pressure", {"agents": 1, "run_s": 1})


def test_one_that_is_ended_by_systemd_ends_its_swarm(hybrid: Engine) -> None:
    text = '{"bounds": {"agents": 16, "every_s": 60, "run_s": 60}, "limits": {}}'
    with subprocess.Popen(
        [sys.executable, "-m", "cfn", "stress", "rapid_cycles"],
        env=hybrid.environment,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(text)
        process.stdin.close()
        hybrid.until(lambda: health(hybrid.paths)["counters"]["completed"] > 0, 20)
        process.terminate()
        assert process.wait(20) == 1
    assert health(hybrid.paths)["swarms"] == []


def test_what_was_left_is_ended_and_others_swarms_are_not(hybrid: Engine) -> None:
    for swarm_id in ("stress-left", "mine"):
        hybrid.ask(verb="init", agents=4, swarm_id=swarm_id)
    assert stress.clean(hybrid.paths) == {"swarms": ["stress-left"], "started": []}
    assert [row["swarm_id"] for row in health(hybrid.paths)["swarms"]] == ["mine"]
