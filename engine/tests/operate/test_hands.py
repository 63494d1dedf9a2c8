"""Drain, failover, restart and return against real coordinators, with what systemd does in its place."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cfn.errors import NotDeliveredError, RefusedError
from cfn.operate import hands, trials
from cfn.operate.engine_client import end, health
from cfn.operate.hands import act
from engine.tests.engine.conftest import Engine, engine
from engine.tests.engine.harness import Supervisor

__all__ = ["engine"]

pytestmark = pytest.mark.processes

AGENTS = 32


@pytest.fixture
def hybrid(engine: Engine) -> Iterator[Engine]:
    """Four coordinators under supervision."""
    engine.configure(CFN_MAX_AGENTS=100, CFN_TOPOLOGY="hybrid", CFN_COORDINATORS=4)
    engine.start_hybrid(4)
    with Supervisor(engine, stopped_s=5.0):
        yield engine


def restart(engine: Engine, number: int) -> None:
    engine.processes[f"coordinator-{number}"].send_signal(signal.SIGTERM)


def states(engine: Engine) -> list[str]:
    return [row["state"] for row in health(engine.paths)["coordinators"]]


def test_a_planned_failover_serves_throughout_and_comes_home(hybrid: Engine) -> None:
    for action, state in (("drain", "draining"), ("restart", "draining"), ("return", "up")):
        result = act(hybrid.paths, 2, action, agents=AGENTS, restart=lambda number: restart(hybrid, number))
        assert (result["changed"], result["held"]) == (True, True)
        assert result["served"]["states"] == {
            "done": AGENTS * result["served"]["coordinations"],
            "failed": 0,
            "undelivered": 0,
            "unknown": 0,
        }
        assert states(hybrid)[1] == state
    again = act(hybrid.paths, 2, "return", agents=AGENTS)
    assert (again["changed"], again["served_s"]) == (False, None)
    assert 0 <= health(hybrid.paths)["failover_time_s"] < 30
    assert health(hybrid.paths)["swarms"] == []


def test_a_dead_coordinator_is_replaced_and_the_conductor_says_how_long_it_took(hybrid: Engine) -> None:
    before = hybrid.coordinator(3)["pid"]
    result = act(hybrid.paths, 3, "failover", agents=AGENTS)
    assert result["held"]
    assert result["back_s"] is not None
    assert hybrid.coordinator(3)["pid"] != before
    assert states(hybrid) == ["up"] * 4
    assert 0 < health(hybrid.paths)["failover_time_s"] < 5


def test_who_hangs_is_failed_over_even_if_no_swarm_can_be_made_to_watch_it(
    hybrid: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def not_delivered(*_: object) -> Iterator[str]:
        raise NotDeliveredError("24 of 32 agents of a swarm are there")
        yield ""

    monkeypatch.setattr(hands, "swarm", not_delivered)
    with pytest.raises(NotDeliveredError):  # one that is up is left alone
        act(hybrid.paths, 2, "failover", agents=AGENTS)
    hung = hybrid.coordinator(3)["pid"]
    os.kill(hung, signal.SIGSTOP)
    hybrid.until(lambda: states(hybrid)[2] != "up", 10)
    result = act(hybrid.paths, 3, "failover", agents=AGENTS)
    assert (result["served_s"], result["held"]) == (None, True)
    assert result["back_s"] is not None
    assert states(hybrid) == ["up"] * 4
    assert hybrid.coordinator(3)["pid"] != hung


def test_a_failover_of_one_that_is_drained_ends_the_drain(hybrid: Engine) -> None:
    act(hybrid.paths, 3, "drain", agents=0)
    act(hybrid.paths, 3, "failover", agents=0)
    assert states(hybrid) == ["up"] * 4


def test_check_mode_predicts_and_does_nothing(hybrid: Engine) -> None:
    result = act(hybrid.paths, 1, "drain", agents=AGENTS, check=True)
    assert result["changed"]
    assert result["after"][0]["state"] == "draining"
    assert states(hybrid) == ["up"] * 4


def test_the_last_healthy_one_stays(hybrid: Engine) -> None:
    for number in (1, 2, 3):
        act(hybrid.paths, number, "drain", agents=0)
    with pytest.raises(RefusedError, match="the last healthy one"):
        act(hybrid.paths, 4, "drain", agents=0)


def test_trials_of_a_whole_engine_and_of_one_that_lacks_a_coordinator(hybrid: Engine) -> None:
    balance = trials.load_balance(hybrid.paths, AGENTS, 1)
    assert balance == {"coordinators_missing": 0, "worker_imbalance_pct": 0}
    assert trials.mesh_reliability(hybrid.paths, AGENTS, 3) == {
        "mesh_delivery_rate_pct": 100,
        "worker_delivery_rate_pct": 100,
    }
    assert trials.teams(hybrid.paths, AGENTS, 1) == {"messages_delivered_pct": 100}
    used = trials.resource_analysis(hybrid.paths, AGENTS, 1)
    assert 1_000 < (used["memory_worker_kb"] or 0) < (used["memory_coordinator_kb"] or 0)
    act(hybrid.paths, 1, "drain", agents=0)
    assert trials.load_balance(hybrid.paths, AGENTS, 1)["coordinators_missing"] == 1
    assert health(hybrid.paths)["swarms"] == []


def test_a_trial_in_a_flat_topology_says_what_it_is_of(engine: Engine) -> None:
    engine.start()
    with pytest.raises(RefusedError, match="stages 2 and 3"):
        trials.load_balance(engine.paths, 4, 1)


def test_a_swarm_ends_with_its_block(hybrid: Engine) -> None:
    assert not end(hybrid.paths, "nobody")
