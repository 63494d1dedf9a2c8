"""The fault campaign (campaign/): a seeded sample always, all of it with `-m full`."""

import pytest

from .campaign.campaign import Campaign
from .campaign.report import STATES, Report
from .conftest import Engine

pytestmark = pytest.mark.processes


def kept(report: Report, coordinations: int, each: int) -> None:
    """The promise was kept, and put to the test."""
    assert not report.problems, report.as_json()
    assert len(report.tasks) >= coordinations
    assert min(report.reached.values()) >= each, report.reached
    struck = {(process, name) for _, process, name in report.faults}
    assert struck == {
        (process, name)
        for process in ("conductor", "coordinator", "spawner", "worker")
        for name in ("SIGKILL", "SIGSTOP")
    }


def test_a_sample_of_faults_in_every_state(engine: Engine) -> None:
    report = Campaign(engine, seed=3).run(150, each=2, lanes=8)
    kept(report, 150, each=2)
    assert set(report.reached) == set(STATES)


@pytest.mark.full
def test_ten_thousand_coordinations(engine: Engine) -> None:
    kept(Campaign(engine, seed=1).run(10_000, each=100, lanes=10), 10_000, each=100)


@pytest.mark.full
def test_warm_swarms(engine: Engine) -> None:
    kept(Campaign(engine, seed=2, share_kept=1.0).run(1_000, each=20, lanes=8), 1_000, each=20)


@pytest.mark.full
def test_hybrid_swarms_of_more_than_a_hundred(engine: Engine) -> None:
    campaign = Campaign(engine, seed=4, coordinators=7, sizes=(100, 160), kept_agents=120)
    kept(campaign.run(300, each=5, lanes=4), 300, each=5)
