"""Every command of every runbook, as it is written, on two real hosts, held against what the page says.

The pages are run in the order in which an environment would need them; each finds what the one before it
left. What a page calls production or staging is the lab.
"""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.end_to_end.conftest import Lab, make_lab
from tests.runbook_pages import Step, steps, unlike

pytestmark = pytest.mark.lab

RUNBOOKS = PROJECT / "docs/runbooks"
ORDER = (
    "deployment.md",
    "resource-exhaustion.md",
    "coordinator-failover.md",
    "incident-response.md",
    "v1-fallback.md",
    "v1-restoration.md",
)

INCONCLUSIVE = 11
PATIENCE_S = 240  # as the page says, one waits and asks again


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The hosts that the pages name, with a first deployment: what is attested before it is refused."""
    shutil.rmtree(PROJECT / "build/incidents/lab", ignore_errors=True)
    spec = PROJECT / "tests/end_to_end/runbooks.yml"
    for lab in make_lab("runbooks", spec, tmp_path_factory.mktemp("runbooks") / "i"):
        played = lab.play("stage1.yml", "-e", "traffic=1")
        assert played.returncode == 0, played.output
        yield lab


def typed(lab: Lab, step: Step) -> subprocess.CompletedProcess[str]:
    """Type one command where the page says."""
    if step.host:
        argv = ["lab", "--name", lab.name, "sh", step.host, "--", step.text]
    else:
        text = step.text
        for environment in ("production", "staging"):
            text = text.replace(f"-i inventories/{environment}", f"-i {lab.inventory}")
        argv = ["bash", "-c", text]
    return subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=PROJECT, check=False
    )


def follow(lab: Lab, step: Step) -> None:
    """Do one step of a page. A gate that is to say PASS is asked again while it says INCONCLUSIVE."""
    until_s = time.monotonic() + PATIENCE_S
    while True:
        done = typed(lab, step)
        asks_again = "gate.yml" in step.text and done.returncode == INCONCLUSIVE != step.exit_code
        if not asks_again or time.monotonic() > until_s:
            break
        time.sleep(10)
    problem = unlike(step.expected, done.stdout)
    assert done.returncode == step.exit_code, f"{step.where}: exit code {done.returncode}\n{done.stdout}"
    assert not problem, f"{step.where}: {problem}\n{done.stdout}"


def test_every_page_is_followed() -> None:
    assert sorted(ORDER) == sorted(path.name for path in RUNBOOKS.glob("*.md"))


@pytest.mark.full
@pytest.mark.parametrize("page", ORDER)
def test_a_page_does_what_it_says(lab: Lab, page: str) -> None:
    for step in steps(page, Path(RUNBOOKS / page).read_text()):
        started_s = time.monotonic()
        follow(lab, step)
        print(f"{time.monotonic() - started_s:5.1f} s  {step.where}")
