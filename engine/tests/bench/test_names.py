"""Every bar is for a row that the bench makes: a bar on a misspelt name would never be looked at."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest

from engine.bench import coordinations, failover, messages, resources
from engine.bench.bars import BARS
from engine.bench.engine import Sample
from engine.bench.failover import Failover
from engine.bench.plan import Plan
from engine.bench.processes import ROLES, Process
from engine.bench.rounds import Programs
from engine.bench.table import Row


class Stub:
    """An engine that answers at once."""

    class place:  # noqa: N801 - stands in for an attribute
        commands = "/bin"

    class paths:  # noqa: N801 - as above
        shm = "/nonexistent"

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: ""

    def coordinate(self, _agents: int, _swarm_id: str = "") -> Sample:
        return Sample(1.0, 2.0, 3.0)

    def run_ms(self, _words: object) -> float:
        return 4.0

    def processes(self) -> list[Process]:
        return [Process(1, 1, role) for role in ROLES]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of all rows of a full run, for which nothing is started and nobody waits."""
    engine: Any = Stub()
    programs = Programs.__new__(Programs)
    programs.said, programs._limit = {}, None
    for module in (coordinations, failover):
        monkeypatch.setattr(module, "busy_pct", lambda: 0.0)
    monkeypatch.setattr(coordinations, "SETTLE_S", 0)
    monkeypatch.setattr(coordinations, "PEERS", ())
    monkeypatch.setattr("engine.bench.processes.pss_bytes", lambda _pid: 1)
    monkeypatch.setattr("engine.bench.processes.descriptors", lambda _pid: 1)

    def repeat(*_: object) -> Iterator[Failover]:
        yield Failover(served_ms=1.0, shown_ms=1.0, states={"done": 1}, lost_workers=0)

    monkeypatch.setattr(failover, "repeat", repeat)
    monkeypatch.setattr(messages, "hub", lambda: nullcontext({"CFN_BUS": "/bus"}))
    monkeypatch.setattr(messages, "raw_pair", lambda _file: 2.0)
    monkeypatch.setattr(messages, "_between", lambda *_: ("0.5", "1.0"))
    plan = Plan(cold_samples=1, warm_samples=1, peer_samples=1)
    rows = [
        *coordinations.rows(engine, programs, plan),
        *coordinations.as_a_user_calls_it(engine, plan),
        *failover.rows(engine, plan),
        *resources.rows(engine, plan),
        *(Row(**row) for row in messages.rows()),
    ]
    assert not [row.refused for row in rows if row.refused]
    assert len({row.name for row in rows}) == len(rows)
    return {row.name for row in rows}


def test_every_bar_has_its_row(names: set[str]) -> None:
    assert {bar.row for bar in BARS} - names == set()


def test_every_size_topology_mode_and_command(names: set[str]) -> None:
    for size in (10, 100, 300, 500, 708, 2_000):
        for topology in ("flat", "hybrid"):
            for mode in ("cold", "warm"):
                assert f"{mode}, {size} agents, {topology}" in names
                assert f"{mode}, {size} agents, {topology}, /bin/true" in names
