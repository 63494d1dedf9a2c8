"""An engine as it is deployed: a lab of one real systemd host, the release and the role of the rollout.

The host is a container on this machine, so its socket, files and processes are reached from outside
through /proc/LEADER/root, and nothing of the bench runs in it.
"""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cfn.paths import Paths
from engine.bench import processes
from engine.bench.engine import Engine, base_configuration

HERE = Path(__file__).parent
INVENTORY = Path("inventories/bench")


class Deployed:
    """The place: a host whose first process is `leader`."""

    def __init__(self, leader: int) -> None:
        self.paths = Paths(Path(f"/proc/{leader}/root"))
        self.namespace = processes.namespace(leader)
        self.environment = b""
        self.commands = "/coordination"
        self._leader = leader

    def argv(self, words: Sequence[str]) -> list[str]:
        return ["nsenter", f"--target={self._leader}", "--all", "--", *words]

    def restart_conductor(self) -> None:
        subprocess.run(self.argv(["systemctl", "restart", "cfn-coordination.service"]), check=True)


@contextmanager
def deployed(lab: str) -> Iterator[Engine]:
    """A ready engine on the host of the lab named `lab`, which is removed afterwards. Needs root."""
    name = ["--name", lab]
    subprocess.run(
        ["lab", "up", *name, "--spec", HERE / "lab.yml", "--inventory", INVENTORY], check=True
    )  # fmt: skip
    try:
        subprocess.run(
            ["ansible-playbook", "--inventory", INVENTORY, HERE / "deploy.yml",
             "--extra-vars", json.dumps({"bench_configuration": base_configuration()})],
            check=True,
        )  # fmt: skip
        listed = subprocess.run(["lab", "ls", *name, "--json"], check=True, capture_output=True)
        engine = Engine(Deployed(json.loads(listed.stdout)["hosts"][0]["leader"]))
        engine.until(engine.ready, "the engine did not start")
        yield engine
    finally:
        subprocess.run(["lab", "down", *name], check=True)
