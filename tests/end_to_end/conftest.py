"""Real hosts for the end-to-end tests, and the commands that an operator would type."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT

CFN = "/opt/cfn/current/bin/cfn"


@dataclass(frozen=True)
class Played:
    """A playbook's run: its exit code, everything it printed, and how many changes it reported."""

    returncode: int
    output: str

    @property
    def changed(self) -> int:
        """The sum over all hosts."""
        return sum(int(count) for count in re.findall(r"changed=(\d+)", self.output))

    @property
    def changed_tasks(self) -> list[str]:
        """Names of the tasks that reported a change, in order."""
        found: list[str] = []
        task = ""
        for line in self.output.splitlines():
            heading = re.match(r"(?:TASK|RUNNING HANDLER) \[(.*?)\]", line)
            task = heading[1] if heading else task
            if line.startswith("changed: ") and (not found or found[-1] != task):
                found.append(task)
        return found


@dataclass(frozen=True)
class Lab:
    """A lab of its own, with an inventory of its own."""

    name: str
    inventory: Path

    def play(self, playbook: str, *arguments: str) -> Played:
        """Run a playbook of the project's root on this lab."""
        done = subprocess.run(
            self.argv(playbook, *arguments), capture_output=True, text=True, cwd=PROJECT, check=False
        )
        return Played(done.returncode, done.stdout + done.stderr)

    def argv(self, playbook: str, *arguments: str) -> list[str]:
        """The command that `play` runs."""
        return ["ansible-playbook", "-i", str(self.inventory), playbook, *arguments]

    def run(self, host: str, command: str, *, check: bool = True) -> str:
        """Run a shell line as root on a host, and return what it printed."""
        argv = ["lab", "--name", self.name, "sh", host, "--", "sudo", "bash", "-c", command]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if check and done.returncode != 0:
            raise AssertionError(f"{host}: {command}: {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def cfn(self, host: str, *arguments: str, check: bool = True) -> dict[str, Any]:
        """Run `cfn ... --json` on a host."""
        found: dict[str, Any] = json.loads(self.run(host, f"{CFN} {' '.join(arguments)} --json", check=check))
        return found


@pytest.fixture(scope="session", autouse=True)
def commands_on_path() -> Iterator[None]:
    """`lab` and `ansible-playbook` come from the same environment as these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        yield


def make_lab(name: str, spec: Path, folder: Path) -> Iterator[Lab]:
    """Start a lab, and remove it in the end whatever happens."""
    folder.mkdir()
    (folder / "group_vars").symlink_to(PROJECT / "inventories/lab/group_vars")
    name = f"{name}-{os.getpid()}"
    try:
        subprocess.run(
            ["lab", "--name", name, "up", "--spec", str(spec), "--inventory", str(folder)],
            check=True,
            capture_output=True,
        )
        yield Lab(name, folder)
    finally:
        subprocess.run(["lab", "--name", name, "down"], check=True, capture_output=True)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two fit hosts, `one` and `two`; the first is the control host. Stage 1 is deployed."""
    for lab in make_lab("pair", PROJECT / "lab/specs/pair.yml", tmp_path_factory.mktemp("pair") / "i"):
        first = lab.play("stage1.yml")
        assert first.returncode == 0, first.output
        yield lab
