"""Faults in the middle of a load on the real engine: every caller has an answer, nothing runs twice.

A small seeded sample of what `make bench-router` and `make test-full` do with 1,000 coordinations.
"""

import random
from collections.abc import Callable, Iterator

import pytest

from engine.bench import faults, router
from engine.bench.faults import FaultReport, with_fault
from engine.bench.stack import Stack, stack

pytestmark = pytest.mark.processes

Fault = Callable[[Stack, random.Random], str]


@pytest.fixture(scope="module")
def running() -> Iterator[Stack]:
    with stack() as started:
        yield started


def assert_kept(report: FaultReport, *, unknown: int) -> None:
    assert report.detail
    assert (report.load.answered_once, report.load.never) == (report.load.sent, 0), report.load.failures
    assert (report.ran_twice, report.unaccounted, report.contradictions) == (0, 0, [])
    assert report.states.get("unknown", 0) <= unknown, report.states
    assert sum(report.states.values()) == report.agents_asked
    assert report.kept


@pytest.mark.parametrize("fault", [faults.kill_conductor, faults.kill_router, faults.pause_worker])
def test_nothing_is_lost_and_nothing_runs_twice(running: Stack, fault: Fault) -> None:
    report = with_fault(running, fault, requests=40, rate_per_s=40, seed=7, prefix=fault.__name__)
    assert_kept(report, unknown=0)


@pytest.mark.full
@pytest.mark.parametrize("name", faults.FAULTS)
def test_of_a_thousand_coordinations_none_is_lost_or_run_twice(name: str) -> None:
    with stack() as started:
        report = with_fault(started, faults.FAULTS[name], requests=1_000, rate_per_s=40, seed=11)
    print(f"{name}: {report.detail}; {report.states}; {report.load.retries} retries")
    # Of the three only the stopped worker is ended by the engine, and what it had claimed is unknown.
    assert_kept(report, unknown=1 if "worker" in name else 0)


@pytest.mark.full
@pytest.mark.parametrize("measure", [lambda: router.flips(20, 1_000), lambda: router.restarts(10)])
def test_flips_and_restarts_in_full(measure: Callable[[], router.Rows]) -> None:
    rows = measure()
    assert rows
    assert [line for line in rows if not line.get("reached", True)] == []
